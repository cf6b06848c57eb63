"""The search for duplicate keys in tasks, against a dictionary of all keys."""

import functools
import itertools
from pathlib import Path

import fsspec
import numpy as np
import pytest
from support import dumps
from support.conversions import Stopped, content, ingest
from support.dumps import samples

from clipa_eqx.errors import DataError
from conversion.records import buckets
from conversion.records import convert as module
from conversion.records.buckets import Slice, cut, slices_of_bucket, write_buckets
from conversion.records.duplicates import CompareJob, DistributeJob, compare, distribute, find_duplicates
from conversion.records.keys import ENTRY
from conversion.records.part_report import UNFINISHED, keys_name
from conversion.records.places import open_place
from conversion.records.scratch import local_folder, shared_folder


def random_parts(sizes, *, keys, highs=1 << 60, seed=0):
    """Entries by part. There are up to ``keys`` different keys with up to ``highs`` different upper halves."""
    rng = np.random.default_rng(seed)
    halves = rng.integers(0, 1 << 63, (keys, 2), np.uint64) << np.uint64(1)
    halves[:, 0] = halves[np.arange(keys) % highs, 0]
    parts = {}
    for number, size in sizes.items():
        entries = np.zeros(size, ENTRY)
        entries["high"], entries["low"] = halves[rng.integers(0, keys, size)].T
        entries["content"] = rng.integers(0, 2, size)
        entries["part"], entries["row"] = number, np.sort(rng.permutation(3 * size)[:size])
        parts[number] = entries
    return parts


def write_keys(target, parts):
    for number, entries in parts.items():
        with target.fs.open(target.child(keys_name(number)), "wb") as file:
            file.write(entries.tobytes())


def expected(parts):
    """(part, row, whether the content differs from that of the first such row) of all repeats, by a dictionary."""
    first, repeats = {}, []
    for number in sorted(parts):
        for high, low, digest, part, row in parts[number].tolist():
            if (high, low) in first:
                repeats.append((part, row, digest != first[high, low]))
            first.setdefault((high, low), digest)
    return repeats


def search(target, parts, *, folder, workers=1, **sizes):
    rows = {number: len(entries) for number, entries in parts.items()}
    found = find_duplicates(target, rows, folder=folder, workers=workers, **sizes)
    pieces = list(found.of_parts(set(found.counts)))
    assert found.counts == {number: len(repeats) for number, repeats in pieces}
    return [row for _, repeats in pieces for row in repeats.tolist()]


@pytest.fixture
def memory():
    """fsspec's filesystem in memory: like a bucket, it has no local paths."""
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.fixture
def target(tmp_path):
    (tmp_path / "out" / UNFINISHED).mkdir(parents=True)
    return open_place(tmp_path / "out")


SOURCES = {
    "some repeats": random_parts(dict.fromkeys(range(8), 50), keys=3000),
    "many repeats": random_parts(dict.fromkeys(range(8), 50), keys=90),
    "equal upper halves": random_parts(dict.fromkeys(range(8), 50), keys=300, highs=5),
    "all keys equal": random_parts(dict.fromkeys(range(8), 50), keys=1),
    "empty parts and gaps": random_parts({1: 0, 4: 70, 5: 0, 9: 3, 200: 40, 201: 0}, keys=60),
    "one part": random_parts({0: 300}, keys=100),
    "only empty parts": random_parts({0: 0, 3: 0}, keys=1),
    "no parts": {},
}


@pytest.mark.parametrize(("per_bucket", "per_file"), [(10_000, 10_000), (20, 70), (7, 1000), (1, 3)])
@pytest.mark.parametrize("source", SOURCES)
def test_the_repeats_are_those_that_a_dictionary_finds(source, per_bucket, per_file, target):
    parts = SOURCES[source]
    write_keys(target, parts)
    with local_folder(target) as folder:
        found = search(target, parts, folder=folder, per_bucket=per_bucket, per_file=per_file)
    assert found == expected(parts)
    assert found or source in ("only empty parts", "no parts")


@pytest.mark.parametrize("rows", [19, 20, 21, 39, 40, 41, 59, 60, 61])
def test_numbers_of_rows_around_the_borders_of_buckets_and_files(rows, target):
    for sizes in ({0: rows}, {0: rows // 2, 1: rows - rows // 2}):
        parts = random_parts(sizes, keys=30, seed=rows)
        write_keys(target, parts)
        with local_folder(target) as folder:
            assert search(target, parts, folder=folder, per_bucket=20, per_file=20) == expected(parts)


def test_the_number_of_processes_and_the_folder_change_nothing(target):
    parts = SOURCES["many repeats"]
    write_keys(target, parts)
    for place in (local_folder, shared_folder):
        with place(target) as folder:
            assert search(target, parts, folder=folder, workers=2, per_bucket=70, per_file=110) == expected(parts)
        assert not Path(folder.path).exists()


@pytest.mark.parametrize("place", [local_folder, shared_folder])
def test_keys_in_a_bucket_are_searched_too(place, memory):
    target = open_place("memory://bucket/out")
    parts = SOURCES["many repeats"]
    write_keys(target, parts)
    held = set(memory.find("/bucket"))
    with place(target) as folder:
        assert search(target, parts, folder=folder, per_bucket=20, per_file=70) == expected(parts)
    assert set(memory.find("/bucket")) == held


def test_only_the_repeats_are_kept_until_the_end(target):
    for source, per_bucket in (("many repeats", 20), ("many repeats", 10_000), ("only empty parts", 20)):
        write_keys(target, SOURCES[source])
        with local_folder(target) as folder:
            search(target, SOURCES[source], folder=folder, per_bucket=per_bucket, per_file=70)
            left = [path.name for path in Path(folder.path).iterdir()]
        assert all(name.startswith("repeats-") for name in left)
        assert len(left) == (0 if source == "only empty parts" else -(-400 // per_bucket))


def test_wanted_parts_alone_are_yielded(target):
    parts = SOURCES["many repeats"]
    write_keys(target, parts)
    with local_folder(target) as folder:
        rows = {number: len(entries) for number, entries in parts.items()}
        found = find_duplicates(target, rows, folder=folder, workers=1, per_bucket=20, per_file=70)
        assert [number for number, _ in found.of_parts({2, 7, 99})] == [2, 7]
        assert list(found.of_parts(set())) == []


def test_a_bucket_that_one_key_fills_is_compared_piece_by_piece(target, monkeypatch):
    parts = SOURCES["all keys equal"]
    write_keys(target, parts)
    read = []

    def reading(folder, slices, dtype):
        items = real(folder, slices, dtype)
        read.append(len(items))
        return items

    real = buckets.read_items
    monkeypatch.setattr("conversion.records.duplicates.read_items", reading)
    with local_folder(target) as folder:
        assert search(target, parts, folder=folder, per_bucket=20, per_file=70) == expected(parts)
    assert max(read) <= 70
    assert read.count(20) == 20


def test_two_attempts_at_a_task_write_two_complete_files(target):
    parts = SOURCES["many repeats"]
    write_keys(target, parts)
    slices = tuple(Slice(keys_name(number), 0, len(entries)) for number, entries in parts.items())
    with shared_folder(target) as folder:
        job = DistributeJob(number=0, source=target.url, slices=slices, folder=folder.url, buckets=3)
        files = [distribute(job, lambda _: None) for _ in range(2)]
        assert files[0].name != files[1].name
        found = []
        for file in files:
            for number in range(3):
                bucket = slices_of_bucket([file], number)
                comparing = CompareJob(number=number, source=folder.url, slices=bucket, folder=folder.url, piece=9)
                found += [compare(comparing, lambda _: None) for _ in range(2)]
        assert len({one.name for one in found}) == len(found)
        assert sum(int(one.counts.sum()) for one in found) == 4 * len(expected(parts))


def test_a_task_of_a_killed_conversion_finds_its_folder_gone(target):
    write_keys(target, SOURCES["one part"])
    slices = (Slice(keys_name(0), 0, 300),)
    with shared_folder(target) as old:
        job = DistributeJob(number=0, source=target.url, slices=slices, folder=old.url, buckets=3)
    with shared_folder(target) as folder:
        assert folder.url != old.url
        with pytest.raises(DataError, match=r"keys cannot be written to .*_unfinished/scratch-"):
            distribute(job, lambda _: None)
        assert list(Path(folder.path).iterdir()) == []


@pytest.mark.parametrize("place", [local_folder, shared_folder])
def test_the_next_start_removes_what_a_kill_left(place, target, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    other = open_place(tmp_path / "other")
    left = []
    for one in (target, other):
        with place(one) as folder:
            left.append(Path(folder.path))
        left[-1].mkdir(parents=True)
        (left[-1] / "keys-000000-left").write_bytes(b"x")
    with place(target) as folder:
        assert not left[0].exists()
        assert left[1].exists()
        assert Path(folder.path).exists()


def test_files_that_are_missing_or_too_short_are_named(target):
    parts = SOURCES["one part"]
    with local_folder(target) as folder, pytest.raises(DataError, match=r"keys in .*out cannot be read.*resume"):
        search(target, parts, folder=folder)
    write_keys(target, {0: parts[0][:-1]})
    for per_bucket in (20, 1000):
        with local_folder(target) as folder, pytest.raises(DataError, match=r"000\.keys has fewer than 300 entries"):
            search(target, parts, folder=folder, per_bucket=per_bucket)


def test_a_bucket_keeps_the_order_of_its_items(target):
    (entries,) = random_parts({0: 500}, keys=500).values()
    with local_folder(target) as folder:
        file = write_buckets(folder, "x", entries, count=7)
        written = np.frombuffer((Path(folder.path) / "x").read_bytes(), ENTRY)
    assert sorted(written.tolist()) == sorted(entries.tolist())
    assert file.starts[0] == 0
    assert file.starts[-1] == 500
    pieces = [written[start:end] for start, end in itertools.pairwise(file.starts.tolist())]
    assert all(40 < len(bucket) < 110 for bucket in pieces)
    assert all(np.all(np.diff(bucket["row"].astype(int)) > 0) for bucket in pieces)
    assert all(low["high"].max() < high["high"].min() for low, high in itertools.pairwise(pieces))


def test_slices_are_cut_into_lists_of_equal_size():
    slices = [Slice("a", 5, 9), Slice("b", 3, 3), Slice("c", 0, 7)]
    assert list(cut(slices, 4)) == [[("a", 5, 9)], [("c", 0, 4)], [("c", 4, 7)]]
    assert list(cut(slices, 5)) == [[("a", 5, 9), ("c", 0, 1)], [("c", 1, 6)], [("c", 6, 7)]]
    assert list(cut(slices, 100)) == [[("a", 5, 9), ("c", 0, 7)]]
    assert list(cut([], 1)) == []


@pytest.fixture
def source(tmp_path):
    """Six tars; every row but those of the first tar is a duplicate."""
    rows = samples(6)
    dumps.write_tars(tmp_path / "source", [rows[i:] + rows[:i] for i in range(6)])
    return tmp_path / "source"


@pytest.mark.parametrize(("workers", "place"), [(1, local_folder), (2, shared_folder)])
def test_a_conversion_with_many_small_tasks_writes_the_same_bytes(workers, place, source, tmp_path, monkeypatch):
    manifest = ingest(source, tmp_path / "whole")
    assert (manifest.rows_written, manifest.rows_dropped) == (6, {"duplicate key": 30})
    small = functools.partial(find_duplicates, per_bucket=3, per_file=5)
    monkeypatch.setattr(module, "find_duplicates", small)
    monkeypatch.setattr(module, "local_folder", place)
    ingest(source, tmp_path / "out", workers=workers)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("place", [local_folder, shared_folder])
def test_a_kill_while_duplicates_are_dropped_costs_only_the_parts_that_are_left(place, source, tmp_path, monkeypatch):
    ingest(source, tmp_path / "whole")
    monkeypatch.setattr(module, "find_duplicates", functools.partial(find_duplicates, per_bucket=3, per_file=5))
    monkeypatch.setattr(module, "local_folder", place)
    again = []

    def stopping(job, seen):
        if job.duplicates:
            if len(again) == 3:
                raise Stopped
            again.append(job.number)
        return real(job, seen)

    real = module.convert_part
    monkeypatch.setattr(module, "convert_part", stopping)
    with pytest.raises(Stopped):
        ingest(source, tmp_path / "out")
    first, again[:] = list(again), []
    ingest(source, tmp_path / "out")
    assert sorted(first + again) == [1, 2, 3, 4, 5]
    assert content(tmp_path / "out") == content(tmp_path / "whole")
