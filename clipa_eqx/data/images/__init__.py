"""Image processing on the host: decoding, crops, resizing, augmentation, pixel normalization; imports no jax."""
