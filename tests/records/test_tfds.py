"""Data sets of TFDS: forms, damage, splits, declared features, and folders of shards alone."""

import importlib
import json
import logging
import shutil
import sys

import pytest
from support import dumps
from support.conversions import call, captions, error_of, ingest, keys
from support.dumps import jpeg, samples, write_table
from support.paths import ROOT

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.errors import DataError

WRITTEN = ROOT / "tests/dumps/written/tfds"
IMAGENET, REAL, COCO = "imagenet2012/5.1.0", "imagenet2012_real/1.0.0", "coco_captions/2014/1.1.0"
SHARD = "imagenet2012-train.array_record-00000-of-00001"
CHUNK = "chunk data hash mismatch"


@pytest.fixture
def source(tmp_path):
    """A copy of the labeled set in ArrayRecord form: 7 rows in the split train."""
    shutil.copytree(WRITTEN / "array_record" / IMAGENET, tmp_path / "source")
    return tmp_path / "source"


def convert(folder, **options):
    return ingest(folder / "source", folder / "out", kind="tfds", **options)


def example(position, path=WRITTEN / "array_record" / IMAGENET / SHARD):
    """A serialized example of a shard."""
    module = importlib.import_module("array_record.python.array_record_module")
    return module.ArrayRecordReader(str(path)).read([position])[0]


def write_array_record(path, records, options="group_size:1"):
    module = importlib.import_module("array_record.python.array_record_module")
    writer = module.ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()


def damage(path, record):
    """Change a byte inside the chunk of a record. TFDS compresses, so that chunks are found by their order."""
    data = bytearray(path.read_bytes())
    ends = [i for i in range(len(data) // 2) if data[i]]
    data[ends[-1] * (2 * record + 1) // 14] ^= 0xFF
    path.write_bytes(data)


def test_array_record_and_parquet_need_no_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # importing it is an error
    for form in ("array_record", "parquet"):
        ingest(WRITTEN / form / COCO, tmp_path / form, kind="tfds", split="val")
    assert keys(tmp_path / "array_record") == keys(tmp_path / "parquet") != []


@pytest.mark.parametrize(("form", "package"), [("tfrecord", "tensorflow"), ("parquet", "pyarrow")])
def test_the_extra_of_the_form_is_named(form, package, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert call("tfds", WRITTEN / form / IMAGENET, tmp_path / "out", "--split", "train") == 2
    assert f"is read by {package}, which is not installed: pip install {package}" in error_of(capsys)
    assert call("tfds", WRITTEN / "array_record" / IMAGENET, tmp_path / "out", "--split", "train") == 0


@pytest.mark.parametrize("size", [0, 1000, 65536, 131071])
def test_a_cut_array_record_file_loses_a_known_number_of_rows(source, tmp_path, size):
    (source / SHARD).write_bytes((source / SHARD).read_bytes()[:size])
    manifest = convert(tmp_path, split="train")
    assert (manifest.rows_read, manifest.rows_dropped) == (7, {"truncated shard": 7})
    (found,) = manifest.info["damaged_sources"]
    assert (found["rows_before"], found["rows_lost"]) == (0, 7)
    assert found["error"].startswith("no ArrayRecord file, or without the index at its end")
    (source / "dataset_info.json").unlink()
    manifest = convert(tmp_path, split="train", overwrite=True)
    assert (manifest.rows_read, manifest.info["damaged_sources"][0]["rows_lost"]) == (1, "unknown")


def test_records_with_a_wrong_checksum_are_dropped_and_the_others_kept(source, tmp_path):
    everything = set(keys_of(convert(tmp_path, split="train"), tmp_path))
    damage(source / SHARD, 3)
    manifest = convert(tmp_path, split="train", overwrite=True)
    assert (manifest.rows_read, manifest.rows_written) == (7, 6)
    assert manifest.rows_dropped == {"truncated shard": 1}
    (found,) = manifest.info["damaged_sources"]
    assert found["rows_lost"] == 1
    assert CHUNK in found["error"]
    assert len(everything - set(keys(tmp_path / "out"))) == 1
    (shown,) = manifest.info["examples"]["truncated shard"]
    assert shown["key"] == f"{SHARD}/{found['rows_before']:08d}"


def keys_of(manifest, folder):
    assert manifest.rows_dropped == {}
    return keys(folder / "out")


def test_neighbors_in_a_damaged_chunk_are_one_entry(source, tmp_path):
    records = [example(i) for i in range(7)]
    write_array_record(source / SHARD, records, "group_size:3,uncompressed")
    data = (source / SHARD).read_bytes()
    at = data.index(records[4]) + 200
    (source / SHARD).write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
    manifest = convert(tmp_path, split="train")
    assert (manifest.rows_read, manifest.rows_dropped) == (7, {"truncated shard": 3})
    (found,) = manifest.info["damaged_sources"]
    assert (found["rows_before"], found["rows_lost"]) == (3, 3)


def test_an_array_record_file_without_records_is_no_damage(source, tmp_path):
    write_array_record(source / SHARD, [])
    (source / "dataset_info.json").unlink()
    manifest = convert(tmp_path, split="train")
    assert (manifest.rows_read, manifest.rows_dropped) == (0, {})


def test_a_record_that_is_no_example_is_one_lost_row(source, tmp_path):
    write_array_record(source / SHARD, [example(0), b"\xff\xff", example(1)])
    (source / "dataset_info.json").unlink()
    assert convert(tmp_path, split="train").rows_dropped == {"row cannot be parsed": 1}


def test_a_damaged_table_of_examples_gives_its_complete_rows(tmp_path):
    blobs = [example(i) for i in range(7)]
    path = tmp_path / "source/imagenet2012-train.parquet-00000-of-00001"
    write_table(path, {"data": blobs})
    assert convert(tmp_path).rows_written == 7
    path.write_bytes(path.read_bytes()[:-10])
    manifest = convert(tmp_path, overwrite=True)
    assert (manifest.rows_dropped, manifest.info["damaged_sources"][0]["rows_lost"]) == (
        {"truncated shard": 1},
        "unknown",
    )
    shutil.copy(WRITTEN / "parquet" / IMAGENET / "dataset_info.json", tmp_path / "source")
    assert convert(tmp_path, overwrite=True).rows_dropped == {"truncated shard": 7}


def test_a_table_without_examples_is_reported(tmp_path):
    write_table(tmp_path / "source/x-train.parquet-00000-of-00001", {"image": [jpeg(0)], "text": ["a"]})
    manifest = convert(tmp_path)
    assert manifest.rows_dropped == {"truncated shard": 1}
    assert manifest.info["damaged_sources"][0]["error"] == "expected one column of bytes, it has: image, text"


def test_the_same_examples_in_two_forms_are_read_once(source, tmp_path, caplog):
    for file in (WRITTEN / "parquet" / IMAGENET).glob("imagenet2012-*"):
        shutil.copy(file, source)
    with caplog.at_level(logging.INFO):
        manifest = convert(tmp_path, split="train")
    assert (manifest.rows_read, manifest.rows_written, manifest.info["form"]) == (7, 7, "array_record")
    assert "ignored_files" not in manifest.info
    assert "in several forms, array_record, parquet: read is array_record" in caplog.text
    info = json.loads((source / "dataset_info.json").read_text())
    (source / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "parquet"}))
    assert convert(tmp_path, split="train", overwrite=True).info["form"] == "parquet"


def test_a_form_that_cannot_be_read_is_named_with_the_command_that_helps(source, tmp_path, capsys):
    for file in source.glob("*.array_record-*"):
        file.rename(file.with_name(file.name.replace("array_record", "riegeli")))
    assert call("tfds", source, tmp_path / "out", "--split", "train") == 2
    message = error_of(capsys)
    assert "is in TFDS's form riegeli" in message
    assert f"`tfds convert_format --dataset_version_dir={source} --out_file_format=array_record`" in message
    shutil.copy(WRITTEN / "array_record" / IMAGENET / SHARD, source)  # which writes it next to the others
    assert call("tfds", source, tmp_path / "out", "--split", "train") == 0


def test_a_missing_shard_and_a_missing_split_are_named(source, tmp_path):
    (source / SHARD).rename(source / SHARD.replace("00001", "00003"))
    with pytest.raises(DataError, match=r"lacks 2 of its shards: .*train\.array_record-00001-of-00003"):
        convert(tmp_path, split="train")
    with pytest.raises(DataError, match="several splits, choose with --split A or --split A,B: test, train, valid"):
        convert(tmp_path)
    with pytest.raises(DataError, match="no split val; it has: test, train, validation"):
        convert(tmp_path, split="val")


def test_splits_can_be_joined(source, tmp_path):
    manifest = convert(tmp_path, split="validation,train")
    assert (manifest.rows_written, manifest.info["split"]) == (12, "train,validation")
    assert sorted(keys(tmp_path / "out")) == sorted(
        row["file"] for row in json.loads((ROOT / "tests/dumps/images/list.json").read_text())
    )
    (source / SHARD).rename(source / SHARD.replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match="the chosen splits are in different forms; convert each by itself"):
        convert(tmp_path, split="validation,train", overwrite=True)


def test_several_versions_and_configs_are_not_mixed(tmp_path):
    for version in ("5.0.0", "5.1.0"):
        shutil.copytree(WRITTEN / "array_record" / IMAGENET, tmp_path / "source" / version)
    with pytest.raises(DataError, match=r"several data sets.*: 5\.0\.0/imagenet2012, 5\.1\.0/imagenet2012"):
        convert(tmp_path, split="train")


@pytest.mark.parametrize("kind", ["img2dataset", "webdataset", "parquet", "folder", "imagenet", "pairs", "captions"])
@pytest.mark.parametrize("form", ["array_record", "parquet"])
def test_other_sources_name_this_one(kind, form, tmp_path, capsys):
    source = shutil.copytree(WRITTEN / form / IMAGENET, tmp_path / "source")
    assert call(kind, source, tmp_path / "out") == 2
    assert "is it for the source `tfds`?" in error_of(capsys)
    for file in [*source.glob("*.json"), *source.glob("*.txt")]:
        file.unlink()
    assert call(kind, source, tmp_path / "out") == 2
    assert "is it for the source `tfds`?" in error_of(capsys)


def test_a_pattern_has_the_class_names_too(source, tmp_path):
    manifest = ingest(source / "*-train.array_record-*", tmp_path / "out", kind="tfds")
    assert manifest.class_names == ("rock", "tree", "water")


def test_shards_alone_are_read_and_the_missing_class_names_reported(source, tmp_path, caplog):
    """The command ``tfds convert_format --out_dir`` of TFDS 4.9.10 leaves them so."""
    for file in [*source.glob("*.json"), *source.glob("*.txt")]:
        file.unlink()
    manifest = convert(tmp_path, split="train")
    assert (manifest.rows_written, manifest.class_names) == (7, None)
    assert "no class names: there is no label.labels.txt next to the shards" in caplog.text
    caplog.clear()
    names = ("rock", "tree", "water")
    assert convert(tmp_path, split="train", class_names=names, overwrite=True).class_names == names
    assert "no class names" not in caplog.text


def test_a_cut_description_is_reported_and_features_found_by_name(source, tmp_path, caplog):
    (source / "features.json").write_text((source / "features.json").read_text()[:50])
    manifest = convert(tmp_path, split="train")
    assert (manifest.rows_written, manifest.class_names) == (7, ("rock", "tree", "water"))
    assert "features.json is not used, because it is no valid JSON" in caplog.text


def test_class_names_are_as_many_as_the_declared_classes(source, tmp_path):
    (source / "label.labels.txt").write_text("rock\ntree\n")
    with pytest.raises(DataError, match=r"label\.labels\.txt has 2 names, but features\.json gives 'label' 3 classes"):
        convert(tmp_path, split="train")
    (source / "label.labels.txt").unlink()
    with pytest.raises(DataError, match="'label' has 3 classes, but --class-names has 2 names"):
        convert(tmp_path, split="train", class_names=("rock", "tree"))


def test_the_columns_of_a_captioned_set_are_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        ingest(WRITTEN / "array_record" / COCO, tmp_path / "out", kind="tfds", split="val", keep=("objects/label",))
    assert "image from 'image', caption from 'captions/text', key from 'image/filename'" in caplog.text
    kept = {record.key: record.extra["objects/label"] for record in open_records(tmp_path / "out")}
    assert kept["10.jpg"] == 1  # objects, not a label of the image


def test_one_of_several_classes_can_be_asked_for(tmp_path):
    manifest = ingest(WRITTEN / "array_record" / REAL, tmp_path / "out", kind="tfds", label_column="original_label")
    assert manifest.info["command"]["columns"]["label"] == "original_label"
    assert (manifest.rows_written, manifest.class_names) == (6, ("rock", "tree", "water"))


def test_captions_that_are_asked_for_count_more_than_a_label(tmp_path):
    shutil.copytree(WRITTEN / "parquet/photos/1.0.0", tmp_path / "source")
    manifest = convert(tmp_path, caption_column="caption")
    assert (manifest.rows_written, manifest.info["command"]["columns"]["label"]) == (4, "label")
    out = tmp_path / "unlabeled"
    options = {"caption_column": "file_name", "split": "test"}
    manifest = ingest(WRITTEN / "array_record" / IMAGENET, out, kind="tfds", **options)
    assert (manifest.rows_dropped, sorted(captions(out))) == ({}, ["00.jpg", "01.jpg"])
    assert {record.label for record in open_records(out)} == {None}  # it is -1 there


def test_captions_of_a_set_without_declared_features_are_found_by_name(tmp_path):
    dumps.write_img2dataset(tmp_path / "source", [samples(2)])
    (tmp_path / "source/00000.tfrecord").rename(tmp_path / "source/web-train.tfrecord-00000-of-00001")
    assert convert(tmp_path).rows_written == 2
    assert captions(tmp_path / "out") == ["caption 0", "caption 1"]


def test_a_row_with_several_images_is_dropped_with_its_number(tmp_path):
    import tensorflow as tf

    def feature(*values):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    def blob(key, *images):
        features = {"image": feature(*images), "caption": feature(b"a cat"), "key": feature(key)}
        return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()

    (tmp_path / "source").mkdir()
    write_array_record(
        tmp_path / "source/x-train.array_record-00000-of-00001", [blob(b"one", jpeg(0)), blob(b"two", jpeg(1), jpeg(2))]
    )
    manifest = convert(tmp_path)
    assert (manifest.rows_dropped, keys(tmp_path / "out")) == ({"missing image": 1}, ["one"])
    assert manifest.info["examples"]["missing image"][0]["detail"] == "2 values in 'image', expected one image"
