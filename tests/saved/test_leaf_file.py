"""Safetensors files of leaves: layers in and out, what the library reads of them, and what damage is refused."""

import hashlib
import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from clipa_eqx.errors import CheckpointError
from clipa_eqx.saved.leaf_file import Leaf, LeafReader, LeafWriter

DTYPES = [np.dtype(kind) for kind in (np.float32, np.float16, np.int32, np.int64, ml_dtypes.bfloat16)]


def leaf_of(array):
    return Leaf(array.shape, array.dtype)


def write(path, arrays, **options):
    with LeafWriter(path, {name: leaf_of(array) for name, array in arrays.items()}, **options) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    return writer


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "a/half": rng.normal(size=(5,)).astype(np.float16),
        "a/wide": rng.integers(0, 9, (3, 2, 4)),
        "b": rng.normal(size=(3, 7)).astype(np.float32),
        "c": np.array(2.5, np.float32),
    }


@settings(max_examples=25, deadline=None)
@given(
    kinds=st.dictionaries(
        st.text("ab/é", min_size=1, max_size=4),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
        max_size=4,
    ),
    seed=st.integers(0, 99),
)
def test_any_leaves_come_back_with_their_bytes_from_us_and_from_the_library(kinds, seed, tmp_path_factory):
    rng = np.random.default_rng(seed)
    arrays = {name: rng.integers(-9, 9, shape).astype(dtype) for name, (dtype, shape) in kinds.items()}
    path = tmp_path_factory.mktemp("leaves") / "x.safetensors"
    checksums = write(path, arrays).checksums
    with LeafReader(path) as reader:
        assert reader.leaves == {name: leaf_of(array) for name, array in arrays.items()}
        for name, array in arrays.items():
            found = reader.read(name)
            assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
            assert checksums[name] == reader.checksum(name) == hashlib.sha256(array.tobytes()).hexdigest()
    theirs = load_file(path)
    assert {name: array.tobytes() for name, array in theirs.items()} == {n: a.tobytes() for n, a in arrays.items()}


def test_every_leaf_is_aligned_to_its_values(arrays, tmp_path):
    path = tmp_path / "x"
    write(path, arrays)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    for name, one in json.loads(raw[8 : 8 + length]).items():
        assert (8 + length + one["data_offsets"][0]) % arrays[name].itemsize == 0, name


def test_layers_are_written_one_by_one_and_read_one_by_one(arrays, tmp_path):
    path = tmp_path / "x"
    whole = arrays["b"]
    with LeafWriter(path, {"b": leaf_of(whole)}) as writer:
        for layer, values in enumerate(whole):
            writer.write("b", values, layer=layer)
    assert writer.checksums == {"b": hashlib.sha256(whole.tobytes()).hexdigest()}
    with LeafReader(path) as reader:
        np.testing.assert_array_equal(reader.read("b"), whole)
        for layer in range(len(whole)):
            np.testing.assert_array_equal(reader.read("b", layer), whole[layer])


def test_values_are_stored_in_the_dtype_of_the_leaf_and_in_c_order(tmp_path):
    values = np.arange(6.0).reshape(2, 3).T  # float64 and Fortran order
    with LeafWriter(tmp_path / "x", {"a": Leaf((3, 2), np.dtype(np.float16))}) as writer:
        writer.write("a", values)
    with LeafReader(tmp_path / "x") as reader:
        assert reader.read("a").dtype == np.float16
        np.testing.assert_array_equal(reader.read("a"), values)


def test_the_file_of_equal_leaves_does_not_depend_on_the_order_of_writing(arrays, tmp_path):
    write(tmp_path / "x", arrays)
    write(tmp_path / "y", dict(reversed(arrays.items())))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_metadata_come_back_and_are_no_leaf(arrays, tmp_path):
    write(tmp_path / "x", arrays, metadata={"format": "clipa"})
    with LeafReader(tmp_path / "x") as reader:
        assert reader.metadata == {"format": "clipa"}
        assert set(reader.leaves) == set(arrays)


def test_progress_of_a_checksum_is_its_number_of_bytes(arrays, tmp_path):
    write(tmp_path / "x", arrays)
    seen = []
    with LeafReader(tmp_path / "x") as reader:
        reader.checksum("a/wide", advance=seen.append)
    assert sum(seen) == arrays["a/wide"].nbytes


WRONG = {
    "a later layer": lambda writer: writer.write("b", np.zeros(7, np.float32), layer=1),
    "a layer twice": lambda writer: [writer.write("b", np.zeros(7, np.float32), layer=0) for _ in range(2)],
    "a layer too many": lambda writer: [writer.write("b", np.zeros(7, np.float32), layer=i) for i in range(4)],
    "another shape": lambda writer: writer.write("b", np.zeros((7, 3), np.float32)),
    "another layer shape": lambda writer: writer.write("b", np.zeros(6, np.float32), layer=0),
    "a leaf twice": lambda writer: [writer.write("b", np.zeros((3, 7), np.float32)) for _ in range(2)],
}


@pytest.mark.parametrize("case", WRONG)
def test_values_that_are_not_next_are_refused(case, tmp_path):
    with pytest.raises(ValueError, match=r"^b layer "), LeafWriter(tmp_path / "x", LEAVES) as writer:
        WRONG[case](writer)


LEAVES = {"a": Leaf((2,), np.dtype(np.int32)), "b": Leaf((3, 7), np.dtype(np.float32))}


def test_a_file_with_missing_layers_is_not_finished(tmp_path):
    with (
        pytest.raises(ValueError, match=r"these leaves are incomplete: \['a', 'b'\]"),
        LeafWriter(tmp_path / "x", LEAVES) as writer,
    ):
        writer.write("b", np.zeros(7, np.float32), layer=0)
    assert writer.checksums == {}


def test_an_error_inside_the_block_is_not_replaced_by_the_missing_leaves(tmp_path):
    with pytest.raises(KeyboardInterrupt), LeafWriter(tmp_path / "x", LEAVES):
        raise KeyboardInterrupt


def test_an_existing_file_is_never_overwritten(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(FileExistsError):
        LeafWriter(tmp_path / "x", LEAVES)
    assert (tmp_path / "x").read_text() == "mine"


def edited(path, change):
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "only a length": lambda path: path.write_bytes((1 << 40).to_bytes(8, "little")),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "cut in the values": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "not JSON": lambda path: path.write_bytes((3).to_bytes(8, "little") + b"abc"),
    "another shape": lambda path: edited(path, lambda header: header["b"].update(shape=[3, 8])),
    "overlapping": lambda path: edited(path, lambda header: header["c"].update(header["b"])),
    "unknown dtype": lambda path: edited(path, lambda header: header["b"].update(dtype="X9")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "absent": lambda path: path.unlink(),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_one_error_with_its_path(case, arrays, tmp_path):
    path = tmp_path / "x.safetensors"
    write(path, arrays)
    DAMAGE[case](path)
    with pytest.raises(CheckpointError, match=r"x\.safetensors cannot be read .*restore the file or save the model"):
        LeafReader(path)


def test_dtypes_that_no_leaf_has_are_named(tmp_path):
    save_file({"a": np.zeros(2, np.float64), "b": np.zeros(2, np.uint8), "c": np.zeros(2, np.float32)}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="holds values of F64, U8, expected one of F32, BF16, F16, I32, I64"):
        LeafReader(tmp_path / "x")


@pytest.mark.parametrize("spaces", range(4))
def test_values_at_any_byte_of_a_foreign_file_are_read_aligned(spaces, tmp_path):
    path = tmp_path / "x"
    save_file({"a": np.arange(12, dtype=np.float32).reshape(3, 4)}, path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].rstrip() + b" " * spaces
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    with LeafReader(path) as reader:
        found, layer = reader.read("a"), reader.read("a", 1)
    assert found.flags.aligned
    assert layer.flags.aligned
    np.testing.assert_array_equal(found, np.arange(12).reshape(3, 4))
    np.testing.assert_array_equal(layer, found[1])
