"""Arrays of a checkpoint as Zarr, one per leaf, written and read by TensorStore: in buckets, and in copies of them.

Orbax is not used for these: it takes ``s3://`` for a local path (0.12.8).
"""

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorstore as ts

from clipa_eqx.buckets.array_store import ArrayStore

_LARGEST_CHUNK = 128 * 2**20
"""Most bytes of an object. Larger shards are split: parts are sent side by side, and stores limit the size."""

_MOST_BYTES_IN_FLIGHT = 2**30


class Shards(NamedTuple):
    """The part of an array that this process writes.

    Attributes:
        shape, dtype: of the complete array.
        chunk: shape of its chunks; a shard consists of complete chunks.
        parts: position of each shard, and its values in the memory of the host.
    """

    shape: tuple[int, ...]
    dtype: Any
    chunk: tuple[int, ...]
    parts: list[tuple[tuple[slice, ...], np.ndarray]]


def host_shards(leaves: Mapping[str, jax.Array]) -> dict[str, Shards]:
    """Copies of the shards that this process writes, of each leaf; of shards with equal content one process has it."""
    for leaf in leaves.values():
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                shard.data.copy_to_host_async()
    found: dict[str, Shards] = {}
    for path, leaf in leaves.items():
        # On a CPU the host's view of an array is the array itself, which the next step overwrites.
        parts = [
            (tuple(shard.index), np.array(shard.data, copy=True))
            for shard in leaf.addressable_shards
            if shard.replica_id == 0
        ]
        chunk = _chunk(leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize)
        found[path] = Shards(tuple(leaf.shape), leaf.dtype, chunk, parts)
    return found


def write_shards(store: ArrayStore, shards: Mapping[str, Shards], *, is_first: bool) -> None:
    """Write the shards of this process, and wait until all of them are stored.

    Args:
        store: the folder for the arrays.
        is_first: this process also writes the description of each array; one does.

    Raises:
        TimeoutError: the store did not answer for longer than its limit.
        Exception: of TensorStore, which has no type of its own for it.
    """
    mode = {"create": True, "open": True} if is_first else {"open": True, "assume_metadata": True}
    # All at once: one after the other, each array would cost the time of several requests.
    opening = {
        path: _open(store, path, {**mode, "metadata": _metadata(one)})
        for path, one in shards.items()
        if one.parts or is_first
    }
    running: list[Any] = []
    size = 0
    for path, future in opening.items():
        array: Any = future.result(timeout=store.limit(0))
        for index, values in shards[path].parts:
            running.append(array[index].write(values))
            size += values.nbytes
            if size > _MOST_BYTES_IN_FLIGHT:
                _wait(running, store.limit(size))
                running, size = [], 0
    _wait(running, store.limit(size))


def read_arrays(store: ArrayStore, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Arrays by path, each placed by the sharding of its abstract array. A process reads what its devices hold.

    Raises:
        TimeoutError: the store did not answer for longer than its limit.
        Exception: of TensorStore; also if a chunk is missing.
        ValueError: an array has another shape or dtype.
    """
    opening = {path: _open(store, path, {"open": True}) for path in wanted}
    arrays = {path: one.result(timeout=store.limit(0)) for path, one in opening.items()}
    reading: dict[str, dict[Any, Any]] = {}
    size = 0
    for path, like in wanted.items():
        _check(path, arrays[path], like)
        assert like.sharding is not None
        indices: list[Any] = list(like.sharding.addressable_devices_indices_map(like.shape).values())
        reading[path] = {_key(index, like.shape): arrays[path][index].read() for index in indices}
        size += like.size * like.dtype.itemsize
    found: dict[str, jax.Array] = {}
    for path, like in wanted.items():
        values = {key: np.asarray(one.result(timeout=store.limit(size))) for key, one in reading.pop(path).items()}
        found[path] = jax.make_array_from_callback(
            like.shape, like.sharding, lambda index, values=values, shape=like.shape: values[_key(index, shape)]
        )
    return found


def read_array(store: ArrayStore, path: str) -> np.ndarray:
    """One complete array; errors as ``read_arrays``."""
    array: Any = _open(store, path, {"open": True}).result(timeout=store.limit(0))
    return np.asarray(array.read().result(timeout=store.limit(array.size * array.dtype.numpy_dtype.itemsize)))


def local_store(folder: Path) -> ArrayStore:
    """A local folder of arrays."""
    return ArrayStore({"driver": "file", "path": f"{folder.absolute()}/"})


def _wait(running: Iterable[Any], seconds: float | None) -> None:
    for one in running:
        one.result(timeout=seconds)


def _open(store: ArrayStore, path: str, how: Mapping[str, Any]) -> Any:
    spec = {
        "driver": "zarr3",
        "kvstore": {**store.kvstore, "path": f"{store.kvstore['path']}{path}/"},
        # By default, TensorStore leaves out chunks of zeros, and reads missing chunks as zeros.
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
        "recheck_cached_data": False,
        **how,
    }
    return ts.open(spec, context=_context(json.dumps(store.context)))


@functools.cache
def _context(settings: str) -> Any:
    """One context for all arrays: each context asks for credentials of its own."""
    return ts.Context({**json.loads(settings), "cache_pool": {"total_bytes_limit": 0}})


def _metadata(one: Shards) -> dict[str, Any]:
    return {
        "shape": list(one.shape),
        "data_type": str(np.dtype(one.dtype)),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(one.chunk)}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "fill_value": False if one.dtype == np.bool_ else 0,
    }


def _chunk(shard: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The shape of chunks that a shard is made of: halved along its longest even axis while it is too large."""
    chunk = [max(size, 1) for size in shard]
    while np.prod(chunk, dtype=np.int64) * itemsize > _LARGEST_CHUNK:
        even = [axis for axis, size in enumerate(chunk) if size % 2 == 0]
        if not even:
            break
        chunk[max(even, key=lambda axis: chunk[axis])] //= 2
    return tuple(chunk)


def _check(path: str, array: Any, like: jax.ShapeDtypeStruct) -> None:
    if tuple(array.shape) != tuple(like.shape) or array.dtype.numpy_dtype != like.dtype:
        raise ValueError(f"{path} is {array.dtype.name}{list(array.shape)}")


def _key(index: Any, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(one.indices(size)[:2] for one, size in zip(index, shape, strict=True))
