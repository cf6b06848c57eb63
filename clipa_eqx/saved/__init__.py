"""Model folders on disk: weights, description, provenance, optimizer state; and the decision what a folder is."""
