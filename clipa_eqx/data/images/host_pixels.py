"""Pixel normalization on the host, with numpy; ``models.device_pixels`` does the same in the compiled step."""

import numpy as np
from jaxtyping import Float32, UInt8

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize_on_host(image: UInt8[np.ndarray, "*shape 3"]) -> Float32[np.ndarray, "*shape 3"]:
    """Map levels 0..255 to ``(level - 255 mean) / (255 std)`` per channel, as ``vgg_value_range`` of the reference."""
    mean = np.asarray(IMAGENET_MEAN, np.float32) * np.float32(255)
    std = np.asarray(IMAGENET_STD, np.float32) * np.float32(255)
    return (image.astype(np.float32) - mean) / std
