"""Records, manifests and record folders: round trips, closed accounts, and errors that name the damage."""

import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.manifest import Manifest, read_manifest
from clipa_eqx.data.records import Record, decode_record, encode_record
from clipa_eqx.data.shards import ShardInfo
from clipa_eqx.data.verification import verify_records
from clipa_eqx.errors import DataError

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_VALUES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | _TEXTS
_FIELDS = {
    "key": _TEXTS,
    "image": st.binary(max_size=20),
    "captions": st.lists(_TEXTS, max_size=3).map(tuple),
    "label": st.none() | st.integers(0, 2**31),
    "extra": st.dictionaries(_TEXTS, _VALUES | st.binary(max_size=4), max_size=3),
}
_GOOD = {"v": 1, "key": "cat", "image": b"x", "captions": ["a"], "label": None, "extra": {}}


def make_records(count):
    return [
        Record(key=f"key-{i}", image=bytes([i]) * 50, captions=(f"caption {i}",), label=i % 3) for i in range(count)
    ]


@pytest.fixture
def folder(tmp_path):
    write_records(make_records(10), tmp_path / "set", records_per_shard=4, class_names=["a", "b", "c"])
    return tmp_path / "set"


@given(st.fixed_dictionaries(_FIELDS))
def test_a_record_survives_encoding(fields):
    record = Record(**fields)
    data = encode_record(record)
    assert decode_record(data, where="here") == record
    assert encode_record(decode_record(data, where="here")) == data


def test_the_bytes_of_a_record_are_the_documented_msgpack_map():
    record = Record(key="k", image=b"\xff\xd8", captions=("two", "words"), label=7, extra={"w": 3})
    assert msgpack.unpackb(encode_record(record)) == {
        "v": 1, "key": "k", "image": b"\xff\xd8", "captions": ["two", "words"], "label": 7, "extra": {"w": 3},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": 2}, "version 2"),
        ({"v": True}, "version True"),
        ({"key": 3}, "field key must be a text"),
        ({"image": "text"}, "key 'cat': field image must be bytes"),
        ({"captions": "a"}, "field captions must be a list"),
        ({"captions": [b"a"]}, "field captions must be only texts"),
        ({"label": -1}, "field label"),
        ({"label": True}, "field label"),
        ({"extra": {"deep": {}}}, "deep"),
        ({"extra": None}, "field extra must be a map"),
        ({"more": 1}, "'more'"),
    ],
)
def test_a_wrong_field_is_named_with_its_place(change, message):
    with pytest.raises(DataError, match=message) as caught:
        decode_record(msgpack.packb(_GOOD | change), where="shard-3, record 5")
    assert str(caught.value).startswith("shard-3, record 5")


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x00", msgpack.packb(_GOOD)[:-1], msgpack.packb(_GOOD) + b"\x00"])
def test_bytes_that_are_not_a_record_are_refused(data):
    with pytest.raises(DataError, match=r"^there:"):
        decode_record(data, where="there")


def test_captions_that_are_not_unicode_are_refused():
    data = msgpack.packb(_GOOD).replace(b"\xa1a\xa5", b"\xa1\xff\xa5")
    with pytest.raises(DataError, match="UnicodeDecodeError"):
        decode_record(data, where="there")
    with pytest.raises(DataError, match="cannot be encoded"):
        encode_record(Record(key="k", image=b"", captions=("\ud800",)))


def test_a_folder_returns_its_records_in_order(folder):
    source = open_records(folder)
    assert [shard.count for shard in source.manifest.shards] == [4, 4, 2]
    assert list(source) == make_records(10)
    assert source.read([9, 0, 5, 0]) == [make_records(10)[i] for i in (9, 0, 5, 0)]
    assert source.manifest.class_names == ("a", "b", "c")
    for outside in (-1, 10):
        with pytest.raises(IndexError, match="there are 10 records"):
            source[outside]


def test_equal_records_give_equal_files(folder, tmp_path):
    again = write_records(make_records(10), tmp_path / "again", records_per_shard=4, class_names=["a", "b", "c"])
    assert again == read_manifest(folder)
    assert (tmp_path / "again/manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()


def test_an_empty_folder_of_records_is_allowed(tmp_path):
    write_records([], tmp_path / "none", dropped={"empty caption": 3}, rows_read=3)
    assert len(open_records(tmp_path / "none")) == 0
    assert verify_records(tmp_path / "none").rows_dropped == {"empty caption": 3}


def test_a_source_can_be_pickled_after_reading_and_reopened_after_closing(folder):
    source = open_records(folder)
    source[0]
    copy = pickle.loads(pickle.dumps(source))
    source.close()
    assert copy[9] == source[9] == make_records(10)[9]


def test_threads_share_one_source(folder):
    source = open_records(folder)
    wanted = [i * 7 % 10 for i in range(400)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: source[i].key, wanted)) == [f"key-{i}" for i in wanted]


def test_drops_counted_while_writing_reach_the_manifest(tmp_path):
    dropped = {}

    def records():
        for record in make_records(5):
            if record.key in ("key-1", "key-4"):
                dropped["too small"] = dropped.get("too small", 0) + 1
            else:
                yield record

    manifest = write_records(records(), tmp_path / "set", dropped=dropped, rows_read=5, info={"source": "test"})
    assert (manifest.rows_read, manifest.rows_written, manifest.rows_dropped) == (5, 3, {"too small": 2})
    assert read_manifest(tmp_path / "set") == manifest


def test_an_account_that_does_not_close_writes_nothing(tmp_path):
    with pytest.raises(DataError, match="2 rows are unaccounted for"):
        write_records(make_records(3), tmp_path / "set", dropped={"empty": 1}, rows_read=6)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_leaves_nothing(tmp_path):
    def records():
        yield from make_records(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(records(), tmp_path / "set", records_per_shard=2)
    assert list(tmp_path.iterdir()) == []


def test_a_label_without_a_class_name_is_refused(tmp_path):
    with pytest.raises(DataError, match="'key-2' has label 2 but there are 2 class names"):
        write_records(make_records(3), tmp_path / "set", class_names=["a", "b"])


def test_an_existing_folder_is_replaced_only_on_request_and_only_if_it_contains_records(folder, tmp_path):
    before = read_manifest(folder)
    with pytest.raises(DataError, match="exists already"):
        write_records(make_records(2), folder)
    assert read_manifest(folder) == before
    write_records(make_records(2), folder, overwrite=True)
    assert len(open_records(folder)) == 2
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    with pytest.raises(DataError, match="not a record folder"):
        write_records(make_records(2), tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis/chapter.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "thesis"]


def test_missing_folder_manifest_and_shard_have_their_own_messages(folder, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_records(tmp_path / "nowhere")
    (folder / "shard-00001.array_record").unlink()
    with pytest.raises(DataError, match=r"shard-00001\.array_record is missing"):
        open_records(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match="did not finish"):
        open_records(folder)


def test_a_truncated_shard_is_found_when_opening(folder):
    shard = folder / "shard-00001.array_record"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"shard-00001.*its manifest says"):
        open_records(folder)
    with pytest.raises(DataError, match="shard-00001"):
        verify_records(folder)


@pytest.mark.parametrize("content", ["cut", "zeros"])
def test_a_shard_truncated_after_opening_does_not_read_as_empty(folder, content):
    shard = folder / "shard-00001.array_record"
    source = open_records(folder)
    data = shard.read_bytes()
    # The size is the same, so only the reader can detect it.
    shard.write_bytes((data[: len(data) // 2] if content == "cut" else b"").ljust(len(data), b"\x00"))
    with pytest.raises(DataError, match="shard-00001"):
        source[5]


def test_a_flipped_byte_is_found_by_reading_and_by_verification(folder):
    shard = folder / "shard-00001.array_record"
    data = bytearray(shard.read_bytes())
    data[data.find(bytes([6]) * 50) + 3] ^= 1
    shard.write_bytes(data)
    source = open_records(folder)
    assert source[5].key == "key-5"
    with pytest.raises(DataError, match=r"shard-00001\.array_record, record 2 cannot be read"):
        source.read([4, 5, 6, 7])
    with pytest.raises(DataError, match=r"shard-00001\.array_record has SHA-256"):
        verify_records(folder)


def test_verification_lists_every_damaged_shard(folder):
    (folder / "shard-00000.array_record").unlink()
    (folder / "shard-00002.array_record").write_bytes(b"")
    with pytest.raises(DataError, match=r"shard-00000.* is missing; shard-00002.* has 0 bytes"):
        verify_records(folder)


def test_shards_of_another_folder_are_detected(folder, tmp_path):
    write_records(make_records(2), tmp_path / "other", records_per_shard=4)
    shutil.copy(tmp_path / "other/shard-00000.array_record", folder / "shard-00000.array_record")
    source = open_records(folder)  # small shards are padded to one size
    with pytest.raises(DataError, match="has 2 records, its manifest says 4"):
        source[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows_read": 12}, "2 rows are unaccounted for"),
        ({"rows_dropped": {"lost": 1}}, "-1 rows are unaccounted for"),
        ({"rows_written": 9, "rows_read": 9}, "the shards have 10 records but 9 rows were written"),
        ({"rows_dropped": {"a": 1, "b": -1}}, "negative"),
        ({"version": 3}, "version 3"),
        ({"rows_read": "10"}, "rows_read must be a whole number"),
        ({"shards": [{"name": "x"}]}, "a shard needs"),
        ({"class_names": "abc"}, "class_names must be a list"),
        ({"extra": 1}, "extra"),
        ({"info": []}, "info must be a map"),
    ],
)
def test_a_wrong_manifest_is_refused_with_its_path(folder, change, message):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message) as caught:
        open_records(folder)
    assert str(caught.value).startswith(str(path))


def test_a_shard_outside_the_folder_is_refused(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("shard-00000", "../shard-00000"))
    with pytest.raises(DataError, match="inside the folder"):
        open_records(folder)


def test_shards_with_one_name_are_refused():
    shard = ShardInfo(name="a", count=1, bytes=1, sha256="")
    with pytest.raises(DataError, match="same name"):
        Manifest(shards=(shard, shard), rows_read=2, rows_written=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"info": {"folder": {1, 2}}}, "must be plain JSON"), ({"records_per_shard": 0}, "at least 1")],
)
def test_wrong_options_of_the_writer_leave_nothing(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        write_records(make_records(2), tmp_path / "set", **options)
    assert list(tmp_path.iterdir()) == []


def test_records_and_transforms_are_read_without_jax_or_grain():
    code = (
        "import sys, clipa_eqx.data.array_record_reader, clipa_eqx.data.transforms\n"
        "print(*{'jax', 'grain', 'tensorflow', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
