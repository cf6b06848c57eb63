"""Joined folders: many record folders open as one, wherever they are moved together, and never with another content."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.streams import write_numbered

from clipa_eqx.data import shard_checks
from clipa_eqx.data.addresses import resolve
from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.first_records import first_records
from clipa_eqx.data.manifest import Manifest, Member, manifest_from_json, manifest_to_json, read_manifest
from clipa_eqx.data.mixture import Mixture
from clipa_eqx.data.shards import ShardInfo, joined_table, shard_table
from clipa_eqx.data.stream import train_stream
from clipa_eqx.data.verification import verify_records
from clipa_eqx.errors import DataError
from clipa_eqx.training.run_folder import data_identity
from conversion.records.join import join

COUNTS = (5, 9, 2)


@pytest.fixture
def data(tmp_path):
    """A folder with three record folders, of which two have several shards, and the joined folder ``all``."""
    first = 0
    for number, count in enumerate(COUNTS):
        write_numbered(tmp_path / f"data/part-{number}", count, first=first, records_per_shard=3)
        first += count
    join(str(tmp_path / "data/all"), [str(tmp_path / f"data/part-{number}") for number in range(3)])
    return tmp_path / "data"


def test_records_of_all_members_are_read_in_order(data):
    source = open_records(data / "all")
    assert len(source) == sum(COUNTS)
    assert [record.key for record in source] == [str(i) for i in range(16)]
    assert [record.key for record in source.read([15, 0, 7, 13, 7])] == ["15", "0", "7", "13", "7"]
    assert source.describe(0) == f"{data}/part-0/shard-00000.array_record, record 0"
    assert source.describe(13) == f"{data}/part-1/shard-00002.array_record, record 2"
    assert [record.key for record in first_records(source)] == ["0", "3", "5", "8", "11", "14"]
    with pytest.raises(IndexError):
        source[16]
    again = pickle.loads(pickle.dumps(source))
    assert again.manifest == source.manifest
    assert again[14].key == "14"


def test_a_joined_folder_trains_as_a_single_folder_of_the_same_shards(data):
    """The same ids in the same order, and so the same batches."""
    write_numbered(data / "one", 16, records_per_shard=5)

    def ids(folder):
        with train_stream(open_records(folder), _key, batch_size=8, seed=3) as stream:
            return [next(stream)[name].tolist() for _ in range(4) for name in ("key", "sample_id")]

    assert ids(data / "all") == ids(data / "one")


def test_a_joined_folder_is_one_source_of_a_mixture(data):
    write_numbered(data / "other", 4, first=100)
    mixture = Mixture(sources=(open_records(data / "all"), open_records(data / "other")), weights=(1.0, 1.0))
    assert len(mixture) == 20
    assert [record.key for record in mixture.read([15, 16, 0])] == ["15", "100", "0"]
    assert mixture.describe(15).endswith("part-2/shard-00000.array_record, record 1")


def test_all_folders_can_be_moved_together(data, tmp_path):
    shutil.move(data, tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere/all")
    for folder in (tmp_path / "elsewhere/all", tmp_path / "link"):
        assert [record.key for record in open_records(folder)] == [str(i) for i in range(16)]
        assert verify_records(folder).rows_written == 16


def test_members_inside_are_relative_and_those_elsewhere_have_their_full_path(data, tmp_path):
    shutil.copytree(data / "part-0", tmp_path / "set/a")
    join(str(tmp_path / "set"), [str(tmp_path / "set/a"), str(data / "part-1"), str(data / "part-2")])
    members = [member.folder for member in read_manifest(tmp_path / "set").members]
    assert members == ["a", "../data/part-1", "../data/part-2"]
    join(str(data / "deep/set"), [str(tmp_path / "set/a"), str(data / "part-1")])
    members = [member.folder for member in read_manifest(data / "deep/set").members]
    assert members == [str(tmp_path / "set/a"), str(data / "part-1")]
    assert [record.key for record in open_records(data / "deep/set")] == [str(i) for i in range(14)]


@pytest.mark.parametrize(
    ("folder", "address", "full"),
    [
        ("gs://bucket/all", "../part", "gs://bucket/part"),
        ("gs://bucket/a/all/", "part", "gs://bucket/a/all/part"),
        ("data/all", "/mnt/part", "/mnt/part"),
        ("data/all", "gs://bucket/part", "gs://bucket/part"),
        (".", "../part", "../part"),
    ],
)
def test_an_address_is_relative_to_its_manifest(folder, address, full):
    assert resolve(folder, address) == full


def test_a_changed_member_is_refused_with_the_command_to_join_again(data):
    path = data / "part-1/manifest.json"
    path.write_text(path.read_text().replace('"info": {}', '"info": {"a": 1}'))
    with pytest.raises(DataError) as caught:
        open_records(data / "all")
    message = str(caught.value)
    assert message.startswith(f"{data}/all/manifest.json: member ../part-1: its manifest is another one")
    assert f"conversion.records join {data}/all FOLDER ... --overwrite" in message


def test_a_missing_member_and_a_missing_shard_are_named(data):
    (data / "part-2/shard-00000.array_record").unlink()
    with pytest.raises(DataError, match=r"part-2/shard-00000.array_record is missing"):
        open_records(data / "all")
    with pytest.raises(DataError, match=r"damaged: \.\./part-2/shard-00000.array_record is missing"):
        verify_records(data / "all")
    shutil.rmtree(data / "part-2")
    with pytest.raises(DataError, match=r"member \.\./part-2: data folder .*part-2 does not exist"):
        open_records(data / "all")


def test_a_run_resumes_with_the_same_members_wherever_they_are_and_notices_others(data, tmp_path):
    joined = data_identity([read_manifest(data / "all")])
    assert joined == data_identity([Manifest(**plain(data, range(3)))])
    shutil.copytree(data, tmp_path / "copy")
    assert data_identity([read_manifest(tmp_path / "copy/all")]) == joined
    join(str(data / "other"), [str(data / f"part-{number}") for number in (1, 0, 2)])
    assert data_identity([read_manifest(data / "other")]) != joined


def plain(data, numbers):
    """Fields of a manifest with the shards of several folders as its own."""
    shards = [shard for number in numbers for shard in read_manifest(data / f"part-{number}").shards]
    rows = sum(shard.count for shard in shards)
    named = (ShardInfo(name=str(i), count=s.count, bytes=s.bytes, sha256=s.sha256) for i, s in enumerate(shards))
    return {"shards": tuple(named), "rows_read": rows, "rows_written": rows}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": "a"}, "members must be a list"),
        ({"members": [{"folder": "../part-0"}]}, "a member needs folder, rows, sha256, got"),
        ({"members": []}, "the members have 0 shards, expected 6"),
        ({"shards": 7}, "the members have 6 shards, expected 7"),
        ({"shards": []}, "shards must be a whole number"),
        ({"rows_written": 15, "rows_read": 15}, "the shards have 16 records but 15 rows were written"),
        ({"version": 1}, "fields missing or unknown"),
    ],
)
def test_a_wrong_joined_manifest_is_refused_with_its_path(data, change, message):
    path = data / "all/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message) as caught:
        open_records(data / "all")
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [(0, {"rows": 6}, "part-0 has 5 records, expected 6"), (1, {"folder": "../part-0"}, "its manifest is another one")],
)
def test_members_that_contradict_their_folders_are_refused(data, at, value, message):
    path = data / "all/manifest.json"
    content = json.loads(path.read_text())
    content["members"][at] |= value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        open_records(data / "all")


def test_earlier_releases_take_it_for_a_record_folder_and_refuse_its_version(data):
    """They ask for an entry ``shards`` first, and then for the version 1."""
    content = json.loads((data / "all/manifest.json").read_text())
    assert "shards" in content
    assert content["version"] == 2


def test_the_manifest_of_a_joined_folder_survives_its_file(data):
    manifest = read_manifest(data / "all")
    text = manifest_to_json(manifest)
    assert text == (data / "all/manifest.json").read_bytes()
    with pytest.raises(DataError, match="is that of a joined folder"):
        manifest_from_json(text, where="there")
    with pytest.raises(DataError, match="the shards are not those of the members"):
        Manifest(**plain(data, range(3)), members=manifest.members)
    twice = joined_table([read_manifest(data / "part-0").table] * 2, ["a", "a"])
    member = Member(folder="a", rows=5, sha256="")
    with pytest.raises(DataError, match="two members are the same folder"):
        Manifest(shards=twice, rows_read=10, rows_written=10, members=(member, member))


def test_a_plain_manifest_has_the_bytes_of_earlier_releases():
    shard = ShardInfo(name="a", count=1, bytes=2, sha256="00ff")
    manifest = Manifest(shards=(shard,), rows_read=2, rows_written=1, rows_dropped={"é": 1}, info={"b": [1]})
    assert manifest_to_json(manifest).decode() == (
        '{\n "class_names": null,\n "info": {\n  "b": [\n   1\n  ]\n },\n "rows_dropped": {\n  "é": 1\n },\n'
        ' "rows_read": 2,\n "rows_written": 1,\n "shards": [\n  {\n   "bytes": 2,\n   "count": 1,\n   "name": "a",\n'
        '   "sha256": "00ff"\n  }\n ],\n "version": 1\n}\n'
    )


HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex) | st.text(max_size=3) | st.just("A" * 64)
SIZES = st.integers(0, 2**50)
INFOS = st.lists(
    st.builds(ShardInfo, name=st.text(min_size=1, max_size=5), count=SIZES, bytes=SIZES, sha256=HASHES), max_size=5
)


@settings(deadline=None, max_examples=40)
@given(st.lists(INFOS, max_size=4), st.booleans())
def test_a_table_is_the_sequence_of_its_shards(parts, is_hex):
    if is_hex:
        parts = [[ShardInfo(name=s.name, count=s.count, bytes=s.bytes, sha256="0a" * 32) for s in p] for p in parts]
    tables = [shard_table(tuple(part)) for part in parts]
    assert all(tuple(table) == tuple(part) for table, part in zip(tables, parts, strict=True))
    folders = [f"../{i}" for i in range(len(parts))]
    joined = joined_table(tables, folders)
    expected = tuple(
        ShardInfo(name=f"{folder}/{s.name}", count=s.count, bytes=s.bytes, sha256=s.sha256)
        for folder, part in zip(folders, parts, strict=True)
        for s in part
    )
    assert joined == expected
    assert joined == pickle.loads(pickle.dumps(joined))
    assert (joined[-1:], list(joined), len(joined)) == (expected[-1:], list(expected), len(expected))
    assert joined.joined_hashes() == "".join(s.sha256 for s in expected)
    assert joined.contents() == [[s.count, s.sha256] for s in expected]
    assert joined.rows_of_folders() == [sum(s.count for s in part) for part in parts]
    assert (joined == expected[1:]) is (expected[1:] == expected)


def test_numbers_that_no_shard_has_are_refused():
    with pytest.raises(DataError, match=r"below 2\^63"):
        shard_table((ShardInfo(name="a", count=2**63, bytes=0, sha256=""),))


def test_a_shard_takes_at_most_a_hundred_bytes_in_each_process():
    rows = range(3000)
    hashes = [f"{i:064x}" for i in rows]
    names = [f"shard-{i:06d}-000.array_record" for i in rows]
    infos = [ShardInfo(name=n, count=10_000, bytes=10**9, sha256=h) for n, h in zip(names, hashes, strict=True)]
    table = joined_table([shard_table(tuple(infos))] * 3, ["../a", "../b", "../c"])
    assert len(pickle.dumps(table)) < 100 * len(table)


@pytest.fixture
def few(monkeypatch):
    """Sizes of four shards are compared at most; returns the paths whose size is asked for."""
    asked = []
    real = shard_checks.check_size
    monkeypatch.setattr(shard_checks, "MOST_SIZES", 4)

    def check_size(path, *, expected):
        asked.append(Path(path).name)
        real(path, expected=expected)

    monkeypatch.setattr(shard_checks, "check_size", check_size)
    return asked


def test_of_many_shards_all_names_and_some_sizes_are_compared(tmp_path, few):
    write_numbered(tmp_path / "set", 40, records_per_shard=2)
    few.clear()
    source = open_records(tmp_path / "set")
    assert few == [f"shard-{number:05d}.array_record" for number in (0, 6, 12, 19)]
    for number in (7, 12):
        path = tmp_path / f"set/shard-{number:05d}.array_record"
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        if number == 7:  # between those that are compared: found when it is read
            source = open_records(tmp_path / "set")
            with pytest.raises(DataError, match=r"shard-00007.array_record has \d+ bytes, its manifest says \d+"):
                source[14]
            path.write_bytes(content)
    with pytest.raises(DataError, match=r"shard-00012.array_record has"):
        open_records(tmp_path / "set")
    (tmp_path / "set/shard-00007.array_record").unlink()
    with pytest.raises(DataError, match=r"shard-00007.array_record is missing"):
        open_records(tmp_path / "set")


def test_the_first_damaged_shard_is_named_whichever_thread_finds_it(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_checks, "_AT_ONCE", 2)
    write_numbered(tmp_path / "set", 40, records_per_shard=2)
    for number in (17, 5, 9):
        (tmp_path / f"set/shard-{number:05d}.array_record").unlink()
    with pytest.raises(DataError, match=r"shard-00005.array_record is missing"):
        open_records(tmp_path / "set")


@pytest.mark.slow
def test_worker_processes_read_a_joined_folder(data):
    from clipa_eqx.data.prefetch import StreamConfig

    config = StreamConfig(workers=2, threads=1)
    with train_stream(open_records(data / "all"), _key, batch_size=8, seed=0, config=config) as stream:
        batches = [next(stream) for _ in range(2)]
    assert (
        np.concatenate([batch["key"] for batch in batches]).tolist()
        == np.concatenate([batch["sample_id"] for batch in batches]).tolist()
    )


def _key(record, rng):
    return {"key": int(record.key)}
