"""Positions and records from ranges of bytes: what array_record wrote and reads, and errors for anything else."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa_eqx.data.array_record_files import open_reader
from clipa_eqx.data.array_record_layout import (
    BLOCK,
    END,
    LayoutError,
    OtherLayoutError,
    footer_start,
    parse_footer,
    parse_record,
)
from clipa_eqx.data.array_record_writer import write_encoded_shard


def end_of(data):
    return data[-BLOCK:][:END]


def index_of(data):
    start = footer_start(end_of(data), len(data))
    return parse_footer(data[start : len(data) - BLOCK], start)


def records_of(data):
    starts, end = index_of(data)
    ends = [*starts[1:], end][: len(starts)]
    return [parse_record(data[int(a) : int(b)], int(a)) for a, b in zip(starts, ends, strict=True)]


# Around the sizes at which a chunk, a header or a number takes one more byte, or reaches the next block.
SIZES = st.sampled_from([0, 1, 20, 127, 128, 16_383, 16_384, *range(BLOCK - 120, BLOCK + 8, 8), 3 * BLOCK])


@settings(deadline=None, max_examples=30)
@given(st.lists(SIZES | st.integers(0, 300), max_size=12), st.integers(0, 2**32 - 1))
def test_records_are_those_that_array_record_reads(tmp_path_factory, sizes, seed):
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("shard") / "a"
    blobs = [rng.bytes(size) for size in sizes]
    write_encoded_shard(path, blobs)
    assert records_of(path.read_bytes()) == blobs
    reader = open_reader(str(path))
    assert [reader.read([i])[0] for i in range(len(blobs))] == blobs
    reader.close()


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The bytes of a shard whose footer crosses blocks."""
    path = tmp_path_factory.mktemp("shard") / "a"
    write_encoded_shard(path, (b"%d" % i for i in range(9000)))
    return path.read_bytes()


def test_a_footer_of_several_blocks_is_parsed(large):
    assert len(large) - BLOCK - footer_start(end_of(large), len(large)) > BLOCK
    assert records_of(large) == [b"%d" % i for i in range(9000)]


def write_with(options, path):
    writer = importlib.import_module("array_record.python.array_record_module").ArrayRecordWriter(str(path), options)
    for i in range(10):
        writer.write(b"record %d" % i)
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize("options", ["group_size:4,uncompressed", "group_size:1,zstd", "group_size:1", ""])
def test_files_of_another_layout_are_recognized(tmp_path, options):
    data = write_with(options, tmp_path / "a")
    with pytest.raises(OtherLayoutError):
        index_of(data)


def test_damage_of_the_end_is_no_other_layout(large):
    start = footer_start(end_of(large), len(large))
    cases = [
        bytes(END),  # overwritten
        end_of(large[:-7]),  # shifted
        b"\xff" * END,
        large[:END],  # of another place
        b"",
    ]
    for end in cases:
        with pytest.raises(LayoutError) as caught:
            footer_start(end, len(large))
        assert not isinstance(caught.value, OtherLayoutError)
    footer = large[start : len(large) - BLOCK]
    for damaged in (footer[:30], footer[: len(footer) // 3], bytes(len(footer))):
        with pytest.raises(LayoutError) as caught:
            parse_footer(damaged, start)
        assert not isinstance(caught.value, OtherLayoutError)
    with pytest.raises(LayoutError):
        footer_start(end_of(large), BLOCK + 100)  # of a file in which the footer would be after the end


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**31), st.integers(1, 255))
def test_a_changed_byte_of_an_index_is_an_error_or_leaves_an_index_of_as_many_records(large, at, change):
    start = footer_start(end_of(large), len(large))
    damaged = bytearray(large[start:])
    damaged[at % len(damaged)] ^= change
    try:
        found = parse_footer(bytes(damaged[:-BLOCK]), footer_start(end_of(bytes(damaged)), len(large)))
    except LayoutError:
        return
    assert len(found.starts) == 9000


def test_a_range_that_is_no_record_is_refused(large):
    starts, _ = index_of(large)
    one, two = int(starts[5]), int(starts[6])
    assert parse_record(large[one : two + 100], one) == b"5"  # what follows is of no importance
    for data, at in ((large[one : two - 1], one), (large[one + 1 : two], one + 1), (b"", one), (bytes(two - one), one)):
        with pytest.raises(LayoutError):
            parse_record(data, at)
