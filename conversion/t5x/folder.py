"""Checkpoint folders of the t5x branch as tensors: a msgpack index and zarr arrays (docs/reference.md F2.5)."""

import itertools
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgpack
import numpy as np
import tensorstore

from clipa_eqx.errors import ConversionError, listed
from clipa_eqx.saved.leaf_file import Leaf
from conversion.weights.tensors import BFLOAT16

INDEX_FILE = "checkpoint"
VERSION = 3

_LARGEST_INDEX = 1 << 28
_NDARRAY, _SCALAR = 1, 3  # extension types of Flax's msgpack; 2, a complex number, is in no checkpoint
_DTYPES = {name: np.dtype(name) for name in ("float32", "float16", "float64", "int32", "int64", "uint32", "bool")}
_DTYPES["bfloat16"] = BFLOAT16
_CHUNKED = "__msgpack_chunked_array__"
_READ_BYTES = 1 << 20


class _Stored(NamedTuple):
    """A leaf that is stored in its own folder."""

    folder: Path
    leaf: Leaf


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
        self._stored: dict[str, _Stored] = {}
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
        return _read_zarr(self._stored[name], name)

    def _add(self, name: str, leaf: object) -> None:
        if isinstance(leaf, np.ndarray):
            self._inline[name] = leaf
        elif isinstance(leaf, Mapping) and _CHUNKED in leaf:
            raise ConversionError("is an array that Flax cut into chunks; the reference writes no array that large")
        elif isinstance(leaf, Mapping):
            self._stored[name] = _stored(self.path, cast("Mapping[str, Any]", leaf))
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
        case [list(shape), str(dtype), bytes(values)] if dtype in _DTYPES:
            pass
        case _:
            raise ValueError("an array of the index is not (shape, dtype, bytes) of a known dtype")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"an array of the index has shape {shape}")
    if math.prod(shape) * _DTYPES[dtype].itemsize != len(values):
        raise ValueError(f"an array of the index has {len(values)} bytes for shape {shape} of {dtype}")
    return np.frombuffer(values, _DTYPES[dtype]).reshape(shape)


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


def _stored(folder: Path, spec: Mapping[str, Any]) -> _Stored:
    kvstore, metadata = spec.get("kvstore"), spec.get("metadata")
    if spec.get("driver") != "zarr" or not isinstance(kvstore, dict) or not isinstance(metadata, dict):
        raise ConversionError(f"is stored by driver {spec.get('driver')!r}, expected a zarr spec with its metadata")
    where: Any = kvstore.get("path")
    if not isinstance(where, str) or not where or "\0" in where:
        raise ConversionError(f"has the path {where!r}, expected the name of a folder")
    # On disk the path is relative to the checkpoint; in a bucket the reference writes it as absolute.
    parts = [part for part in where.split("/") if part]
    is_local = kvstore.get("driver") == "file"
    name = parts[-1] if parts else ""
    if (is_local and (where.startswith("/") or len(parts) != 1)) or name in ("", ".", ".."):
        raise ConversionError(f"has the path {where!r}, which leads out of the checkpoint; expected a folder in it")
    own = folder / name
    if own.is_symlink() or not own.is_dir():
        raise ConversionError(f"its folder {name} is missing (or not a folder)")
    dtype = _DTYPES.get(str(spec.get("dtype")))
    shape = _shape(metadata.get("shape"))
    if dtype is None or shape is None:
        raise ConversionError(f"has dtype {spec.get('dtype')!r} and shape {metadata.get('shape')!r} in the index")
    return _Stored(own, Leaf(shape, dtype))


def _read_zarr(stored: _Stored, name: str) -> np.ndarray:
    _check_zarr(stored, name)
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{stored.folder.resolve()}/"}}
    try:
        array: Any = tensorstore.open(spec, read=True, open=True).result().read().result()
    except (ValueError, OSError, RuntimeError, OverflowError) as error:
        raise ConversionError(f"{name}: {stored.folder.name} cannot be read ({error})") from error
    shape, dtype = stored.leaf
    if (array.shape, array.dtype) != (shape, dtype):
        raise ConversionError(
            f"{name}: {stored.folder.name} holds {array.dtype}{array.shape}, the index {dtype}{shape}"
        )
    return array


def _check_zarr(stored: _Stored, name: str) -> None:
    """Check that all chunks exist and have their exact size; zarr reads missing ones as zeros and inflates any size."""
    where = f"{name}: {stored.folder.name}"
    try:
        about = json.loads((stored.folder / ".zarray").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConversionError(f"{where}/.zarray cannot be read ({error})") from error
    if not isinstance(about, dict):
        raise ConversionError(f"{where}/.zarray holds {type(about).__name__}, expected an object")
    about = cast("dict[str, Any]", about)
    shape, chunks = _shape(about.get("shape")), _shape(about.get("chunks"))
    expected: dict[str, Any] = {"zarr_format": 2, "order": "C", "filters": None}
    other = {key: about.get(key) for key, value in expected.items() if about.get(key) != value}
    dtypes = {np.dtype(np.float32): "<f4", BFLOAT16: "bfloat16"}
    if other or about.get("dtype") != dtypes.get(stored.leaf.dtype, stored.leaf.dtype.str):
        raise ConversionError(
            f"{where}/.zarray is {other or about.get('dtype')!r}, expected {expected} of "
            f"{stored.leaf.dtype}{stored.leaf.shape}"
        )
    compressor: Any = about.get("compressor")
    kind = compressor.get("id") if isinstance(compressor, dict) else compressor
    if kind not in (None, "gzip", "zlib"):
        raise ConversionError(f"{where}/.zarray names the compressor {kind!r}; expected gzip, zlib or none")
    if shape is None or chunks is None or shape != stored.leaf.shape or len(chunks) != len(shape) or 0 in chunks:
        raise ConversionError(f"{where}/.zarray has shape {shape} in chunks {chunks}, the index {stored.leaf.shape}")
    grid = [math.ceil(size / chunk) for size, chunk in zip(shape, chunks, strict=True)]
    files = {entry.name for entry in stored.folder.iterdir() if entry.is_file() and not entry.is_symlink()}
    if math.prod(grid) > len(files):
        raise ConversionError(f"{where} has {len(files)} files for {math.prod(grid)} chunks; the copy is incomplete")
    raw = math.prod(chunks) * stored.leaf.dtype.itemsize
    separator = str(about.get("dimension_separator", "."))
    for index in itertools.product(*map(range, grid)):
        file = separator.join(map(str, index)) or "0"
        if file not in files:
            raise ConversionError(f"{where}: chunk {file} is missing")
        if _inflated(stored.folder / file, kind, limit=raw) != raw:
            raise ConversionError(f"{where}: chunk {file} is damaged or does not have {raw} bytes")


def _inflated(file: Path, compressor: str | None, *, limit: int) -> int | None:
    """Size of an inflated chunk in bytes, counted without storing it; None if it is damaged or above ``limit``."""
    if compressor is None:
        return file.stat().st_size
    engine = zlib.decompressobj(wbits=31 if compressor == "gzip" else 15)
    count = 0
    try:
        with file.open("rb") as source:
            while data := source.read(_READ_BYTES):
                while data and not engine.eof:
                    count += len(engine.decompress(data, _READ_BYTES))
                    data = engine.unconsumed_tail
                    if count > limit:
                        return None
                if engine.eof and (engine.unused_data or source.read(1)):
                    return None
    except (OSError, zlib.error):
        return None
    return count if engine.eof else None


def _shape(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    sizes = cast("list[object]", value)
    if not all(type(size) is int and 0 <= size < 1 << 40 for size in sizes):
        return None
    return tuple(cast("list[int]", sizes))
