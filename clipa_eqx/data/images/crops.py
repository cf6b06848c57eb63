"""Crops: random boxes with the reference's distribution, and central boxes."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from clipa_eqx.data.images.resize import Method, Rounding, resize
from clipa_eqx.errors import ConfigError


class CropBox(NamedTuple):
    """Rectangle in whole pixels of the full image."""

    top: int
    left: int
    height: int
    width: int


def sample_crop_box(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    area: tuple[float, float] = (0.4, 1.0),
    aspect: tuple[float, float] = (0.75, 1.33),
    attempts: int = 100,
) -> CropBox:
    """Sample a box as ``inception_crop`` of the reference does (``sample_distorted_bounding_box`` of TensorFlow).

    The share of the area is *not* uniform. The height is uniform, from the smallest height that has the least area to
    the largest that fits. If no attempt fits (very long images), the box is the full image. ``area=(1, 1)`` is the full
    image without sampling.

    Args:
        rng: source of the random numbers.
        height: height of the full image in pixels.
        width: width of the full image in pixels.
        area: (least, most) share of the image.
        aspect: (least, most) width / height of the box.
        attempts: number of boxes to try.

    Raises:
        ConfigError: ranges that are empty, reversed or outside (0, 1] for the area.
    """
    check_crop_ranges(area=area, aspect=aspect)
    full = CropBox(0, 0, height, width)
    if area[0] == 1.0:
        return full
    least, most = area[0] * width * height, area[1] * width * height
    for _ in range(attempts):
        ratio = aspect[0] + (aspect[1] - aspect[0]) * rng.random()
        box = _attempt(rng, height, width, ratio=ratio, least=least, most=most)
        if box is not None:
            return box
    return full


def check_crop_ranges(*, area: tuple[float, float], aspect: tuple[float, float]) -> None:
    """Raise ConfigError unless 0 < area[0] <= area[1] <= 1 and 0 < aspect[0] <= aspect[1]."""
    if not 0 < area[0] <= area[1] <= 1:
        raise ConfigError(f"crop area={area} must be (least, most) with 0 < least <= most <= 1")
    if not 0 < aspect[0] <= aspect[1]:
        raise ConfigError(f"crop aspect={aspect} must be (least, most) width / height with 0 < least <= most")


def crop(image: UInt8[np.ndarray, "height width 3"], box: CropBox) -> UInt8[np.ndarray, "out_height out_width 3"]:
    """Return a view of the pixels inside ``box``."""
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def crop_and_resize(
    image: UInt8[np.ndarray, "height width 3"],
    box: CropBox,
    *,
    size: tuple[int, int],
    method: Method = "bilinear",
    antialias: bool = True,
    rounding: Rounding = "truncate",
) -> UInt8[np.ndarray, "out_height out_width 3"]:
    """Crop, then squash to ``size`` (height, width). As in the reference, pixels outside the box have no influence.

    Raises:
        ConfigError: a side of ``size`` below 1 or an unknown method.
    """
    return resize(crop(image, box), size=size, method=method, antialias=antialias, rounding=rounding)


def central_box(height: int, width: int, *, size: tuple[int, int]) -> CropBox:
    """Box of ``size`` (height, width) in the center of an image; its offset is rounded down.

    Raises:
        ConfigError: the image is smaller than ``size``.
    """
    if size[0] > height or size[1] > width:
        raise ConfigError(f"central crop of {size} does not fit into an image of {(height, width)}; resize it first")
    return CropBox((height - size[0]) // 2, (width - size[1]) // 2, *size)


def central_crop(
    image: UInt8[np.ndarray, "height width 3"], *, size: tuple[int, int]
) -> UInt8[np.ndarray, "out_height out_width 3"]:
    """Return a view of the central ``size`` (height, width).

    Raises:
        ConfigError: the image is smaller than ``size``.
    """
    return crop(image, central_box(image.shape[0], image.shape[1], size=size))


def _attempt(
    rng: np.random.Generator, height: int, width: int, *, ratio: float, least: float, most: float
) -> CropBox | None:
    low, high = round(math.sqrt(least / ratio)), round(math.sqrt(most / ratio))
    if round(high * ratio) > width:  # the largest height whose rounded width still fits
        high = int((width + 0.5 - 1e-7) / ratio)
        high -= round(high * ratio) > width
    high = min(high, height)
    low = min(low, high)
    if low < high:
        low += int(rng.integers(high - low + 1))
    tall, wide = low, round(low * ratio)
    # Rounding can miss the bounds by one pixel; the reference repairs the height once each way.
    if tall * wide < least:
        tall += 1
        wide = round(tall * ratio)
    if tall * wide > most:
        tall -= 1
        wide = round(tall * ratio)
    if not (least <= tall * wide <= most and 0 < tall <= height and 0 < wide <= width):
        return None
    # The last offset is never sampled, as in the reference.
    top = int(rng.integers(height - tall)) if tall < height else 0
    left = int(rng.integers(width - wide)) if wide < width else 0
    return CropBox(top, left, tall, wide)
