"""Lists of images and captions, in the forms that known data sets have."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from support.dump_table import run_row

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.manifest import read_manifest

IMAGES = Path(__file__).parent / "images"
ROWS = json.loads((IMAGES / "list.json").read_text(encoding="utf-8"))


def put(folder, rows=ROWS):
    """Put the images of rows into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        shutil.copyfile(IMAGES / row["file"], folder / row["file"])


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def check(folder, expected=None, dropped=None):
    """Compare every key, caption and image with rows by key."""
    expected = {row["file"]: row for row in ROWS} if expected is None else expected
    found = {record.key: (list(record.captions), record.image) for record in open_records(folder)}
    assert found == {key: (row["captions"], (IMAGES / row["file"]).read_bytes()) for key, row in expected.items()}
    assert dict(read_manifest(folder).rows_dropped) == (dropped or {})


def by_caption():
    """Rows with the number of each caption, captions of one number after another."""
    return [(row, k, text) for k in range(3) for row in ROWS for text in row["captions"][k : k + 1]]


def coco(rows):
    """COCO's form: images, and annotations in an order of their own."""
    images = [
        {"license": 4, "file_name": row["file"], "id": 100 + i, "height": 1, "width": 1} for i, row in enumerate(rows)
    ]
    notes = [
        {"image_id": 100 + rows.index(row), "id": 7 * i, "caption": text}
        for i, (row, _, text) in enumerate(by_caption())
    ]
    return {"info": {}, "images": images[::-1], "licenses": [], "annotations": notes}


@pytest.mark.parametrize(
    ("name", "images", "command"),
    [
        (
            "coco/annotations/captions_val2017.json",
            "coco/val2017",
            "python -m conversion.records captions coco/annotations/captions_val2017.json data/coco-val "
            "--images coco/val2017",
        ),
        (
            "nocaps_val_4500_captions.json",
            "nocaps",
            "python -m conversion.records captions nocaps_val_4500_captions.json data/nocaps --images nocaps",
        ),
    ],
)
def test_coco(name, images, command, tmp_path, monkeypatch):
    dump(tmp_path / name, coco(ROWS))
    put(tmp_path / images)
    assert run_row(command, tmp_path, monkeypatch) == 0
    check(next((tmp_path / "data").iterdir()))


def karpathy(splits, folders=None):
    images = []
    for i, row in enumerate(ROWS):
        sentences = [
            {"tokens": text.split(), "raw": text, "imgid": i, "sentid": k} for k, text in enumerate(row["captions"])
        ]
        folder = {"filepath": folders[i % len(folders)]} if folders else {}
        images.append(
            {
                "sentids": [0],
                "imgid": i,
                "sentences": sentences,
                "split": splits[i % len(splits)],
                "filename": row["file"],
                **folder,
            }
        )
    return images


def test_karpathy_of_coco(tmp_path, monkeypatch):
    folders = ("train2014", "val2014")
    dump(
        tmp_path / "dataset_coco.json",
        {"images": karpathy(("train", "restval", "val", "test"), folders), "dataset": "coco"},
    )
    for k, folder in enumerate(folders):
        put(tmp_path / "coco" / folder, ROWS[k::2])
    command = (
        "python -m conversion.records captions dataset_coco.json data/coco-train --images coco --split train,restval"
    )
    assert run_row(command, tmp_path, monkeypatch) == 0
    check(
        tmp_path / "data/coco-train",
        {f"{folders[i % 2]}/{row['file']}": row for i, row in enumerate(ROWS) if i % 4 < 2},
    )


def test_karpathy_of_flickr30k(tmp_path, monkeypatch):
    dump(tmp_path / "dataset_flickr30k.json", {"images": karpathy(("train", "val", "test")), "dataset": "flickr30k"})
    put(tmp_path / "flickr30k-images")
    command = (
        "python -m conversion.records captions dataset_flickr30k.json data/flickr30k-test --images flickr30k-images "
        "--split test"
    )
    assert run_row(command, tmp_path, monkeypatch) == 0
    check(tmp_path / "data/flickr30k-test", {row["file"]: row for row in ROWS[2::3]})


def test_flickr30k_as_published(tmp_path, monkeypatch):
    lines = [f"{row['file']}#{k}\t{text}\n" for row in ROWS for k, text in enumerate(row["captions"])]
    (tmp_path / "results_20130124.token").write_text("".join(lines), encoding="utf-8")
    put(tmp_path / "flickr30k-images")
    command = "python -m conversion.records captions results_20130124.token data/flickr30k --images flickr30k-images"
    assert run_row(command, tmp_path, monkeypatch) == 0
    check(tmp_path / "data/flickr30k")


def test_flickr30k_of_kaggle(tmp_path, monkeypatch):
    lines = [f"{row['file']}| {k}| {text}\n" for row in ROWS for k, text in enumerate(row["captions"])]
    lines.insert(9, f"{ROWS[3]['file']}| 4   A dog runs across the grass .\n")  # one known line lacks a separator
    put(tmp_path / "flickr30k_images/flickr30k_images")
    path = tmp_path / "flickr30k_images/results.csv"
    path.write_text("".join(["image_name| comment_number| comment\n", *lines]), encoding="utf-8")
    command = (
        "python -m conversion.records captions flickr30k_images/results.csv data/flickr30k-kaggle "
        "--images flickr30k_images/flickr30k_images"
    )
    assert run_row(command, tmp_path, monkeypatch) == 0
    check(tmp_path / "data/flickr30k-kaggle", dropped={"wrong number of cells": 1})
    (example,) = read_manifest(tmp_path / "data/flickr30k-kaggle").info["examples"]["wrong number of cells"]
    assert (example["key"], example["detail"]) == ("results.csv, line 11", "line 11 has 2 instead of 3")


def test_flickr8k_as_published(tmp_path, monkeypatch):
    lines = [f"{row['file']}#{k}\t{text}\n" for row in ROWS for k, text in enumerate(row["captions"])]
    lines.insert(4, "2258277193_586949ec62.jpg.1#0\tpeople waiting for the subway\n")  # it names an image of no file
    (tmp_path / "Flickr8k_text").mkdir()
    (tmp_path / "Flickr8k_text/Flickr8k.token.txt").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "Flickr8k_text/readme.txt").write_text("about the files\n")
    put(tmp_path / "Flicker8k_Dataset")
    command = (
        "python -m conversion.records captions Flickr8k_text/Flickr8k.token.txt data/flickr8k "
        "--images Flicker8k_Dataset"
    )
    assert run_row(command, tmp_path, monkeypatch) == 0
    check(tmp_path / "data/flickr8k", dropped={"missing image": 1})


def write_csv(path):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "caption"])
        writer.writerows([row["file"], text] for row in ROWS for text in row["captions"])


def test_flickr8k_of_kaggle(tmp_path, monkeypatch):
    put(tmp_path / "flickr8k/Images")
    write_csv(tmp_path / "flickr8k/captions.txt")
    command = (
        "python -m conversion.records captions flickr8k/captions.txt data/flickr8k-kaggle --images flickr8k/Images"
    )
    assert run_row(command, tmp_path, monkeypatch) == 0
    check(tmp_path / "data/flickr8k-kaggle")


def test_a_csv_file_among_photos(tmp_path, monkeypatch):
    put(tmp_path / "photos")
    write_csv(tmp_path / "photos/captions.csv")
    assert run_row("python -m conversion.records captions photos/captions.csv data/photos", tmp_path, monkeypatch) == 0
    check(tmp_path / "data/photos")


def test_a_jsonl_file_among_photos(tmp_path, monkeypatch):
    put(tmp_path / "photos")
    lines = [json.dumps({"file_name": row["file"], "captions": row["captions"]}) for row in ROWS]
    (tmp_path / "photos/captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert (
        run_row("python -m conversion.records captions photos/captions.jsonl data/photos", tmp_path, monkeypatch) == 0
    )
    check(tmp_path / "data/photos")


BLIP = "python -m conversion.records captions coco_karpathy_train.json data/coco-blip --images coco"


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_list_as_blip_has_it(split, tmp_path, monkeypatch):
    put(tmp_path / "coco/val2014")
    if split == "train":  # an entry per caption
        entries = [
            {"caption": text, "image": f"val2014/{row['file']}", "image_id": f"coco_{row['file'][:2]}"}
            for row, _, text in by_caption()
        ]
    else:
        entries = [{"image": f"val2014/{row['file']}", "caption": row["captions"]} for row in ROWS]
    dump(tmp_path / "coco_karpathy_train.json", entries)
    assert run_row(BLIP, tmp_path, monkeypatch) == 0
    check(tmp_path / "data/coco-blip", {f"val2014/{row['file']}": row for row in ROWS})
