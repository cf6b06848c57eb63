"""Pixel value ranges: ImageNet constants and the two normalizations that models and evaluators use."""

import numpy as np
from jaxtyping import Float32, UInt8

from clipa_eqx.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize_on_host(image: UInt8[np.ndarray, "*shape 3"]) -> Float32[np.ndarray, "*shape 3"]:
    """Levels 0..255 to (x - 255 mean) / (255 std) per channel, as ``vgg_value_range`` of the reference."""
    mean = np.asarray(IMAGENET_MEAN, np.float32) * np.float32(255)
    std = np.asarray(IMAGENET_STD, np.float32) * np.float32(255)
    return (image.astype(np.float32) - mean) / std


def scale_values(
    image: UInt8[np.ndarray, "*shape"] | Float32[np.ndarray, "*shape"],
    *,
    out: tuple[float, float] = (-1.0, 1.0),
    source: tuple[float, float] = (0.0, 255.0),
    clip: bool = False,
) -> Float32[np.ndarray, "*shape"]:
    """Map the range ``source`` linearly onto ``out`` (``value_range`` of the reference), clipped to ``out`` if asked.

    Raises:
        ConfigError: one of the ranges is empty or reversed.
    """
    for name, (low, high) in (("source", source), ("out", out)):
        if not low < high:
            raise ConfigError(f"scale_values: {name}={(low, high)} must be (low, high) with low < high")
    unit = (image.astype(np.float32) - np.float32(source[0])) / np.float32(source[1] - source[0])
    scaled = np.float32(out[0]) + unit * np.float32(out[1] - out[0])
    return np.clip(scaled, np.float32(out[0]), np.float32(out[1])) if clip else scaled
