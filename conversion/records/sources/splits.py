"""Splits of a source whose names of files and folders say to which split each file belongs."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

from clipa_eqx.errors import DataError, counted
from conversion.records.listing import FoundFile
from conversion.records.options import IngestOptions
from conversion.records.places import is_pattern
from conversion.records.reading import read_files
from conversion.records.rows import printable
from conversion.records.sources.source import SourceFiles
from conversion.records.sources.values import from_json

_log = logging.getLogger(__name__)

# Words and separators are those of the library `datasets` (datasets/data_files.py of 5.2.0).
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_USUAL = {word: split for split, words in WORDS.items() for word in words}
_ANY_WORD = "|".join(sorted(_USUAL, key=len, reverse=True))
_WORD = re.compile(rf"(?:^|[-._ 0-9])({_ANY_WORD})(?=[-._ 0-9]|$)", re.IGNORECASE)
_FOLDER = re.compile(rf"({_ANY_WORD})\d*", re.IGNORECASE)  # `train`, `train2017`
_SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d{5,})-of-(?P<count>\d{5,})(?!\d)")
_DECLARED = "dataset_dict.json"
_MOST_SHOWN = 5

CountRows = Callable[[FoundFile], "int | None"]


class _Named(NamedTuple):
    """The content of the name of a file.

    Attributes:
        split: the word for its split as found, in lower case; empty if it has none.
        folder: the folder of its data set, without folders that only name a split.
    """

    split: str
    folder: str


class ChosenSplit(NamedTuple):
    """The files of a split.

    Attributes:
        files: those of the source without the files of other splits.
        info: entry for the manifest; empty if no split was asked for.
        is_chosen: whether names of files decided.
    """

    files: SourceFiles
    info: Mapping[str, object]
    is_chosen: bool = False


def choose_split(
    files: SourceFiles, options: IngestOptions, *, rows: CountRows | None = None, by_folder: bool = False
) -> ChosenSplit:
    """Keep the files of the chosen split, by the rules of the library ``datasets`` for names of files and folders.

    A name holds a split if a word such as ``train`` is between separators (``-._``, digits, spaces) in it. A folder
    with ``dataset_dict.json`` names its splits there. In ``data/``, and where one file is ``train-00000-of-00002`` or
    another split, everything before such a number is a split. Files of one split, or of none, are one set.

    Args:
        rows: number of rows of a file, for the message.
        by_folder: only folders that have no other word in their name count, for sources of single images.

    Raises:
        DataError: there are several splits, or files of one split and of none, and no split is chosen; or the chosen
            one does not exist.
    """
    named = _folder_splits(files) if by_folder else _splits(files)
    groups: dict[str, list[FoundFile]] = {}
    for file in files.own:
        groups.setdefault(named[file.path].split, []).append(file)
    splits = [name for name in groups if name]
    url = files.place.url
    if options.split is None:
        if len(splits) > 1 or (splits and "" in groups and not by_folder):
            raise DataError(
                f"{url} holds several splits, choose with --split A or --split A,B: {_described(groups, rows)}"
            )
        return ChosenSplit(files, {})
    chosen = {name for wanted in options.split.split(",") for name in _matching(wanted, splits, files)}
    others = {file.path for name in splits if name not in chosen for file in groups[name]}
    kept = replace(
        files,
        found=[file for file in files.found if file.path not in others],
        own=[file for name in groups if name in chosen for file in groups[name]],
    )
    kept = replace(kept, own=sorted(kept.own, key=lambda file: file.path))
    info: dict[str, object] = {"split": ",".join(name for name in splits if name in chosen)}
    if left := groups.get(""):
        info["files_of_no_split"] = len(left)
        _log.warning("%s: %s of no split not read, such as %s", url, counted(len(left), "file"), left[0].name)
    return ChosenSplit(kept, info, is_chosen=True)


def is_word(name: str) -> bool:
    """Check whether a name is a usual one of a split."""
    return name.lower() in _USUAL


def is_split_folder(name: str) -> bool:
    """Check whether the name of a folder is that of a split, with a number or not, as ``train2017``."""
    return _FOLDER.fullmatch(name) is not None


def has_splits(files: SourceFiles) -> bool:
    """Check whether names of files say that the source has several splits."""
    return len({named.split for named in _splits(files).values()}) > 1


def check_one_set(files: SourceFiles) -> None:
    """Check that the files of a split are those of one data set, and that all of its shards are there.

    Files that a pattern chooses are taken as they are.

    Raises:
        DataError: folders hold the same split of several data sets, or numbered shards are missing.
    """
    place = files.place
    if is_pattern(place) or place.fs.isfile(place.path):
        return
    named = _splits(files)
    folders: dict[str, int] = {}
    for file in files.own:
        if named[file.path].split:
            folder = named[file.path].folder
            folders[folder] = folders.get(folder, 0) + 1
    if len(folders) > 1:
        shown = _shown([f"{printable(name) or '.'} ({counted(count, 'file')})" for name, count in folders.items()])
        raise DataError(
            f"{place.url} holds several data sets, give the folder of one: {shown}; to join them, give a pattern of "
            "their files in quotes"
        )
    _check_complete(files)


def _check_complete(files: SourceFiles) -> None:
    url = files.place.url
    shards: dict[str, dict[int, set[int]]] = {}
    for file in files.own:
        if match := _SHARD.match(file.name.rpartition("/")[2]):
            name = f"{_folder(file.name)}{match['name']}"
            shards.setdefault(name, {}).setdefault(int(match["count"]), set()).add(int(match["number"]))
    suffix = next((file.name.rpartition(".")[2] for file in files.own), "")
    advice = f"to convert those that are there, give a pattern such as '{url.rstrip('/')}/**/*.{suffix}'"
    for name, counts in shards.items():
        if len(counts) > 1:
            found = " and ".join(f"-of-{count:05d}" for count in sorted(counts))
            raise DataError(f"{url} holds shards of two copies of {printable(name)}: {found}; remove one; or {advice}")
    missing = [
        f"{printable(name)}-{number:05d}-of-{count:05d}"
        for name, counts in shards.items()
        for count, have in counts.items()
        for number in range(count)
        if number not in have
    ]
    if missing:
        raise DataError(f"{url} lacks {len(missing):,} of its shards: {_shown(missing)}; fetch them; {advice}")


def _splits(files: SourceFiles) -> dict[str, _Named]:
    """The content of the name of each own file, by path."""
    declared = _declared(files)
    numbered: dict[str, set[str]] = {}
    for file in files.own:
        if match := _SHARD.match(file.name.rpartition("/")[2]):
            numbered.setdefault(_folder(file.name), set()).add(match["name"].lower())
    exact = {folder for folder, names in numbered.items() if folder == "data/" or not names.isdisjoint(_USUAL)}
    return {file.path: _named(file.name, declared, exact) for file in files.own}


def _named(name: str, declared: Mapping[str, Sequence[str]], exact: set[str]) -> _Named:
    folder, base = _folder(name), name.rpartition("/")[2]
    for above, splits in declared.items():
        split = name[len(above) :].partition("/")[0]
        if name.startswith(above) and split in splits:
            return _Named(split, above)
    if folder in exact and (match := _SHARD.match(base)):
        return _Named(match["name"], folder)
    parts = folder.split("/")[:-1]
    for i in reversed(range(len(parts))):
        if words := _WORD.findall(parts[i]):
            return _Named(words[-1].lower(), "/".join([*parts[:i], ""]))
    words = _WORD.findall(base)
    return _Named(words[-1].lower() if words else "", folder)


def _folder_splits(files: SourceFiles) -> dict[str, _Named]:
    named: dict[str, _Named] = {}
    for file in files.own:
        folder = file.name.partition("/")[0] if "/" in file.name else ""
        match = _FOLDER.fullmatch(folder)
        named[file.path] = _Named(match[1].lower() if match else "", "")
    return named


def _declared(files: SourceFiles) -> dict[str, Sequence[str]]:
    """For each folder with ``dataset_dict.json``, the splits that it names."""
    names = [file.name for file in files.found if file.name.rpartition("/")[2] == _DECLARED]
    root = files.place
    if is_pattern(root) or root.fs.isfile(root.path):
        return {}
    declared: dict[str, Sequence[str]] = {}
    for name, content in read_files(root, names).items():
        try:
            splits = cast("dict[str, object]", from_json(content))["splits"]
        except (ValueError, LookupError, TypeError):
            continue  # a file of another kind: names decide
        if isinstance(splits, list):
            declared[_folder(name)] = [str(split) for split in cast("list[object]", splits)]
    return declared


def _matching(wanted: str, splits: Sequence[str], files: SourceFiles) -> list[str]:
    """The splits that a name means: that split, or else those that are the same to ``datasets``, as ``val`` is."""
    found = [name for name in splits if name == wanted]
    usual = _USUAL.get(wanted.lower(), "")
    found = found or [name for name in splits if usual and _USUAL.get(name) == usual]
    if not found:
        known = f"it has: {', '.join(map(printable, splits))}" if splits else "names of its files and folders hold none"
        raise DataError(f"{files.place.url} has no split {printable(wanted)!r}; {known}")
    return found


def _described(groups: Mapping[str, Sequence[FoundFile]], rows: CountRows | None) -> str:
    described = [f"{printable(name)} ({_size(group, rows)})" for name, group in groups.items() if name]
    if rest := groups.get(""):
        names = _shown([printable(file.name) for file in rest])
        described.append(f"and {_size(rest, rows)} of no split, to be given as a pattern: {names}")
    return ", ".join(described)


def _size(group: Sequence[FoundFile], rows: CountRows | None) -> str:
    counts = [rows(file) for file in group] if rows is not None else [None]
    known = [count for count in counts if count is not None]
    files = counted(len(group), "file")
    return f"{files}, {counted(sum(known), 'row')}" if len(known) == len(counts) else files


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_SHOWN]) + (", ..." if len(names) > _MOST_SHOWN else "")


def _folder(name: str) -> str:
    """The folder of a file with its slash; empty for the root."""
    return "".join(name.rpartition("/")[:2])
