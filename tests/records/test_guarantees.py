"""Resumed and repeated conversions: a changed source is noticed, and no row is lost without being counted."""

import json
import tarfile

import pytest
from support import dumps
from support.conversions import captions, content, ingest, interrupted, keys, write_tar
from support.dumps import jpeg, samples, write_examples

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.errors import DataError

CHANGED = "the source has changed"


def edit(path, old, new):
    assert len(old) == len(new)  # neither the name nor the size changes
    path.write_text(path.read_text().replace(old, new))


LISTS = {"list.csv": dumps.write_csv, "list.jsonl": dumps.write_jsonl, "captions.json": dumps.write_coco}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_that_was_edited_is_not_taken_for_the_one_before(name, tmp_path, monkeypatch):
    LISTS[name](tmp_path / "source", [samples(4)])
    source = tmp_path / "source" / name
    options = {"kind": "captions", "records_per_shard": 2}
    ingest(source, tmp_path / "done", **options)
    interrupted(monkeypatch, source, tmp_path / "begun", after=1, **options)
    edit(source, "caption 3", "edited! 3")
    for target in ("done", "begun"):
        with pytest.raises(DataError, match=CHANGED):
            ingest(source, tmp_path / target, **options)
    ingest(source, tmp_path / "begun", overwrite=True, **options)
    assert captions(tmp_path / "begun") == ["caption 0", "caption 1", "caption 2", "edited! 3"]


def test_classes_that_were_added_do_not_renumber_the_rest(tmp_path, monkeypatch):
    dumps.write_class_folders(tmp_path / "source", [samples(4)])
    options = {"kind": "folder", "records_per_shard": 2}
    interrupted(monkeypatch, tmp_path / "source", tmp_path / "out", after=1, **options)
    (tmp_path / "source/a_new").mkdir()
    with pytest.raises(DataError, match=CHANGED):
        ingest(tmp_path / "source", tmp_path / "out", **options)


def test_class_names_and_counts_next_to_the_shards_belong_to_the_source(tmp_path):
    dumps.write_tfds(tmp_path / "tfds", [samples(2)])
    ingest(tmp_path / "tfds", tmp_path / "a", kind="tfds")
    edit(tmp_path / "tfds/label.labels.txt", "tench", "shark")
    with pytest.raises(DataError, match=CHANGED):
        ingest(tmp_path / "tfds", tmp_path / "a", kind="tfds")
    dumps.write_tars(tmp_path / "tars", [samples(2)])
    ingest(tmp_path / "tars", tmp_path / "b")
    (tmp_path / "tars/notes.txt").write_text("decides nothing")
    ingest(tmp_path / "tars", tmp_path / "b")
    (tmp_path / "tars/00000_stats.json").write_text('{"successes": 7}')
    with pytest.raises(DataError, match=CHANGED):
        ingest(tmp_path / "tars", tmp_path / "b")


@pytest.mark.parametrize("source", ["tars/*.tar", "tars/00000.tar"])
def test_counts_next_to_the_shards_of_a_pattern_belong_to_the_source(source, tmp_path):
    dumps.write_tars(tmp_path / "tars", [samples(2)], stats=True)
    ingest(tmp_path / source, tmp_path / "out")
    (tmp_path / "tars/00001_stats.json").write_text("of another shard")
    ingest(tmp_path / source, tmp_path / "out")
    (tmp_path / "tars/00000_stats.json").write_text('{"successes": 700}')
    with pytest.raises(DataError, match=CHANGED):
        ingest(tmp_path / source, tmp_path / "out")


def test_counts_next_to_the_shards_of_a_pattern_of_tfds_belong_to_the_source(tmp_path):
    dumps.write_tfds(tmp_path / "tfds", [samples(2)])
    source = tmp_path / "tfds/*.tfrecord-*"
    ingest(source, tmp_path / "out", kind="tfds")
    (tmp_path / "tfds/dataset_info.json").write_text("{}")
    with pytest.raises(DataError, match=CHANGED):
        ingest(source, tmp_path / "out", kind="tfds")


def test_shards_behind_links_are_there(tmp_path, monkeypatch):
    dumps.write_tars(tmp_path / "tars", [samples(2), samples(2, first=2)])

    def move(folder):
        shard = tmp_path / folder / SHARD
        shard.rename(tmp_path / f"{folder}-moved")
        shard.symlink_to(tmp_path / f"{folder}-moved")

    manifest = ingest(tmp_path / "tars", tmp_path / "done")
    move("done")
    assert ingest(tmp_path / "tars", tmp_path / "done") == manifest
    interrupted(monkeypatch, tmp_path / "tars", tmp_path / "begun", after=1)
    move("begun")
    ingest(tmp_path / "tars", tmp_path / "begun")
    assert (tmp_path / "begun" / SHARD).is_symlink()


def test_ids_that_are_equal_numbers_join(tmp_path):
    dumps.write_coco(tmp_path / "source", [samples(3)])
    path = tmp_path / "source/captions.json"
    listed = json.loads(path.read_text())
    for note in listed["annotations"]:
        note["image_id"] = float(note["image_id"])
    path.write_text(json.dumps(listed))
    assert ingest(path, tmp_path / "out", kind="captions").rows_written == 3


@pytest.mark.parametrize("name", ["parquet", "captions"])
def test_images_next_to_tables_and_lists_belong_to_the_source(name, tmp_path):
    write = {"parquet": dumps.write_files, "captions": dumps.write_csv}[name]
    (tmp_path / "source").mkdir()
    write(tmp_path / "source", [samples(2)])
    (image,) = (tmp_path / "source").rglob("000000001.jpg")
    image.rename(tmp_path / "kept.jpg")
    assert ingest(tmp_path / "source", tmp_path / "out", kind=name).rows_dropped == {"missing image": 1}
    (tmp_path / "kept.jpg").rename(image)
    with pytest.raises(DataError, match=CHANGED):
        ingest(tmp_path / "source", tmp_path / "out", kind=name)


@pytest.mark.parametrize("target", ["source", "source/records", "link/records", "."])
def test_source_and_destination_do_not_hold_each_other(target, tmp_path):
    dumps.write_class_folders(tmp_path / "source", [samples(2)])
    (tmp_path / "link").symlink_to("source")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"is inside"):
        ingest(tmp_path / "source", tmp_path / target, kind="folder")
    with pytest.raises(DataError, match=r"is inside"):
        ingest(tmp_path / "source/*/*", tmp_path / "source/records", kind="folder")
    with pytest.raises(DataError, match=r"is inside"):
        ingest(tmp_path / "source/**", tmp_path / "source/records", kind="folder")
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_destination_next_to_a_list_or_named_like_the_source_is_fine(tmp_path):
    dumps.write_csv(tmp_path / "coco", [samples(2)])
    assert ingest(tmp_path / "coco/list.csv", tmp_path / "coco/records", kind="captions").rows_written == 2
    assert ingest(tmp_path / "coco/list.csv", tmp_path / "coco-records", kind="captions").rows_written == 2
    dumps.write_tars(tmp_path / "tars", [samples(2)])
    assert ingest(tmp_path / "tars/*.tar", tmp_path / "tars/records").rows_written == 2


def test_lines_without_an_image_are_counted_one_by_one(tmp_path):
    (tmp_path / "list.csv").write_text("filepath,title\n,a\n,b\n,c\n")
    assert ingest(tmp_path / "list.csv", tmp_path / "a", kind="captions").rows_dropped == {"row cannot be parsed": 3}
    lines = [{"image": "a.jpg", "caption": "x"}, {"image": None, "caption": "x"}, {"caption": "y"}, {"image": 5}]
    (tmp_path / "list.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    manifest = ingest(tmp_path / "list.jsonl", tmp_path / "b", kind="captions")
    assert manifest.rows_dropped == {"missing image": 1, "row cannot be parsed": 3}


@pytest.mark.parametrize("lacks", [0, 2])
def test_a_line_of_json_without_a_caption_costs_that_row_wherever_it_is(lacks, tmp_path):
    dumps.write_jsonl(tmp_path / "source", [samples(4)])
    path = tmp_path / "source/list.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[lacks]["caption"]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for size in (2, 10):
        manifest = ingest(path, tmp_path / f"{size}", kind="captions", records_per_shard=size)
        assert (manifest.rows_read, manifest.rows_dropped) == (4, {"missing caption": 1})


@pytest.mark.parametrize("lacks", [0, 2])
def test_an_example_without_a_caption_costs_that_row_wherever_it_is(lacks, tmp_path):
    examples = [{"key": b"%d" % i, "jpg": jpeg(i), "txt": b"x"} for i in range(4)]
    del examples[lacks]["txt"]
    write_examples(tmp_path / "0.tfrecord", examples)
    for column in (None, "txt"):
        target = tmp_path / f"out-{column}"
        manifest = ingest(tmp_path / "0.tfrecord", target, kind="img2dataset", caption_column=column)
        assert (manifest.rows_read, manifest.rows_dropped) == (4, {"missing caption": 1})


def test_links_that_lead_back_up_are_not_followed(tmp_path):
    (tmp_path / "source/a/deep").mkdir(parents=True)
    (tmp_path / "source/a/deep/1.jpg").write_bytes(jpeg(1))
    for name, to in (("a/up", ".."), ("a/here", "."), ("a/deep/up", ".."), ("a/deep/top", "../..")):
        (tmp_path / "source" / name).symlink_to(to)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/2.jpg").write_bytes(jpeg(2))
    for name in ("b", "c"):  # one folder under two names is no loop
        (tmp_path / "source" / name).symlink_to(tmp_path / "elsewhere")
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="folder")
    assert keys(tmp_path / "out") == ["a/deep/1.jpg", "b/2.jpg", "c/2.jpg"]
    assert manifest.class_names == ("a", "b", "c")


SHARD = "shard-000000-000.array_record"


@pytest.mark.parametrize("lost", [SHARD, "_unfinished/part-000000.keys", "_unfinished/part-000000.json"])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_part_whose_files_are_not_as_reported_is_converted_again(lost, how, tars, tmp_path, monkeypatch):
    ingest(tars, tmp_path / "whole")
    interrupted(monkeypatch, tars, tmp_path / "out", after=2)
    path = tmp_path / "out" / lost
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-5])
    ingest(tars, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_finished_set_that_lacks_a_shard_is_not_called_complete(how, tars, tmp_path):
    ingest(tars, tmp_path / "out")
    shard = tmp_path / "out" / SHARD
    whole = shard.read_bytes()
    shard.unlink() if how == "gone" else shard.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=rf"{SHARD} (is missing|has .* bytes instead of .*); restore .*--overwrite"):
        ingest(tars, tmp_path / "out")
    ingest(tars, tmp_path / "out", overwrite=True)
    assert shard.read_bytes() == whole


def test_overwriting_starts_again_and_its_own_interruption_resumes(tars, tmp_path, monkeypatch):
    path = tars / "00000.tar"
    good = path.read_bytes()
    image = samples(1)[0].image
    path.write_bytes(good.replace(image, image[:200] + bytes(100) + image[300:]))
    interrupted(monkeypatch, tars, tmp_path / "out", after=1)
    path.write_bytes(good)
    interrupted(monkeypatch, tars, tmp_path / "out", after=1, overwrite=True)
    made = (tmp_path / "out" / SHARD).stat().st_mtime_ns
    ingest(tars, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / SHARD).stat().st_mtime_ns == made
    assert next(iter(open_records(tmp_path / "out"))).image == image


def link(name, *, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "0.jpg"
    return member, b""


def test_a_link_in_a_tar_is_a_missing_image_and_other_members_are_counted(tmp_path):
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    write_tar(
        tmp_path / "0.tar",
        [
            (folder, b""), ("0.jpg", jpeg(0)), ("0.txt", b"x"), link("1.jpg"), ("1.txt", b"x"),
            link("2.jpg", kind=tarfile.LNKTYPE), link("2.txt"), link("3.jpg", kind=tarfile.FIFOTYPE),
            ("._0.jpg", b"of a Mac"), (".hidden", b""), ("__about__.txt", b"x"),
        ],
    )  # fmt: skip
    manifest = ingest(tmp_path / "0.tar", tmp_path / "out")
    assert (manifest.rows_read, manifest.rows_dropped) == (4, {"missing image": 3})
    assert manifest.info["ignored_members"] == 3


@pytest.mark.parametrize("name", [".manifest.json.new-123", "manifest.json.tmp-123"])  # now, and in version 0.1.0
def test_what_a_kill_in_the_last_step_leaves_is_removed(name, tars, tmp_path, monkeypatch):
    interrupted(monkeypatch, tars, tmp_path / "out", after=1)
    (tmp_path / "out" / name).write_text("half")
    ingest(tars, tmp_path / "out")
    ingest(tars, tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_versions_of_all_runs_are_recorded(tars, tmp_path, monkeypatch):
    from conversion.records import part

    interrupted(monkeypatch, tars, tmp_path / "out", after=1)
    before = ingest(tars, tmp_path / "whole").info["versions"]
    monkeypatch.setattr(part, "library_versions", lambda: dict.fromkeys(before, "99"))
    after = ingest(tars, tmp_path / "out").info["versions"]
    assert after == {name: f"{version}, 99" for name, version in before.items()}


def test_captions_of_images_that_no_list_has_are_counted_over_all_lists(tmp_path):
    dumps.write_coco(tmp_path / "source", [samples(2)])
    path = tmp_path / "source/captions.json"
    listed = json.loads(path.read_text())
    listed["annotations"].append({"image_id": 99, "caption": "x"})
    for name in ("captions.json", "more.json"):
        (tmp_path / "source" / name).write_text(json.dumps(listed))
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="captions")
    assert manifest.info["captions_of_unlisted_pictures"] == 2
    assert manifest.rows_dropped == {"duplicate key": 2}
