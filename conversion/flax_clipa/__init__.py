"""Weights of the reference's JAX code: Flax checkpoints as ``.npz``, in and out."""
