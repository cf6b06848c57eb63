"""``verify`` and ``diff`` of record folders, and the hashes they use, against plain Python over all keys."""

import hashlib
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import dumps
from support.conversions import ingest

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.records import Record, encode_record
from clipa_eqx.errors import DataError
from conversion.records import diff as module
from conversion.records import stored_keys
from conversion.records.diff import diff
from conversion.records.keys import ENTRY, Fingerprint, content_digest, key_digest, pack_entry
from conversion.records.verify import find_damage


def record(key, *, image=b"pixels", caption="text", **extra):
    return Record(key=key, image=image, captions=(caption,), extra=extra)


@pytest.fixture
def folders(tmp_path):
    a = [record(f"key-{i}") for i in range(10)]
    b = [record(f"key-{i}", url="u") for i in range(3, 13)]
    b[0] = replace(b[0], captions=("another",))
    write_records(a, tmp_path / "a", records_per_shard=4)
    write_records(reversed(b), tmp_path / "b", records_per_shard=3)
    return tmp_path


@pytest.mark.parametrize("workers", [1, 2])
def test_diff_reports_which_keys_are_not_shared(folders, workers):
    found = diff(str(folders / "a"), str(folders / "b"), workers=workers)
    assert (found.shared, found.changed, found.only_a, found.only_b) == (7, 1, 3, 3)
    assert (found.repeats_a, found.repeats_b) == (0, 0)
    assert found.examples_changed == ("key-3 (shard-00000.array_record, record 3)",)
    assert found.examples_a == tuple(f"key-{i} (shard-00000.array_record, record {i})" for i in range(3))
    assert {example.split()[0] for example in found.examples_b} == {"key-10", "key-11", "key-12"}
    assert not found.is_same


def test_a_folder_differs_from_itself_in_nothing_but_repeated_keys_count(folders):
    assert diff(str(folders / "a"), str(folders / "a")).is_same
    write_records([record("key-0"), record("key-0", caption="2")], folders / "c")
    write_records([record("key-0")], folders / "d")
    found = diff(str(folders / "c"), str(folders / "d"))
    assert (found.shared, found.changed, found.only_a, found.only_b) == (1, 0, 0, 0)
    assert (found.repeats_a, found.repeats_b, found.is_same) == (1, 0, False)


def test_examples_are_the_first_few(folders):
    write_records([], folders / "none")
    found = diff(str(folders / "a"), str(folders / "none"), examples=2)
    assert found.only_a == 10
    assert [example.split()[0] for example in found.examples_a] == ["key-0", "key-1"]


@pytest.mark.parametrize("workers", [1, 2])
def test_verify_names_every_damaged_shard(folders, workers):
    manifest, problems = find_damage(str(folders / "b"), workers=workers)
    assert (manifest.rows_written, problems) == (10, [])
    (folders / "b/shard-00000.array_record").unlink()
    with (folders / "b/shard-00001.array_record").open("ab") as file:
        file.write(b"x")
    changed = folders / "b/shard-00003.array_record"
    data = bytearray(changed.read_bytes())
    data[data.index(b"pixels")] ^= 1
    changed.write_bytes(data)
    _, problems = find_damage(str(folders / "b"), workers=workers)
    assert [problem.split(" has ")[0].split(" is ")[0] for problem in problems] == [
        f"shard-0000{i}.array_record" for i in (0, 1, 3)
    ]
    assert ["missing" in problems[0], "bytes" in problems[1], "SHA-256" in problems[2]] == [True] * 3


def test_a_damaged_record_ends_a_diff_with_its_shard(folders):
    changed = folders / "b/shard-00003.array_record"
    data = bytearray(changed.read_bytes())
    data[data.index(b"pixels")] ^= 1
    changed.write_bytes(data)
    with pytest.raises(DataError, match=r"shard-00003\.array_record cannot be read.*verify"):
        diff(str(folders / "a"), str(folders / "b"))


def test_folders_without_a_manifest_are_refused(folders):
    shutil.copytree(folders / "a", folders / "unfinished")
    (folders / "unfinished/manifest.json").unlink()
    for name in ("unfinished", "nowhere"):
        with pytest.raises(DataError, match=rf"{name}/manifest\.json does not exist"):
            find_damage(str(folders / name))
        with pytest.raises(DataError, match=rf"{name}/manifest\.json does not exist"):
            diff(str(folders / "a"), str(folders / name))


@settings(deadline=None, max_examples=20)
@given(a=st.lists(st.integers(0, 20), max_size=30), b=st.lists(st.integers(0, 20), max_size=30))
def test_diff_equals_sets_of_keys(a, b, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    for name, numbers in (("a", a), ("b", b)):
        write_records((record(f"{n}") for n in numbers), folder / name, records_per_shard=7)
    found = diff(str(folder / "a"), str(folder / "b"))
    assert (found.shared, found.only_a, found.only_b) == (len({*a} & {*b}), len({*a} - {*b}), len({*b} - {*a}))
    assert (found.repeats_a, found.repeats_b) == (len(a) - len({*a}), len(b) - len({*b}))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("count", [2, 90])
def test_diff_in_many_buckets_equals_diff_in_one(count, workers, tmp_path, monkeypatch):
    draw = random.Random(0)
    for name in "ab":
        records = [record(f"{draw.randrange(60)}", caption=f"{draw.randrange(2)}") for _ in range(80)]
        records = [replace(one, extra={"n": draw.randrange(2)}) for one in records]
        write_records(records, tmp_path / name, records_per_shard=9)
    whole = diff(str(tmp_path / "a"), str(tmp_path / "b"))
    assert min(whole.shared, whole.changed, whole.changed_extra, whole.only_a, whole.only_b, whole.repeats_a) > 0
    monkeypatch.setattr(module, "count_buckets", lambda rows: count)
    monkeypatch.setattr(stored_keys, "PER_BUCKET", 20)  # entries of a file
    assert diff(str(tmp_path / "a"), str(tmp_path / "b"), workers=workers) == whole


def test_an_entry_holds_the_documented_hashes():
    one = Record(key="cat", image=b"x", captions=("a cat",), extra={"url": "u"})
    encoded = encode_record(one)
    content = hashlib.sha256(encode_record(replace(one, extra={}))).digest()
    assert content_digest(one, encoded=encoded) == content
    entry = np.frombuffer(pack_entry(key_digest("cat"), content, part=3, row=4), ENTRY)[0]
    assert entry.tobytes()[:24] == hashlib.sha256(b"cat").digest()[:16] + content[:8]
    assert (entry["part"], entry["row"]) == (3, 4)


@given(st.lists(st.binary(max_size=4), max_size=8), st.randoms())
def test_a_fingerprint_forgets_order_but_not_number(elements, random):
    sums = []
    for order in (elements, random.sample(elements, len(elements)), [*elements, b"one more"]):
        fingerprint = Fingerprint()
        for element in order:
            fingerprint.add(hashlib.sha256(element).digest())
        sums.append(fingerprint.hex())
    assert sums[0] == sums[1] != sums[2]


def test_diff_sees_what_a_smaller_image_changes(tmp_path):
    rows = [replace(row, image=dumps.jpeg(i, width=100)) for i, row in enumerate(dumps.samples(3))]
    dumps.write_tars(tmp_path / "source", [rows])
    for name, side in (("a", None), ("b", 50)):
        ingest(tmp_path / "source", tmp_path / name, max_side=side)
    found = diff(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (found.shared, found.changed, found.only_a, found.only_b) == (3, 3, 0, 0)
    assert [one.key for one in open_records(tmp_path / "b")] == [row.key for row in rows]
