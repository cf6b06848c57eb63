"""Lists of images and captions in lines of text, read as a stream of entries with their positions: CSV, TSV, JSONL, and
the lists of Flickr8k and Flickr30k with lines such as ``1.jpg#0``, tab, caption.
"""

import csv
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

from clipa_eqx.errors import DataError
from conversion.records.rows import BAD_ROW, WRONG_CELLS, printable, shortened
from conversion.records.sources.absent_images import check_header
from conversion.records.sources.columns import CAPTION_COLUMNS, IMAGE_SUFFIXES, PATH_COLUMNS, is_image_name, usual_of
from conversion.records.sources.encodings import Encoding, check_not_utf16
from conversion.records.sources.values import from_json

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
TEXT_SUFFIXES = (".txt", ".token")  # of files that may be such lists too
_JSONL = (".jsonl", ".ndjson")
_NUMBER = re.compile(r"#\d+\s*$")
_NUMBERED = re.compile(rf"[^\t#]+({'|'.join(map(re.escape, IMAGE_SUFFIXES))})#\d+\t", re.IGNORECASE)

Fields = Mapping[str, object]


class TableFormat(NamedTuple):
    """The format of a table.

    Attributes:
        delimiter: between fields; None: each line is JSON.
        quoted: whether quotes may enclose a field.
        names: the columns of the header.
        body: byte at which the rows begin.
        is_numbered: whether lines are an image with ``#`` and the number of the caption, a tab, and the caption.
    """

    delimiter: str | None
    quoted: bool
    names: tuple[str, ...]
    body: int
    is_numbered: bool = False

    @property
    def first_line(self) -> int:
        """The number of the first line with a row, from 1."""
        return 1 if self.is_numbered or self.delimiter is None else 2

    @property
    def is_list(self) -> bool:
        """Check whether the columns are those of a list of images and captions, by their usual names."""
        usual = usual_of(self.names, PATH_COLUMNS) and usual_of(self.names, CAPTION_COLUMNS)
        return self.is_numbered or usual is not None

    def hashed(self) -> bytes:
        """Bytes for the hash over the source. Their form never changes, so that old conversions can be resumed."""
        numbered = ", numbered" if self.is_numbered else ""
        columns = f"names={self.names}, body={self.body}{numbered}"
        return f"_Table(delimiter={self.delimiter!r}, quoted={self.quoted}, {columns})".encode()


class Entry(NamedTuple):
    """One line, or several if quotes hold line ends.

    Attributes:
        fields: values by column, or a text that says what is wrong.
        start: byte at which the entry begins.
        end: byte after it.
        line: the number of its first line in the file, from 1.
        lines: number of lines.
        reason: the reason to drop it, if it is broken.
    """

    fields: Fields | str
    start: int
    end: int
    line: int
    lines: int = 1
    reason: str = BAD_ROW


def read_format(opened: Any, path: str) -> TableFormat:
    """The format of an open table, from its name and its first line.

    Raises:
        DataError: it is encoded in UTF-16, or its first line is no header.
    """
    check_not_utf16(opened.read(64), path)
    opened.seek(0)
    if path.lower().endswith(_JSONL):
        return TableFormat(None, False, (), 0)
    line: bytes = opened.readline()
    text = line.decode(encoding="utf-8-sig", errors="surrogateescape")
    header = text.rstrip("\r\n")
    if _NUMBERED.match(header):
        return TableFormat("\t", False, ("image", "caption"), len(line) - len(_encoded(text)), is_numbered=True)
    is_tsv = path.lower().endswith(".tsv")
    delimiter = "\t" if is_tsv else max(",", "\t", ";", "|", key=header.count)
    try:
        names = next(csv.reader([header], delimiter=delimiter), [])
    except csv.Error as error:
        raise DataError(f"{path}: its first line is no header: {error}; lines must end in LF or CR LF") from error
    check_header(names, path)
    if image := next((name for name in names if is_image_name(name)), None):
        raise DataError(
            f"{path} has no header: its first line is the row of {shortened(printable(image), 60)!r}; write a line "
            f"with the names of the columns above it, such as {delimiter.join(('image', 'caption'))!r}"
        )
    return TableFormat(delimiter, not is_tsv, tuple(name.strip() for name in names), len(line))


def read_entries(
    opened: Any, table: TableFormat, start: int, *, line: int, content: Any = None, encoding: Encoding | None = None
) -> Iterator[Entry]:
    """The entries of an open table from byte ``start`` on.

    Args:
        line: the number of the line that begins there.
        content: a hash to which everything read is added.
        encoding: notes the lines that are not UTF-8.
    """
    opened.seek(start)
    read = start
    count = 0

    def lines() -> Iterator[str]:
        nonlocal read, count
        for data in opened:
            read += len(data)
            if content is not None:
                content.update(data)
            if encoding is not None:
                encoding.note(data, line + count)
            count += 1
            # Bytes that are not UTF-8 are kept as surrogates, so that only the row that holds them is affected.
            yield data.decode(errors="surrogateescape")

    if table.delimiter is None or table.is_numbered:
        parse = _from_json if table.delimiter is None else _numbered
        for text in lines():
            if text.strip():
                yield Entry(parse(text), read - len(_encoded(text)), read, line + count - 1)
        return
    rows = csv.reader(
        lines(),
        delimiter=table.delimiter,
        quoting=csv.QUOTE_MINIMAL if table.quoted else csv.QUOTE_NONE,
        strict=table.quoted,
    )
    while True:
        begin, before = read, count
        try:
            values = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            detail = f"line {line + before}: {error}; is a quote in it not closed, or not doubled?"
            yield Entry(detail, begin, read, line + before, max(count - before, 1))
            continue
        if table.delimiter == "|":  # of Flickr30k: a quote after the space is a part of the text
            values = [value.lstrip(" ") for value in values]
        if len(values) == len(table.names):
            yield Entry(dict(zip(table.names, values, strict=True)), begin, read, line + before)
        elif values:
            detail = _cells(len(values), table, line + before)
            yield Entry(detail, begin, read, line + before, reason=WRONG_CELLS)


def _cells(count: int, table: TableFormat, line: int) -> str:
    hint = ""
    if count > len(table.names) and table.quoted:
        hint = f"; is {table.delimiter!r} in a text without quotes around it?"
    return f"line {line} has {count} instead of {len(table.names)}{hint}"


def _numbered(line: str) -> Fields | str:
    image, tab, caption = line.removeprefix("\ufeff").rstrip("\r\n").partition("\t")
    return {"image": _NUMBER.sub("", image), "caption": caption} if tab else "no tab between image and caption"


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _from_json(line: str) -> Fields | str:
    try:
        content = from_json(line)
    except ValueError as error:
        return str(error)
    return cast(dict[str, object], content) if isinstance(content, dict) else "not a map"
