"""Complete conversions: numbers of workers, limits, duplicate keys, buckets, and destinations that are refused."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from support import dumps
from support.conversions import Stopped, content, ingest, interrupted, keys
from support.dumps import samples

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.verification import verify_records
from clipa_eqx.errors import DataError
from conversion.records.locking import is_lock


@pytest.fixture
def source(tmp_path):
    """Four shards; the third is cut, one image is corrupt, and two keys occur twice."""
    shards = [samples(5, first=5 * i) for i in range(4)]
    shards[1][2] = replace(shards[1][2], image=b"\xff\xd8\xff no image")
    shards[3][1] = shards[0][3]
    shards[3][2] = replace(shards[3][2], key=shards[1][0].key)
    dumps.write_tars(tmp_path / "source", shards)
    cut = tmp_path / "source/00002.tar"
    cut.write_bytes(cut.read_bytes()[: cut.read_bytes().index(b"000000013.jpg") + 600])
    return tmp_path / "source"


def test_the_output_does_not_depend_on_the_number_of_workers(source, tmp_path):
    for workers in (1, 2, 4):
        manifest = ingest(source, tmp_path / f"{workers}", workers=workers, records_per_shard=3)
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "4")
    assert manifest.rows_dropped == {
        "duplicate key": 1,
        "duplicate key of another sample": 1,
        "truncated shard": 1,
        "undecodable image": 1,
    }
    assert (manifest.rows_read, manifest.rows_written) == (19, 15)
    assert verify_records(tmp_path / "1") == manifest
    assert multiprocessing.active_children() == []


def test_the_first_sample_under_a_key_is_kept_wherever_the_next_one_is(tmp_path):
    rows = samples(6)
    twice = [rows[0], rows[1], replace(rows[2], key=rows[0].key)]
    dumps.write_tars(tmp_path / "source", [twice, [rows[1], rows[3]], [rows[0], rows[4]]])
    manifest = ingest(tmp_path / "source", tmp_path / "out")
    assert [record.image for record in open_records(tmp_path / "out")] == [rows[i].image for i in (0, 1, 3, 4)]
    assert manifest.rows_dropped == {"duplicate key": 2, "duplicate key of another sample": 1}
    assert {(shown["key"], shown["source"]) for shown in manifest.info["examples"]["duplicate key"]} == {
        (rows[1].key, "00001.tar"),
        (rows[0].key, "00002.tar"),
    }


def test_prefixed_keys_keep_dumps_apart_whose_keys_repeat(tmp_path):
    for name in ("a", "b"):
        dumps.write_tars(tmp_path / "source" / name, [samples(2)])
    manifest = ingest(tmp_path / "source", tmp_path / "out", prefix_keys=True)
    assert manifest.rows_dropped == {}
    assert keys(tmp_path / "out") == [f"{name}/00000/00000000{i}" for name in "ab" for i in range(2)]


@pytest.mark.parametrize("limit", [1, 5, 7, 13, 14, 100])
def test_a_limit_takes_the_first_rows_for_any_number_of_workers(limit, source, tmp_path):
    whole = ingest(source, tmp_path / "whole")
    manifest = ingest(source, tmp_path / "out", limit=limit)
    assert manifest.rows_read == min(limit, whole.rows_read)
    assert keys(tmp_path / "out") == keys(tmp_path / "whole")[: manifest.rows_written]
    assert verify_records(tmp_path / "out") == manifest
    if limit == 7:
        ingest(source, tmp_path / "two", limit=limit, workers=2)
        assert content(tmp_path / "two") == content(tmp_path / "out")


def test_two_people_with_the_same_samples_have_the_same_fingerprints(tmp_path):
    rows = samples(6)
    dumps.write_tars(tmp_path / "a", [rows[:4], rows[4:]])
    dumps.write_tars(tmp_path / "b", [rows[3:], rows[:3]])
    dumps.write_tars(tmp_path / "c", [[*rows[:5], replace(rows[5], captions=(b"another",))]])
    a, b, c = (ingest(tmp_path / name, tmp_path / f"out-{name}", keep=("url",)).info for name in "abc")
    assert a["key_fingerprint"] == b["key_fingerprint"] == c["key_fingerprint"]
    assert a["content_fingerprint"] == b["content_fingerprint"] != c["content_fingerprint"]


def test_a_finished_conversion_is_left_alone_by_its_own_command_and_kept_from_others(source, tmp_path):
    out = tmp_path / "out"
    manifest = ingest(source, out)
    before = content(out)
    assert ingest(source, out, workers=2) == manifest
    with pytest.raises(DataError, match="max_side was None, now 32"):
        ingest(source, out, max_side=32)
    dumps.write_tars(source, [samples(30)])
    with pytest.raises(DataError, match=r"out holds records already \(the source has changed\)"):
        ingest(source, out)
    assert content(out) == before
    ingest(source, out, max_side=32, overwrite=True)
    assert set(content(out)) == {shard.name for shard in verify_records(out).shards} | {"manifest.json"}


def test_a_folder_with_other_things_is_refused_even_with_overwrite(source, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    with pytest.raises(DataError, match="holds other things than records"):
        ingest(source, tmp_path / "thesis", overwrite=True)
    with pytest.raises(DataError, match="is a file; give a folder"):
        ingest(source, tmp_path / "thesis/chapter.txt", overwrite=True)
    assert (tmp_path / "thesis/chapter.txt").exists()


@pytest.mark.parametrize("after", range(5))  # four parts, and one again for its duplicates
def test_an_interrupted_conversion_resumes_where_it_was(after, source, tmp_path, monkeypatch):
    interrupted(monkeypatch, source, tmp_path / "out", after=after)
    with pytest.raises(DataError, match="did not finish"):
        open_records(tmp_path / "out")
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*")}
    ingest(source, tmp_path / "out")
    ingest(source, tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    for name in set(made) - {"shard-000003-000.array_record"}:  # the part with duplicates is written twice
        assert (tmp_path / "out" / name).stat().st_mtime_ns == made[name]


def test_an_unfinished_conversion_is_not_resumed_by_another_command(source, tmp_path, monkeypatch):
    interrupted(monkeypatch, source, tmp_path / "out", after=2)
    with pytest.raises(DataError, match=r"unfinished conversion by another command \(min_side was None, now 9\)"):
        ingest(source, tmp_path / "out", min_side=9)
    ingest(source, tmp_path / "out", min_side=9, overwrite=True)
    ingest(source, tmp_path / "whole", min_side=9)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("steps", range(9))
def test_a_kill_while_overwriting_lets_the_same_command_overwrite(steps, source, tmp_path, monkeypatch):
    from conversion.records import destination

    ingest(source, tmp_path / "whole", min_side=9)
    ingest(source, tmp_path / "out")
    done = 0

    def counting(real):
        def step(*arguments, **options):
            nonlocal done
            if is_lock(Path(str(arguments[0])).name):  # the lock is released after a kill in this process, too
                return real(*arguments, **options)
            if done == steps:
                raise Stopped
            done += 1
            return real(*arguments, **options)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(destination, "write_file", counting(destination.write_file))
        patch.setattr(destination.Path, "unlink", counting(destination.Path.unlink))
        try:
            ingest(source, tmp_path / "out", min_side=9, overwrite=True)
            finished = True
        except Stopped:
            finished = False
    assert finished == (steps >= 8)
    ingest(source, tmp_path / "out", min_side=9, overwrite=not finished)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("name", [".command.json.new-1", "command.json.tmp-1"])  # now, and in version 0.1.0
def test_a_kill_at_the_very_beginning_does_not_block_the_next_try(name, source, tmp_path):
    left = tmp_path / "out/_unfinished" / name
    left.parent.mkdir(parents=True)
    left.write_text("{")
    ingest(source, tmp_path / "out")
    assert "manifest.json" in content(tmp_path / "out")


@pytest.fixture
def memory():
    """fsspec's filesystem in memory: like a bucket, it has no rename and no local paths."""
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("kind", ["img2dataset", "webdataset", "parquet", "folder", "captions"])
def test_a_source_and_a_destination_in_a_bucket(kind, tmp_path, memory):
    write = {
        "img2dataset": dumps.write_img2dataset,
        "webdataset": dumps.write_tars,
        "parquet": dumps.write_files,
        "folder": dumps.write_class_folders,
        "captions": dumps.write_csv,
    }[kind]
    (tmp_path / "source").mkdir()
    write(tmp_path / "source", [samples(3), samples(2, first=3)])
    memory.put(str(tmp_path / "source"), "/bucket/source", recursive=True)
    remote = ingest("memory://bucket/source", "memory://bucket/out", kind=kind, workers=4)
    local = ingest(tmp_path / "source", tmp_path / "out", kind=kind)
    assert (remote.rows_read, remote.rows_written, remote.shards) == (5, 5, local.shards)
    assert sorted(memory.ls("/bucket/out", detail=False)) == sorted(
        f"/bucket/out/{name}" for name in content(tmp_path / "out")
    )
    memory.get("/bucket/out/", str(tmp_path / "copy"), recursive=True)
    assert verify_records(tmp_path / "copy") == remote
    assert ingest("memory://bucket/source", "memory://bucket/out", kind=kind) == remote
    assert ingest(f"file://{tmp_path}/source", tmp_path / "from-url", kind=kind).shards == local.shards


def test_an_interrupted_conversion_to_a_bucket_resumes(source, tmp_path, memory, monkeypatch):
    interrupted(monkeypatch, source, "memory://bucket/out", after=3)
    assert "/bucket/out/manifest.json" not in memory.ls("/bucket/out", detail=False)
    assert ingest(source, "memory://bucket/out") == ingest(source, tmp_path / "out")


def test_what_a_kill_leaves_behind_is_removed(source, tmp_path):
    out = tmp_path / "out"
    ingest(source, tmp_path / "whole")
    manifest = json.loads((tmp_path / "whole/manifest.json").read_text())
    left = out / "_unfinished/tmp-left"
    left.mkdir(parents=True)
    (left / "shard-000000-000.array_record.tmp-1").write_bytes(b"half")
    (out / "_unfinished/command.json").write_text(json.dumps(manifest["info"]["command"]))
    (out / "shard-000000-007.array_record").write_bytes(b"of a part that was cut in two differently")
    ingest(source, out)
    assert content(out) == content(tmp_path / "whole")


def test_the_first_examples_are_kept_in_any_order_of_the_parts(tmp_path):
    shards = [dumps.with_corrupt_image(dumps.with_caption(samples(3, first=3 * i), b"")) for i in range(5)]
    shards = [[shard[0], *dumps.with_corrupt_image(shard[1:])] for shard in shards]
    dumps.write_tars(tmp_path / "source", shards)
    shown = []
    for workers in (1, 3):
        manifest = ingest(tmp_path / "source", tmp_path / f"{workers}", workers=workers, examples=2)
        assert manifest.rows_dropped == {"empty caption": 5, "undecodable image": 5}
        shown.append(manifest.info["examples"])
    assert shown[0] == shown[1]
    assert [one["source"] for one in shown[0]["empty caption"]] == ["00000.tar", "00001.tar"]
