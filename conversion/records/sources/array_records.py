"""ArrayRecord files as sources: their records in order, without those that are damaged."""

from collections.abc import Iterator
from dataclasses import replace

from clipa_eqx.data.array_record_files import ShardReader, open_reader
from conversion.records.places import Place
from conversion.records.reading import local_copy
from conversion.records.rows import TRUNCATED, Lost
from conversion.records.sources.damage import Damaged

_RECORDS_AT_ONCE = 64  # images of a few hundred kilobytes; bounds memory


def read_array_records(place: Place, path: str) -> Iterator[bytes | Lost]:
    """The records of a file in order, with one lost row for each run of records whose checksum is wrong.

    The index is at the end of a file, so nothing of a truncated file can be read.

    Raises:
        Damaged: the file has no valid index.
        DataError: the file cannot be opened.
    """
    with local_copy(place.fs, path) as copy:
        try:
            reader = open_reader(copy)
            is_valid, count = reader.ok(), reader.num_records()
        except RuntimeError as error:
            raise Damaged(str(error)) from error
        if not is_valid:
            raise Damaged("no ArrayRecord file, or without the index at its end, as after a cut; no record is readable")
        try:
            yield from _joined(_records(reader, count))
        finally:
            reader.close()


def _records(reader: ShardReader, count: int) -> Iterator[bytes | Lost]:
    for start in range(0, count, _RECORDS_AT_ONCE):
        positions = range(start, min(start + _RECORDS_AT_ONCE, count))
        try:
            yield from reader.read(list(positions))
        except RuntimeError:
            yield from (_record(reader, position) for position in positions)


def _record(reader: ShardReader, position: int) -> bytes | Lost:
    try:
        return reader.read([position])[0]
    except RuntimeError as error:
        return Lost(reason=TRUNCATED, key="", detail=str(error))


def _joined(records: Iterator[bytes | Lost]) -> Iterator[bytes | Lost]:
    """Join lost rows that follow each other: a damaged chunk may hold thousands of records."""
    lost: Lost | None = None
    for record in records:
        if isinstance(record, Lost):
            lost = record if lost is None else replace(lost, count=lost.count + record.count)
            continue
        if lost is not None:
            yield lost
            lost = None
        yield record
    if lost is not None:
        yield lost
