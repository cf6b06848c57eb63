"""The command ``join``: what may be joined, what is written, and that a mistake writes nothing."""

import json
import os
import shutil

import pytest
from support.conversions import call, content, error_of, ingest

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.manifest import read_manifest
from clipa_eqx.data.records import Record
from conversion.records.diff import diff


def write(folder, keys, **options):
    write_records(
        (Record(key=key, image=b"image of " + key.encode(), captions=("x",)) for key in keys), folder, **options
    )


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The current folder, with the record folders ``part-0`` to ``part-2``."""
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        write(tmp_path / f"part-{number}", [f"{number}-{i}" for i in range(4)], records_per_shard=3)
    return tmp_path


def members(folder):
    return [member.folder for member in read_manifest(folder).members]


def keys(folder):
    return [record.key for record in open_records(folder)]


def test_a_joined_folder_holds_one_small_file(parts, capsys):
    assert call("join", "all", "part-0", "part-2") == 0
    assert list(content(parts / "all")) == ["manifest.json"]
    assert keys("all") == [f"{number}-{i}" for number in (0, 2) for i in range(4)]
    assert members("all") == ["../part-0", "../part-2"]
    shown = capsys.readouterr().out
    assert "all: 8 records in 4 shards of 2 record folders" in shown
    assert "keys are unique in each folder only" in shown
    assert "train" in shown.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["part-*"], ["../part-0", "../part-1", "../part-2"]),
        (["part-{2,0}"], ["../part-2", "../part-0"]),
        (["part-1", "part-[02]"], ["../part-1", "../part-0", "../part-2"]),
        (["--folders", "list.txt"], ["../part-2", "../part-1"]),
        (["part-0", "--folders", "list.txt"], ["../part-0", "../part-2", "../part-1"]),
    ],
)
def test_folders_are_named_one_by_one_by_patterns_or_in_a_file(parts, given, expected):
    (parts / "list.txt").write_text("part-2\n\n  part-1  \n")
    (parts / "part-notes.txt").touch()
    assert call("join", "all", *given) == 0
    assert members("all") == expected


def test_joining_again_changes_nothing_and_a_pattern_leaves_out_the_folder_itself(parts, capsys):
    assert call("join", "set", "*") == 0
    before = content(parts / "set")
    assert call("join", "set", "*") == 0
    assert content(parts / "set") == before
    assert "nothing to do" in capsys.readouterr().out
    write(parts / "part-3", ["3-0"])
    assert call("join", "set", "*") == 2
    assert "is a joined folder already, of 3 record folders, now 4" in error_of(capsys)
    assert content(parts / "set") == before
    assert call("join", "set", "*", "--overwrite") == 0
    assert len(open_records("set")) == 13


def test_a_changed_member_is_joined_again(parts):
    assert call("join", "all", "part-*") == 0
    write(parts / "part-1", ["new"], overwrite=True)
    assert call("verify", "all") == 2
    assert call("join", "all", "part-*", "--overwrite") == 0
    assert call("verify", "all") == 0
    assert keys("all")[4] == "new"


def test_members_of_joined_folders_become_members(parts):
    assert call("join", "two", "part-0", "part-1") == 0
    assert call("join", "more/all", "two", "part-2") == 0
    assert [os.path.basename(one) for one in members("more/all")] == ["part-0", "part-1", "part-2"]
    shutil.rmtree(parts / "two")
    assert len(open_records("more/all")) == 12


def test_the_account_is_the_sum_and_the_fingerprints_are_those_of_one_conversion(tars, capsys):
    files = sorted(tars.iterdir())
    for number, file in enumerate(files):
        ingest(file, tars.parent / f"part-{number}")
    one = ingest(tars, tars.parent / "one")
    assert call("join", tars.parent / "all", f"{tars.parent}/part-*") == 0
    joined = read_manifest(tars.parent / "all")
    assert (joined.rows_read, joined.rows_written, joined.rows_dropped) == (
        one.rows_read,
        one.rows_written,
        one.rows_dropped,
    )
    for name in (
        "captions_written",
        "captions_dropped",
        "captions_per_record",
        "key_fingerprint",
        "content_fingerprint",
    ):
        assert joined.info[name] == one.info[name]
    assert joined.info["command"] == {"kind": "join"}
    assert diff(str(tars.parent / "all"), str(tars.parent / "one")).is_same
    assert "captions per image: 1" in capsys.readouterr().out


def test_what_only_some_members_count_is_left_out(tars):
    ingest(tars, tars.parent / "a", max_side=100)
    write(tars.parent / "b", ["b"])
    assert call("join", tars.parent / "all", tars.parent / "a", tars.parent / "b") == 0
    info = read_manifest(tars.parent / "all").info
    assert "captions_written" not in info
    assert "content_fingerprint" not in info
    assert info["command"] == {"kind": "join", "max_side": "100 or none"}


def test_class_names_are_those_of_all_members(parts, capsys):
    for name, classes in (("a", ("cat", "dog")), ("b", ("cat", "dog")), ("c", ("cat", "cow")), ("d", ("cat",))):
        rows = (Record(key=f"{name}{label}", image=b"i", label=label) for label in range(len(classes)))
        write_records(rows, parts / name, class_names=classes)
    assert call("join", "all", "a", "b") == 0
    assert read_manifest("all").class_names == ("cat", "dog")
    assert "evaluate" in capsys.readouterr().out
    for other, message in (
        ("c", "label 1 is 'cow' instead of 'dog'"),
        ("d", "1 instead of 2"),
        ("part-0", "0 instead"),
    ):
        assert call("join", "other", "a", other) == 2
        assert message in error_of(capsys)
    assert not (parts / "other").exists()


def link(parts):
    (parts / "link").symlink_to(parts / "part-0")
    return ["part-0", "link"]


def copy(parts):
    shutil.copytree(parts / "part-0", parts / "copy")
    return ["part-0", "copy"]


def unfinished(parts):
    (parts / "part-1/manifest.json").unlink()
    return ["part-*"]


def truncated(parts):
    path = parts / "part-1/shard-00001.array_record"
    path.write_bytes(path.read_bytes()[:-1])
    (parts / "part-2/shard-00000.array_record").unlink()
    return ["part-*"]


def empty(parts):
    write(parts / "none", [])
    return ["none"]


def nested(parts):
    assert call("join", "all", "part-0", "part-1") == 0
    return ["part-2", "all", "part-1"]


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        (lambda parts: [], ["no folders to join"]),
        (lambda parts: ["nowhere"], ["nowhere does not exist"]),
        (lambda parts: ["part-{0,7}"], ["part-7 (part-{0,7} means it) does not exist"]),
        (lambda parts: ["nothing-*"], ["nothing-* matches no folders"]),
        (lambda parts: ["part-0/manifest.json"], ["is a file; give record folders"]),
        (lambda parts: ["--folders", "nowhere.txt"], ["--folders nowhere.txt cannot be read"]),
        (lambda parts: ["part-0", "./part-1/../part-0"], ["part-0 is named twice"]),
        (link, ["link is named twice, also as", "part-0"]),
        (copy, ["have equal manifests, and so the same records"]),
        (nested, ["part-1 is named twice"]),
        (unfinished, ["part-1/manifest.json does not exist", "conversion did not finish"]),
        (
            truncated,
            ["2 problems", "part-1/shard-00001.array_record has", "part-2/shard-00000.array_record is missing"],
        ),
        (empty, ["no records in 1 folder to join"]),
        (lambda parts: ["s3://bucket/part"], ["local paths and gs:// only"]),
        (lambda parts: ["memory://part"], ["local paths and gs:// only"]),
    ],
)
def test_a_mistake_is_one_message_and_writes_nothing(parts, given, messages, capsys):
    arguments = given(parts)
    capsys.readouterr()
    assert call("join", "target", *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert all(message in error for message in messages), error
    assert not (parts / "target").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("part-0", "is one of the folders to join"),
        ("part-0/inner", "is inside"),
        ("part-2", "holds records of its own"),
        ("file", "is a file"),
        ("other", "holds other things, such as notes.txt"),
        ("begun", "holds an unfinished conversion"),
        ("gs://bucket/all", "a folder of this machine"),
    ],
)
def test_a_target_that_holds_something_else_is_refused_unchanged(parts, target, message, capsys, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")  # nothing is asked for credentials
    (parts / "file").touch()
    (parts / "begun/_unfinished").mkdir(parents=True)
    (parts / "other").mkdir()
    (parts / "other/notes.txt").touch()
    before = sorted(str(path) for path in parts.rglob("*"))
    assert call("join", target, "part-0", "part-1", "--overwrite") == 2
    assert message in error_of(capsys)
    assert sorted(str(path) for path in parts.rglob("*")) == before


def test_members_may_be_inside_the_target(parts):
    shutil.move(parts / "part-0", parts / "set/part-0")
    assert call("join", "set", "set/part-0", "part-1") == 0
    assert members("set") == ["part-0", "../part-1"]


def test_repeated_keys_are_found_on_request_and_nothing_is_written(parts, capsys):
    rows = [Record(key=key, image=image, captions=("x",)) for key, image in (("0-1", b"?"), ("1-2", b"image of 1-2"))]
    write_records(rows, parts / "again")
    assert call("join", "all", "part-*", "again", "--check-keys") == 1
    shown = capsys.readouterr().out
    assert "2 records with a key that an earlier record has, 1 of them with other content; nothing is written" in shown
    assert (
        "0-1 (../again/shard-00000.array_record, record 0; first in ../part-0/shard-00000.array_record, record 1)"
        in shown
    )
    assert not (parts / "all").exists()
    assert call("join", "all", "part-*", "--check-keys") == 0
    assert "no two records have the same key" in capsys.readouterr().out
    assert read_manifest("all").info["keys_checked"] is True
    assert call("join", "all", "part-*") == 0
    assert "no two records have the same key" in capsys.readouterr().out


def test_keys_of_a_joined_folder_can_be_checked_later(parts):
    assert call("join", "all", "part-*") == 0
    assert call("join", "all", "part-*", "--check-keys") == 0
    assert read_manifest("all").info["keys_checked"] is True


def test_a_conversion_into_a_joined_folder_is_refused(parts, tars, capsys):
    assert call("join", "all", "part-*") == 0
    before = (parts / "all/manifest.json").read_bytes()
    for flags in ([], ["--overwrite"]):
        assert call("webdataset", tars, "all", *flags) == 2
        assert "is a joined folder" in error_of(capsys)
    assert (parts / "all/manifest.json").read_bytes() == before


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_verify_names_the_damaged_shard_of_a_member(parts, workers, capsys):
    assert call("join", "all", "part-*") == 0
    path = parts / "part-1/shard-00001.array_record"
    data = bytearray(path.read_bytes())
    data[data.index(b"image of")] ^= 1
    path.write_bytes(data)
    assert call("verify", "all", workers=workers) == 1
    assert "damaged: ../part-1/shard-00001.array_record has SHA-256" in capsys.readouterr().out


def test_a_manifest_is_the_same_from_every_current_folder(parts, monkeypatch):
    assert call("join", "all", "part-*") == 0
    (parts / "inner").mkdir()
    monkeypatch.chdir(parts / "inner")
    assert call("join", "../again", "../part-*") == 0
    first, again = (json.loads((parts / name / "manifest.json").read_text()) for name in ("all", "again"))
    assert first == again
