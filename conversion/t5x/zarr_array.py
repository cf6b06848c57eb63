"""Zarr arrays of a t5x checkpoint: every chunk is checked before an array is read (docs/reference.md F2.5)."""

import itertools
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import tensorstore

from clipa_eqx.errors import ConversionError
from clipa_eqx.saved.leaf_file import Leaf
from conversion.weights.tensors import BFLOAT16

_NAMES = ("float32", "float16", "float64", "int32", "int64", "uint32", "bool")
DTYPES = {name: np.dtype(name) for name in _NAMES} | {"bfloat16": BFLOAT16}
"""Dtypes that an index may name."""

_READ_BYTES = 1 << 20


class ZarrArray(NamedTuple):
    """An array in its own folder, with the shape and dtype that the index states."""

    folder: Path
    leaf: Leaf


def find_array(folder: Path, spec: Mapping[str, Any]) -> ZarrArray:
    """The array of a checkpoint folder that a spec of its index describes.

    Raises:
        ConversionError: the spec is not one of a zarr array inside the folder.
    """
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
    dtype = DTYPES.get(str(spec.get("dtype")))
    shape = _shape(metadata.get("shape"))
    if dtype is None or shape is None:
        raise ConversionError(f"has dtype {spec.get('dtype')!r} and shape {metadata.get('shape')!r} in the index")
    return ZarrArray(own, Leaf(shape, dtype))


def read_array(stored: ZarrArray, name: str) -> np.ndarray:
    """The values of an array; ``name`` is its name in messages.

    Raises:
        ConversionError: its files are missing, damaged or differ from the index.
    """
    _check_chunks(stored, name)
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


def _check_chunks(stored: ZarrArray, name: str) -> None:
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
