"""The index of a t5x checkpoint: damaged indexes, duplicate paths and entries that are not arrays are refused."""

import msgpack
import numpy as np
import pytest
from support.t5x_folders import inline, write_index

from clipa_eqx.errors import ConversionError
from conversion.t5x.folder import T5xFolder


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (b"", "not a msgpack index"),
        (b"\x93\x01\x02\x03", "expected version and optimizer"),
        (msgpack.packb({"version": 2, "optimizer": {}}), "has version 2"),
        (msgpack.packb({"version": 3, "optimizer": {"target": {"x": msgpack.ExtType(99, b"x")}}}), "type 99"),
        (msgpack.packb({"version": 3, "optimizer": {"target": {"x": msgpack.ExtType(1, b"\xc0")}}}), "known dtype"),
        (msgpack.packb({"version": 3, "optimizer": {"target": {"x": "text"}}}), "is str, expected an array"),
        (msgpack.packb({"version": 3, "optimizer": {"target": {"x": {"driver": "n5"}}}}), "driver 'n5'"),
        (b"\x81\xa1a" * 2000 + b"\xc0", "not a msgpack index"),
    ],
)
def test_a_damaged_index_is_one_clear_error(index, words, tmp_path):
    (tmp_path / "checkpoint").write_bytes(index)
    with pytest.raises(ConversionError, match=words):
        T5xFolder(tmp_path)


def packed(*pairs):
    """A msgpack map that may repeat keys."""
    packer = msgpack.Packer()
    return b"".join([packer.pack_map_header(len(pairs)), *(packer.pack(part) for pair in pairs for part in pair)])


def test_names_that_two_leaves_could_have_are_refused(tmp_path):
    one, two = (inline(np.full(1, value, np.float32)) for value in (1, 2))
    whole = b"\x82" + packed(("version", 3))[1:] + msgpack.packb("optimizer")
    for tree, words in (
        (packed(("x", one), ("x", two)), "'x' occurs twice"),
        (msgpack.packb({"target": {"x": one}, "target/x": two}), "'target/x' is not a valid name"),
        (msgpack.packb({"target": {1: one, "1": two}}), "1 is not a valid name"),
        (msgpack.packb({"": one}), "'' is not a valid name"),
    ):
        (tmp_path / "checkpoint").write_bytes(whole + tree)
        with pytest.raises(ConversionError, match=words):
            T5xFolder(tmp_path)


def test_an_array_in_chunks_is_named_not_descended_into(tmp_path):
    chunks = {"__msgpack_chunked_array__": True, "shape": {"0": 1}, "chunks": {"0": inline(np.ones(1, np.float32))}}
    write_index(tmp_path, {"target/t": chunks})
    with pytest.raises(ConversionError, match="optimizer/target/t: is an array that Flax cut into chunks"):
        T5xFolder(tmp_path)
