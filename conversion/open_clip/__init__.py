"""Import and export of open_clip models."""
