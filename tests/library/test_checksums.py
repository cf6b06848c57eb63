"""Checksums of leaves: equal on every mesh and to plain numpy, and changed by every change of a bit."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clipa_eqx.checksums import leaf_checksums
from clipa_eqx.sharding import MeshConfig, make_mesh

pytestmark = pytest.mark.usefixtures("quick_compile")

LANES = ((0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35), (0x632BE5AB, 0x7FEB352D, 0x846CA68B))
DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16, np.int32, np.uint32, np.int16, np.int8, np.uint8, np.bool_]


def by_numpy(values):
    """The same checksum from its definition, with integers of any size."""
    values = np.asarray(values)
    bits = values.view(f"u{values.dtype.itemsize}") if values.ndim else values.reshape(1).view(f"u{values.itemsize}")
    sums = [0, 0]
    for position, one in enumerate(bits.reshape(-1).tolist()):
        for lane, (salt, first, second) in enumerate(LANES):
            x = one ^ (position + 1) * salt % 2**32
            x = (x ^ x >> 16) * first % 2**32
            x = (x ^ x >> 13) * second % 2**32
            sums[lane] += x ^ x >> 16
    return "".join(f"{one % 2**32:08x}" for one in sums)


def checksum(values):
    return leaf_checksums({"x": values})["x"]


def values_of(dtype, shape, seed=0):
    """Random bits, so that NaN of every payload, infinities, -0.0 and denormals are among the values."""
    dtype = np.dtype(dtype)
    bits = np.random.default_rng(seed).integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    return (bits[..., 0] > 127) if dtype == np.bool_ else bits.view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5, 2), (0, 4)])
def test_it_is_that_of_the_definition(dtype, shape):
    values = values_of(dtype, shape)
    assert checksum(values) == checksum(jnp.asarray(values)) == by_numpy(values)


@pytest.mark.parametrize(
    ("data", "fsdp", "spec"),
    [
        (1, 1, P()),
        (1, 8, P()),
        (8, 1, P("data")),
        (4, 2, P("fsdp", "data")),
        (4, 2, P(None, "fsdp")),
        (4, 2, P(("data", "fsdp"))),
        (2, 4, P(("fsdp", "data"), None, "tensor")),
        (2, 2, P(None, None, "data")),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_it_is_the_same_on_every_mesh(data, fsdp, spec, dtype):
    values = values_of(dtype, (8, 4, 6))
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp), devices=jax.devices()[: data * fsdp])
    placed = jax.device_put(values, NamedSharding(mesh, spec))
    assert checksum(placed) == by_numpy(values)
    other = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    with jax.set_mesh(other):  # a program may be inside of another mesh
        assert checksum(placed) == by_numpy(values)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from([np.float32, ml_dtypes.bfloat16, np.int32, np.uint8]),
    seed=st.integers(0, 2**32 - 1),
    at=st.integers(0, 59),
    bit=st.integers(0, 31),
)
def test_every_flipped_bit_changes_it(dtype, seed, at, bit):
    values = values_of(dtype, (5, 12), seed)
    changed = values.copy().reshape(-1)
    changed[at : at + 1].view(f"u{values.itemsize}")[0] ^= np.array(1 << bit % (8 * values.itemsize)).astype(
        f"u{values.itemsize}"
    )
    ours, other = checksum(values), checksum(changed.reshape(values.shape))
    # Mixing is one-to-one for each position, so that both halves differ.
    assert ours[:8] != other[:8]
    assert ours[8:] != other[8:]


def test_order_shape_and_signs_of_zero_matter():
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    seen = {checksum(values)}
    for a, b in itertools.combinations(range(0, 24, 5), 2):
        swapped = values.copy().reshape(-1)
        swapped[[a, b]] = swapped[[b, a]]
        seen.add(checksum(swapped.reshape(4, 6)))
    seen |= {checksum(values.T.copy()), checksum(values[::-1].copy())}
    assert len(seen) == 1 + 10 + 2
    assert checksum(np.zeros(3, np.float32)) != checksum(-np.zeros(3, np.float32))
    assert checksum(np.zeros(3, np.float32)) != checksum(np.zeros(4, np.float32))
    assert checksum(np.zeros(0, np.float32)) == "0" * 16


def test_leaves_have_their_paths_and_wide_values_are_refused():
    tree = {"a": {"b": np.ones(3, np.float32)}, "c": np.zeros((), np.int32), "none": None}
    assert list(leaf_checksums(tree)) == ["a/b", "c"]
    assert leaf_checksums({}) == {}
    with pytest.raises(TypeError, match=r"wider ones: a, b"):
        leaf_checksums({"a": np.zeros(2), "b": np.zeros(2, np.int64), "c": np.zeros(2, np.int32)})


def test_no_copy_of_a_leaf_is_made():
    from clipa_eqx import checksums

    leaf = jax.ShapeDtypeStruct((1000, 1000), np.float32)
    memory = checksums._on_one_device.lower(leaf).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1000
