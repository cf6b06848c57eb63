"""The planner of sources whose parts are files, and what other planners share with it."""

import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple, TypeVar

from conversion.records.listing import FoundFile, check_readable, list_sizes
from conversion.records.places import is_pattern, root_of
from conversion.records.rows import Columns, Part, Plan, printable
from conversion.records.sources.damage import Damaged
from conversion.records.sources.source import SourceFiles

FIRST_ROWS = 256  # rows that the columns of a source are chosen from
_SIDECARS = ("_stats.json", ".parquet")  # img2dataset writes these next to every shard: not worth a mention

T = TypeVar("T")


class Choice(NamedTuple):
    """The decisions that the first rows of a source allow."""

    columns: Columns = Columns()
    class_names: tuple[str, ...] | None = None


def plan_files(
    files: SourceFiles,
    *,
    first: Callable[[Part], Iterable[T]],
    choose: Callable[[Iterator[T]], Choice],
    about: Sequence[FoundFile] = (),
    info: Mapping[str, object] | None = None,
) -> Plan:
    """Plan one part per own file, with columns chosen from the first rows of the source.

    Args:
        first: read the rows of a part, or whatever shows its columns. ``Damaged`` ends a part, not the search.
        choose: choose columns from the first rows, taken from as many parts as necessary.
        about: files that decide rows without being parts. They are hashed by name and size, and not called ignored.
        info: further entries for the manifest.

    Raises:
        DataError: a file cannot be read; also whatever ``first`` and ``choose`` raise.
    """
    check_readable(files.place, files.own)
    parts = [Part(source=file.name, path=file.path, size=file.size) for file in files.own]
    choice = choose(_first_rows(parts, first))
    read = {file.path for file in (*files.own, *about)}
    return Plan(
        parts=tuple(Part(source=part.source, path=part.path, size=part.size, columns=choice.columns) for part in parts),
        class_names=choice.class_names,
        info={**(info or {}), **ignored_files(file for file in files.found if file.path not in read)},
        digest=digest_of(about),
        columns=named_columns(choice.columns),
    )


def _first_rows(parts: Sequence[Part], read: Callable[[Part], Iterable[T]]) -> Iterator[T]:
    def rows() -> Iterator[T]:
        for part in parts:
            with contextlib.suppress(Damaged):
                yield from read(part)

    return itertools.islice(rows(), FIRST_ROWS)


def named_columns(columns: Columns) -> dict[str, object]:
    """The chosen columns by use, as the manifest has them."""
    chosen = {use: name for use, name in asdict(columns).items() if name is not None and use != "values"}
    return {
        use: printable(name) if isinstance(name, str) else list(map(printable, name)) for use, name in chosen.items()
    }


def files_next_to(files: SourceFiles, name: Callable[[FoundFile], str]) -> list[FoundFile]:
    """The files of such names next to the own ones, also if the source is a pattern or a single file."""
    sizes = {file.path: file.size for file in files.found}
    place = files.place
    if is_pattern(place) or place.fs.isfile(place.path):
        for folder in {_folder(file) for file in files.own}:
            sizes |= {f"{folder}/{base}": size for base, size in list_sizes(place._replace(path=folder)).items()}
    paths = dict.fromkeys(f"{_folder(file)}/{name(file)}" for file in files.own)
    root = root_of(place)
    return [FoundFile(path, path[len(root) :].lstrip("/"), sizes[path]) for path in paths if path in sizes]


def _folder(file: FoundFile) -> str:
    return file.path.rpartition("/")[0]


def digest_of(files: Iterable[FoundFile]) -> str:
    """Hash names and sizes."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.size}\0".encode(errors="backslashreplace"))
    return digest.hexdigest()


def ignored_files(files: Iterable[FoundFile]) -> dict[str, object]:
    """Count the files of each suffix that a source does not read, as an entry for the manifest."""
    counts = Counter(suffix_of(file.name) for file in files if not file.name.endswith(_SIDECARS))
    return {"ignored_files": {printable(suffix): count for suffix, count in sorted(counts.items())}} if counts else {}


def suffix_of(name: str) -> str:
    """The suffix of a file name in lower case, with its dot; empty if there is none."""
    base = name.rpartition("/")[2]
    return f".{base.rpartition('.')[2].lower()}" if "." in base else ""
