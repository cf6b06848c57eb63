"""Lists in CSV, TSV and JSONL, never held in memory. Consecutive lines with the same image are one row."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence

from clipa_eqx.progress import progress_bar
from conversion.records.listing import FoundFile
from conversion.records.options import IngestOptions
from conversion.records.places import Place
from conversion.records.reading import open_file
from conversion.records.rows import BAD_ROW, Columns, Lost, Part, Row
from conversion.records.sources.columns import choose_listed, count_names
from conversion.records.sources.images import read_image
from conversion.records.sources.planned_list import PlannedList
from conversion.records.sources.text_tables import Entry, Fields, read_entries, read_format
from conversion.records.sources.values import as_captions, as_label, kept_values

_FIRST_LINES = 256  # lines of JSON that the columns are chosen from


def plan_table(place: Place, file: FoundFile, options: IngestOptions) -> PlannedList:
    """Cut a table into parts of ``records_per_shard`` images. Its header names the columns, or its first JSON lines do.

    Raises:
        DataError: the file cannot be opened, or lacks a column for images, for captions or labels, or one that an
            option names.
    """
    parts: list[Part] = []
    content = hashlib.sha256()
    with (
        open_file(place, file.path) as opened,
        progress_bar(what=f"scan {file.name}", total=file.size, unit="B") as bar,
    ):
        table = read_format(opened, file.path)
        entries = read_entries(opened, table, table.body)
        fields = (entry.fields for entry in entries if not isinstance(entry.fields, str))
        names = dict.fromkeys(table.names, 1) or count_names(itertools.islice(fields, _FIRST_LINES))
        columns = choose_listed(names, options=options, where=file.path) if names else Columns()
        content.update(table.hashed())
        groups = _groups(read_entries(opened, table, table.body, content), columns)
        ranges = ((group[0].start, group[-1].end) for group in groups)
        while chunk := list(itertools.islice(ranges, options.records_per_shard)):
            start, end = chunk[0][0], chunk[-1][1]
            bar.update(end - start)
            source = f"{file.name}, byte {start} on"
            count = len(chunk)
            parts.append(Part(source=source, path=file.path, size=count, start=start, lines=count, columns=columns))
    return PlannedList(parts=parts, content=[content.hexdigest().encode()], columns=columns, names=names)


def read_table(place: Place, part: Part, options: IngestOptions) -> Iterator[Row | Lost]:
    """The rows of a part of a table, with the images they name (see ``read_image``)."""
    with open_file(place, part.path) as opened:
        table = read_format(opened, part.path)
        groups = _groups(read_entries(opened, table, part.start), part.columns)
        for group in itertools.islice(groups, part.lines):
            yield _row(place, part, group, options)


def _row(place: Place, part: Part, group: Sequence[Entry], options: IngestOptions) -> Row | Lost:
    first = group[0].fields
    where = f"{part.path}, byte {group[0].start}"
    if isinstance(first, str):
        # A quote that is never closed takes lines with it; each was a row.
        return Lost(reason=BAD_ROW, key=where, detail=first, count=group[0].lines)
    columns = part.columns
    path = _path(first, columns)
    if not path:
        return Lost(reason=BAD_ROW, key=where, detail="no image path")
    lines = [entry.fields for entry in group if not isinstance(entry.fields, str)]
    captions = [text for line in lines for text in as_captions(line.get(columns.caption or "", ()))]
    key = first.get(columns.key) if columns.key else None
    return Row(
        key=path if key is None else str(key),
        image=read_image(place, path, part=part, images=options.images),
        captions=tuple(captions),
        label=as_label(first.get(columns.label)) if columns.label else None,
        extra=kept_values(first, options.keep),
    )


def _groups(entries: Iterator[Entry], columns: Columns) -> Iterator[list[Entry]]:
    """Group consecutive entries with the same image; an entry that names none or is broken is a group of its own."""
    group: list[Entry] = []
    last = ""
    for entry in entries:
        path = "" if isinstance(entry.fields, str) else _path(entry.fields, columns)
        if group and (not path or path != last):
            yield group
            group = []
        group, last = [*group, entry], path
    if group:
        yield group


def _path(fields: Fields, columns: Columns) -> str:
    value = fields.get(columns.path or "")
    return value if isinstance(value, str) else ""
