"""Model folders on disk: weights, description, optimizer state, and how folders are replaced."""
