"""Types of the values in the chosen columns, checked in the first rows before anything is written."""

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

from clipa_eqx.errors import DataError
from conversion.records.rows import Columns, shortened
from conversion.records.sources.values import TEXT_FIELDS, as_label, is_missing

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")  # of image files
_BASE64 = re.compile(r"[A-Za-z0-9+/\r\n]+={0,2}\s*")
_SHORTEST = 64  # characters of an image in base64


def check_types(
    rows: Iterable[Mapping[str, object]], columns: Columns, *, where: str, types: Mapping[str, str] | None = None
) -> None:
    """Check that the chosen columns hold values of a type that their use allows.

    Args:
        rows: values by column of the first rows. A column is refused if it has values and none of them is right.
        types: the types of columns, from sources that declare them, for the message.

    Raises:
        DataError: a column is of the wrong type; the message names the type and what was expected.
    """
    held = list(rows)
    for use, expected, is_right in _USES:
        chosen = cast("str | tuple[str, ...] | None", getattr(columns, use)) or ()
        for name in (chosen,) if isinstance(chosen, str) else chosen:
            values = [value for row in held if not is_missing(value := row.get(name))]
            if not values or any(map(is_right, values)):
                continue
            found = (types or {}).get(name) or _described(values[0])
            flag = f"--{'image' if use == 'path' else use}-column"
            hint = "; it looks like base64: decode the images to files or bytes first" if is_base64(values[0]) else ""
            raise DataError(
                f"{where}: column {name!r} holds {found}, expected {expected}{hint}; name another with {flag}"
            )


def is_base64(value: object) -> bool:
    """Check whether a text, or a text in bytes, looks like an image file in base64."""
    if isinstance(value, bytes):
        if value.startswith(_MAGIC):
            return False
        value = value.decode(errors="replace")
    if not isinstance(value, str):
        return False
    text = re.sub(r"^data:image/[\w.+-]+;base64,", "", value)
    if len(text) < _SHORTEST or _BASE64.fullmatch(text) is None:
        return False
    try:
        return base64.b64decode(text[:16]).startswith(_MAGIC)
    except binascii.Error:
        return False


def _is_image(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, bytes) and not is_base64(value))


def _is_path(value: object) -> bool:
    return isinstance(value, str | bytes) and not is_base64(value) and not _is_file(value)


def _is_caption(value: object) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        present = [item for item in cast(Sequence[object], value) if not is_missing(item)]
        return not present or any(map(_is_caption, present))
    if isinstance(value, dict):
        return any(name in value for name in TEXT_FIELDS)
    return isinstance(value, str | bytes) and not is_base64(value) and not _is_file(value)


def _is_label(value: object) -> bool:
    # Any whole number is right: -1 is an unknown class. A list may hold the labels of an image, or none.
    if isinstance(value, list | tuple):
        return not value or any(map(_is_label, cast(Sequence[object], value)))
    return as_label(value) is not None or isinstance(value, int) or value in (-1.0, "", b"", "-1", b"-1")


def _is_key(value: object) -> bool:
    return not isinstance(value, list | tuple | dict) and not is_base64(value) and not _is_file(value)


def _is_file(value: object) -> bool:
    return isinstance(value, bytes) and value.startswith(_MAGIC[:4])


_USES: tuple[tuple[str, str, Callable[[object], bool]], ...] = (
    ("image", "the bytes of image files, or maps with them", _is_image),
    ("path", "paths of image files, or their bytes", _is_path),
    ("caption", "texts", _is_caption),
    ("label", "class numbers, or short texts that name classes", _is_label),
    ("key", "texts or numbers", _is_key),
)


def _described(value: object) -> str:
    """The type of a value in words, with the value if it is short."""
    match value:
        case bool():
            return f"truth values such as {value}"
        case int():
            return f"whole numbers such as {value}"
        case float():
            return f"fractions such as {value}"
        case str():
            return f"texts such as {shortened(value, 40)!r} ({len(value):,} characters)"
        case bytes() if _is_file(value):
            return f"image files ({len(value):,} bytes)"
        case bytes():
            return f"bytes such as {value[:20]!r} ({len(value):,} bytes)"
        case list() | tuple():
            items = cast(Sequence[object], value)
            return f"lists of {_described(items[0])}" if items else "empty lists"
        case dict():
            return "maps"
        case _:
            return f"values of type {type(value).__name__}"
