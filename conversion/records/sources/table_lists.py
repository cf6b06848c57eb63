"""Lists in CSV, TSV and JSONL. Lines with the same image are one row.

A list is not held in memory, unless lines of one image are not next to each other.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from clipa_eqx.errors import DataError
from clipa_eqx.progress import progress_bar
from conversion.records.listing import FoundFile
from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.reading import open_file
from conversion.records.rows import BAD_ROW, Columns, ListedRow, Lost, Part, Row, one_label
from conversion.records.sources.absent_images import check_paths
from conversion.records.sources.columns import choose_listed, count_names
from conversion.records.sources.encodings import Encoding
from conversion.records.sources.images import read_image
from conversion.records.sources.listed import ListFile, identity_of, join_rows, list_parts, path_key, spelled
from conversion.records.sources.planned_list import PlannedList
from conversion.records.sources.planning import FIRST_ROWS
from conversion.records.sources.split_column import COLUMN, choose_column_of_splits
from conversion.records.sources.text_tables import Entry, Fields, read_entries, read_format
from conversion.records.sources.value_types import check_types
from conversion.records.sources.values import as_key, as_labels, captions_of, kept_values

_MOST_BYTES = 2**30  # of a table whose lines are joined in memory


def plan_table(
    place: Place, file: FoundFile, options: IngestOptions, *, left: set[str], key_folder: str = ""
) -> PlannedList:
    """Cut a table into parts of ``records_per_shard`` images. Its header names the columns, or its first JSON lines do.

    The images that it names are taken out of ``left``.

    Raises:
        DataError: the file cannot be opened, or lacks a column for images, for captions or labels, or one that an
            option names; a column holds values of the wrong type; lines of one image are not next to each other, and
            the file is too large to join them.
    """
    parts: list[Part] = []
    list_file = ListFile(place, file, options, key_folder)
    content = hashlib.sha256()
    with (
        open_file(place, file.path) as opened,
        progress_bar(what=f"scan {file.name}", total=file.size, unit="B") as bar,
    ):
        table = read_format(opened, file.path)
        entries = read_entries(opened, table, table.body, line=table.first_line)
        fields = (entry.fields for entry in entries if not isinstance(entry.fields, str))
        first = list(itertools.islice(fields, FIRST_ROWS))
        names = dict.fromkeys(table.names, 1) or count_names(first)
        columns = choose_listed(names, options=options, where=file.path) if names else Columns()
        _check_unique(table.names, columns, where=file.path)
        check_types(first, columns, where=file.path)
        paths = (row.get(columns.path or "") for row in first)
        check_paths(paths, columns, place=place, options=options, where=file.path)
        lines = read_entries(opened, table, table.body, line=table.first_line)
        values = (entry.fields.get(COLUMN) for entry in lines if not isinstance(entry.fields, str))
        columns = replace(columns, split=choose_column_of_splits(values, names, options, where=file.path))
        content.update(table.hashed())
        encoding = Encoding()
        scanned = read_entries(opened, table, table.body, line=table.first_line, content=content, encoding=encoding)
        groups = _groups(scanned, columns, options)
        images = bytearray()  # hashes of the images of all groups
        ranges = (_range(group, columns, images) for group in _without_listed(groups, columns, list_file, left))
        while chunk := list(itertools.islice(ranges, options.records_per_shard)):
            start, end, line = chunk[0].start, chunk[-1].end, chunk[0].line
            bar.update(end - start)
            source = f"{file.name}, byte {start} on"
            count = len(chunk)
            parts.append(
                Part(
                    source=source,
                    path=file.path,
                    size=count,
                    start=start,
                    lines=count,
                    line=line,
                    columns=columns,
                    key_folder=key_folder,
                )
            )
    encoding.check(file.path)
    if _repeats(images):
        rows = _joined(list_file, columns)
        parts = list(list_parts(rows, [1] * len(rows), source=file.name, options=options))
        content.update(b"joined")
    return PlannedList(parts=parts, content=[content.hexdigest().encode()], columns=columns, names=names)


def _check_unique(names: Sequence[str], columns: Columns, *, where: str) -> None:
    """Refuse columns of one name, of which one or the other would be read, if that name is wanted."""
    wanted = (columns.path, *columns.captions, columns.key, columns.label, *columns.values)
    for name in wanted:
        places = [str(i) for i, other in enumerate(names, 1) if other == name]
        if len(places) > 1:
            raise DataError(
                f"{where} has several columns named {name!r}: columns {' and '.join(places)}; rename one in its first "
                "line, or choose others with --image-column, --caption-column, --key-column or --label-column"
            )


def _without_listed(
    groups: Iterator[list[Entry]], columns: Columns, list_file: ListFile, left: set[str]
) -> Iterator[list[Entry]]:
    """Yield the groups, and take their images out of ``left``."""
    for group in groups:
        fields = group[0].fields
        if left and not isinstance(fields, str):
            left.discard(spelled(list_file.complete(_path(fields, columns))))
        yield group


class _Range(NamedTuple):
    """Bytes from ``start`` to ``end`` of a table, whose first line has the number ``line``."""

    start: int
    end: int
    line: int


def _range(group: Sequence[Entry], columns: Columns, images: bytearray) -> _Range:
    if not isinstance(group[0].fields, str) and (path := _path(group[0].fields, columns)):
        identity = (identity_of(path), _labels(group[0].fields, columns))
        images += hash(identity).to_bytes(8, "little", signed=True)
    return _Range(group[0].start, group[-1].end, group[0].line)


def _repeats(images: bytearray) -> bool:
    """Check whether an image has two groups of lines."""
    hashes = np.frombuffer(images, np.int64)
    return len(np.unique(hashes)) < len(hashes)


def _joined(list_file: ListFile, columns: Columns) -> list[ListedRow | Lost]:
    """All rows of a table, with lines of one image joined, wherever they are."""
    place, file, options, key_folder = list_file
    if file.size > _MOST_BYTES:
        raise DataError(
            f"{file.path}: lines of one image are not next to each other, and {file.size / 1e9:.1f} GB are too many to "
            "join them in memory; sort it by its column of images, as by `sort`"
        )

    def rows() -> Iterator[ListedRow | Lost]:
        with open_file(place, file.path) as opened:
            table = read_format(opened, file.path)
            for group in _groups(read_entries(opened, table, table.body, line=table.first_line), columns, options):
                row = _row(group, columns, where=file.path, key_folder=key_folder)
                yield replace(row, path=list_file.complete(row.path)) if isinstance(row, ListedRow) else row

    return join_rows(rows())


def read_table(place: Place, part: Part, options: IngestOptions) -> Iterator[Row | Lost]:
    """The rows of a part of a table, with the images they name (see ``read_image``)."""
    with open_file(place, part.path) as opened:
        table = read_format(opened, part.path)
        groups = _groups(read_entries(opened, table, part.start, line=part.line), part.columns, options)
        for group in itertools.islice(groups, part.lines):
            row = _row(group, part.columns, where=part.path, key_folder=part.key_folder)
            if isinstance(row, Lost):
                yield row
            else:
                image = partial(read_image, place, row.path, part=part, images=options.images)
                yield Row(key=row.key, image=image, captions=row.captions, labels=row.labels, extra=row.extra)


def _row(group: Sequence[Entry], columns: Columns, *, where: str, key_folder: str) -> ListedRow | Lost:
    """The row of consecutive lines of one image, with the path as listed."""
    first = group[0].fields
    where = f"{where.rpartition('/')[2]}, line {group[0].line}"
    if isinstance(first, str):
        # A quote that is never closed takes lines with it; each was a row.
        return Lost(reason=group[0].reason, key=where, detail=first, count=group[0].lines)
    path = _path(first, columns)
    if not path:
        return Lost(reason=BAD_ROW, key=where, detail="no image path")
    lines = [entry.fields for entry in group if not isinstance(entry.fields, str)]
    captions = [text for line in lines for text in captions_of(line, columns.captions)]
    key = as_key(first.get(columns.key)) if columns.key else None
    return ListedRow(
        key=path_key(path, key_folder) if key is None else str(key),
        path=path,
        captions=tuple(captions),
        label=one_label(_labels(first, columns)),
        extra=kept_values(first, columns.values),
    )


def _groups(entries: Iterator[Entry], columns: Columns, options: IngestOptions) -> Iterator[list[Entry]]:
    """Group consecutive entries with the same image and label, as ``join_rows`` does.

    An entry that names no image or is broken is a group of its own.
    """
    group: list[Entry] = []
    last: tuple[str, tuple[int | str, ...]] = ("", ())
    wanted = (options.split or "").split(",")
    for entry in entries:
        if columns.split and not isinstance(entry.fields, str) and entry.fields.get(columns.split) not in wanted:
            continue
        path = "" if isinstance(entry.fields, str) else _path(entry.fields, columns)
        image = (path, () if isinstance(entry.fields, str) else _labels(entry.fields, columns))
        if group and (not path or image != last):
            yield group
            group = []
        group, last = [*group, entry], image
    if group:
        yield group


def _labels(fields: Fields, columns: Columns) -> tuple[int | str, ...]:
    return as_labels(fields.get(columns.label)) if columns.label else ()


def _path(fields: Fields, columns: Columns) -> str:
    value = fields.get(columns.path or "")
    return value if isinstance(value, str) else ""
