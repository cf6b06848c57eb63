"""Class names: from a file, checked against those of the source, and described in one line."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from clipa_eqx.errors import DataError, counted
from clipa_eqx.evals.prompts import parse_class_names, wordnet_ids
from conversion.records.rows import printable, shortened
from conversion.records.sources.values import from_json

_SHOWN = 3  # names at each end of a description
_LONGEST = 40  # characters of a name


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names in the order of their labels: one a line, or a JSON list.

    Raises:
        DataError: the file cannot be read, or is no list of names.
    """
    where = f"--class-names: {path}"
    try:
        content = path.read_bytes()
        names: object = from_json(content) if path.suffix == ".json" else None
    except (OSError, ValueError) as error:
        raise DataError(f"{where} cannot be read: {error}") from error
    if names is None:
        return parse_class_names(content, where=where)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in cast(list[object], names)):
        raise DataError(f"{where} must be a list of names, in the order of the labels")
    found = tuple(cast(list[str], names))
    if not found or not all(name.strip() for name in found):
        raise DataError(f"{where} holds an empty name, or none; write one name for each label")
    if bad := [name for name in found if printable(name) != name]:
        raise DataError(f"{where} holds the name {printable(bad[0])!r}, which is not Unicode; write it as UTF-8")
    return found


def check_class_names(given: Sequence[str] | None, own: Sequence[str] | None, *, where: str) -> None:
    """Check that there is one given name for each class of a source that knows its classes.

    Raises:
        DataError: the numbers differ.
    """
    if given is None or own is None or len(given) == len(own):
        return
    advice = "give one name for each of them, in this order"
    if own and set(own) <= wordnet_ids().keys():
        advice = "they are WordNet ids of ImageNet, whose names scoring knows: leave --class-names out"
    raise DataError(
        f"{where} has {_classes(own)}, but --class-names has {counted(len(given), 'name')}; {advice}: {numbered(own)}"
    )


def describe_classes(names: Sequence[str], folders: Sequence[str] | None = None) -> str:
    """The classes with their numbers in one line; the first and the last of many.

    Args:
        folders: the names that the source itself has for the classes, if they are others.

    >>> describe_classes(["cat", "dog"], ["0", "1"])
    '2 classes: 0 = cat (0 in the source), 1 = dog (1 in the source)'
    """
    shown = [f"{name} ({wordnet_ids()[name]})" if name in wordnet_ids() else name for name in names]
    if folders is not None:
        shown = [f"{name} ({folder} in the source)" for name, folder in zip(shown, folders, strict=True)]
    return f"{_classes(names)}: {numbered(shown)}"


def describe_class(name: str) -> str:
    """The name of a class, shortened; a WordNet id of ImageNet with the name that it is scored with.

    >>> describe_class("n01440764")
    'n01440764, tench'
    """
    return shortened(f"{name}, {wordnet_ids()[name]}" if name in wordnet_ids() else name, _LONGEST)


def numbered(names: Sequence[str]) -> str:
    """Names with their numbers; the first and the last of many."""
    parts = [f"{i} = {shortened(name, _LONGEST)}" for i, name in enumerate(names)]
    if len(parts) > 4 * _SHOWN:
        parts = [*parts[:_SHOWN], "...", *parts[-_SHOWN:]]
    return ", ".join(parts)


def _classes(names: Sequence[str]) -> str:
    return "1 class" if len(names) == 1 else f"{len(names):,} classes"
