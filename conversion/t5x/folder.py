"""Checkpoint folders of the t5x branch as tensors: a msgpack index and zarr arrays (docs/reference.md F2.5)."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgpack
import numpy as np

from clipa_eqx.errors import ConversionError, listed
from clipa_eqx.saved.leaf_file import Leaf
from conversion.t5x.zarr_array import DTYPES, ZarrArray, find_array, read_array

INDEX_FILE = "checkpoint"
VERSION = 3

_LARGEST_INDEX = 1 << 28
_NDARRAY, _SCALAR = 1, 3  # extension types of Flax's msgpack; 2, a complex number, is in no checkpoint
_CHUNKED = "__msgpack_chunked_array__"


class T5xFolder:
    """A ``checkpoint_STEP`` folder as a ``TensorFile``; names are paths such as ``optimizer/target/img/cls``.

    Arrays are read only from inside this folder. A spec may name any store (for buckets, the reference writes a
    placeholder); the array is looked up in the folder by the last part of its path.

    Raises:
        ConversionError: the index is missing, damaged or of another version; a spec is not a zarr array of this folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        tree = _read_index(self.path)
        self._inline: dict[str, np.ndarray] = {}
        self._stored: dict[str, ZarrArray] = {}
        problems: list[str] = []
        for name, leaf in _leaves(tree, ""):
            try:
                self._add(name, leaf)
            except ConversionError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ConversionError(f"{self.path}: {listed(problems)}")
        inline = {name: Leaf(array.shape, array.dtype) for name, array in self._inline.items()}
        self.tensors: Mapping[str, Leaf] = inline | {name: one.leaf for name, one in self._stored.items()}

    def read(self, name: str) -> np.ndarray:
        """One array. Raises ``ConversionError`` if its files are missing, damaged or differ from the index."""
        if name in self._inline:
            return self._inline[name]
        return read_array(self._stored[name], name)

    def _add(self, name: str, leaf: object) -> None:
        if isinstance(leaf, np.ndarray):
            self._inline[name] = leaf
        elif isinstance(leaf, Mapping) and _CHUNKED in leaf:
            raise ConversionError("is an array that Flax cut into chunks; the reference writes no array that large")
        elif isinstance(leaf, Mapping):
            self._stored[name] = find_array(self.path, cast("Mapping[str, Any]", leaf))
        elif isinstance(leaf, bool | int | float):
            self._inline[name] = np.asarray(leaf)
        elif leaf is not None:
            raise ConversionError(f"is {type(leaf).__name__}, expected an array or a zarr spec")


def _read_index(folder: Path) -> Mapping[str, Any]:
    file = folder / INDEX_FILE
    if not file.is_file():
        inside = sorted(str(p.relative_to(folder)) for p in folder.glob("**/checkpoint_*") if p.is_dir())[:5]
        hint = f"; it holds {', '.join(inside)}: give the path of one of them" if inside else ""
        raise ConversionError(f"{folder} is not a t5x checkpoint: it has no file {INDEX_FILE}{hint}")
    try:
        if file.stat().st_size > _LARGEST_INDEX:
            raise ConversionError(f"{file} has {file.stat().st_size:,} bytes, too many for an index")
        tree = msgpack.unpackb(
            file.read_bytes(), ext_hook=_decode_extension, object_pairs_hook=_object, strict_map_key=False
        )
    except (OSError, ValueError, TypeError, RecursionError, MemoryError, msgpack.UnpackException) as error:
        raise ConversionError(f"{file} is not a msgpack index ({error or type(error).__name__})") from error
    if not isinstance(tree, dict):
        raise ConversionError(f"{file} holds {type(tree).__name__}, expected version and optimizer")
    if tree.get("version") != VERSION or not isinstance(tree.get("optimizer"), dict):
        raise ConversionError(
            f"{file} has version {tree.get('version')!r}, this reads version {VERSION} of t5x's format"
        )
    return {"optimizer": tree["optimizer"]}


def _object(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    """A map with valid, unique names as keys, so that no two leaves have the same path."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str) or not key or "/" in key:
            raise ValueError(f"{key!r} is not a valid name of a leaf or branch")
        if key in found:
            raise ValueError(f"{key!r} occurs twice")
        found[key] = value
    return found


def _decode_extension(code: int, data: bytes) -> object:
    """Decode arrays and scalars of Flax's msgpack, without pickle and without Flax."""
    if code not in (_NDARRAY, _SCALAR):
        raise ValueError(f"msgpack extension type {code} is neither an array nor a scalar")
    found: Any = msgpack.unpackb(data, ext_hook=msgpack.ExtType)
    match found:
        case [list(shape), str(dtype), bytes(values)] if dtype in DTYPES:
            pass
        case _:
            raise ValueError("an array of the index is not (shape, dtype, bytes) of a known dtype")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"an array of the index has shape {shape}")
    if math.prod(shape) * DTYPES[dtype].itemsize != len(values):
        raise ValueError(f"an array of the index has {len(values)} bytes for shape {shape} of {dtype}")
    return np.frombuffer(values, DTYPES[dtype]).reshape(shape)


def _leaves(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, object]]:
    """Paths and leaves. Zarr specs and chunked arrays are leaves although they are maps."""
    found: list[tuple[str, object]] = []
    waiting: list[tuple[str, Any]] = [(prefix, tree)]
    while waiting:
        path, node = waiting.pop()
        if not isinstance(node, dict) or "driver" in node or _CHUNKED in node:
            found.append((path, node))
            continue
        children = cast("dict[str, Any]", node)
        waiting += [(f"{path}/{key}" if path else key, value) for key, value in reversed(children.items())]
    return found
