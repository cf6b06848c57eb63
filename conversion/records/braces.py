"""Braces in the names of sources, as shells and webdataset expand them: ``{00000..00041}.tar``, ``{a,b}/*.tar``."""

import itertools
import math
import re
from collections.abc import Sequence

from clipa_eqx.errors import DataError

_MOST, _MOST_BRACES = 1_000_000, 100  # names, braces
_SHOWN = 80  # characters
_RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,18}))?", re.ASCII)
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])(?:\.\.(-?\d{1,3}))?", re.ASCII)


def has_braces(text: str) -> bool:
    """Check whether a text holds braces that mean several texts."""
    return _first_group(text) is not None


def expand_braces(text: str) -> list[str]:
    """The texts that a text with braces means, in order.

    ``{a,b}`` is a list, in which each entry may hold braces. ``{07..10}`` and ``{a..c}`` are ranges, and ``{0..8..2}``
    has every second number. If a bound begins with 0, all numbers have as many digits as the longer one. Braces around
    anything else are characters, as in shells.

    Raises:
        DataError: there are more than 100 braces, or they mean more than a million texts.
    """
    if text.count("{") > _MOST_BRACES:
        raise DataError(f"{text[:_SHOWN]}... has more than {_MOST_BRACES} braces")
    parts: list[Sequence[str]] = []
    rest = text
    while (group := _first_group(rest)) is not None:
        start, end = group
        parts += [[rest[:start]], _entries(rest[start + 1 : end])]
        rest = rest[end + 1 :]
        _check_number(math.prod(map(len, parts)))
    return ["".join(pieces) for pieces in itertools.product(*parts, [rest])]


def _check_number(number: int) -> None:
    if number > _MOST:
        raise DataError(f"the braces of a source mean more than {_MOST:,} names; is a number in them too large?")


def _entries(inner: str) -> Sequence[str]:
    """The texts that the content of a pair of braces means."""
    if (match := _RANGE.fullmatch(inner)) is not None:
        bounds = match[1], match[2]
        is_padded = any(re.match(r"-?0\d", bound) for bound in bounds)
        width = max(map(len, bounds)) if is_padded else 0
        numbers = _range(int(match[1]), int(match[2]), match[3])
        _check_number(len(numbers))
        return [f"{number:0{width}d}" for number in numbers]
    if (match := _LETTERS.fullmatch(inner)) is not None:
        return [chr(code) for code in _range(ord(match[1]), ord(match[2]), match[3])]
    texts: list[str] = []
    for entry in _split(inner):
        texts += expand_braces(entry)
        _check_number(len(texts))
    return texts


def _range(first: int, last: int, step: str | None) -> range:
    by = abs(int(step or 1)) or 1
    return range(first, last + 1, by) if first <= last else range(first, last - 1, -by)


def _first_group(text: str) -> tuple[int, int] | None:
    """Positions of the first pair of braces that hold a list or a range."""
    starts: list[int] = []
    groups: list[tuple[int, int]] = []
    for i, character in enumerate(text):
        if character == "{":
            starts.append(i)
        elif character == "}" and starts:
            start = starts.pop()
            inner = text[start + 1 : i]
            if _RANGE.fullmatch(inner) or _LETTERS.fullmatch(inner) or len(_split(inner)) > 1:
                groups.append((start, i))
    # The outermost of the first: a list may hold lists.
    return min(groups, key=lambda group: (group[0], -group[1]), default=None)


def _split(inner: str) -> list[str]:
    """The entries of a list, which commas inside braces do not separate."""
    entries, depth, start = list[str](), 0, 0
    for i, character in enumerate(inner):
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            entries.append(inner[start:i])
            start = i + 1
    return [*entries, inner[start:]]
