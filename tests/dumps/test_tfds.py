"""Data sets of TFDS 4.9.10 in each of its forms, against what TFDS itself reads from them."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from support.conversions import call
from support.dump_table import run_row

from clipa_eqx.data.array_record_reader import open_records

WRITTEN = Path(__file__).parent / "written/tfds"
READ = json.loads((WRITTEN / "read.json").read_text(encoding="utf-8"))
ALL = [(folder, split) for folder, splits in READ.items() for split in splits]
CLASSES = ("rock", "tree", "water")
# The set that declares no key: its `url` is one here.
KEYS = {"laion400m": ["--key-column", "url"]}

# Of the table in docs/ingest.md: a command, and the folder that it reads.
ROWS = {
    "python -m conversion.records tfds tensorflow_datasets/imagenet2012/5.1.0 data/imagenet_val --split validation": (
        "tfrecord/imagenet2012/5.1.0"
    ),
    "python -m conversion.records tfds array_record/imagenet2012/5.1.0 data/imagenet_train --split train": (
        "array_record/imagenet2012/5.1.0"
    ),
    "python -m conversion.records tfds tensorflow_datasets/imagenet_v2/matched-frequency/3.0.0 data/imagenet_v2": (
        "tfrecord/imagenet_v2/matched-frequency/3.0.0"
    ),
    "python -m conversion.records tfds tensorflow_datasets/imagenet2012_real/1.0.0 data/imagenet_real": (
        "tfrecord/imagenet2012_real/1.0.0"
    ),
    "python -m conversion.records tfds array_record/imagenet2012_real/1.0.0 data/real_from_array_record": (
        "array_record/imagenet2012_real/1.0.0"
    ),
    "python -m conversion.records tfds tensorflow_datasets/coco_captions/2014/1.1.0 data/coco_train --split train": (
        "tfrecord/coco_captions/2014/1.1.0"
    ),
    "python -m conversion.records tfds array_record/coco_captions/2014/1.1.0 data/coco_val --split val": (
        "array_record/coco_captions/2014/1.1.0"
    ),
    "python -m conversion.records tfds parquet/laion400m/images/1.0.0 data/laion400m --key-column url": (
        "parquet/laion400m/images/1.0.0"
    ),
}


def found(out):
    """The records of a folder in the form of ``read.json``."""
    return {
        record.key: {
            "captions": list(record.captions),
            "labels": list(map(int, record.extra["labels"].split(",")))
            if "labels" in record.extra
            else ([] if record.label is None else [record.label]),
            "sha256": hashlib.sha256(record.image).hexdigest(),
        }
        for record in open_records(out)
    }


def expected(folder, split):
    """The rows that TFDS reads, without those of a labeled set that have no label: -1, and empty lists."""
    rows = READ[folder][split]
    if "coco" in folder or "laion" in folder:
        return rows
    return {key: row for key, row in rows.items() if row["labels"] and min(row["labels"]) >= 0}


def check(out, folder, split):
    rows, wanted = READ[folder][split], expected(folder, split)
    assert found(out) == wanted
    manifest = open_records(out).manifest
    lost = len(rows) - len(wanted)
    assert (manifest.rows_read, manifest.rows_dropped) == (len(rows), {"missing label": lost} if lost else {})
    assert manifest.class_names == (None if "coco" in folder or "laion" in folder else CLASSES)
    assert manifest.info["command"].get("split", split) == manifest.info["split"] == split
    assert manifest.info["form"] == folder.partition("/")[0]


@pytest.mark.parametrize(("folder", "split"), ALL)
def test_every_key_caption_label_and_image_is_the_one_that_tfds_reads(folder, split, tmp_path):
    extra = KEYS.get(folder.split("/")[1], [])
    code = call("tfds", WRITTEN / folder, tmp_path / "out", "--split", split, *extra)
    assert code == (0 if expected(folder, split) else 1)
    check(tmp_path / "out", folder, split)


@pytest.mark.parametrize("command", ROWS)
def test_the_rows_of_the_table(command, tmp_path, monkeypatch):
    _, _, _, _, source, out, *flags = command.split()
    shutil.copytree(WRITTEN / ROWS[command], tmp_path / source)
    assert run_row(command, tmp_path, monkeypatch) == 0
    split = flags[1] if "--split" in flags else next(iter(READ[ROWS[command]]))
    check(tmp_path / out, ROWS[command], split)
