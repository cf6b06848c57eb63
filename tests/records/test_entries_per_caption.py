"""Lists with one entry per caption: the captions of an image are one row, whatever the order of the entries."""

import csv
import json
import random

import pytest
from support import dumps
from support.conversions import call, content, ingest
from support.dumps import samples

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.errors import DataError
from conversion.records.rows import ListedRow, Lost
from conversion.records.sources import table_lists
from conversion.records.sources.listed import join_rows, path_key

FORMS = ("json", "jsonl", "csv", "tsv")
IMAGES, EACH = 4, 5


def write_list(form, path, entries):
    path = path.with_suffix(f".{form}")
    if form == "json":
        path.write_text(json.dumps(entries))
    elif form == "jsonl":
        path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(entries[0]), delimiter="," if form == "csv" else "\t")
            writer.writeheader()
            writer.writerows(entries)
    return path


def entries_of(folder, order):
    """Five entries per image, as BLIP writes them for COCO: ``image``, ``caption``, ``image_id``."""
    names = [row.key for row in dumps.write_images(folder, [samples(IMAGES)])]
    entries = [
        {"image": f"images/{name}.jpg", "caption": f"{i}.{k}", "image_id": f"coco_{i}"}
        for i, name in enumerate(names)
        for k in range(EACH)
    ]
    if order == "by caption":
        entries.sort(key=lambda entry: entry["caption"][2:])
    elif order == "any":
        entries = random.Random(0).sample(entries, len(entries))
    return entries


def found(folder):
    return {record.key: record.captions for record in open_records(folder)}


@pytest.mark.parametrize("order", ["by image", "by caption", "any"])
@pytest.mark.parametrize("form", FORMS)
def test_all_captions_of_an_image_are_one_row_in_the_order_of_the_entries(form, order, tmp_path):
    entries = entries_of(tmp_path, order)
    manifest = ingest(
        write_list(form, tmp_path / "list", entries), tmp_path / "out", kind="captions", records_per_shard=3
    )
    expected: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        expected[entry["image"]] = (*expected.get(entry["image"], ()), entry["caption"])
    assert found(tmp_path / "out") == expected
    assert (manifest.rows_read, manifest.rows_dropped) == (IMAGES, {})
    assert manifest.info["captions_written"] == IMAGES * EACH
    assert [shard.count for shard in manifest.shards] == [3, 1]


@pytest.mark.parametrize("form", FORMS)
def test_keys_labels_and_images_of_joined_entries_are_those_of_the_first(form, tmp_path):
    entries = entries_of(tmp_path / "elsewhere", "by caption")
    path = write_list(form, tmp_path / "list", [{**entry, "url": f"u{i}"} for i, entry in enumerate(entries)])
    options = {"kind": "captions", "images": str(tmp_path / "elsewhere"), "key_column": "image_id", "keep": ("url",)}
    ingest(path, tmp_path / "out", **options)
    records = list(open_records(tmp_path / "out"))
    assert [record.key for record in records] == [f"coco_{i}" for i in range(IMAGES)]
    assert [record.image for record in records] == [row.image for row in samples(IMAGES)]
    assert [record.extra for record in records] == [{"url": f"u{i}"} for i in range(IMAGES)]
    ingest(path, tmp_path / "two", workers=2, **options)
    assert content(tmp_path / "two") == content(tmp_path / "out")


@pytest.mark.parametrize("form", ["json", "csv"])
def test_an_image_with_two_labels_is_two_samples_of_one_key(form, tmp_path, capsys):
    names = [row.key for row in dumps.write_images(tmp_path, [samples(2)])]
    entries = [
        {"image": f"images/{names[i]}.jpg", "label": str(label)} for i, label in ((0, 1), (1, 1), (0, 2), (0, 1))
    ]
    path = write_list(form, tmp_path / "list", entries)
    assert call("captions", path, tmp_path / "out", "--label-column", "label") == 0
    shown = capsys.readouterr().out
    assert "1 duplicate key of another sample" in shown
    assert "is an image in several lists or file formats, or with several labels?" in shown
    assert "--prefix-keys" not in shown


REASONS = {"row cannot be parsed": 1, "wrong number of cells": 1}


def test_broken_lines_among_joined_ones_are_counted_as_before(tmp_path):
    entries = entries_of(tmp_path, "by caption")
    path = write_list("csv", tmp_path / "list", entries)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], "images/x.jpg", *lines[3:], ",no path,x"]))
    manifest = ingest(path, tmp_path / "out", kind="captions")
    assert (manifest.rows_read, manifest.rows_dropped) == (IMAGES + 2, REASONS)
    assert manifest.info["captions_written"] == IMAGES * EACH


def test_a_table_that_is_too_large_to_be_joined_has_to_be_sorted(tmp_path, monkeypatch):
    monkeypatch.setattr(table_lists, "_MOST_BYTES", 100)
    path = write_list("csv", tmp_path / "list", entries_of(tmp_path, "by caption"))
    with pytest.raises(DataError, match=r"list\.csv: lines of one image are not next to each other.*sort it"):
        ingest(path, tmp_path / "out", kind="captions")
    assert not (tmp_path / "out").exists()
    path = write_list("csv", tmp_path / "sorted", entries_of(tmp_path / "b", "by image"))
    assert ingest(path, tmp_path / "sorted-out", kind="captions").rows_read == IMAGES


@pytest.mark.parametrize("form", FORMS)
def test_images_of_equal_name_in_different_folders_are_different(form, tmp_path):
    for folder, first in (("a", 0), ("b", 5)):
        (row,) = samples(1, first=first)
        (tmp_path / "source" / folder).mkdir(parents=True)
        (tmp_path / "source" / folder / "1.jpg").write_bytes(row.image)
        write_list(form, tmp_path / "source" / folder / "list", [{"image": "1.jpg", "caption": folder}])
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="captions")
    assert (found(tmp_path / "out"), manifest.rows_dropped) == ({"a/1.jpg": ("a",), "b/1.jpg": ("b",)}, {})
    ingest(tmp_path / "source/a", tmp_path / "one", kind="captions")
    assert found(tmp_path / "one") == {"1.jpg": ("a",)}


@pytest.mark.parametrize(
    ("path", "folder", "key"),
    [
        ("1.jpg", "", "1.jpg"),
        ("1.jpg", "a/", "a/1.jpg"),
        ("../images/1.jpg", "a/", "images/1.jpg"),
        ("/data/1.jpg", "a/", "/data/1.jpg"),
        ("gs://bucket/1.jpg", "a/", "gs://bucket/1.jpg"),
    ],
)
def test_a_path_is_a_key_with_the_folder_of_its_list(path, folder, key):
    assert path_key(path, folder) == key


def test_rows_without_an_image_are_not_joined():
    lost = Lost(reason="row cannot be parsed", key="x")
    rows = [ListedRow(key="", path="/a/"), lost, ListedRow(key="", path="/a/"), lost, ListedRow(key="", path="")]
    assert join_rows([*rows, rows[-1]]) == [*rows, rows[-1]]


@pytest.mark.parametrize("form", ["csv", "jsonl", "json"])
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)], ids=["neighbors", "apart"])
def test_one_image_with_two_labels_is_two_rows_of_one_key_in_every_list(form, order, tmp_path):
    dumps.write_images(tmp_path, [samples(2)])
    lines = [("images/000000000.jpg", 1), ("images/000000000.jpg", 0), ("images/000000001.jpg", 1)]
    rows = [{"image": lines[i][0], "label": lines[i][1]} for i in order]
    path = tmp_path / f"list.{form}"
    if form == "json":
        path.write_text(json.dumps(rows))
    elif form == "jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        path.write_text("image,label\n" + "".join(f"{row['image']},{row['label']}\n" for row in rows))
    manifest = ingest(path, tmp_path / "out", kind="captions", label_column="label")
    assert (manifest.rows_read, manifest.rows_dropped) == (3, {"duplicate key of another sample": 1})
    assert {record.key: record.label for record in open_records(tmp_path / "out")} == {
        "images/000000000.jpg": 1,
        "images/000000001.jpg": 1,
    }
