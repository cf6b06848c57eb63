"""Files with the ids of a subset, local or remote, read in chunks: numpy arrays, and tables (``id_tables``)."""

import contextlib
import hashlib
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipa_eqx.errors import DataError
from clipa_eqx.progress import progress_bar
from conversion.records.id_tables import IdTable, open_id_table, read_id_table
from conversion.records.ids import Chunk, Form, chunk_of_texts, ids_of_numbers
from conversion.records.places import open_place
from conversion.records.rows import LOCAL_COPY, printable, shortened

FLAG = "--subset"
UID = "uid"
"""The name of DataComp's column with the ids that its arrays of pairs of numbers hold."""

_CHUNK = 2**24  # bytes of an array read at once
_TEXTS_AT_ONCE = 2**16  # texts of an array read at once
_BLOCK = 2**20  # bytes hashed at once
_LONGEST = 100  # characters of an id that is shown


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
        chunks = _chunks_of_array(self, self.dtype) if self.dtype is not None else _chunks_of_table(self)
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
        _check_some(found)  # most mistakes show here, before anything is written
        yield found


def _check_some(file: SubsetFile) -> None:
    """Read up to the first chunk with an id."""
    with progress_bar(what="check ids", total=file.rows, unit="id") as bar:
        for chunk in file.chunks():
            if len(chunk.ids):
                return
            bar.update(chunk.missing)
    raise DataError(f"{FLAG} {printable(file.url)} holds only missing ids, so no row would be kept")


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
                yield chunk_of_texts(array.tolist())
            elif file.form == "numbers":
                yield Chunk(ids_of_numbers(array), array)
            else:
                pairs = np.stack([array[name].astype(np.uint64) for name in dtype.names or ()], axis=1)
                yield Chunk(pairs, pairs)


def _open_table(url: str, path: Path, column: str | None) -> SubsetFile:
    table = open_id_table(path, asked=column, where=f"{FLAG} {printable(url)}")
    return SubsetFile(url=url, path=path, form=table.form, column=table.column, rows=table.rows, stamp=_stamp(path))


def _chunks_of_table(file: SubsetFile) -> Iterator[Chunk]:
    table = IdTable(form=file.form, column=file.column or "", rows=file.rows)
    return read_id_table(file.path, table, where=f"{FLAG} {printable(file.url)}")
