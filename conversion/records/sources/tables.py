"""Files of Arrow tables: Parquet, and the Arrow files that the library ``datasets`` saves."""

from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from conversion.records.places import Place
from conversion.records.reading import local_copy, unreadable
from conversion.records.sources.arrow import check_values, pyarrow, rows_of
from conversion.records.sources.damage import Damaged

SUFFIXES = (".parquet", ".arrow")
_ROWS_AT_ONCE = 64  # images of a few hundred kilobytes; bounds memory
_FILE_FORMAT = b"ARROW1"  # start of Arrow's other format, which has an index at its end
_END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream

Rows = Iterator[Mapping[str, object]]


class Table(NamedTuple):
    """An open table.

    Attributes:
        schema: names and types of its columns.
        length: number of rows; None if the file does not say it.
        rows: read the rows in order, with these columns.
    """

    schema: Any
    length: int | None
    rows: Callable[[Collection[str]], Rows]


@contextmanager
def open_table(place: Place, path: str, *, is_read: bool = True) -> Generator[Table]:
    """Open a table. ``is_read`` copies a remote file that will be read from its start to its end.

    Raises:
        Damaged: it is no table, or it breaks off. Reading its rows raises this too.
        DataError: the file cannot be opened or read.
    """
    length: int | None = None
    is_parquet = path.lower().endswith(".parquet")
    try:
        with (
            _opened(place, path, is_mapped=not is_parquet, is_read=is_read) as opened,
            _parquet(opened) if is_parquet else _arrow(opened) as table,
        ):
            length = table.length
            str(table.schema)  # decodes all names
            yield table
    # A broken page raises ArrowInvalid, or OSError without a number.
    except (pyarrow("").ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise unreadable(path, error) from error
        raise Damaged(f"{type(error).__name__}: {error}", expected=length) from error
    # Names that are not UTF-8, and lengths beyond all memory.
    except (UnicodeDecodeError, MemoryError) as error:
        raise Damaged(f"{type(error).__name__}: {error}", expected=length) from error


@contextmanager
def _opened(place: Place, path: str, *, is_mapped: bool, is_read: bool) -> Generator[Any]:
    if not is_read:
        with place.fs.open(path, "rb") as opened:
            yield opened
        return
    arrow = pyarrow("")
    with local_copy(place.fs, path) as copy, (arrow.memory_map if is_mapped else arrow.OSFile)(copy) as opened:
        yield opened


@contextmanager
def _parquet(opened: Any) -> Generator[Table]:
    with pyarrow("parquet").ParquetFile(opened) as table:

        def rows(columns: Collection[str]) -> Rows:
            for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(columns)):
                yield from rows_of(batch)

        yield Table(table.schema_arrow, int(table.metadata.num_rows), rows)


@contextmanager
def _arrow(opened: Any) -> Generator[Table]:
    is_file = opened.read(len(_FILE_FORMAT)) == _FILE_FORMAT
    opened.seek(0)
    ipc = pyarrow("ipc")
    with ipc.open_file(opened) if is_file else ipc.open_stream(opened) as table:

        def rows(columns: Collection[str]) -> Rows:
            batches = (table.get_batch(i) for i in range(table.num_record_batches)) if is_file else table
            for batch in batches:
                chosen = batch.select(list(columns))
                check_values(chosen)
                for start in range(0, chosen.num_rows, _ROWS_AT_ONCE):
                    yield from rows_of(chosen.slice(start, _ROWS_AT_ONCE))
            if not is_file and not _ends(opened):
                raise Damaged("the end of the stream is missing")

        yield Table(table.schema, None, rows)


def _ends(opened: Any) -> bool:
    """Check whether a file ends as a complete stream: one that is cut between two batches reads without an error."""
    opened.seek(-len(_END), 2)
    return opened.read() == _END
