"""Files of named tensors, whatever their format: all names and shapes first, then one tensor at a time."""

import hashlib
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from clipa_eqx.errors import ConversionError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = (np.dtype(np.float32), BFLOAT16, np.dtype(np.float16))
"""What a weight may be stored as; each value is exact in float32."""


class TensorInfo(NamedTuple):
    """What a file says of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype


def shape_of(tensors: Mapping[str, TensorInfo], name: str, axes: int) -> tuple[int, ...] | None:
    """The shape of a tensor that has so many axes and some values, else None."""
    info = tensors.get(name)
    return info.shape if info is not None and len(info.shape) == axes and math.prod(info.shape) else None


@runtime_checkable
class TensorFile(Protocol):
    """An open file (or folder) of tensors; use it in a ``with`` block.

    ``tensors`` holds the names that the rule table knows (prefixes and subtrees are gone) in the order in which reading
    is fastest. ``read`` gives one tensor in native byte order, as a memory map where the format allows it.
    """

    @property
    def path(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor, of the shape and dtype that ``tensors`` has.

        Raises:
            ConversionError: the stored bytes are damaged; the message names the tensor and what is wrong.
        """
        ...

    def __enter__(self) -> "TensorFile": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class TensorView:
    """Some tensors of an open file under other names; closing it leaves the file open."""

    def __init__(self, file: TensorFile, names: Mapping[str, str]) -> None:
        """``names`` maps the name here to the name in ``file``."""
        self._file, self._names = file, dict(names)
        self.path = file.path
        self.tensors: Mapping[str, TensorInfo] = {name: file.tensors[there] for name, there in names.items()}

    def read(self, name: str) -> np.ndarray:
        return self._file.read(self._names[name])

    def __enter__(self) -> "TensorView":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        pass


class Arrays:
    """Arrays in memory as a ``TensorFile``."""

    def __init__(self, arrays: Mapping[str, np.ndarray], *, path: Path | str = "arrays") -> None:
        self.path = Path(path)
        self._arrays = {name: np.asarray(array) for name, array in arrays.items()}
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(array.shape, array.dtype) for name, array in self._arrays.items()
        }

    def read(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __enter__(self) -> "Arrays":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        pass


def sha256_of(path: Path) -> str:
    """SHA-256 of a file; of a folder, that of the sorted lines ``<sha256> <relative path>`` of its files.

    Raises:
        ConversionError: it cannot be read.
    """
    try:
        if path.is_dir():
            files = sorted(entry for entry in path.rglob("*") if entry.is_file())
            lines = "".join(f"{sha256_of(file)} {file.relative_to(path).as_posix()}\n" for file in files)
            return hashlib.sha256(lines.encode()).hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConversionError(f"{path} cannot be read ({error})") from error


class InBackground:
    """A function's result, computed in a thread meanwhile: hashing a source while it is converted costs no time."""

    def __init__(self, fn: Callable[[], str]) -> None:
        self._value: str | None = None
        self._error: Exception | None = None

        def work() -> None:
            try:
                self._value = fn()
            except Exception as error:
                self._error = error

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def result(self) -> str:
        """Waits; raises what the function raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._value is not None
        return self._value
