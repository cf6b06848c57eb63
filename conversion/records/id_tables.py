"""Parquet tables with the ids of a subset in a column."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from clipa_eqx.errors import DataError, counted, pip_install
from conversion.records.ids import Chunk, Form, chunk_of_texts, ids_of_numbers, unpack_ids
from conversion.records.rows import printable, shortened
from conversion.records.sources.arrow import pyarrow
from conversion.records.sources.source import is_installed

_USUAL = ("uid", "key")
_ROWS_AT_ONCE = 2**16


class IdTable(NamedTuple):
    """The column of a table that holds ids.

    Attributes:
        column: the column with the ids.
        rows: number of its rows.
    """

    form: Form
    column: str
    rows: int


def open_id_table(path: Path, *, asked: str | None, where: str) -> IdTable:
    """Choose the column with the ids: ``asked`` if there is one, then uid, then key, then the only column.

    Raises:
        DataError: there is no such column, it holds no ids, the file is damaged, or pyarrow is not installed.
    """
    if not is_installed("pyarrow"):
        raise DataError(f"{where} is read by pyarrow, which is not installed: {pip_install('pyarrow')}")
    try:
        with pyarrow("parquet").ParquetFile(path) as table:
            schema, rows = table.schema_arrow, int(table.metadata.num_rows)
            names = [str(name) for name in schema.names]
    except (pyarrow("").ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{where} is no Parquet table, or it is damaged: {error}") from error
    usual = (*([asked] if asked else []), *_USUAL, *(names if len(names) == 1 else []))
    column = next((name for name in usual if name in names), None)
    if column is None or names.count(column) > 1:
        problem = "no column 'uid' or 'key'" if column is None else f"several columns {column!r}"
        raise DataError(
            f"{where} has {problem}; name the column with --subset-column, or write a file with one column: it has "
            f"{', '.join(shortened(printable(name), 80) for name in names[:50]) or 'none'}"
        )
    form = _form_of(schema.field(column).type)
    if form is None:
        raise DataError(
            f"{where}: column {column!r} holds values of type {schema.field(column).type}; expected texts, whole "
            "numbers, or uids as 16 bytes"
        )
    return IdTable(form, column, rows)


def read_id_table(path: Path, table: IdTable, *, where: str) -> Iterator[Chunk]:
    """Yield the ids in order.

    Raises:
        DataError: the file is damaged, or bytes are not 16.
    """
    try:
        with pyarrow("parquet").ParquetFile(path) as opened:
            for batch in opened.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[table.column]):
                yield _chunk(batch.column(0), table, where=where)
    except (pyarrow("").ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{where} is damaged: {error}") from error


def _form_of(kind: Any) -> Form | None:
    types = pyarrow("types")
    if types.is_dictionary(kind):
        return _form_of(kind.value_type)
    if types.is_integer(kind):
        return "numbers"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "texts"
    is_bytes = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return "uids" if is_bytes or (types.is_fixed_size_binary(kind) and kind.byte_width == 16) else None


def _chunk(column: Any, table: IdTable, *, where: str) -> Chunk:
    if pyarrow("types").is_dictionary(column.type):
        column = column.dictionary_decode()
    if table.form == "numbers":
        numbers = column.drop_null().to_numpy(zero_copy_only=False)
        return Chunk(ids_of_numbers(numbers), numbers, int(column.null_count))
    values: list[bytes | None] = column.cast(pyarrow("").large_binary()).to_pylist()
    if table.form == "texts":
        return chunk_of_texts(values)
    uids = [value for value in values if value is not None]
    if (wrong := next((uid for uid in uids if len(uid) != 16), None)) is not None:
        raise DataError(
            f"{where}: column {table.column!r} holds {counted(len(wrong), 'byte')} where 16 are expected: "
            f"{shortened(repr(wrong), 60)}; write texts as texts"
        )
    return Chunk(unpack_ids(uids), uids, len(values) - len(uids))
