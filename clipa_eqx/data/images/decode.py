"""Decoding of image files (JPEG, PNG, BMP, GIF, WebP) to RGB uint8, with limits on size and checks for damage."""

import io
import math
import struct
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from clipa_eqx.errors import DataError

MAX_PIXELS = 2**26
"""Default limit of decoded pixels: 8192 x 8192, 200 MB of RGB. Images of the web are far smaller; the limit protects
the memory of a worker from decompression bombs."""

# Only the scales that libjpeg-turbo vectorizes: 3/8 takes longer than 1/2, and 5/8 twice as long as the full image.
_SCALES = (1 / 8, 1 / 4, 1 / 2)

_FORMATS = ("PNG", "BMP", "GIF", "WEBP")
# Start of the APP14 segment.
_ADOBE = b"\xff\xee\x00\x0eAdobe"
# Warnings of libjpeg after which every pixel is still decoded. Such files are common on the web, and the reference
# accepts them. Any other warning means that pixels are missing or invented.
_HARMLESS = ("extraneous bytes before marker", "unknown JFIF revision", "Adobe color transform", "bad ICC marker")


class ImageSize(NamedTuple):
    """Size of an image in pixels, as stored: EXIF rotation is ignored."""

    height: int
    width: int


class JpegHeader(NamedTuple):
    """Size of a JPEG and the color space in which it is stored."""

    size: ImageSize
    colorspace: str


def image_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageSize:
    """Read height and width from the header (in microseconds for a JPEG).

    Raises:
        DataError: not an image, an unknown format, or more than ``max_pixels``.
    """
    if is_jpeg(data):
        return jpeg_header(data, max_pixels=max_pixels).size
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])  # Pillow would parse every chunk
        if min(height, width) > 0 and height * width <= max_pixels:
            return ImageSize(height, width)
    return _open(data, max_pixels=max_pixels)[1]


def is_jpeg(data: bytes) -> bool:
    """True if the data start like a JPEG file."""
    return data[:3] == b"\xff\xd8\xff"


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "height width 3"]:
    """Decode an image file to RGB as the reference does (``tf.io.decode_image``, accurate DCT for JPEG).

    Gray is repeated in all channels, alpha is dropped without blending, 16-bit PNG keeps the high byte, GIF its first
    frame. EXIF rotation is ignored.

    Raises:
        DataError: empty, truncated, damaged, an unknown format, or more than ``max_pixels``.
    """
    if is_jpeg(data):
        return decode_jpeg_scaled(data, max_pixels=max_pixels)
    image, _ = _open(data, max_pixels=max_pixels)
    try:
        if image.mode.startswith("I"):
            levels = np.asarray(image)
            gray = (levels >> 8).astype(np.uint8)
            return np.repeat(gray[..., None], 3, axis=-1)
        return np.array(image.convert("RGB"))
    # Pillow's decoders raise OSError, SyntaxError, EOFError, zlib.error and more on damaged files.
    except Exception as error:
        raise DataError(f"cannot decode {image.format} image of {len(data)} bytes: {error}") from error


def decode_jpeg_scaled(
    data: bytes, *, min_height: int = 0, min_width: int = 0, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a JPEG at the smallest DCT scale of 1/2, 1/4, 1/8 with at least ``min_height`` x ``min_width`` pixels.

    The result has full size if no scale is large enough, or if both limits are 0.

    Raises:
        DataError: not a JPEG, truncated, damaged, or more than ``max_pixels``.
    """
    if not is_jpeg(data):
        raise DataError(f"decode_jpeg_scaled got {len(data)} bytes that do not start like a JPEG; use decode_image")
    header = jpeg_header(data, max_pixels=max_pixels)
    scale = jpeg_scale(header.size, min_height=min_height, min_width=min_width)
    return decode_jpeg_at(data, header, scale=scale)


def decode_jpeg_at(data: bytes, header: JpegHeader, *, scale: float) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a JPEG, whose header was read, at a scale that ``jpeg_scale`` returned; scaled sides are rounded up.

    Raises:
        DataError: truncated or damaged.
    """
    options: dict[str, Any] = {}
    if scale < 1:
        options = {
            "min_height": math.ceil(header.size.height * scale),
            "min_width": math.ceil(header.size.width * scale),
            "min_factor": 1 / scale,
        }
    if header.colorspace not in ("CMYK", "YCCK"):
        return _decode_jpeg(data, "RGB", options)
    ink = _decode_jpeg(data, "CMYK", options).astype(np.uint16)
    if _ADOBE not in data:  # Adobe stores ink inverted, so that white is 255; without its mark ink is not inverted
        ink = 255 - ink
    return (ink[..., :3] * ink[..., 3:] // 255).astype(np.uint8)


def jpeg_scale(size: ImageSize, *, min_height: int, min_width: int) -> float:
    """Scale that ``decode_jpeg_scaled`` chooses for an image of ``size``; scaled sides are rounded up."""
    if min_height <= 0 and min_width <= 0:
        return 1.0
    fits = (s for s in _SCALES if math.ceil(size.height * s) >= min_height and math.ceil(size.width * s) >= min_width)
    return next(fits, 1.0)


def _decode_jpeg(data: bytes, colorspace: str, options: dict[str, Any]) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(data, colorspace, **options)
    except ValueError as error:
        if not any(warning in str(error) for warning in _HARMLESS):
            raise DataError(f"cannot decode JPEG image of {len(data)} bytes: {error}") from error
    try:
        return simplejpeg.decode_jpeg(data, colorspace, strict=False, **options)
    except (ValueError, KeyError) as error:
        raise DataError(f"cannot decode JPEG image of {len(data)} bytes: {error}") from error


def jpeg_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> JpegHeader:
    """Read the header of a JPEG.

    Raises:
        DataError: the header is damaged, or the image has more than ``max_pixels``.
    """
    try:
        header = simplejpeg.decode_jpeg_header(data, strict=False)
    # ValueError with libjpeg's message, or KeyError if the damage left no valid color space.
    except (ValueError, KeyError) as error:
        raise DataError(f"cannot read the header of a JPEG image of {len(data)} bytes: {error}") from error
    size = ImageSize(int(header[0]), int(header[1]))
    _check_pixels(size, max_pixels=max_pixels)
    return JpegHeader(size, str(header[2]))


def _open(data: bytes, *, max_pixels: int) -> tuple[Image.Image, ImageSize]:
    if not data:
        raise DataError("cannot decode image: got 0 bytes")
    file = io.BytesIO(data)
    try:
        image = Image.open(file, formats=_FORMATS)
    except Exception as error:  # the same classes, and Pillow's own error for decompression bombs
        start = data[:8].hex(" ")
        # Pillow names the object with its address, which differs from run to run.
        reason = str(error).replace(repr(file), "").strip()
        raise DataError(
            f"cannot decode image of {len(data)} bytes that start with {start}: expected a complete file, JPEG, "
            f"{', '.join(_FORMATS)} ({type(error).__name__}: {reason})"
        ) from error
    size = ImageSize(image.height, image.width)
    _check_pixels(size, max_pixels=max_pixels)
    return image, size


def _check_pixels(size: ImageSize, *, max_pixels: int) -> None:
    if math.prod(size) > max_pixels:
        raise DataError(
            f"image of {size.width} x {size.height} pixels is over the limit of {max_pixels}; "
            "drop it at conversion or pass a larger max_pixels"
        )
