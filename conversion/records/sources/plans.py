"""Sources whose parts are files: which files belong to them, and how many rows img2dataset says they hold."""

import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TypeVar, cast

from clipa_eqx.errors import DataError
from conversion.records.files import Found, Place, check_readable, is_pattern, list_sizes, root_of
from conversion.records.rows import Columns, Kind, Part, Plan, printable
from conversion.records.sources.columns import from_json

# What a folder is most likely meant for, by what lies in it.
_KIND_OF: dict[str, Kind] = {
    ".tar": "webdataset",
    ".tgz": "webdataset",
    ".parquet": "parquet",
    ".csv": "captions",
    ".tsv": "captions",
    ".jsonl": "captions",
    ".jpg": "folder",
    ".jpeg": "folder",
    ".png": "folder",
}
_FIRST_ROWS = 256  # that tell what the columns of a source are
_MOST_ROWS = 2**40
_STATS = "_stats.json"
_IMG2DATASET_SIDECARS = (_STATS, ".parquet")


T = TypeVar("T")


class Damaged(Exception):
    """What follows in a file cannot be read; `key` is the row in which it breaks, if that is known."""

    def __init__(self, detail: str, *, key: str = "") -> None:
        super().__init__(detail)
        self.key = key


def first_rows(parts: Sequence[Part], read: Callable[[Part], Iterable[T]]) -> Iterator[T]:
    """The first rows of a source, from as many files as it takes."""

    def rows() -> Iterator[T]:
        for part in parts:
            with contextlib.suppress(Damaged):
                yield from read(part)

    return itertools.islice(rows(), _FIRST_ROWS)


def with_columns(plan: Plan, columns: Columns) -> Plan:
    parts = tuple(replace(part, columns=columns) for part in plan.parts)
    return replace(plan, parts=parts, columns=named_columns(columns))


def named_columns(columns: Columns) -> dict[str, object]:
    return {use: printable(name) for use, name in asdict(columns).items() if name is not None}


def parts_of(place: Place, found: Sequence[Found], chosen: Sequence[Found], *, kind: Kind, what: str) -> Plan:
    """One part per chosen file; all others are counted in the plan's info.

    Raises:
        DataError: none was chosen, or one cannot be read.
    """
    if not chosen:
        raise wrong_kind(place, found, kind=kind, what=what)
    check_readable(place, chosen)
    taken = {file.path for file in chosen}
    return Plan(
        parts=tuple(Part(source=file.name, path=file.path, size=file.size) for file in chosen),
        info=ignored_files(file for file in found if file.path not in taken),
        digest=digest_of(beside(place, found, chosen, lambda file: f"{_stem(file.name)}{_STATS}")),
    )


def beside(place: Place, found: Sequence[Found], chosen: Sequence[Found], name: Callable[[Found], str]) -> list[Found]:
    """The files of such a name next to each of the chosen ones, also if the source is a pattern or one file."""
    sizes = {file.path: file.size for file in found}
    if is_pattern(place) or place.fs.isfile(place.path):
        for folder in {_folder(file) for file in chosen}:
            sizes |= {f"{folder}/{base}": size for base, size in list_sizes(place._replace(path=folder)).items()}
    paths = dict.fromkeys(f"{_folder(file)}/{name(file)}" for file in chosen)
    root = root_of(place)
    return [Found(path, path[len(root) :].lstrip("/"), sizes[path]) for path in paths if path in sizes]


def _folder(file: Found) -> str:
    return file.path.rpartition("/")[0]


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]


def digest_of(files: Iterable[Found]) -> str:
    """A hash of names and sizes."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.size}\0".encode(errors="backslashreplace"))
    return digest.hexdigest()


def ignored_files(files: Iterable[Found]) -> dict[str, object]:
    """How many files of each suffix a source does not read; img2dataset's own sidecars are not worth a mention."""
    counts = Counter(_suffix(file.name) for file in files if not file.name.endswith(_IMG2DATASET_SIDECARS))
    return {"ignored_files": {printable(suffix): count for suffix, count in sorted(counts.items())}} if counts else {}


def wrong_kind(place: Place, found: Sequence[Found], *, kind: Kind, what: str) -> DataError:
    counts = Counter(_suffix(file.name) for file in found)
    held = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in counts.most_common(5)) or "no"
    likely: list[str] = [_KIND_OF[suffix] for suffix, _ in counts.most_common() if suffix in _KIND_OF]
    if any(".tfrecord" in file.name for file in found):
        likely.insert(0, {"img2dataset": "tfds", "tfds": "img2dataset"}.get(kind, "img2dataset or tfds"))
    better = next((name for name in likely if name != kind), None)
    advice = f"is it for the source `{better}`?" if better else "is it the right folder?"
    return DataError(f"source {kind}: no {what} in {place.url}; it holds {held} files; {advice}")


def img2dataset_count(place: Place, part: Part) -> int | None:
    """Rows that img2dataset says it wrote to a shard (`00012_stats.json` beside `00012.tar`), None if it is silent."""
    path = f"{part.path.rpartition('/')[0]}/{_stem(part.path)}{_STATS}"
    if not place.fs.exists(path):
        return None
    try:
        content = from_json(place.fs.cat_file(path))
    except ValueError:
        return None
    count = cast(dict[str, object], content).get("successes") if isinstance(content, dict) else None
    return as_count(count)


def as_count(value: object) -> int | None:
    """Rows of a file, None for what cannot be such a number."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_ROWS else None


def _suffix(name: str) -> str:
    base = name.rpartition("/")[2]
    return f".{base.rpartition('.')[2].lower()}" if "." in base else ""
