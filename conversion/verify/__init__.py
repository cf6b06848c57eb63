"""Check of a model folder."""
