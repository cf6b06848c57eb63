"""Sorted ids of a subset: found as in a set, and sorted in bounded memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion.records import sorted_ids
from conversion.records.ids import ids_of_numbers, mixed
from conversion.records.sorted_ids import SortedIds, write_sorted

halves = st.integers(0, 5) | st.integers(0, 2**64 - 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(halves, halves), max_size=20), min_size=1, max_size=5), st.integers(1, 30))
def test_sorted_ids_find_what_a_set_finds(tmp_path_factory, chunks, per_bucket):
    known = {pair for chunk in chunks for pair in chunk}
    arrays = [np.array(chunk, np.uint64).reshape(-1, 2) for chunk in chunks]
    rows = sum(map(len, chunks))
    folder = tmp_path_factory.mktemp("sorted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_ids, "_IDS_PER_BUCKET", per_bucket)
        count = write_sorted(iter(arrays), folder / "ids", rows=rows, folder=folder)
    assert (count, [path.name for path in folder.iterdir()]) == (len(known), ["ids"])
    if not rows:
        return
    ids = SortedIds.open(folder / "ids", rows=rows, count=count)
    wanted = [*known, *((a ^ 1, b) for a, b in known), *((a, b ^ 1) for a, b in known)]
    positions = ids.find(np.array(wanted, np.uint64).reshape(-1, 2))
    assert [position >= 0 for position in positions] == [one in known for one in wanted]
    assert sorted(positions[: len(known)].tolist()) == list(range(count))
    some = np.flatnonzero(np.arange(count) % 2)
    found = ids.some(some).find(np.array(list(known), np.uint64).reshape(-1, 2))
    assert (found >= 0).tolist() == [position % 2 == 1 for position in positions[: len(known)].tolist()]


def test_ids_that_share_their_upper_half_once_mixed_are_found():
    high = np.array([3, 5, 5, 5, 8], np.uint64)
    ids = SortedIds(high, np.array([1, 1, 4, 9, 1], np.uint64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_ids, "mixed", lambda ids: ids)
        wanted = [(5, 9), (5, 5), (5, 10), (8, 1), (8, 2), (9, 0), (5, 1)]
        assert ids.find(np.array(wanted, np.uint64)).tolist() == [3, -1, -1, 4, -1, -1, 1]


@pytest.mark.parametrize("kind", ["consecutive", "consecutive in the upper half", "multiples", "random"])
def test_bits_are_mixed_one_to_one_and_spread_over_all_buckets(kind):
    count = 2**16
    ids = np.zeros((count, 2), np.uint64)
    match kind:
        case "consecutive":
            ids = ids_of_numbers(np.arange(count))
        case "consecutive in the upper half":
            ids[:, 0] = np.arange(count)
        case "multiples":
            ids = ids_of_numbers(np.arange(count) * 2**32)
        case _:
            ids = np.random.default_rng(0).integers(0, 2**64, (count, 2), np.uint64)
    found = mixed(ids)
    assert len(np.unique(found, axis=0)) == count
    sizes = np.bincount((found[:, 0] >> np.uint64(56)).astype(int), minlength=256)
    assert sizes.min() > 0.6 * count / 256
    assert sizes.max() < 1.5 * count / 256


def test_sorting_holds_a_part_of_the_ids_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sorted_ids, "_IDS_PER_BUCKET", 2**15)
    rows = 2**21  # 32 MiB
    chunks = (ids_of_numbers(np.arange(start, start + 2**15)) for start in range(0, rows, 2**15))
    tracemalloc.start()
    try:
        assert write_sorted(chunks, tmp_path / "ids", rows=rows, folder=tmp_path) == rows
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * rows / 3
    ids = SortedIds.open(tmp_path / "ids", rows=rows, count=rows)
    assert (ids.find(ids_of_numbers(np.array([0, rows - 1, rows]))) >= 0).tolist() == [True, True, False]


def test_repeats_of_an_id_take_neither_memory_nor_space(tmp_path):
    rows, per_chunk = 2**21, 2**15  # 32 MiB
    chunk = ids_of_numbers(np.arange(per_chunk) % 3)
    written = []

    def chunks():
        for _ in range(rows // per_chunk):
            yield chunk
            written.append(sum(path.stat().st_size for path in tmp_path.iterdir()))

    tracemalloc.start()
    try:
        assert write_sorted(chunks(), tmp_path / "ids", rows=rows, folder=tmp_path) == 3
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * rows / 3
    assert max(written) <= 16 * 3 * rows // per_chunk
    ids = SortedIds.open(tmp_path / "ids", rows=rows, count=3)
    assert (ids.find(ids_of_numbers(np.arange(4))) >= 0).tolist() == [True, True, True, False]
