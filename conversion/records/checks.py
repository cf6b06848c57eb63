"""Check of a row: one record, or the reason why not; large images are made smaller on request."""

import sys
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from clipa_eqx.data.images.decode import MAX_PIXELS, ImageSize, decode_image, decode_jpeg_scaled, image_size, is_jpeg
from clipa_eqx.data.records import LABELS, Record
from clipa_eqx.errors import DataError
from conversion.records.labels import Classes
from conversion.records.options import IngestOptions
from conversion.records.rows import (
    CAPTION_NOT_UTF8,
    EMPTY_CAPTION,
    KEY_NOT_UTF8,
    MISSING_CAPTION,
    MISSING_IMAGE,
    MISSING_LABEL,
    NO_CLASS,
    TOO_MANY_PIXELS,
    TOO_SMALL,
    UNDECODABLE,
    Lost,
    Row,
    printable,
    short_key,
    shortened,
)

_ANY_CLASS = Classes()


class CheckedRow(NamedTuple):
    """A record, and the reason for each caption that was left out of it."""

    record: Record
    captions_lost: tuple[str, ...] = ()


def check_row(
    row: Row,
    *,
    options: IngestOptions,
    key_prefix: str = "",
    labeled: bool = False,
    classes: Classes = _ANY_CLASS,
) -> CheckedRow | Lost:
    """The record of a row, or the first reason that applies.

    The image must have been read (see ``Row.image``). In order: key is not UTF-8, missing image, missing label
    (``labeled`` sources, whose captions are optional), no class name, captions (each missing, empty or not UTF-8; one
    good caption is enough), undecodable image, too many pixels, too small.
    """
    shown = row.key if isinstance(row.key, str) else row.key.decode(errors="backslashreplace")
    key = _as_text(row.key)
    if key is None:
        return Lost(reason=KEY_NOT_UTF8, key=printable(shown))
    key = short_key(key_prefix + key)
    if not isinstance(row.image, bytes) or not row.image:
        return Lost(reason=MISSING_IMAGE, key=key, detail=row.image if isinstance(row.image, str) else "")
    captions: list[str] = []
    lost: list[str] = []
    for caption in row.captions:
        text = None if caption is None else _as_text(caption)
        if text is not None and text.strip():
            captions.append(text)
        else:
            lost.append(MISSING_CAPTION if caption is None else CAPTION_NOT_UTF8 if text is None else EMPTY_CAPTION)
    if labeled and not row.labels:
        return Lost(reason=MISSING_LABEL, key=key)
    numbers = [classes.number(label) for label in row.labels]
    for label, number in zip(row.labels, numbers, strict=True):
        if not classes.has(number):
            return Lost(reason=NO_CLASS, key=key, detail=f"label {shortened(str(label), 100)}")
    if not captions and not labeled:
        return Lost(reason=lost[0] if lost else MISSING_CAPTION, key=key)
    image = fit_image(row.image, options=options)
    if isinstance(image, Lost):
        return replace(image, key=key)
    label = numbers[0] if numbers else None
    # Several labels are in the form that scoring reads.
    extra = {**row.extra, LABELS: ",".join(map(str, numbers))} if len(numbers) > 1 else row.extra
    record = Record(key=key, image=image, captions=tuple(captions), label=label, extra=extra)
    return CheckedRow(record, tuple(lost))


def fit_image(data: bytes, *, options: IngestOptions) -> bytes | Lost:
    """The bytes to store: the given ones, or a smaller JPEG if a side is longer than ``max_side``.

    ``validate="full"`` decodes every image. For a JPEG it reads all coefficients but computes only 1/8 of each side,
    which finds the same damage.
    """
    try:
        size = image_size(data, max_pixels=sys.maxsize)
    except DataError as error:
        return Lost(reason=UNDECODABLE, key="", detail=str(error))
    if size.height * size.width > MAX_PIXELS:
        return Lost(reason=TOO_MANY_PIXELS, key="", detail=f"{size.width} x {size.height}")
    if min(size) < options.min_side:
        return Lost(reason=TOO_SMALL, key="", detail=f"{size.width} x {size.height}")
    try:
        if options.max_side is not None and max(size) > options.max_side:
            return _shrink(data, size, max_side=options.max_side, quality=options.jpeg_quality)
        if options.validate == "full":
            _decode(data, height=1, width=1)
    except DataError as error:
        return Lost(reason=UNDECODABLE, key="", detail=str(error))
    return data


def _shrink(data: bytes, size: ImageSize, *, max_side: int, quality: int) -> bytes:
    height, width = (max(1, round(side * max_side / max(size))) for side in size)
    pixels = _decode(data, height=height, width=width)
    if pixels.shape[:2] != (height, width):
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
        pixels = np.ascontiguousarray(image)
    return simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420", fastdct=False)


def _decode(data: bytes, *, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    if is_jpeg(data):
        return decode_jpeg_scaled(data, min_height=height, min_width=width)
    return decode_image(data)


def _as_text(value: str | bytes) -> str | None:
    try:
        if isinstance(value, bytes):
            return value.decode()
        value.encode()  # fails for surrogates, which mark bytes that were not UTF-8
    except UnicodeError:
        return None
    return value
