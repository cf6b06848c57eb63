"""The fast path of image processing: JPEG at reduced DCT scale and Pillow's fixed-point resize of a region.

Only the filtering of pixels differs from the exact path; which region is shown does not.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from clipa_eqx.data.decode import decode_image, decode_jpeg_scaled, image_size, is_jpeg, jpeg_scale


class Region(NamedTuple):
    """A rectangle in pixels of the full picture; edges may lie inside pixels."""

    top: float
    left: float
    height: float
    width: float


class ScaledImage(NamedTuple):
    """A decoded picture and its scale: pixels per pixel of the full picture."""

    pixels: np.ndarray  # UInt8 (height, width, 3)
    scale: float


def decode_for_region(data: bytes, region: Region, *, size: tuple[int, int]) -> ScaledImage:
    """Decode just finely enough that ``region`` has at least ``size`` (height, width) pixels; full unless JPEG.

    Raises:
        DataError: as ``decode_image``.
    """
    if not is_jpeg(data):
        return ScaledImage(decode_image(data), 1.0)
    full = image_size(data)
    wanted = max(size[0] / region.height, size[1] / region.width)
    least = {"min_height": math.ceil(full.height * wanted), "min_width": math.ceil(full.width * wanted)}
    return ScaledImage(decode_jpeg_scaled(data, **least), jpeg_scale(full, **least))


def resample(
    image: ScaledImage, region: Region, *, size: tuple[int, int]
) -> UInt8[np.ndarray, "out_height out_width 3"]:
    """Squash ``region`` to ``size`` (height, width), bilinear with antialias, rounded to nearest."""
    height, width = image.pixels.shape[:2]
    top, left = region.top * image.scale, region.left * image.scale
    bottom = min(top + region.height * image.scale, height)
    right = min(left + region.width * image.scale, width)
    # Pillow's filter would reach beyond its box; cut, so that pixels outside the region do not count.
    first_row, first_column = math.floor(top), math.floor(left)
    part = image.pixels[first_row : math.ceil(bottom), first_column : math.ceil(right)]
    box = (left - first_column, top - first_row, right - first_column, bottom - first_row)
    if part.shape[:2] == size and box == (0, 0, size[1], size[0]):
        return part.copy()
    picture = Image.fromarray(np.ascontiguousarray(part))
    return np.array(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box))
