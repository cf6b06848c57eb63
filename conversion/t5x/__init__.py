"""Import of checkpoints of the reference's t5x branch."""
