"""Files of named tensors in any format: first all names and shapes, then one tensor at a time."""

import hashlib
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from clipa_eqx.errors import ConversionError
from clipa_eqx.saved.leaf_file import Leaf

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = (np.dtype(np.float32), BFLOAT16, np.dtype(np.float16))
"""Dtypes in which weights may be stored; float32 holds each of their values exactly."""


def shape_of(tensors: Mapping[str, Leaf], name: str, axes: int) -> tuple[int, ...] | None:
    """The shape of a tensor if it exists, has this number of axes and is not empty; else None."""
    info = tensors.get(name)
    return info.shape if info is not None and len(info.shape) == axes and math.prod(info.shape) else None


@runtime_checkable
class TensorFile(Protocol):
    """An open file or folder of tensors.

    ``tensors`` maps names, as a rule table has them (without prefixes and subtrees), to shapes and dtypes, in the order
    in which reading is fastest.
    """

    @property
    def path(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, Leaf]: ...

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor in native byte order, with the shape and dtype given by ``tensors``.

        A memory map if the format allows it.

        Raises:
            ConversionError: the stored bytes are damaged; the message names the tensor and what is wrong.
        """
        ...


class TensorView:
    """Some tensors of an open file under other names."""

    def __init__(self, file: TensorFile, names: Mapping[str, str]) -> None:
        """``names`` maps the name here to the name in ``file``."""
        self._file, self._names = file, dict(names)
        self.path = file.path
        self.tensors: Mapping[str, Leaf] = {name: file.tensors[there] for name, there in names.items()}

    def read(self, name: str) -> np.ndarray:
        return self._file.read(self._names[name])


class Arrays:
    """Arrays in memory as a ``TensorFile``."""

    def __init__(self, arrays: Mapping[str, np.ndarray], *, path: Path | str = "arrays") -> None:
        self.path = Path(path)
        self._arrays = {name: np.asarray(array) for name, array in arrays.items()}
        self.tensors: Mapping[str, Leaf] = {
            name: Leaf(array.shape, array.dtype) for name, array in self._arrays.items()
        }

    def read(self, name: str) -> np.ndarray:
        return self._arrays[name]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file. For a folder, the SHA-256 of the sorted lines ``<sha256> <relative path>`` of its files.

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
    """Computation of a result in a thread, so that hashing a source during its conversion costs no extra time."""

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
        """Wait for the result; raise the error that the function raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._value is not None
        return self._value
