"""CSV, TSV and JSONL lists of images and captions, read as a stream of entries with their positions."""

import codecs
import csv
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

from clipa_eqx.errors import DataError
from conversion.records.sources.values import from_json

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_JSONL = (".jsonl", ".ndjson")

Fields = Mapping[str, object]


class TableFormat(NamedTuple):
    """The format of a table.

    Attributes:
        delimiter: between fields; None: each line is JSON.
        quoted: whether quotes may enclose a field.
        names: the columns of the header.
        body: byte at which the rows begin.
    """

    delimiter: str | None
    quoted: bool
    names: tuple[str, ...]
    body: int

    def hashed(self) -> bytes:
        """Bytes for the hash over the source. Their form never changes, so that old conversions can be resumed."""
        return (
            f"_Table(delimiter={self.delimiter!r}, quoted={self.quoted}, names={self.names}, body={self.body})".encode()
        )


class Entry(NamedTuple):
    """One line, or several if quotes hold line ends.

    Attributes:
        fields: values by column, or a text that says what is wrong.
        start: byte at which the entry begins.
        end: byte after it.
        lines: number of lines.
    """

    fields: Fields | str
    start: int
    end: int
    lines: int = 1


def read_format(opened: Any, path: str) -> TableFormat:
    """The format of an open table, from its name and header.

    Raises:
        DataError: it is encoded in UTF-16, or its first line is no header.
    """
    begin: bytes = opened.read(2)
    opened.seek(0)
    if begin in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise DataError(f"{path} is encoded in UTF-16; convert it to UTF-8, as by `iconv -f UTF-16 -t UTF-8`")
    if path.lower().endswith(_JSONL):
        return TableFormat(None, False, (), 0)
    line: bytes = opened.readline()
    header = line.decode(encoding="utf-8-sig", errors="surrogateescape").rstrip("\r\n")
    is_tsv = path.lower().endswith(".tsv")
    delimiter = "\t" if is_tsv else max(",", "\t", ";", "|", key=header.count)
    try:
        names = next(csv.reader([header], delimiter=delimiter), [])
    except csv.Error as error:
        raise DataError(f"{path}: its first line is no header: {error}; lines must end in LF or CR LF") from error
    return TableFormat(delimiter, not is_tsv, tuple(name.strip() for name in names), len(line))


def read_entries(opened: Any, table: TableFormat, start: int, content: Any = None) -> Iterator[Entry]:
    """The entries of an open table from byte ``start`` on. Everything read is also added to the hash ``content``."""
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
            # Bytes that are not UTF-8 are kept as surrogates, so that only the row that holds them is affected.
            yield line.decode(errors="surrogateescape")

    if table.delimiter is None:
        for line in lines():
            begin = read - len(line.encode(errors="surrogateescape"))
            if line.strip():
                yield Entry(_from_json(line), begin, read)
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
            yield Entry(str(error), begin, read, max(count - before, 1))
            continue
        if len(values) == len(table.names):
            yield Entry(dict(zip(table.names, values, strict=True)), begin, read)
        elif values:
            yield Entry(f"{len(values)} fields instead of {len(table.names)}", begin, read)


def _from_json(line: str) -> Fields | str:
    try:
        content = from_json(line)
    except ValueError as error:
        return str(error)
    return cast(dict[str, object], content) if isinstance(content, dict) else "not a map"
