"""The fast path of image processing: JPEG at reduced DCT scale and a vectorised resize of a region.

Only the filtering of pixels differs from the exact path; which region is shown does not.
"""

import math
import threading
from typing import NamedTuple

import numpy as np
from cykooz_resizer import CropBox, FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
from jaxtyping import UInt8

from clipa_eqx.data.decode import decode_image, decode_jpeg_scaled, image_size, is_jpeg, jpeg_scale

# Of each thread its own, because it keeps buffers between calls.
_own = threading.local()


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
    """Squash ``region`` to ``size`` (height, width), bilinear with antialias, rounded to nearest.

    The arithmetic is Pillow's (the same fixed-point sums, up to one level), in vector instructions.
    """
    height, width = image.pixels.shape[:2]
    top, left = region.top * image.scale, region.left * image.scale
    bottom = min(top + region.height * image.scale, height)
    right = min(left + region.width * image.scale, width)
    # The filter would reach beyond its box; cut, so that pixels outside the region do not count.
    first_row, first_column = math.floor(top), math.floor(left)
    part = image.pixels[first_row : math.ceil(bottom), first_column : math.ceil(right)]
    from_left, from_top = left - first_column, top - first_row
    across = _within(from_left, right - left, part.shape[1])
    down = _within(from_top, bottom - top, part.shape[0])
    if part.shape[:2] == size == (down, across):
        return part.copy()
    source = ImageData(part.shape[1], part.shape[0], PixelType.U8x3, part.tobytes())
    target = ImageData(size[1], size[0], PixelType.U8x3)
    resizer, options = _resizer()
    options.crop_box = CropBox(from_left, from_top, across, down)
    resizer.resize(source, target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(*size, 3)


def _within(start: float, length: float, limit: int) -> float:
    """The length of a box that rounding might have pushed past the edge."""
    return length if start + length <= limit else limit - start - 1e-6


def _resizer() -> tuple[Resizer, ResizeOptions]:
    if not hasattr(_own, "resizer"):
        _own.resizer = Resizer()
        _own.options = ResizeOptions(ResizeAlg.convolution(FilterType.bilinear), use_alpha=False)
    return _own.resizer, _own.options
