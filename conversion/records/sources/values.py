"""Values of tables, features and JSON, converted to the types of a record."""

import io
import itertools
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Shaped

from clipa_eqx.data.records import ExtraValue
from conversion.records.rows import printable

_MOST_LABELS = 2**31
_LONGEST_LABEL = 200  # characters
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
_NUMBERS = re.compile(r"\d+(\s*,\s*\d+)+|\[\s*(\d+(\s*,\s*\d+)*)?\s*\]")
_DEEPEST = 64  # levels of JSON
_NESTING = (dict, list)
TEXT_FIELDS = ("raw", "caption", "text")  # names under which maps hold a caption; the first counts


def from_json(text: str | bytes) -> object:
    """Parse JSON. Bytes that are not UTF-8 are kept as surrogates, so that only the text that holds them is affected.

    Raises:
        ValueError: it is not valid, or nested more than 64 levels deep.
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
        # Keep only values that nest: a list of images has millions that do not.
        level = [child for child in children if type(child) in _NESTING]
        if not level:
            return False
    return True


def is_missing(value: object) -> bool:
    """Check whether a value is none: null, or NaN, which pandas writes for it. Texts such as "nan" are values."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_key(value: object) -> str | bytes | None:
    """The key of a row; None if the row has none, or a list or map."""
    if is_missing(value) or isinstance(value, list | tuple | dict) or value in ("", b""):
        return None
    return value if isinstance(value, bytes) else str(value)


def as_captions(value: object) -> tuple[str | bytes | None, ...]:
    """Captions from a text, or a list of texts or of maps with ``raw``, ``caption`` or ``text``; None stays None."""
    if is_missing(value):
        return (None,)
    if isinstance(value, str | bytes):
        return (value,)
    if isinstance(value, dict):
        fields = cast(dict[str, object], value)
        return as_captions(next((fields[name] for name in TEXT_FIELDS if name in fields), None))
    if isinstance(value, Iterable):
        return tuple(caption for item in cast(Iterable[object], value) for caption in as_captions(item))
    return (str(value),)


def captions_of(fields: Mapping[str, object], columns: Sequence[str]) -> tuple[str | bytes | None, ...]:
    """The captions of all columns, in order. Of several columns, one that the row lacks is a missing caption."""
    if len(columns) == 1:
        return as_captions(fields.get(columns[0], ()))
    return tuple(caption for name in columns for caption in as_captions(fields.get(name)))


def as_labels(value: object) -> tuple[int | str, ...]:
    """The labels in a value (see ``as_label``), or in a list of values; empty if there are none.

    A text of several numbers, such as "3,17" or "[3, 17]", holds several labels: it is the form that records have.
    """
    if isinstance(value, bytes | str) and _NUMBERS.fullmatch(text := _as_text(value).strip()):
        value = [number for number in re.split(r"[\[\],\s]+", text) if number]
    if isinstance(value, list | tuple):
        return tuple(label for item in cast(Sequence[object], value) for label in as_labels(item))
    label = as_label(value)
    return () if label is None else (label,)


def as_label(value: object) -> int | str | None:
    """A class number from 0 to 2^31 - 1, also as text, or else the text, which may name a class.

    None for anything else, such as TFDS's -1 for an unknown class, fractions, and texts of more than 200 characters.
    """
    if isinstance(value, bytes | str):
        text = printable(_as_text(value)).strip()  # it may become a class name, which is Unicode
        if _NUMBER.fullmatch(text) is None:
            return text if 0 < len(text) <= _LONGEST_LABEL else None
        value = float(text) if "." in text else int(text) if len(text) < 20 else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return int(value) if isinstance(value, int) and 0 <= value < _MOST_LABELS else None


def npy_labels(data: bytes) -> list[int]:
    """The labels in a file of numpy's format ``npy``: the positions of 1 in a vector of 0 and 1, or the numbers in it.

    CLIP_benchmark writes such vectors, with an element per class, for data sets in which an image has several labels.

    Raises:
        ValueError: it is no file of numbers, one of them is a fraction, or it is a vector of -1, 0 and 1.
    """
    numbers = _npy_numbers(data)
    if _is_vector(numbers):
        return [int(i) for i in np.flatnonzero(numbers)]
    if numbers.size > 1 and numbers.max() <= 1:
        raise ValueError("numbers below 0 in a vector")
    if not all(float(number).is_integer() for number in numbers):
        raise ValueError("fractions")
    return [int(number) for number in numbers if number >= 0]


def npy_length(data: bytes) -> int | None:
    """The number of elements of a vector of 0 and 1 in a file of numpy's format ``npy``; None for anything else."""
    try:
        numbers = _npy_numbers(data)
    except (ValueError, EOFError):
        return None
    return numbers.size if _is_vector(numbers) else None


def _npy_numbers(data: bytes) -> Shaped[np.ndarray, " numbers"]:
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"numbers of type {array.dtype}")
    return array.ravel()


def _is_vector(numbers: Shaped[np.ndarray, " numbers"]) -> bool:
    return numbers.size > 1 and bool(np.isin(numbers, (0, 1)).all())


def kept_values(fields: Mapping[str, object], keep: Collection[str]) -> dict[str, ExtraValue]:
    """The values for ``extra``: those of the columns to keep that a row has."""
    return {name: as_extra(fields[name]) for name in keep if name in fields}


def as_extra(value: object) -> ExtraValue:
    """A plain value: lists and maps as JSON, texts that are not Unicode with the bad parts escaped, NaN as None."""
    if is_missing(value):
        return None
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)
    if isinstance(value, int | float):
        return value
    return json.dumps(_without_nan(value), ensure_ascii=True, sort_keys=True, default=_as_text)


def _without_nan(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in cast(Sequence[object], value)]
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in cast(dict[object, object], value).items()}
    return None if is_missing(value) else value


def _as_text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
