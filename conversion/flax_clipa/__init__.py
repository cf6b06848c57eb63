"""Import and export of the reference's Flax checkpoints (``.npz``)."""
