"""Usual names of columns, and the values of tables, features and JSON in the types of a record."""

import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, cast

from clipa_eqx.data.records import ExtraValue
from clipa_eqx.errors import DataError
from conversion.records.rows import Columns, IngestOptions

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
IMAGE_COLUMNS = ("jpg", "image", "jpeg", "png", "webp", "image_bytes", "img", "bytes")
PATH_COLUMNS = ("image_path", "filepath", "file_path", "path", "file_name", "filename", "file", "image_name", "image")
CAPTION_COLUMNS = ("txt", "caption", "text", "captions", "texts", "title", "comment", "sentences", "TEXT")
KEY_COLUMNS = ("key", "__key__", "id", "uid")
_MOST_LABELS = 2**31
_DEEPEST = 64  # levels of JSON
_NESTING = (dict, list)


def first_of(names: Collection[str], candidates: Iterable[str]) -> str | None:
    """The first candidate among the names."""
    return next((name for name in candidates if name in names), None)


def choose_column(
    asked: str | None,
    names: Collection[str],
    candidates: Iterable[str],
    *,
    what: str,
    where: str,
    needed: bool = False,
    flag: str | None = None,
) -> str | None:
    """The column asked for, else the first with a usual name, else None.

    Raises:
        DataError: the column asked for is not there, or none is and one is `needed`.
    """
    flag = flag or f"--{what}-column"
    told = f"it has: {', '.join(map(str, names))}"
    if asked is not None and asked not in names:
        raise DataError(f"{where}: no column {asked!r} for the {what} ({flag}); {told}")
    found = first_of(names, candidates) if asked is None else asked
    if found is None and needed:
        hint = ", or give --label-column if the set has labels instead" if what == "caption" else ""
        raise DataError(f"{where}: no column looks like the {what}; name it with {flag}{hint}; {told}")
    return found


def choose_listed(
    entries: Mapping[str, int], captions: Mapping[str, int] | None = None, *, options: IngestOptions, where: str
) -> Columns:
    """The columns of a list: of those with usual names, the one that holds something in most entries.

    The numbers count these entries; `captions` has those of COCO's annotations.

    Raises:
        DataError: it has no column for pictures, or none for captions and no label is asked for, or none that is asked
            for.
    """
    captions = entries if captions is None else captions
    paths = sorted(PATH_COLUMNS, key=lambda name: -entries.get(name, 0))
    usual = sorted(CAPTION_COLUMNS, key=lambda name: -captions.get(name, 0))
    # Karpathy's lists of COCO give folder and name apart.
    paths = ["filename"] if {"filename", "filepath"} <= entries.keys() else paths
    needed = options.label_column is None
    return Columns(
        path=choose_column(options.image_column, entries, paths, what="image", where=where, needed=True),
        caption=choose_column(options.caption_column, captions, usual, what="caption", where=where, needed=needed),
        label=choose_column(options.label_column, entries, (), what="label", where=where),
        key=choose_column(options.key_column, entries, (), what="key", where=where),
    )


def count_names(entries: Iterable[Mapping[str, object]]) -> Counter[str]:
    """All names, each with the number of entries that hold something under it."""
    counts: Counter[str] = Counter()
    for entry in entries:
        counts.update({name: int(value is not None) for name, value in entry.items()})
    return counts


def check_kept(names: Collection[str], *, options: IngestOptions, where: str) -> None:
    """Raise DataError if there is no column of a name in `keep`."""
    for name in options.keep:
        choose_column(name, names, (), what="extra", flag="--keep", where=where)


def from_json(text: str | bytes) -> object:
    """What JSON holds; bytes that are not UTF-8 are kept apart, so that they concern the one text that holds them.

    Raises:
        ValueError: it is not valid, or nested too deeply for any use.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), errors="surrogateescape")
    try:
        content: object = json.loads(text.removeprefix("\ufeff"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if text.count("[") + text.count("{") > _DEEPEST and _is_deep(content):
        raise ValueError("nested too deeply")
    return content


def _is_deep(content: object) -> bool:
    level: list[Any] = [content] if type(content) in _NESTING else []
    for _ in range(_DEEPEST):
        children = itertools.chain.from_iterable(item.values() if type(item) is dict else item for item in level)
        # Only what nests is held: a list of pictures has millions of values that do not.
        level = [child for child in children if type(child) in _NESTING]
        if not level:
            return False
    return True


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
    """A class number >= 0 and < 2^31; None for anything else, such as TFDS's -1 for "not known"."""
    if isinstance(value, bytes | str):
        try:
            value = int(value)
        except ValueError:
            return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return int(value) if isinstance(value, int) and 0 <= value < _MOST_LABELS else None


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
    return json.dumps(value, ensure_ascii=True, sort_keys=True, default=_as_text)


def _as_text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
