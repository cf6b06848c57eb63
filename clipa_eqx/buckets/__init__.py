"""Folders in buckets: their objects, and local copies of their small files."""
