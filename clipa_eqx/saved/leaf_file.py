"""Safetensors files of leaves, written and read layer by layer: a stacked leaf is never in memory as a whole."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import BoundedSemaphore
from types import TracebackType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from clipa_eqx.errors import CheckpointError

_DTYPES = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_HASHED_AT_ONCE = 4


class Leaf(NamedTuple):
    """Shape and dtype of a leaf in a file."""

    shape: tuple[int, ...]
    dtype: np.dtype


class LeafSlice(NamedTuple):
    """The values of a leaf (``layer`` is None), or of one layer of a stacked leaf."""

    path: str
    layer: int | None
    values: np.ndarray


class LeafWriter:
    """A safetensors file whose header is written first, then leaves in any order, stacked ones layer by layer.

    Use it in a ``with`` block. Its end checks that all leaves are complete and that the library can read the file;
    ``checksums`` then holds the SHA-256 of each leaf's bytes.
    """

    def __init__(self, path: Path, leaves: Mapping[str, Leaf], *, metadata: Mapping[str, str] | None = None) -> None:
        """Create the file. Raises OSError."""
        self.path: Path = path
        self.leaves: dict[str, Leaf] = dict(leaves)
        self.checksums: dict[str, str] = {}
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        self._at: dict[str, int] = {}
        end = 0
        # Wide values first, so that each leaf is aligned to its own size.
        for name in sorted(leaves, key=lambda name: (-leaves[name].dtype.itemsize, name)):
            leaf = leaves[name]
            size = _bytes(leaf)
            header[name] = {"dtype": _NAMES[leaf.dtype], "shape": list(leaf.shape), "data_offsets": [end, end + size]}
            self._at[name], end = end, end + size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._written = dict.fromkeys(leaves, 0)
        self._hashes = {name: hashlib.sha256() for name in leaves}
        self._free = BoundedSemaphore(_HASHED_AT_ONCE)
        self._file = path.open("xb")
        try:
            self._file.write(len(text).to_bytes(8, "little") + text)
            self._file.flush()
            os.ftruncate(self._file.fileno(), self._start + end)
        except OSError:
            with suppress(OSError):  # closing writes again
                self._file.close()
            raise
        self._hasher = ThreadPoolExecutor(1)

    def write(self, name: str, values: np.ndarray, *, layer: int | None = None) -> None:
        """Write a leaf, or its next layer. ``values`` must not change afterwards.

        Raises:
            OSError: the disk is full, or the file cannot be written for another reason.
            ValueError: the shape is wrong, or the layer is not the next one.
        """
        leaf = self.leaves[name]
        shape, at = (leaf.shape, 0) if layer is None else (leaf.shape[1:], layer)
        data = np.asarray(values, dtype=leaf.dtype, order="C")
        start = at * data.nbytes
        if data.shape != shape or start != self._written[name] or start + data.nbytes > _bytes(leaf):
            raise ValueError(f"{name} layer {layer}: {data.shape} after {self._written[name]} bytes of {leaf}")
        raw = data.reshape(-1).view(np.uint8).data
        self._free.acquire()
        self._hasher.submit(self._hash, name, raw)
        done = 0
        while done < len(raw):
            done += os.pwrite(self._file.fileno(), raw[done:], self._start + self._at[name] + start + done)
        self._written[name] += len(raw)

    def _hash(self, name: str, raw: memoryview) -> None:
        try:
            self._hashes[name].update(raw)
        finally:
            self._free.release()

    def __enter__(self) -> "LeafWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hasher.shutdown()
        self._file.close()
        if error is not None:
            return
        missing = [name for name, leaf in self.leaves.items() if self._written[name] != _bytes(leaf)]
        if missing:
            raise ValueError(f"{self.path}: these leaves are incomplete: {missing}")
        self.checksums = {name: digest.hexdigest() for name, digest in self._hashes.items()}
        with safe_open(self.path, framework="numpy") as file:
            if set(file.keys()) != set(self.leaves):
                raise ValueError(f"{self.path}: the leaves that the library reads are not those that were written")


class LeafReader:
    """An open safetensors file, mapped into memory; use it in a ``with`` block."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            CheckpointError: the file cannot be read, is not a safetensors file, or holds values of another dtype.
        """
        self.path = path
        try:
            # The library checks the header: sizes, offsets, overlaps, holes.
            with safe_open(path, framework="numpy") as file:
                self.metadata: dict[str, str] = dict(file.metadata() or {})
            with path.open("rb") as raw:
                length = int.from_bytes(raw.read(8), "little")
                header: dict[str, Any] = json.loads(raw.read(min(length, _LONGEST_HEADER)))
            self._map = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); restore the file or save the model again"
            ) from error
        header.pop("__metadata__", None)
        other = sorted({entry["dtype"] for entry in header.values()} - set(_DTYPES))
        if other:
            raise CheckpointError(f"{path} holds values of {', '.join(other)}, expected one of {', '.join(_DTYPES)}")
        self.leaves: dict[str, Leaf] = {
            name: Leaf(tuple(one["shape"]), _DTYPES[one["dtype"]]) for name, one in header.items()
        }
        self._at = {name: 8 + length + one["data_offsets"][0] for name, one in header.items()}

    def read(self, name: str, layer: int | None = None) -> np.ndarray:
        """A view of a leaf, or of one layer of it; nothing is copied."""
        leaf = self.leaves[name]
        start, size = self._at[name], _bytes(leaf)
        shape = leaf.shape
        if layer is not None:
            shape, size = leaf.shape[1:], size // leaf.shape[0]
            start += layer * size
        # A view that is not aligned to the size of its values would be slow, and some functions refuse it.
        raw = self._map[start : start + size]
        return (raw if start % leaf.dtype.itemsize == 0 else raw.copy()).view(leaf.dtype).reshape(shape)

    def checksum(self, name: str, *, advance: Callable[[int], object] | None = None) -> str:
        """SHA-256 of a leaf's bytes, in hex; ``advance`` is called with the number of bytes hashed."""
        digest, size, start = hashlib.sha256(), _bytes(self.leaves[name]), self._at[name]
        for at in range(start, start + size, 2**26):
            piece = self._map[at : min(at + 2**26, start + size)]
            digest.update(piece.data)
            if advance is not None:
                advance(len(piece))
        return digest.hexdigest()

    def __enter__(self) -> "LeafReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._map


def _bytes(leaf: Leaf) -> int:
    size = leaf.dtype.itemsize
    for length in leaf.shape:
        size *= length
    return size
