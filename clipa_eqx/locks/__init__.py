"""Locks of folders, local and in buckets: one owner at a time on any host, whatever became of the one before it."""
