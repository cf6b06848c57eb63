"""Fast path of image processing: JPEG decoding at a reduced DCT scale and a vectorized resize of a region.

It shows the same region as the exact path; only the filtering of pixels differs.
"""

import importlib.util
import math
import threading
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from clipa_eqx.data.images.decode import JpegHeader, decode_image, decode_jpeg_at, is_jpeg, jpeg_header, jpeg_scale

# The package has no wheel for Linux on ARM. There Pillow does the same in five times the time.
_IS_VECTORIZED = importlib.util.find_spec("cykooz_resizer") is not None

# One resizer per thread, because it keeps buffers between calls.
_own = threading.local()


class Box(NamedTuple):
    """Part of an array of pixels, in pixels; edges may be inside pixels."""

    left: float
    top: float
    width: float
    height: float


class Region(NamedTuple):
    """Rectangle in pixels of the full image; edges may be inside pixels."""

    top: float
    left: float
    height: float
    width: float


class ScaledImage(NamedTuple):
    """Decoded image and its scale, in pixels per pixel of the full image."""

    pixels: UInt8[np.ndarray, "height width 3"]
    scale: float


def decode_for_region(
    data: bytes, region: Region, *, size: tuple[int, int], header: JpegHeader | None = None
) -> ScaledImage:
    """Decode at the smallest scale at which ``region`` has at least ``size`` (height, width) pixels.

    Formats other than JPEG are decoded at full scale. ``header`` is that of a JPEG, if it was read before.

    Raises:
        DataError: the bytes are not a complete image (see ``decode_image``).
    """
    if not is_jpeg(data):
        return ScaledImage(decode_image(data), 1.0)
    header = header or jpeg_header(data)
    full = header.size
    wanted = max(size[0] / region.height, size[1] / region.width)
    scale = jpeg_scale(full, min_height=math.ceil(full.height * wanted), min_width=math.ceil(full.width * wanted))
    return ScaledImage(decode_jpeg_at(data, header, scale=scale), scale)


def resample(
    image: ScaledImage, region: Region, *, size: tuple[int, int]
) -> UInt8[np.ndarray, "out_height out_width 3"]:
    """Squash ``region`` to ``size`` (height, width): bilinear with antialias, rounded to the nearest level."""
    height, width = image.pixels.shape[:2]
    top, left = region.top * image.scale, region.left * image.scale
    bottom = min(top + region.height * image.scale, height)
    right = min(left + region.width * image.scale, width)
    # The filter reaches beyond its box. Pixels outside the region are cut off, so that they have no influence.
    first_row, first_column = math.floor(top), math.floor(left)
    part = image.pixels[first_row : math.ceil(bottom), first_column : math.ceil(right)]
    from_left, from_top = left - first_column, top - first_row
    box = Box(
        from_left,
        from_top,
        _within(from_left, right - left, part.shape[1]),
        _within(from_top, bottom - top, part.shape[0]),
    )
    if part.shape[:2] == size == (box.height, box.width):
        return part.copy()
    return resize_vectorized(part, box, size=size) if _IS_VECTORIZED else resize_with_pillow(part, box, size=size)


def resize_vectorized(
    part: UInt8[np.ndarray, "height width 3"], box: Box, *, size: tuple[int, int]
) -> UInt8[np.ndarray, "out_height out_width 3"]:
    """Resize like ``resize_with_pillow``, with vector instructions; results differ by at most one level of 255."""
    import cykooz_resizer as fast

    if not hasattr(_own, "resizer"):
        _own.resizer = fast.Resizer()
        _own.options = fast.ResizeOptions(fast.ResizeAlg.convolution(fast.FilterType.bilinear), use_alpha=False)
    source: Any = fast.ImageData(part.shape[1], part.shape[0], fast.PixelType.U8x3, part.tobytes())
    target: Any = fast.ImageData(size[1], size[0], fast.PixelType.U8x3)
    _own.options.crop_box = fast.CropBox(*box)
    _own.resizer.resize(source, target, _own.options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(*size, 3)


def resize_with_pillow(
    part: UInt8[np.ndarray, "height width 3"], box: Box, *, size: tuple[int, int]
) -> UInt8[np.ndarray, "out_height out_width 3"]:
    """Squash a box of pixels to ``size`` (height, width): bilinear with antialias, rounded to the nearest level."""
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    image = Image.fromarray(np.ascontiguousarray(part))
    return np.array(image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=edges))


def _within(start: float, length: float, limit: int) -> float:
    """Length of a box, shortened if rounding moved its end past ``limit``."""
    return length if start + length <= limit else limit - start - 1e-6
