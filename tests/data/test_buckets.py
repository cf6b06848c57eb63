"""Record folders in a bucket, against a protocol server on loopback: read like local ones, in exact ranges of bytes."""

import re
import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from support.bucket_servers import bucket_server
from support.conversions import call
from support.streams import write_numbered

from clipa_eqx.buckets.bucket import bucket_at
from clipa_eqx.data import bucket_shards, open_shards
from clipa_eqx.data.array_record_layout import BLOCK, END, footer_start, parse_footer
from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.bucket_shards import BucketShard, begin_open
from clipa_eqx.data.manifest import read_manifest
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.data.records import Record
from clipa_eqx.data.stream import eval_stream, train_stream
from clipa_eqx.errors import DataError
from conversion.records.join import join

RECORDS, PER_SHARD = 60, 25


@pytest.fixture(scope="module")
def server():
    """The protocol server; this process uses it."""
    with bucket_server("gs") as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.variables(patience=2).items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A folder with two record folders and the joined folder ``all``."""
    root = tmp_path_factory.mktemp("data")
    for number, name in enumerate("ab"):
        write_numbered(root / name, RECORDS, first=RECORDS * number, records_per_shard=PER_SHARD)
    join(str(root / "all"), [str(root / "a"), str(root / "b")])
    return root


def upload(folder, url):
    """Upload a tree; return its address."""
    bucket = bucket_at(url)
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.upload(path, str(path.relative_to(folder)))
    return url


@pytest.fixture(scope="module")
def remote(server, local):
    return upload(local, "gs://bucket/data")


@pytest.fixture
def asked(monkeypatch):
    """The ranges that are asked for, as (shard, bytes)."""
    found = []
    real = bucket_shards._begin_read

    def begin_read(url, start, end):
        found.append((url.rpartition("/")[2], end - start))
        return real(url, start, end)

    monkeypatch.setattr(bucket_shards, "_begin_read", begin_read)
    return found


def keys(source):
    return [record.key for record in source.read(range(len(source)))]


def test_a_bucket_is_read_like_a_folder(local, remote):
    here, there = open_records(local / "a"), open_records(f"{remote}/a/")
    wanted = np.random.default_rng(0).integers(RECORDS, size=200).tolist()
    assert there.read(wanted) == here.read(wanted)
    assert there.describe(30) == "gs://bucket/data/a/shard-00001.array_record, record 5"
    assert there.manifest == here.manifest
    with pytest.raises(IndexError):
        there[RECORDS]


def test_a_joined_folder_is_uploaded_with_its_members(local, remote):
    source = open_records(f"{remote}/all")
    assert keys(source) == [str(i) for i in range(2 * RECORDS)]
    assert source.describe(RECORDS) == "gs://bucket/data/b/shard-00000.array_record, record 0"


def test_streams_of_a_bucket_are_those_of_a_folder(local, remote):
    def batches(folder):
        source = open_records(folder)
        with train_stream(source, _key, batch_size=16, seed=1) as train:
            found = [next(train)["key"].tolist() for _ in range(8)]
        with eval_stream(source, lambda record: {"key": int(record.key)}, batch_size=16) as scored:
            return found, [batch["key"].tolist() for batch in scored]

    assert batches(f"{remote}/all") == batches(local / "all")


def _key(record, rng):
    return {"key": int(record.key)}


@pytest.mark.slow
def test_worker_processes_read_from_a_bucket(local, remote):
    """After this process has read there too: what TensorStore keeps is not passed on to them."""
    found = []
    for folder, workers in ((local / "all", 0), (f"{remote}/all", 0), (f"{remote}/all", 2)):
        config = StreamConfig(workers=workers, threads=2)
        with train_stream(open_records(folder), _key, batch_size=16, seed=1, config=config) as stream:
            found.append([next(stream)["key"].tolist() for _ in range(12)])
    assert found[0] == found[1] == found[2]


def test_a_shard_takes_one_request_a_record_one_and_neighbors_share_one(remote, asked):
    source = open_records(f"{remote}/a")
    waited = []
    source.read([0, 30, 2, 31], on_shard=waited.append)
    # Both indexes, then the records; the last two are of one shard and neighbors.
    assert [name[9:11] for name, _ in asked] == ["00", "01", "00", "00", "01"]
    assert waited[:2] == [0, 30]
    asked.clear()
    source.read([0, 30, 2, 31])
    assert len(asked) == 3
    asked.clear()
    source.read(range(PER_SHARD))
    assert len(asked) == 1
    with mock.patch.object(bucket_shards, "_MOST_AT_ONCE", 400):
        asked.clear()
        source.read(range(PER_SHARD))
        assert len(asked) > 1
        assert max(size for _, size in asked) <= 400


def test_no_byte_is_asked_for_that_is_not_of_the_record(remote, asked):
    source = open_records(f"{remote}/a")
    source[3]
    asked.clear()
    record = source[4]
    (ask,) = asked
    assert ask[1] < len(record.key) + len(record.image) + 150


def test_a_footer_that_is_longer_than_expected_takes_a_second_request(remote, asked, monkeypatch):
    monkeypatch.setattr(bucket_shards, "_entry_bytes", lambda size, count: -(BLOCK // count))
    assert open_records(f"{remote}/a")[7].key == "7"
    assert len(asked) == 3


def test_members_in_a_bucket_join_into_a_local_folder_and_into_the_bucket(remote, tmp_path, capsys):
    assert call("join", tmp_path / "all", f"{remote}/b", f"{remote}/a") == 0
    assert [one.folder for one in read_manifest(tmp_path / "all").members] == [f"{remote}/b", f"{remote}/a"]
    assert keys(open_records(tmp_path / "all"))[:2] == ["60", "61"]
    assert call("join", f"{remote}/again", f"{remote}/[ab]") == 0
    assert [one.folder for one in read_manifest(f"{remote}/again").members] == ["../a", "../b"]
    assert call("verify", f"{remote}/again") == 0
    assert call("diff", f"{remote}/again", f"{remote}/all") == 0
    assert call("join", f"{remote}/again", f"{remote}/a", f"{remote}/a/") == 2
    assert "is named twice" in capsys.readouterr().err


@pytest.fixture
def own(server, tmp_path):
    """A record folder in the bucket that the test may damage, with its local copy."""
    write_numbered(tmp_path / "set", RECORDS, records_per_shard=PER_SHARD)
    url = upload(tmp_path / "set", f"gs://bucket/{tmp_path.name}")
    return bucket_at(url), tmp_path / "set"


SHARD = "shard-00001.array_record"


def test_a_missing_shard_and_a_missing_folder_are_named(own):
    bucket, _ = own
    bucket.delete([SHARD])
    source = open_records(bucket.url)
    assert source[0].key == "0"
    with pytest.raises(DataError, match=rf"shard {bucket.url}/{SHARD} is missing"):
        source.read([0, 30])
    with pytest.raises(DataError, match=r"gs://bucket/nowhere has no manifest.json"):
        open_records("gs://bucket/nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[: len(data) // 2], "cannot be read: |ends at byte"),
        (lambda data: bytes(len(data)), "is damaged, or does not have the"),
        (lambda data: b"x" * 64 + data, "is damaged, or does not have the"),
    ],
)
def test_a_damaged_shard_is_refused_when_it_is_read(own, change, message):
    bucket, folder = own
    bucket.write(SHARD, change((folder / SHARD).read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        open_records(bucket.url)[30]
    assert SHARD in str(caught.value)


def test_a_damaged_record_is_named_and_the_others_are_read(own):
    bucket, folder = own
    source = open_records(folder)
    data = bytearray((folder / SHARD).read_bytes())
    at = data.index(source[30].image) if source[30].image else data.index(b"\xa3key") - 10
    data[at - 40 : at] = bytes(40)
    bucket.write(SHARD, bytes(data))
    found = open_records(bucket.url).read_each([25, *range(28, 33), 59])
    damaged = [str(one) for one in found if isinstance(one, DataError)]
    assert 1 <= len(damaged) <= 2
    assert all(re.search(rf"{SHARD}, record \d", one) for one in damaged)
    assert [one.key for one in found if isinstance(one, Record)][-1] == "59"


def test_a_shard_with_another_number_of_records_is_refused(own):
    bucket, folder = own
    shutil.copy(folder / "shard-00002.array_record", folder / SHARD)  # shards have one size: they are padded
    bucket.upload(folder / SHARD, SHARD)
    with pytest.raises(DataError, match="has 10 records, its manifest says 25"):
        open_records(bucket.url)[30]


def test_a_manifest_with_an_impossible_size_is_refused(server):
    with pytest.raises(DataError, match="no shard has fewer than 65536"):
        begin_open("gs://bucket/a", size=100, count=1)


def test_a_shard_that_is_replaced_while_it_is_open_is_noticed(own):
    bucket, folder = own
    data = (folder / SHARD).read_bytes()
    start = footer_start(data[-BLOCK:][:END], len(data))
    shard = BucketShard(f"{bucket.url}/{SHARD}", parse_footer(data[start:], start), generation=b"another")
    with pytest.raises(DataError, match="was replaced while it was open"):
        shard.read([3])


def test_a_bucket_that_does_not_answer_is_one_error(own, monkeypatch):
    bucket, _ = own
    source = open_records(bucket.url)
    source[0]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setenv("CLIPA_EQX_BUCKET_PATIENCE", "1")
    with pytest.raises(DataError, match=r"shard-00000.array_record cannot be read: .*check the bucket"):
        source[1]


def test_indexes_in_a_bucket_take_a_quarter_of_those_of_files(own, monkeypatch):
    bucket, _ = own
    monkeypatch.setattr(open_shards, "MOST_OPEN_RECORDS", 2 * 7)  # two shards of 25 records, at 4 of 16 bytes each
    source = open_records(bucket.url)
    shards = open_shards.OpenShards(bucket.url, source.manifest.shards)
    readers = [shards.reader(number) for number in (0, 1, 2)]
    assert shards.reader(2) is readers[2]
    assert shards.reader(0) is not readers[0]
    shards.close()
    assert [record.key for record in source.read([0, 25, 50, 1])] == ["0", "25", "50", "1"]


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("s3://bucket/set", r"local paths and gs:// only; copy it, or mount the bucket"),
        (Path("gs://bucket/set"), "URL with one slash"),
        ("gs://bucket/set", r"gs://bucket/set needs the package gcsfs"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused_with_advice(folder, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed, so that nothing accesses the network
    with pytest.raises(DataError, match=message):
        open_records(folder)
