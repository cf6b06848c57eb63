"""Folders of the library ``datasets`` 5.2: every image, caption, label and class name as the library reads it."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from support.conversions import call, error_of
from support.dump_table import run_row

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.manifest import read_manifest

WRITTEN = Path(__file__).parent / "written/hugging_face"
READ = json.loads((WRITTEN / "read.json").read_text(encoding="utf-8"))
CLASSES = ("rock", "tree", "water")


def place(form, folder, name):
    """Copy what the library wrote in one form to ``folder/name``."""
    shutil.copytree(WRITTEN / form, folder / name)


def assert_same(folder, rows, *, captions=True, label=None):
    """Check the records of a folder, in order, against the rows that the library reads."""
    found = list(open_records(folder))
    assert [hashlib.sha256(record.image).hexdigest() for record in found] == [row["image"] for row in rows]
    if captions:
        assert [list(record.captions) for record in found] == [row["captions"] for row in rows]
    if label == "label":
        assert [record.label for record in found] == [row["label"] for row in rows]
    if label == "labels":
        found_labels = [record.extra.get("labels", str(record.label)) for record in found]
        assert found_labels == [",".join(map(str, row["label"])) for row in rows]
        assert [record.label for record in found] == [row["label"][0] for row in rows]
    if label is not None:
        assert read_manifest(folder).class_names == tuple(rows[0]["classes"]) == CLASSES


def test_a_labeled_set_as_push_to_hub_names_its_files(tmp_path, monkeypatch):
    place("labeled", tmp_path, "imagenet-1k")
    command = "python -m conversion.records parquet imagenet-1k/ data/imagenet --split train --label-column label"
    assert run_row(command, tmp_path, monkeypatch) == 0
    assert_same(tmp_path / "data/imagenet", READ["labeled"]["train"], label="label")
    assert [record.key for record in open_records(tmp_path / "data/imagenet")] == [
        *(f"data/train-00000-of-00002.parquet/{i:08d}" for i in range(4)),
        *(f"data/train-00001-of-00002.parquet/{i:08d}" for i in range(3)),
    ]


def test_hidden_labels_are_missing_labels(tmp_path):
    place("labeled", tmp_path, "set")
    assert call("parquet", tmp_path / "set", tmp_path / "out", "--split", "test", "--label-column", "label") == 1
    assert read_manifest(tmp_path / "out").rows_dropped == {"missing label": len(READ["labeled"]["test"])}


def test_a_captioned_set_as_push_to_hub_names_its_files(tmp_path, monkeypatch):
    place("captioned", tmp_path, "flickr30k")
    command = "python -m conversion.records parquet flickr30k/ data/flickr30k-test --split test"
    assert run_row(command, tmp_path, monkeypatch) == 0
    assert_same(tmp_path / "data/flickr30k-test", READ["captioned"]["test"])


def test_the_branch_of_converted_sets(tmp_path, monkeypatch):
    place("converted", tmp_path, "coco")
    command = "python -m conversion.records parquet coco/default/ data/coco-val --split validation"
    assert run_row(command, tmp_path, monkeypatch) == 0
    assert_same(tmp_path / "data/coco-val", READ["converted"]["validation"])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_saved_set(split, tmp_path, monkeypatch):
    place("saved", tmp_path, "saved")
    command = "python -m conversion.records parquet saved/ data/saved --split train"
    assert run_row(command, tmp_path, monkeypatch) == 0
    assert_same(tmp_path / "data/saved", READ["saved"]["train"])
    options = ("--split", split, "--label-column", "labels")
    assert call("parquet", tmp_path / "saved", tmp_path / "out", *options) == 0
    assert_same(tmp_path / "out", READ["saved"][split], label="labels")


def test_a_set_saved_without_splits_has_no_rows_of_caches(tmp_path):
    assert list((WRITTEN / "saved_one").glob("cache-*.arrow"))
    place("saved_one", tmp_path, "set")
    assert call("parquet", tmp_path / "set", tmp_path / "out", "--label-column", "label") == 0
    assert_same(tmp_path / "out", READ["saved_one"][""], label="label")
    assert read_manifest(tmp_path / "out").info["ignored_files"] == {".arrow": 1}


def test_cells_that_hold_paths_of_images(tmp_path):
    place("paths", tmp_path, "set")
    assert call("parquet", tmp_path / "set", tmp_path / "out", "--label-column", "labels") == 0
    assert_same(tmp_path / "out", READ["paths"]["train"], label="labels")


def test_several_configurations_are_not_joined(tmp_path, capsys):
    place("configs", tmp_path, "set")
    assert call("parquet", tmp_path / "set", tmp_path / "out", "--split", "train") == 2
    message = error_of(capsys)
    assert "several data sets, give the folder of one: captions/ (1 file), labels/ (1 file)" in message
    assert not (tmp_path / "out").exists()
    assert call("parquet", tmp_path / "set/captions", tmp_path / "out", "--split", "train") == 0
    assert_same(tmp_path / "out", READ["configs/captions"]["train"])


@pytest.mark.parametrize(
    ("form", "found"),
    [
        ("labeled", "test (1 file, 3 rows), train (2 files, 7 rows), validation (1 file, 2 rows)"),
        ("saved", "test (1 file), train (2 files), validation (1 file)"),
        ("converted", "test (1 file, 3 rows), validation (1 file, 2 rows)"),
    ],
)
def test_several_splits_are_not_joined(form, found, tmp_path, capsys):
    assert call("parquet", WRITTEN / form, tmp_path / "out") == 2
    assert f"holds several splits, choose with --split A or --split A,B: {found}" in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_two_splits_can_be_joined(tmp_path):
    assert call("parquet", WRITTEN / "captioned", tmp_path / "out", "--split", "train,val") == 0
    assert_same(tmp_path / "out", [*READ["captioned"]["train"], *READ["captioned"]["validation"]])
    assert read_manifest(tmp_path / "out").info["split"] == "train,validation"


def test_a_folder_of_images_with_a_table_in_parquet(tmp_path, monkeypatch):
    place("metadata_parquet", tmp_path, "photos")
    command = "python -m conversion.records parquet photos/ data/photos-train --split train"
    assert run_row(command, tmp_path, monkeypatch) == 0
    assert_same(tmp_path / "data/photos-train", READ["metadata_parquet"]["train"])


def test_a_folder_of_images_with_class_folders(tmp_path, monkeypatch):
    place("classes", tmp_path, "photos")
    command = "python -m conversion.records folder photos/train/ data/photos-train"
    assert run_row(command, tmp_path, monkeypatch) == 0
    assert_same(tmp_path / "data/photos-train", READ["classes"]["train"], captions=False, label="label")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_folder_of_images_with_a_list(form, tmp_path, monkeypatch):
    place(f"metadata_{form}", tmp_path, "photos")
    command = "python -m conversion.records captions photos/ data/photos-train --split train"
    assert run_row(command, tmp_path, monkeypatch) == 0
    rows = READ[f"metadata_{form}"]["train"]
    assert_same(tmp_path / "data/photos-train", rows)
    assert [record.key for record in open_records(tmp_path / "data/photos-train")] == [row["name"] for row in rows]


def test_tars_of_several_splits(tmp_path, monkeypatch):
    place("tars", tmp_path, "tars")
    command = "python -m conversion.records webdataset tars/ data/tars-train --split train"
    assert run_row(command, tmp_path, monkeypatch) == 0
    rows = READ["tars"]["train"]
    assert_same(tmp_path / "data/tars-train", rows)
    assert [record.key for record in open_records(tmp_path / "data/tars-train")] == [row["name"] for row in rows]
