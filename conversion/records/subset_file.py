"""Files with the ids of a subset: numpy arrays and Parquet tables, local or remote, read in chunks."""

import contextlib
import hashlib
import tempfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from clipa_eqx.errors import DataError, counted, pip_install
from clipa_eqx.progress import progress_bar
from conversion.records.ids import Form, Ids, ids_of_numbers, text_id, unpack_ids
from conversion.records.places import open_place
from conversion.records.rows import LOCAL_COPY, printable, shortened
from conversion.records.sources.arrow import pyarrow
from conversion.records.sources.source import is_installed

FLAG = "--subset"
UID = "uid"
"""The name of DataComp's column with the ids that its arrays of pairs of numbers hold."""

_USUAL = (UID, "key")
_CHUNK = 2**24  # bytes of an array read at once
_TEXTS_AT_ONCE = 2**16  # rows of a table, or texts of an array
_BLOCK = 2**20  # bytes hashed at once
_LONGEST = 100  # characters of an id that is shown

Values = Shaped[np.ndarray, " ids"] | Ids | Sequence[bytes]


class Chunk(NamedTuple):
    """Some ids of a file in order.

    Attributes:
        ids: the ids that are not missing.
        values: each of them as the file has it; a pair of numbers is a row of ``ids``.
        missing: number of empty texts and nulls.
    """

    ids: Ids
    values: Values
    missing: int = 0


@dataclass(frozen=True, kw_only=True)
class SubsetFile:
    """A file with ids.

    Attributes:
        url: what the user wrote.
        path: the file, or a local copy of it.
        form: what it holds.
        column: the column of a table.
        rows: number of ids, with repeated and missing ones.
        stamp: size in bytes and time of the last change, of ``path``.
        start: the byte at which the numbers of an array begin.
        dtype: type of the numbers of an array; None for a table.
    """

    url: str
    path: Path
    form: Form
    column: str | None
    rows: int
    stamp: tuple[int, int]
    start: int = 0
    dtype: np.dtype[Any] | None = None

    @property
    def is_pairs(self) -> bool:
        """Check whether it is an array of pairs of numbers, as DataComp has them."""
        return self.dtype is not None and self.form == "uids"

    def chunks(self) -> Iterator[Chunk]:
        """The ids in order.

        Raises:
            DataError: the file is damaged, or was changed since it was opened.
        """
        chunks = _chunks_of_table(self) if self.dtype is None else _chunks_of_array(self, self.dtype)
        while True:
            try:
                chunk = next(chunks, None)
                is_changed = _stamp(self.path) != self.stamp
            except (OSError, EOFError) as error:
                raise _unreadable(self.url, error) from error
            if is_changed:
                raise DataError(f"{FLAG}: {printable(self.url)} was changed while it was read; repeat the command")
            if chunk is None:
                return
            yield chunk

    def shown(self, value: object) -> str:
        """An id as messages show it: a uid in 32 hexadecimal digits."""
        if isinstance(value, np.ndarray):
            return "".join(f"{int(half):016x}" for half in value)
        if isinstance(value, bytes) and self.form == "uids":
            return value.hex()
        text = value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
        return shortened(printable(text), _LONGEST)


@contextlib.contextmanager
def open_subset(url: str, *, column: str | None) -> Generator[SubsetFile]:
    """Open the file of a subset and see what it holds. A remote file is copied to a temporary folder.

    Args:
        column: the column of the source with the ids, if one was asked for; a table may call it so too.

    Raises:
        DataError: it cannot be read, is neither an array nor a table, or holds no ids.
    """
    suffix = Path(url).suffix.lower()
    if suffix not in (".npy", ".parquet"):
        raise DataError(f"{FLAG} {printable(url)}: expected a file with ids that ends in .npy or .parquet")
    with _local(url) as path:
        found = _open_array(url, path) if suffix == ".npy" else _open_table(url, path, column)
        if not found.rows:
            raise DataError(f"{FLAG} {printable(url)} holds no ids, so no row would be kept")
        yield found


def hash_subset(file: SubsetFile) -> str:
    """The SHA-256 of the file.

    Raises:
        DataError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with file.path.open("rb") as opened, _bar("hash", file.path.stat().st_size) as bar:
            while block := opened.read(_BLOCK):
                digest.update(block)
                bar.update(len(block))
    except OSError as error:
        raise _unreadable(file.url, error) from error
    return digest.hexdigest()


def _bar(what: str, size: int) -> Any:
    return progress_bar(what=f"{what} ids", total=size, unit="B")


@contextlib.contextmanager
def _local(url: str) -> Generator[Path]:
    place = open_place(url)
    try:
        size: int = place.fs.size(place.path) if place.fs.isfile(place.path) else -1
        exists: bool = size >= 0 or place.fs.exists(place.path)
    except OSError as error:
        raise _unreadable(url, error) from error
    if size < 0:
        raise DataError(f"{FLAG}: {printable(url)} {'is a folder; give one file' if exists else 'does not exist'}")
    if place.is_local:
        yield Path(place.path)
        return
    with tempfile.TemporaryDirectory(prefix=LOCAL_COPY) as folder:
        copy = Path(folder) / "ids"
        try:
            with place.fs.open(place.path, "rb") as source, copy.open("wb") as target, _bar("fetch", size) as bar:
                while block := source.read(_BLOCK):
                    target.write(block)
                    bar.update(len(block))
        except OSError as error:
            raise _unreadable(url, error) from error
        yield copy


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _unreadable(url: str, error: Exception) -> DataError:
    return DataError(f"{FLAG}: {printable(url)} cannot be read: {error}")


def _open_array(url: str, path: Path) -> SubsetFile:
    where = f"{FLAG} {printable(url)}"
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise _unreadable(url, error) from error
    except (ValueError, EOFError) as error:
        if "Python objects" in str(error):
            raise DataError(
                f"{where} holds Python objects, which are not read, because loading them runs code; write texts of one "
                "width instead: np.save(FILE, array.astype('U'))"
            ) from error
        hint = ""
        if "magic string" in str(error):
            hint = "; if it is a plain memory map of pairs: np.save(FILE, np.memmap(OLD, 'u8,u8', 'r')) writes an array"
        raise DataError(f"{where} is no numpy array, or it is cut: {error}{hint}") from error
    form = _form_of_dtype(array.dtype)
    if form is None:
        raise DataError(
            f"{where} is an array of {array.dtype}; expected pairs of numbers ('u8,u8', as DataComp has them), whole "
            "numbers, or texts"
        )
    if array.ndim != 1:
        hint = ""
        if array.ndim == 2 and array.shape[1] == 2 and array.dtype == np.uint64:
            hint = "; for pairs of numbers: np.ascontiguousarray(array).view('u8,u8').ravel()"
        raise DataError(f"{where} is an array of shape {array.shape}; expected one dimension{hint}")
    start: int = array.offset
    return SubsetFile(
        url=url,
        path=path,
        form=form,
        column=None,
        rows=len(array),
        stamp=_stamp(path),
        start=start,
        dtype=array.dtype,
    )


def _form_of_dtype(dtype: np.dtype[Any]) -> Form | None:
    if dtype.fields is not None:
        kinds = [field[0] for field in dtype.fields.values()]
        return (
            "uids" if dtype.itemsize == 16 and [(one.kind, one.itemsize) for one in kinds] == [("u", 8)] * 2 else None
        )
    forms: dict[str, Form] = {"i": "numbers", "u": "numbers", "S": "texts", "U": "texts"}
    return forms.get(dtype.kind)


def _chunks_of_array(file: SubsetFile, dtype: np.dtype[Any]) -> Iterator[Chunk]:
    is_text = file.form == "texts"
    most = max(1, _CHUNK // max(1, dtype.itemsize))
    most = min(most, _TEXTS_AT_ONCE) if is_text else most
    with file.path.open("rb") as opened:  # not by a memory map, whose pages would count as memory of this process
        opened.seek(file.start)
        left = file.rows
        while left:
            array = np.fromfile(opened, dtype, min(most, left))
            if not len(array):
                raise EOFError("it is cut")
            left -= len(array)
            if is_text:
                yield _texts(array.tolist())
            elif file.form == "numbers":
                yield Chunk(ids_of_numbers(array), array)
            else:
                pairs = np.stack([array[name].astype(np.uint64) for name in dtype.names or ()], axis=1)
                yield Chunk(pairs, pairs)


def _texts(values: Sequence[str | bytes | None]) -> Chunk:
    texts = [text.encode(errors="surrogatepass") if isinstance(text, str) else text for text in values if text]
    return Chunk(unpack_ids(map(text_id, texts)), texts, len(values) - len(texts))


def _open_table(url: str, path: Path, asked: str | None) -> SubsetFile:
    where = f"{FLAG} {printable(url)}"
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
    form = _form_of_type(schema.field(column).type)
    if form is None:
        raise DataError(
            f"{where}: column {column!r} holds values of type {schema.field(column).type}; expected texts, whole "
            "numbers, or uids as 16 bytes"
        )
    return SubsetFile(url=url, path=path, form=form, column=column, rows=rows, stamp=_stamp(path))


def _form_of_type(kind: Any) -> Form | None:
    types = pyarrow("types")
    if types.is_dictionary(kind):
        return _form_of_type(kind.value_type)
    if types.is_integer(kind):
        return "numbers"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "texts"
    is_bytes = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return "uids" if is_bytes or (types.is_fixed_size_binary(kind) and kind.byte_width == 16) else None


def _chunks_of_table(file: SubsetFile) -> Iterator[Chunk]:
    arrow = pyarrow("")
    try:
        with pyarrow("parquet").ParquetFile(file.path) as table:
            for batch in table.iter_batches(batch_size=_TEXTS_AT_ONCE, columns=[file.column]):
                yield _chunk_of_column(batch.column(0), file)
    except (arrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{FLAG} {printable(file.url)} is damaged: {error}") from error


def _chunk_of_column(column: Any, file: SubsetFile) -> Chunk:
    if pyarrow("types").is_dictionary(column.type):
        column = column.dictionary_decode()
    if file.form == "numbers":
        numbers = column.drop_null().to_numpy(zero_copy_only=False)
        return Chunk(ids_of_numbers(numbers), numbers, int(column.null_count))
    values: list[bytes | None] = column.cast(pyarrow("").large_binary()).to_pylist()
    if file.form == "texts":
        return _texts(values)
    uids = [value for value in values if value is not None]
    if (wrong := next((uid for uid in uids if len(uid) != 16), None)) is not None:
        raise DataError(
            f"{FLAG} {printable(file.url)}: column {file.column!r} holds {counted(len(wrong), 'byte')} where 16 are "
            f"expected: {shortened(repr(wrong), 60)}; write texts as texts"
        )
    return Chunk(unpack_ids(uids), uids, len(values) - len(uids))
