"""Color jitter and gray of SimCLR as in CLIPA: random parameters, and a pure function of pixels and parameters."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from clipa_eqx.errors import ConfigError

ColorOp = Literal["brightness", "contrast", "saturation", "hue"]

# The order in which the reference numbers them.
COLOR_OPS: tuple[ColorOp, ...] = ("brightness", "contrast", "saturation", "hue")

_LUMA = (0.2989, 0.5870, 0.1140)
# Sextants of the hue: red is least at 3; green and blue are largest between 1 and 3, and between 3 and 5.
_OPPOSITE = np.asarray([3, 2, 4], np.float32)[:, None, None]

# One plane per channel, values 0..1: elementwise work on planes is twice as fast as on interleaved pixels.
Planes = Float32[np.ndarray, "3 height width"]


@dataclass(frozen=True, kw_only=True)
class ColorConfig:
    """Ranges of random color changes, as ``simclr_jitter_gray`` of the reference.

    Attributes:
        strength: spread; factors are 1 +- 0.8 strength, the hue changes by up to +- 0.2 strength turns.
        jitter_probability: probability of the jitter.
        gray_probability: probability of the conversion to gray.

    Raises:
        ConfigError: a strength outside [0, 1.25] or a probability outside [0, 1].
    """

    strength: float = 0.4
    jitter_probability: float = 0.8
    gray_probability: float = 0.2

    def __post_init__(self) -> None:
        # Above 1.25 a factor could be negative.
        if not 0 <= self.strength <= 1.25:
            raise ConfigError(f"color.strength={self.strength} must be between 0 and 1.25")
        for name in ("jitter_probability", "gray_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"color.{name}={getattr(self, name)} must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class ColorChange:
    """Color change of one image.

    Attributes:
        order: steps of the jitter in their order; may be empty.
        brightness: factor; this and the next three are used only if ``order`` has their step.
        contrast: factor.
        saturation: factor.
        hue: change in turns.
        gray: conversion to gray after the jitter.
    """

    order: tuple[ColorOp, ...] = ()
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    gray: bool = False


def sample_color(rng: np.random.Generator, config: ColorConfig) -> ColorChange:
    """Sample the change of one image; always takes the same number of values from ``rng``."""
    jitter, gray, *spread = rng.random(6).tolist()
    order = rng.permutation(4).tolist()
    span = 0.8 * config.strength
    brightness, contrast, saturation = (1 + span * (2 * u - 1) for u in spread[:3])
    return ColorChange(
        order=tuple(COLOR_OPS[i] for i in order) if jitter < config.jitter_probability else (),
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=0.2 * config.strength * (2 * spread[3] - 1),
        gray=gray < config.gray_probability,
    )


def apply_color(image: UInt8[np.ndarray, "height width 3"], change: ColorChange) -> UInt8[np.ndarray, "height width 3"]:
    """Apply the steps of ``change.order``, each clipped to 0..1, then gray, then truncate to uint8.

    Without any step and gray the image itself is returned.
    """
    if not change.order and not change.gray:
        return image
    x = to_planes(image)
    for step in change.order:
        x = _apply(x, step, change)
        _clip_unit(x)
    if change.gray:
        x = to_gray(x)
    x *= np.float32(255)  # within 0..255: every step was clipped
    levels = x.astype(np.uint8)
    out = np.empty(image.shape, np.uint8)
    for channel in range(3):  # ten times faster than one transposed copy
        out[..., channel] = levels[channel]
    return out


def to_planes(image: UInt8[np.ndarray, "height width 3"]) -> Planes:
    """Convert levels 0..255 to planes of values 0..1."""
    return np.ascontiguousarray(np.moveaxis(image, -1, 0)).astype(np.float32) / np.float32(255)


def adjust_brightness(planes: Planes, factor: float) -> Planes:
    """Multiply all values by ``factor`` (the "simclrv2" kind of brightness)."""
    return planes * np.float32(factor)


def adjust_contrast(planes: Planes, factor: float) -> Planes:
    """Multiply the distances from each channel's mean by ``factor``."""
    # The pairwise float32 mean and this form (not x f + m (1 - f)) equal TensorFlow's to the last bit. Otherwise
    # truncation to uint8 would show the difference.
    mean = planes.reshape(3, -1).mean(axis=-1)[:, None, None]
    adjusted = planes - mean
    adjusted *= np.float32(factor)
    adjusted += mean
    return adjusted


def adjust_saturation(planes: Planes, factor: float) -> Planes:
    """Multiply the HSV saturation by ``factor``, up to 1; hue and value stay."""
    value, spread = _value_and_spread(planes)
    # Distances from the value scale with the saturation spread / value, which must not exceed 1.
    scale = np.minimum(np.float32(factor), value / spread)
    adjusted = value - planes
    adjusted *= scale
    return np.subtract(value, adjusted, out=adjusted)


def adjust_hue(planes: Planes, delta: float) -> Planes:
    """Turn the HSV hue by ``delta`` turns; saturation and value stay."""
    red, green, blue = planes
    value, spread = _value_and_spread(planes)
    # Products with 0 and 1 instead of np.where, which is ten times slower on unpredictable masks.
    is_red = (red == value).astype(np.float32)
    is_green = (green == value).astype(np.float32) * (np.float32(1) - is_red)
    is_blue = np.float32(1) - is_red - is_green
    # Position in sextants: 0 red, 2 green, 4 blue.
    sextant = ((green - blue) * is_red + (blue - red) * is_green + (red - green) * is_blue) / spread
    sextant += np.float32(2) * is_green + np.float32(4) * is_blue + np.float32(6 * delta)
    sextant -= np.float32(6) * np.floor(sextant / np.float32(6))
    # Each channel's share of the spread below the value: trapezoids around red, green and blue.
    below = np.abs(sextant - _OPPOSITE)
    below[0] = np.float32(2) - below[0]
    below[1:] -= np.float32(1)
    _clip_unit(below)
    below *= spread
    return np.subtract(value, below, out=below)


def to_gray(planes: Planes) -> Planes:
    """Set all three channels to the luma 0.2989 R + 0.5870 G + 0.1140 B."""
    red, green, blue = (plane * np.float32(weight) for plane, weight in zip(planes, _LUMA, strict=True))
    return np.repeat((red + green + blue)[None], 3, axis=0)


class _Spread(NamedTuple):
    value: np.ndarray  # largest channel
    spread: np.ndarray  # largest minus smallest channel; tiny instead of 0, so that it can be a divisor


def _value_and_spread(planes: Planes) -> _Spread:
    red, green, blue = planes
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    return _Spread(value, np.maximum(spread, np.float32(1e-20), out=spread))


def _clip_unit(planes: Planes) -> None:
    np.clip(planes, np.float32(0), np.float32(1), out=planes)  # maximum and minimum in place take ten times as long


def _apply(planes: Planes, step: ColorOp, change: ColorChange) -> Planes:
    match step:
        case "brightness":
            return adjust_brightness(planes, change.brightness)
        case "contrast":
            return adjust_contrast(planes, change.contrast)
        case "saturation":
            return adjust_saturation(planes, change.saturation)
        case "hue":
            return adjust_hue(planes, change.hue)
