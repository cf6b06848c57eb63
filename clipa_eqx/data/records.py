"""One training or evaluation example as bytes: the ``Record`` schema, its msgpack form, its checks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import msgpack

from clipa_eqx.errors import DataError

RECORD_VERSION = 1
LABELS = "labels"
"""Name in ``extra`` of the labels of an image that has several, as text such as "3,17". ``label`` is the first."""

ExtraValue = str | int | float | bool | bytes | None

_FIELDS = frozenset({"v", "key", "image", "captions", "label", "extra"})


@dataclass(frozen=True, kw_only=True)
class Record:
    """One example: an encoded image with its captions, its class, or both.

    Attributes:
        key: name of the example in messages and comparisons.
        image: content of an image file (JPEG, PNG, BMP, GIF or WebP).
        captions: texts that describe the image; may be empty if there is a label.
        label: index into the manifest's ``class_names``.
        extra: any further values by name, without nesting.
    """

    key: str
    image: bytes
    captions: tuple[str, ...] = ()
    label: int | None = None
    extra: Mapping[str, ExtraValue] = field(default_factory=dict[str, ExtraValue])


def encode_record(record: Record) -> bytes:
    """Encode a record as msgpack; equal records give equal bytes.

    Raises:
        DataError: a field has the wrong type or a text is not valid Unicode.
    """
    content = {
        "v": RECORD_VERSION,
        "key": record.key,
        "image": record.image,
        "captions": list(record.captions),
        "label": record.label,
        "extra": dict(record.extra),
    }
    where = f"record {record.key!r}"
    _to_record(content, where=where)
    try:
        return cast(bytes, msgpack.packb(content, use_bin_type=True))
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where} cannot be encoded: {error}") from error


def decode_record(data: bytes, *, where: str) -> Record:
    """Decode the record in ``data``; every message starts with ``where`` (shard and index).

    Raises:
        DataError: not msgpack, another schema version, or a field that is missing, unknown or of the wrong type.
    """
    try:
        content: object = msgpack.unpackb(data, raw=False)
    # msgpack's own errors derive from ValueError. Hostile nesting or sizes raise RecursionError or MemoryError.
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise DataError(
            f"{where}: {len(data)} bytes are not a record ({type(error).__name__}: {error}); "
            "the file is damaged or was not written by clipa_eqx"
        ) from error
    return _to_record(content, where=where)


def _to_record(content: object, *, where: str) -> Record:
    if not isinstance(content, dict):
        raise DataError(f"{where}: expected a map of record fields, got {type(content).__name__}")
    fields = cast(dict[object, object], content)
    version = fields.get("v")
    if type(version) is not int or version != RECORD_VERSION:
        raise DataError(
            f"{where}: record schema version {version!r}, this clipa_eqx reads version {RECORD_VERSION}; "
            "convert the data again or install the matching clipa_eqx"
        )
    key, image, captions = fields.get("key"), fields.get("image"), fields.get("captions")
    label, extra = fields.get("label"), fields.get("extra")
    if fields.keys() != _FIELDS:
        names = ", ".join(sorted(f"{name!r}" for name in fields.keys() ^ _FIELDS))
        raise DataError(f"{where}, key {key!r}: fields missing or unknown: {names}")
    if not isinstance(key, str):
        raise _wrong(where, None, "key", "a text", key)
    if not isinstance(image, bytes):
        raise _wrong(where, key, "image", "bytes", image)
    if not isinstance(captions, list):
        raise _wrong(where, key, "captions", "a list of texts", captions)
    texts: list[str] = []
    for caption in cast(list[object], captions):
        if not isinstance(caption, str):
            raise _wrong(where, key, "captions", "only texts", caption)
        texts.append(caption)
    # bool is an int in Python, but True is not a class number.
    if label is not None and (type(label) is not int or label < 0):
        raise _wrong(where, key, "label", "a class number >= 0 or null", label)
    if not isinstance(extra, dict):
        raise _wrong(where, key, "extra", "a map", extra)
    checked: dict[str, ExtraValue] = {}
    for name, value in cast(dict[object, object], extra).items():
        if not isinstance(name, str) or not (value is None or isinstance(value, str | int | float | bytes)):
            raise _wrong(where, key, f"extra[{name!r}]", "a text name with a plain value", value)
        checked[name] = value
    return Record(key=key, image=image, captions=tuple(texts), label=label, extra=checked)


def _wrong(where: str, key: str | None, name: str, expected: str, got: object) -> DataError:
    at = where if key is None else f"{where}, key {key!r}"
    shown = repr(got)
    return DataError(f"{at}: field {name} must be {expected}, got {type(got).__name__} {shown[:80]}")
