"""Parquet tables of serialized ``tf.Example``s, one column of bytes, as TFDS writes them (extra ``parquet``)."""

from collections.abc import Iterator

from conversion.records.places import Place
from conversion.records.reading import local_copy, unreadable
from conversion.records.rows import BAD_ROW, Lost
from conversion.records.sources.arrow import holds_bytes, pyarrow
from conversion.records.sources.damage import Damaged

_ROWS_AT_ONCE = 64  # images of a few hundred kilobytes; bounds memory


def read_example_table(place: Place, path: str) -> Iterator[bytes | Lost]:
    """The serialized examples of a table in order.

    Raises:
        Damaged: the rest cannot be read, or the table is another one than TFDS writes.
        DataError: the file cannot be opened.
    """
    expected: int | None = None
    with local_copy(place.fs, path) as copy:
        try:
            with pyarrow("parquet").ParquetFile(copy) as table:
                expected = int(table.metadata.num_rows)
                schema = table.schema_arrow
                if len(schema) != 1 or not holds_bytes(schema.field(0).type):
                    raise Damaged(f"expected one column of bytes, it has: {', '.join(schema.names)}", expected=expected)
                for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE):
                    for value in batch.column(0).to_pylist():
                        yield value if isinstance(value, bytes) else Lost(reason=BAD_ROW, key="", detail="no example")
        # A broken page raises ArrowInvalid, or OSError without a number.
        except (pyarrow("").ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise unreadable(path, error) from error
            raise Damaged(f"{type(error).__name__}: {error}", expected=expected) from error
