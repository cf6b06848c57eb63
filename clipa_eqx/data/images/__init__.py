"""Images: decoding, crops, resizing, augmentation, pixel values; free of jax."""
