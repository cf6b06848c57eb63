"""Records, streams and image processing; nothing here imports jax, so that worker processes stay light."""
