"""The ids of ``--subset`` for one conversion: sorted once, found by every worker, and accounted for at the end."""

import contextlib
import functools
import hashlib
import json
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8

from clipa_eqx.errors import counted
from clipa_eqx.progress import progress_bar
from conversion.records.ids import Form, Ids
from conversion.records.listing import list_sizes
from conversion.records.options import IngestOptions
from conversion.records.part_report import SUBSET, UNFINISHED, PartReport, met_name
from conversion.records.places import Place, open_place
from conversion.records.reading import read_files
from conversion.records.rows import LOCAL_COPY, printable
from conversion.records.sorted_ids import Positions, SortedIds, write_sorted
from conversion.records.subset_file import UID, SubsetFile, open_subset
from conversion.records.writing import move_in, write_file

_AT_ONCE = 64  # files of positions fetched together
_MOST_ABSENT = 2**20  # ids that are looked for in memory
_SMALL_POSITION = 2**32
_BLOCK = 2**20  # bytes of bits looked at together

Bits = UInt8[np.ndarray, " bytes"]


@dataclass(frozen=True, kw_only=True)
class SubsetIds:
    """The file of sorted ids in ``_unfinished``.

    Attributes:
        sha256: of the file that the user gave.
        column: its column.
        form: form of its ids.
        rows: number of its ids, with repeated and missing ones.
        missing: number of empty texts and nulls among them.
        count: number of different ids.
    """

    sha256: str
    column: str | None
    form: Form
    rows: int
    missing: int
    count: int

    @property
    def file(self) -> str:
        """The file of the sorted ids, inside the destination. Its name is that of what it holds."""
        return f"{_name(self.sha256, self.column)}.ids"

    @property
    def about(self) -> str:
        """The file with these attributes, inside the destination."""
        return f"{_name(self.sha256, self.column)}.json"

    @property
    def position(self) -> np.dtype[Any]:
        """The type of a position in the files of positions."""
        return np.dtype("<u4" if self.count <= _SMALL_POSITION else "<u8")


@contextlib.contextmanager
def opened_subset(options: IngestOptions) -> Generator[SubsetFile | None]:
    """The file of the subset; None without one. Local copies of ids are removed at the end.

    Raises:
        DataError: it cannot be read, or holds no ids.
    """
    if options.subset is None:
        yield None
        return
    try:
        with open_subset(options.subset, column=options.subset_column) as file:
            yield file
    finally:
        _fetched.cache_clear()


def with_usual_column(options: IngestOptions, file: SubsetFile | None) -> IngestOptions:
    """The options with the column of the ids that the file decides, if no other is asked for."""
    if file is None or options.subset_column is not None:
        return options
    return replace(options, subset_column=UID) if file.is_pairs else replace(options, usual_subset_column=file.column)


def prepare_ids(target: Place, file: SubsetFile, sha256: str) -> SubsetIds:
    """Sort the ids into ``_unfinished``, unless an earlier run did.

    Raises:
        DataError: the file is damaged.
    """
    found = _prepared(target, file, sha256)
    if found is not None:
        return found
    missing = 0

    def chunks() -> Iterator[Ids]:
        nonlocal missing
        with progress_bar(what="read ids", total=file.rows, unit="id") as bar:
            for chunk in file.chunks():
                missing += chunk.missing
                bar.update(len(chunk.ids) + chunk.missing)
                yield chunk.ids

    with _staging(target) as folder:
        sorted_file = Path(folder) / "ids"
        count = write_sorted(chunks(), sorted_file, rows=file.rows, folder=Path(folder))
        ids = SubsetIds(sha256=sha256, column=file.column, form=file.form, rows=file.rows, missing=missing, count=count)
        move_in(target, sorted_file, ids.file)
    write_file(target, ids.about, json.dumps(asdict(ids)).encode())
    return ids


def open_ids(target: Place, ids: SubsetIds) -> SortedIds:
    """The sorted ids in a memory map. A process copies those of a remote destination once."""
    if target.is_local:
        return SortedIds.open(Path(target.child(ids.file)), rows=ids.rows, count=ids.count)
    return _fetched(target.url, ids)


def pack_positions(positions: Positions, ids: SubsetIds) -> bytes:
    """The content of the file of the positions that a part met."""
    return positions.astype(ids.position).tobytes()


def subset_entry(
    target: Place, file: SubsetFile, ids: SubsetIds, reports: Sequence[PartReport], *, examples: int
) -> dict[str, object]:
    """The entry for the manifest: the file, and how many of its ids rows have. Ids that none has are exemplified."""
    met = _met(target, ids, reports)
    count = int(np.bitwise_count(met).sum())
    repeated = ids.rows - ids.missing - ids.count
    absent = _absent(file, open_ids(target, ids), met, ids=ids, most=examples) if count < ids.count else []
    return {
        "file": printable(file.url),
        "sha256": ids.sha256,
        **({"column": printable(ids.column)} if ids.column else {}),
        "ids": ids.rows,
        **({"repeated": repeated} if repeated else {}),
        **({"missing": ids.missing} if ids.missing else {}),
        "met": count,
        "never_met": ids.count - count,
        **({"examples": absent} if absent else {}),
    }


def subset_lines(entry: Mapping[str, object], outside: Mapping[str, str] | None) -> Iterator[str]:
    """The entry as lines for a person.

    Args:
        outside: the example of a row that is not in the subset, if there is one.
    """
    ids, met, never = (cast(int, entry[name]) for name in ("ids", "met", "never_met"))
    examples = cast("list[str]", entry.get("examples", []))
    notes = [f"{entry[name]:,} {name}" for name in ("repeated", "missing") if name in entry]
    shown = f"subset {entry['file']}: {', '.join([counted(ids, 'id'), *notes])}"
    such = f", such as {examples[0]}" if examples else ""
    yield f"{shown}; rows have {met:,} of them, and no row has {never:,}{such}" if never else f"{shown}; rows have all"
    if not met:
        row = f", and the rows have ids such as {outside['detail']} ({outside['key']})" if outside else ""
        file = f"its ids are such as {examples[0]}{row}; " if examples else ""
        yield f"no row is in the subset: {file}are they of this source, and is --subset-column the right column?"


def _prepared(target: Place, file: SubsetFile, sha256: str) -> SubsetIds | None:
    """The ids that an earlier run sorted, if they are there completely."""
    sizes = {f"{UNFINISHED}/{name}": size for name, size in list_sizes(target, UNFINISHED).items()}
    about = f"{_name(sha256, file.column)}.json"
    if about not in sizes:
        return None
    try:
        ids = SubsetIds(**cast("dict[str, Any]", json.loads(read_files(target, [about])[about])))
    except (ValueError, TypeError):
        return None
    is_same = (ids.sha256, ids.column, ids.form, ids.rows) == (sha256, file.column, file.form, file.rows)
    return ids if is_same and sizes.get(ids.file) == 16 * ids.rows else None


def _name(sha256: str, column: str | None) -> str:
    """The name of files about a subset, without suffix. A conversion that is over cannot replace those of another."""
    digest = hashlib.sha256(json.dumps([sha256, column]).encode()).hexdigest()
    return f"{UNFINISHED}/{SUBSET}{digest[:16]}"


def _staging(target: Place) -> tempfile.TemporaryDirectory[str]:
    # Inside a local destination, which has the space, and whose lock removes what a killed process left.
    if target.is_local:
        return tempfile.TemporaryDirectory(dir=target.child(UNFINISHED), prefix="tmp-")
    return tempfile.TemporaryDirectory(prefix=LOCAL_COPY)


@functools.lru_cache(maxsize=1)
def _fetched(target: str, ids: SubsetIds) -> SortedIds:
    place = open_place(target)
    # What is mapped stays readable without its name, and is gone with the process, however that ends.
    with tempfile.TemporaryDirectory(prefix=LOCAL_COPY) as folder:
        path = Path(folder) / "ids"
        place.fs.get_file(place.child(ids.file), str(path))
        return SortedIds.open(path, rows=ids.rows, count=ids.count)


def _met(target: Place, ids: SubsetIds, reports: Sequence[PartReport]) -> Bits:
    """A bit for each id, set if a row has it."""
    bits = np.zeros(-(-ids.count // 8), np.uint8)
    numbers = [report.number for report in reports if report.met_bytes]
    with progress_bar(what="read met ids", total=len(numbers), unit="part") as bar:
        for i in range(0, len(numbers), _AT_ONCE):
            names = [met_name(number) for number in numbers[i : i + _AT_ONCE]]
            for content in read_files(target, names).values():
                positions = np.frombuffer(content, ids.position)
                np.bitwise_or.at(bits, positions >> 3, (1 << (positions & 7)).astype(np.uint8))
            bar.update(len(names))
    return bits


def _unset(bits: Bits, count: int) -> Positions:
    """The positions of the bits that are 0 among the first ``count``."""
    found: list[Positions] = []
    for start in range(0, len(bits), _BLOCK):
        block = np.unpackbits(bits[start : start + _BLOCK], bitorder="little")
        found.append(np.flatnonzero(block[: count - 8 * start] == 0) + 8 * start)
    return np.concatenate(found)


def _absent(file: SubsetFile, known: SortedIds, met: Bits, *, ids: SubsetIds, most: int) -> list[str]:
    """The first ids of the file, in its order, that no row has."""
    found: dict[bytes, str] = {}
    few: SortedIds | None = None
    if ids.count - int(np.bitwise_count(met).sum()) <= _MOST_ABSENT:
        # To find a few ids, the complete file need not be searched for each id.
        few = known.some(_unset(met, ids.count))
    with progress_bar(what="find absent ids", total=ids.rows, unit="id") as bar:
        for chunk in file.chunks() if most else ():
            if few is None:
                positions = known.find(chunk.ids)
                is_absent = (met[positions >> 3] >> (positions & 7).astype(np.uint8)) & 1 == 0
            else:
                is_absent = few.find(chunk.ids) >= 0
            for number in np.flatnonzero(is_absent).tolist():
                found.setdefault(chunk.ids[number].tobytes(), file.shown(chunk.values[number]))
                if len(found) == most:
                    return list(found.values())
            bar.update(len(chunk.ids) + chunk.missing)
    return list(found.values())
