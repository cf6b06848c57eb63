"""Checksums of arrays, computed on the devices that hold them; equal on every mesh."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clipa_eqx.trees import leaves_by_path

# Salt and two odd multipliers of each of two sums: the finalizers of MurmurHash3 and of its successor "lowbias32".
_LANES = ((0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35), (0x632BE5AB, 0x7FEB352D, 0x846CA68B))


def leaf_checksums(tree: Any) -> dict[str, str]:
    """A checksum of the bits of each leaf, by leaf path: 16 hex digits.

    Each value is mixed with its position, and the results are summed modulo 2^32, twice. The mixing is one-to-one for
    each position, so a change of a single value always changes the checksum; other damage is missed with a probability
    of about 2^-64. A sum does not depend on the order, so it is the same however a leaf is split over devices. It is no
    protection against intent.

    Args:
        tree: arrays in memory, on one device, or on a mesh with ``NamedSharding``. Nothing is gathered or copied: each
            device reads its own shards once. All processes that share a mesh must call this together.

    Raises:
        TypeError: a leaf has values of more than 32 bits.
    """
    leaves = leaves_by_path(tree)
    wide = [path for path, leaf in leaves.items() if leaf.dtype.itemsize > 4]
    if wide:
        raise TypeError(f"checksums are of values of at most 32 bits; these leaves have wider ones: {', '.join(wide)}")
    running = [_start(leaf) for leaf in leaves.values()]
    sums: Any = np.array([_finish(one) for one in running], np.uint32).reshape(len(leaves), len(_LANES))
    if jax.process_count() > 1:
        sums = np.sum(multihost_utils.process_allgather(sums), axis=0, dtype=np.uint32)
    return {path: "".join(f"{int(one):08x}" for one in pair) for path, pair in zip(leaves, sums, strict=True)}


def _start(leaf: Any) -> jax.Array | None:
    """Start to sum; the sums of all shards are rows of the result. None if another process counts the leaf."""
    sharding = getattr(leaf, "sharding", None)
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        with jax.set_mesh(sharding.mesh):
            return _on_mesh(sharding, leaf.ndim)(leaf)
    return _on_one_device(leaf) if jax.process_index() == 0 else None


def _finish(sums: jax.Array | None) -> np.ndarray:
    shards = [] if sums is None else [np.asarray(shard.data) for shard in sums.addressable_shards]
    rows = np.concatenate([np.zeros((1, len(_LANES)), np.uint32), *shards])
    return np.add.reduce(rows, axis=0, dtype=np.uint32)


@functools.lru_cache(maxsize=256)
def _on_mesh(sharding: NamedSharding, ndim: int) -> Callable[[jax.Array], jax.Array]:
    """The program that sums on a mesh. Devices do not communicate; of equal copies of a shard, one is counted."""
    mesh, axes = sharding.mesh, [*sharding.spec, *[None] * (ndim - len(sharding.spec))]
    split = [() if names is None else (names,) if isinstance(names, str) else tuple(names) for names in axes]
    copied = [name for name in mesh.axis_names if name not in {one for names in split for one in names}]

    def sums(shard: jax.Array) -> jax.Array:
        sizes = [size * _devices(mesh, names) for size, names in zip(shard.shape, split, strict=True)]
        at = [lax.axis_index(names) if names else jnp.zeros((), jnp.int32) for names in split]
        starts = [one.astype(jnp.uint32) * np.uint32(size) for one, size in zip(at, shard.shape, strict=True)]
        is_counted = jnp.all(jnp.asarray([lax.axis_index(name) == 0 for name in copied] or [True]))
        return jnp.where(is_counted, _sums(shard, sizes, starts), jnp.zeros((), jnp.uint32))[None]

    out = PartitionSpec(mesh.axis_names)
    return jax.jit(jax.shard_map(sums, mesh=mesh, in_specs=sharding.spec, out_specs=out, check_vma=False))


@jax.jit
def _on_one_device(leaf: jax.Array) -> jax.Array:
    return _sums(leaf, leaf.shape, [jnp.zeros((), jnp.uint32)] * leaf.ndim)[None]


def _sums(shard: jax.Array, sizes: Sequence[int], starts: Sequence[jax.Array]) -> jax.Array:
    """The sums of a shard that starts at ``starts`` in a leaf of ``sizes``."""
    bits = _bits(shard)
    position, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        along = lax.broadcasted_iota(jnp.uint32, bits.shape, axis) + starts[axis]
        position += along * np.uint32(stride % 2**32)
        stride *= sizes[axis]
    # One reduction for both: XLA then mixes value by value. Two sums would each write an array of the leaf's size.
    mixed, zeros = [_mixed(bits, position, *lane) for lane in _LANES], [np.uint32(0)] * len(_LANES)
    sums: Any = lax.reduce(mixed, zeros, _added, tuple(range(bits.ndim)))
    return jnp.stack(sums)


def _added(left: Any, right: Any) -> Any:
    return [one + other for one, other in zip(left, right, strict=True)]


def _bits(values: jax.Array) -> jax.Array:
    """The bit pattern of each value as uint32."""
    if values.dtype == jnp.bool_:
        return values.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[values.dtype.itemsize]
    return lax.bitcast_convert_type(values, unsigned).astype(jnp.uint32)


def _mixed(bits: jax.Array, position: jax.Array, salt: int, first: int, second: int) -> jax.Array:
    """One-to-one in ``bits`` for each position: xor, shifts and products with odd numbers can be undone."""
    x = bits ^ ((position + np.uint32(1)) * np.uint32(salt))
    x = (x ^ (x >> 16)) * np.uint32(first)
    x = (x ^ (x >> 13)) * np.uint32(second)
    return x ^ (x >> 16)


def _devices(mesh: Any, names: Sequence[str]) -> int:
    count = 1
    for name in names:
        count *= mesh.shape[name]
    return count
