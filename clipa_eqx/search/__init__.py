"""Embeddings on disk, and searching them: what is embedded, shards, exact and approximate search, folders of photos."""
