"""Every kind of source, clean and damaged: the account closes, losses are named, records equal the source."""

import gzip
import json
import shutil

import numpy as np
import pytest
from support import dumps
from support.conversions import ingest_folder
from support.dumps import samples

from clipa_eqx.data.images.decode import decode_image

KINDS = {
    "img2dataset": ("img2dataset", dumps.write_img2dataset),
    "tfds": ("tfds", dumps.write_tfds),
    "webdataset": ("webdataset", dumps.write_tars),
    "parquet": ("parquet", dumps.write_parquet),
    "files": ("parquet", dumps.write_files),
    "folder": ("folder", dumps.write_class_folders),
    "coco": ("captions", dumps.write_coco),
    "csv": ("captions", dumps.write_csv),
    "jsonl": ("captions", dumps.write_jsonl),
}
LABELED = ("tfds", "folder")
CAPTIONED = [name for name in KINDS if name not in LABELED]


def ingest(name, folder, **options):
    manifest, records = ingest_folder(KINDS[name][0], folder, **options)
    assert manifest.rows_read == manifest.rows_written + sum(manifest.rows_dropped.values())
    assert manifest.rows_written == len(records)
    assert set(manifest.info["examples"]) == set(manifest.rows_dropped)
    return manifest, records


def account(manifest):
    return manifest.rows_read, manifest.rows_written, dict(manifest.rows_dropped)


def write(name, folder, shards):
    (folder / "source").mkdir()
    KINDS[name][1](folder / "source", shards)


@pytest.mark.parametrize("name", KINDS)
def test_a_clean_source_arrives_whole(name, tmp_path):
    rows = samples(5)
    write(name, tmp_path, [rows[:3], rows[3:]])
    manifest, records = ingest(name, tmp_path)
    assert account(manifest) == (5, 5, {})
    assert sorted(record.image for record in records) == sorted(row.image for row in rows)
    by_image = {record.image: record for record in records}
    for row in rows:
        record = by_image[row.image]
        assert row.key in record.key
        if name in LABELED:
            assert (record.captions, record.label) == ((), row.label)
        else:
            assert (record.captions, record.label) == ((row.captions[0].decode(),), None)
    assert manifest.class_names == {"tfds": ("tench", "goldfish"), "folder": ("n01", "n02")}.get(name)


@pytest.mark.parametrize("name", KINDS)
def test_a_corrupt_image_is_one_dropped_row(name, tmp_path):
    write(name, tmp_path, [dumps.with_corrupt_image(samples(3)), samples(2, first=3)])
    manifest, _ = ingest(name, tmp_path)
    assert account(manifest) == (5, 4, {"undecodable image": 1})
    (example,) = manifest.info["examples"]["undecodable image"]
    assert "000000000" in example["key"]
    assert "JPEG" in example["detail"]


@pytest.mark.parametrize("name", CAPTIONED)
@pytest.mark.parametrize(
    ("caption", "reason"), [(b" \t", "empty caption"), ("caf\xe9".encode("latin1"), "caption is not UTF-8")]
)
def test_a_bad_caption_is_one_dropped_row(name, caption, reason, tmp_path):
    write(name, tmp_path, [dumps.with_caption(samples(3), caption), samples(2, first=3)])
    manifest, records = ingest(name, tmp_path)
    assert account(manifest) == (5, 4, {reason: 1})
    assert all("000000000" not in record.key for record in records)


@pytest.mark.parametrize("name", KINDS)
def test_odd_images_are_kept_as_they_are(name, tmp_path):
    write(name, tmp_path, [dumps.odd_samples()])
    manifest, records = ingest(name, tmp_path)
    assert account(manifest) == (len(dumps.ODD_IMAGES), len(dumps.ODD_IMAGES), {})
    assert sorted(record.image for record in records) == sorted(dumps.odd_images().values())


@pytest.mark.parametrize("name", KINDS)
def test_a_source_without_rows_gives_an_empty_record_folder(name, tmp_path):
    write(name, tmp_path, [[]])
    manifest, records = ingest(name, tmp_path)
    assert account(manifest) == (0, 0, {})
    assert records == []
    assert manifest.shards == ()


@pytest.mark.parametrize("cut", [10, 700])
@pytest.mark.parametrize("name", ["img2dataset", "webdataset", "parquet"])
def test_a_cut_shard_gives_its_whole_rows_and_one_lost_row(name, cut, tmp_path):
    rows = samples(5)
    write(name, tmp_path, [rows[:3], rows[3:]])
    first = sorted((tmp_path / "source").iterdir())[0]
    data = first.read_bytes()
    if name == "webdataset":
        data = data.rstrip(b"\x00")  # a tar ends in zeros; the cut is to hit a member
    first.write_bytes(data[:-cut])
    manifest, records = ingest(name, tmp_path)
    # The end of a Parquet file is its table of contents: without it nothing can be read.
    whole = {"img2dataset": 2, "webdataset": 2, "parquet": 0}[name]
    assert account(manifest) == (whole + 3, whole + 2, {"truncated shard": 1})
    assert {record.image for record in records} == {row.image for row in rows[:whole] + rows[3:]}
    (damage,) = manifest.info["damaged_sources"]
    assert (damage["source"], damage["rows_before"], damage["rows_lost"]) == (first.name, whole, "unknown")


def test_a_cut_shard_of_tfds_lacks_a_known_number_of_rows(tmp_path):
    rows = samples(5)
    write("tfds", tmp_path, [rows[:4], rows[4:]])
    first = sorted((tmp_path / "source").glob("*.tfrecord-*"))[0]
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    manifest, _ = ingest("tfds", tmp_path)
    (damage,) = manifest.info["damaged_sources"]
    assert manifest.rows_read == 5
    assert manifest.rows_dropped == {"truncated shard": damage["rows_lost"]}
    assert damage["rows_before"] + damage["rows_lost"] == 4


def test_a_table_with_a_broken_page_lacks_a_known_number_of_rows(tmp_path):
    rows = samples(6)
    write("parquet", tmp_path, [rows])
    table = tmp_path / "source/00000.parquet"
    data = table.read_bytes()
    at = data.index(rows[2].image) - 40  # the header of the page of the second group of two
    table.write_bytes(data[:at] + bytes(40) + data[at + 40 :])
    manifest, _ = ingest("parquet", tmp_path)
    (damage,) = manifest.info["damaged_sources"]
    assert manifest.rows_read == 6
    assert manifest.rows_dropped == {"truncated shard": damage["rows_lost"]}
    assert damage["rows_lost"] >= 4


@pytest.mark.parametrize("name", ["folder", "files", "csv", "coco"])
def test_a_missing_image_is_one_dropped_row(name, tmp_path):
    write(name, tmp_path, [samples(3)])
    (image,) = (tmp_path / "source").rglob("000000001.jpg")
    image.unlink()
    manifest, _ = ingest(name, tmp_path)
    assert account(manifest) == ((2, 2, {}) if name == "folder" else (3, 2, {"missing image": 1}))


def test_a_list_cut_inside_of_a_line_loses_that_row(tmp_path):
    write("jsonl", tmp_path, [samples(3)])
    table = tmp_path / "source/list.jsonl"
    table.write_bytes(table.read_bytes()[:-10])
    assert account(ingest("jsonl", tmp_path)[0]) == (3, 2, {"row cannot be parsed": 1})


def test_a_quote_that_is_never_closed_costs_the_lines_it_takes(tmp_path):
    write("csv", tmp_path, [samples(4)])
    table = tmp_path / "source/list.csv"
    table.write_text(table.read_text().replace("caption 1", '"caption 1'))
    manifest, records = ingest("csv", tmp_path)
    assert account(manifest) == (4, 1, {"row cannot be parsed": 3})
    assert [record.captions for record in records] == [("caption 0",)]


@pytest.mark.parametrize("damage", ["broken header", "no end mark", "cut in a header"])
def test_a_tar_that_ends_early_is_noticed(damage, tmp_path):
    """The tar library takes each of these for a proper end."""
    rows = samples(3)
    write("webdataset", tmp_path, [rows])
    path = tmp_path / "source/00000.tar"
    data = path.read_bytes()
    header = data.index(b"000000001.jpg")
    if damage == "broken header":
        path.write_bytes(data[: header + 100] + b"garbage" + data[header + 107 :])
    else:
        path.write_bytes(data[:header] if damage == "no end mark" else data[: header + 200])
    manifest, records = ingest("webdataset", tmp_path)
    assert account(manifest) == (2, 1, {"truncated shard": 1})
    assert [record.image for record in records] == [rows[0].image]
    assert manifest.info["damaged_sources"][0]["rows_lost"] == "unknown"


def test_the_statistics_of_img2dataset_give_the_number_of_rows_a_cut_shard_lacks(tmp_path):
    dumps.write_tars(tmp_path / "source", [samples(5)], stats=True)
    path = tmp_path / "source/00000.tar"
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"000000002.txt")])
    manifest, _ = ingest("webdataset", tmp_path)
    assert account(manifest) == (5, 2, {"truncated shard": 3})


@pytest.mark.parametrize("name", ["img2dataset", "webdataset"])
def test_gzip_is_read_and_its_cut_is_noticed(name, tmp_path):
    rows = samples(4)
    if name == "img2dataset":
        dumps.write_img2dataset(tmp_path / "source", [rows], compression="GZIP")
    else:
        dumps.write_tars(tmp_path / "source", [rows], mode="w:gz")
    assert account(ingest(name, tmp_path)[0]) == (4, 4, {})
    (path,) = (tmp_path / "source").iterdir()
    path.write_bytes(path.read_bytes()[:-600])
    shutil.rmtree(tmp_path / "out")
    manifest, records = ingest(name, tmp_path)
    assert account(manifest) == (len(records) + 1, len(records), {"truncated shard": 1})
    assert 0 < len(records) < 4


def test_tfrecords_that_were_gzipped_afterwards_are_read(tmp_path):
    dumps.write_img2dataset(tmp_path / "source", [samples(4)])
    path = tmp_path / "source/00000.tfrecord"
    (tmp_path / "source/00000.tfrecord.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert account(ingest("img2dataset", tmp_path)[0]) == (4, 4, {})


def test_a_flipped_byte_in_a_tfrecord_ends_the_shard(tmp_path):
    rows = samples(4)
    dumps.write_img2dataset(tmp_path / "source", [rows])
    path = tmp_path / "source/00000.tfrecord"
    data = bytearray(path.read_bytes())
    data[data.index(rows[2].image) + 100] ^= 1
    path.write_bytes(data)
    manifest, records = ingest("img2dataset", tmp_path)
    assert account(manifest) == (3, 2, {"truncated shard": 1})
    assert [record.key for record in records] == ["000000000", "000000001"]


def test_failed_downloads_are_rows_too(tmp_path):
    dumps.write_files(tmp_path / "source", [samples(3), samples(2, first=3)], failed=2)
    manifest, records = ingest("files", tmp_path)
    assert account(manifest) == (9, 5, {"download failed": 4})
    assert len(records) == 5


@pytest.mark.parametrize("name", ["coco", "csv", "jsonl"])
def test_all_captions_of_an_image_are_kept_in_order(name, tmp_path):
    rows = [dumps.replace(row, captions=(b"one", b"", b"caf\xe9", "caf\xe9".encode())) for row in samples(3)]
    write(name, tmp_path, [rows])
    manifest, records = ingest(name, tmp_path)
    assert [record.captions for record in records] == [("one", "caf\xe9")] * 3
    assert account(manifest) == (3, 3, {})
    assert manifest.info["captions_dropped"] == {"empty caption": 3, "caption is not UTF-8": 3}
    assert manifest.info["captions_written"] == 6


def test_parts_of_a_table_join_without_a_gap(tmp_path):
    rows = [dumps.replace(row, captions=(b"one\nof, two", b"2")) for row in samples(7)]
    write("csv", tmp_path, [rows])
    manifest, records = ingest("csv", tmp_path, records_per_shard=3)
    assert [shard.count for shard in manifest.shards] == [3, 3, 1]
    assert [record.captions for record in records] == [("one\nof, two", "2")] * 7


def test_karpathy_splits_are_chosen_by_name(tmp_path):
    rows = dumps.write_images(tmp_path / "source", [samples(3)])
    images = [
        {
            "filepath": "images",
            "filename": f"{row.key}.jpg",
            "split": split,
            "sentences": [{"raw": "a"}, {"raw": "b"}],
        }
        for row, split in zip(rows, ("train", "test", "restval"), strict=True)
    ]
    (tmp_path / "source/dataset.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    _, records = ingest("coco", tmp_path, split="train,restval")
    assert [(record.key, record.captions) for record in records] == [
        (f"images/{key}.jpg", ("a", "b")) for key in ("000000000", "000000002")
    ]


def test_metadata_goes_to_extra_on_request(tmp_path):
    dumps.write_tars(tmp_path / "source", [samples(2)])
    _, records = ingest("webdataset", tmp_path, keep=("url", "width"))
    assert [dict(record.extra) for record in records] == [
        {"url": f"http://host/00000000{i}", "width": 24} for i in range(2)
    ]


def test_small_images_are_dropped_and_large_ones_made_smaller(tmp_path):
    rows = samples(3)
    rows[1] = dumps.replace(rows[1], image=dumps.jpeg(1, width=300, height=200))
    rows[2] = dumps.replace(rows[2], image=dumps.odd_images()["rgba.png"])
    write("webdataset", tmp_path, [rows])
    manifest, records = ingest("webdataset", tmp_path, min_side=17, max_side=40)
    assert account(manifest) == (3, 2, {"too small": 1})
    assert [decode_image(record.image).shape for record in records] == [(27, 40, 3), (27, 40, 3)]
    assert all(record.image[:2] == b"\xff\xd8" for record in records)


def test_an_image_made_smaller_looks_like_the_image(tmp_path):
    smooth = np.linspace(0, 255, 300 * 200 * 3).reshape(200, 300, 3).astype(np.uint8)
    file = dumps.io.BytesIO()
    dumps.Image.fromarray(smooth).save(file, "PNG")
    write("webdataset", tmp_path, [[dumps.replace(samples(1)[0], image=file.getvalue(), suffix="png")]])
    _, (record,) = ingest("webdataset", tmp_path, max_side=30)
    small = smooth.reshape(20, 10, 30, 10, 3).mean((1, 3))
    assert np.abs(decode_image(record.image) - small).mean() < 2
