"""Checkpoints of the reference's t5x branch, in."""
