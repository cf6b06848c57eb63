"""Usual names of columns, and the values of tables, features and JSON in the types of a record."""

import json
from collections.abc import Collection, Iterable
from typing import cast

from clipa_eqx.data.records import ExtraValue
from clipa_eqx.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
IMAGE_COLUMNS = ("jpg", "image", "jpeg", "png", "webp", "image_bytes", "img", "bytes")
PATH_COLUMNS = ("image_path", "filepath", "file_path", "path", "file_name", "filename", "file", "image_name", "image")
CAPTION_COLUMNS = ("txt", "caption", "text", "captions", "texts", "title", "comment", "sentences", "TEXT")
KEY_COLUMNS = ("key", "__key__", "id", "uid")


def first_of(names: Collection[str], candidates: Iterable[str]) -> str | None:
    """The first candidate among the names."""
    return next((name for name in candidates if name in names), None)


def choose_column(
    asked: str | None, names: Collection[str], candidates: Iterable[str], *, what: str, flag: str, where: str
) -> str | None:
    """The column asked for, else the first with a usual name, else None.

    Raises:
        DataError: the column asked for is not there.
    """
    if asked is None:
        return first_of(names, candidates)
    if asked not in names:
        raise DataError(
            f"{where} has no column {asked!r} for the {what} ({flag}); it has: {', '.join(map(str, names))}"
        )
    return asked


def no_column(*, what: str, flag: str, where: str, names: Iterable[str]) -> DataError:
    return DataError(f"{where}: no column looks like the {what}; name it with {flag}; it has: {', '.join(names)}")


def as_captions(value: object) -> tuple[str | bytes | None, ...]:
    """Captions from a text, or a list of texts or of maps with one (`raw`, `caption`, `text`); None stays None."""
    if value is None:
        return (None,)
    if isinstance(value, str | bytes):
        return (value,)
    if isinstance(value, dict):
        fields = cast(dict[str, object], value)
        return as_captions(fields.get("raw", fields.get("caption", fields.get("text"))))
    if isinstance(value, Iterable):
        return tuple(caption for item in cast(Iterable[object], value) for caption in as_captions(item))
    return (str(value),)


def as_label(value: object) -> int | None:
    """A class number >= 0; None for anything else, such as TFDS's -1 for "not known"."""
    if isinstance(value, bytes | str):
        try:
            value = int(value)
        except ValueError:
            return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return int(value) if isinstance(value, int) and value >= 0 else None


def as_extra(value: object) -> ExtraValue:
    """A plain value; lists and maps as JSON, texts that are not Unicode with the bad parts escaped."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)
    if value is None or isinstance(value, int | float):
        return value
    return json.dumps(value, ensure_ascii=True, sort_keys=True, default=str)
