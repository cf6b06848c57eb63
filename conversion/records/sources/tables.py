"""CSV, TSV and JSONL lists of pictures and captions; lines that follow each other and name one picture are one row."""

import codecs
import csv
import hashlib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from tqdm import tqdm

from clipa_eqx.errors import DataError
from conversion.records.files import Found, Place, unreadable
from conversion.records.rows import BAD_ROW, Columns, IngestOptions, Lost, Part, Row
from conversion.records.sources.columns import as_captions, as_extra, as_label, choose_listed, count_names, from_json
from conversion.records.sources.images import read_picture

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_JSONL = (".jsonl", ".ndjson")

_FIRST_LINES = 256  # of JSON, that tell what the columns are

Fields = Mapping[str, object]


class _Table(NamedTuple):
    """How the lines of a file are read: without a delimiter each line is JSON."""

    delimiter: str | None
    quoted: bool
    names: tuple[str, ...]
    body: int  # byte at which the rows begin


class _Entry(NamedTuple):
    """One line (or several, if quotes hold line ends): fields or what is wrong, the bytes it lies between, lines."""

    fields: Fields | str
    start: int
    end: int
    lines: int = 1


def table_parts(
    place: Place, file: Found, *, options: IngestOptions
) -> tuple[list[Part], str, Columns, Collection[str]]:
    """The table cut into parts of `records_per_shard` pictures; the SHA-256 of its content; its columns, out of which.

    It is never held in memory. Its header names the columns, or its first lines of JSON do.

    Raises:
        DataError: the file cannot be opened, or has no column for pictures, or none for captions or labels, or none
            that an option asks for.
    """
    parts: list[Part] = []
    content = hashlib.sha256()
    with (
        _open(place, file.path) as opened,
        tqdm(total=file.size, desc=f"scan {file.name}", unit="B", unit_scale=True, delay=2) as bar,
    ):
        table = _read_table(opened, file.path)
        fields = (entry.fields for entry in _entries(opened, table, table.body) if not isinstance(entry.fields, str))
        names = dict.fromkeys(table.names, 1) or count_names(itertools.islice(fields, _FIRST_LINES))
        columns = choose_listed(names, options=options, where=file.path) if names else Columns()
        content.update(repr(table).encode())
        groups = _groups(_entries(opened, table, table.body, content), columns)
        ranges = ((group[0].start, group[-1].end) for group in groups)
        while chunk := list(itertools.islice(ranges, options.records_per_shard)):
            start, end = chunk[0][0], chunk[-1][1]
            bar.update(end - start)
            source = f"{file.name}, byte {start} on"
            count = len(chunk)
            parts.append(Part(source=source, path=file.path, size=count, start=start, lines=count, columns=columns))
    return parts, content.hexdigest(), columns, names


def read_table(place: Place, part: Part, *, options: IngestOptions) -> Iterator[Row | Lost]:
    """The rows of a part of a table, with the pictures they name (see `read_picture`)."""
    with _open(place, part.path) as opened:
        table = _read_table(opened, part.path)
        groups = _groups(_entries(opened, table, part.start), part.columns)
        for group in itertools.islice(groups, part.lines):
            yield _row(place, part, group, options)


def _row(place: Place, part: Part, group: Sequence[_Entry], options: IngestOptions) -> Row | Lost:
    first = group[0].fields
    if isinstance(first, str):
        # A quote that is never closed takes lines with it; each was a row.
        return Lost(reason=BAD_ROW, key=f"{part.path}, byte {group[0].start}", detail=first, count=group[0].lines)
    columns = part.columns
    path = _path(first, columns)
    if not path:
        return Lost(reason=BAD_ROW, key=f"{part.path}, byte {group[0].start}", detail="no path of a picture")
    lines = [entry.fields for entry in group if not isinstance(entry.fields, str)]
    captions = [text for line in lines for text in as_captions(line.get(columns.caption or "", ()))]
    key = first.get(columns.key) if columns.key else None
    return Row(
        key=path if key is None else str(key),
        image=read_picture(place, path, part=part, images=options.images),
        captions=tuple(captions),
        label=as_label(first.get(columns.label)) if columns.label else None,
        extra={name: as_extra(first[name]) for name in options.keep if name in first},
    )


def _groups(entries: Iterator[_Entry], columns: Columns) -> Iterator[list[_Entry]]:
    """Entries that follow each other and name the same picture; one that names none or is broken stands alone."""
    group: list[_Entry] = []
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


def _entries(opened: Any, table: _Table, start: int, content: Any = None) -> Iterator[_Entry]:
    """The entries from byte `start` on; what is read is also given to the hash `content`."""
    opened.seek(start)
    read = start
    count = 0

    def lines() -> Iterator[str]:
        nonlocal read, count
        for line in opened:
            read += len(line)
            count += 1
            if content is not None:
                content.update(line)
            # Bytes that are not UTF-8 are kept apart, so that they concern the one row that holds them.
            yield line.decode(errors="surrogateescape")

    if table.delimiter is None:
        for line in lines():
            begin = read - len(line.encode(errors="surrogateescape"))
            if line.strip():
                yield _Entry(_from_json(line), begin, read)
        return
    rows = csv.reader(
        lines(),
        delimiter=table.delimiter,
        quoting=csv.QUOTE_MINIMAL if table.quoted else csv.QUOTE_NONE,
        skipinitialspace=table.delimiter == "|",
        strict=table.quoted,
    )
    while True:
        begin, before = read, count
        try:
            values = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield _Entry(str(error), begin, read, max(count - before, 1))
            continue
        if len(values) == len(table.names):
            yield _Entry(dict(zip(table.names, values, strict=True)), begin, read)
        elif values:
            yield _Entry(f"{len(values)} fields instead of {len(table.names)}", begin, read)


def _from_json(line: str) -> Fields | str:
    try:
        content = from_json(line)
    except ValueError as error:
        return str(error)
    return cast(dict[str, object], content) if isinstance(content, dict) else "not a map"


def _read_table(opened: Any, path: str) -> _Table:
    begin: bytes = opened.read(2)
    opened.seek(0)
    if begin in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise DataError(f"{path} is encoded in UTF-16; make it UTF-8, as by `iconv -f UTF-16 -t UTF-8`")
    if path.lower().endswith(_JSONL):
        return _Table(None, False, (), 0)
    line: bytes = opened.readline()
    header = line.decode(encoding="utf-8-sig", errors="surrogateescape").rstrip("\r\n")
    is_tsv = path.lower().endswith(".tsv")
    delimiter = "\t" if is_tsv else max(",", "\t", ";", "|", key=header.count)
    try:
        names = next(csv.reader([header], delimiter=delimiter), [])
    except csv.Error as error:
        raise DataError(f"{path}: its first line is no header: {error}; lines must end in LF or CR LF") from error
    return _Table(delimiter, not is_tsv, tuple(name.strip() for name in names), len(line))


def _open(place: Place, path: str) -> Any:
    try:
        return place.fs.open(path, "rb")
    except OSError as error:
        raise unreadable(path, error) from error
