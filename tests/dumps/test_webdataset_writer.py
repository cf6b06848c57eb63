"""Tars that webdataset wrote: each sample is what webdataset itself decodes, or is refused with a reason."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from support.conversions import call, error_of
from support.dump_table import run_row

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.evals.labels import labels_of

WRITTEN = Path(__file__).parent / "written/webdataset_writer"
READ = json.loads((WRITTEN / "read.json").read_text(encoding="utf-8"))


def convert(form, folder, *flags):
    assert call("webdataset", WRITTEN / form, folder / "out", *flags) == 0
    return {record.key: record for record in open_records(folder / "out")}


def check(found, form, *, image=("jpg", "png", "webp"), caption=None, label=None, key=lambda sample: sample["__key__"]):
    """Compare all records with the samples of a form; columns are the names that webdataset gives them."""
    expected = {key(sample): sample for sample in READ[form]}
    assert len(expected) == len(READ[form])
    assert found.keys() == expected.keys()
    for name, record in found.items():
        sample = expected[name]
        digest = hashlib.sha256(record.image).hexdigest()
        assert f"sha256:{digest}" == next(sample[suffix] for suffix in image if suffix in sample)
        assert list(record.captions) == ([] if caption is None else [sample[caption]])
        assert record.label == (None if label is None else sample[label])


def test_labels_in_cls(tmp_path, monkeypatch):
    shutil.copytree(WRITTEN / "labeled", tmp_path / "shards")
    row = "python -m conversion.records webdataset shards/ data/labeled --label-column cls"
    assert run_row(row, tmp_path, monkeypatch) == 0
    check({record.key: record for record in open_records(tmp_path / "data/labeled")}, "labeled", label="cls")


def test_everything_that_a_sample_may_have(tmp_path):
    check(convert("shards", tmp_path), "shards", caption="txt", label="cls")


def test_values_to_keep_are_those_that_webdataset_reads(tmp_path):
    found = convert("shards", tmp_path, "--keep", "file", "all")
    for sample in READ["shards"]:
        extra = found[sample["__key__"]].extra
        assert (extra["file"], json.loads(extra["all"])) == (sample["json"]["file"], sample["json"]["all"])


def test_captions_of_json(tmp_path):
    found = convert("shards", tmp_path, "--caption-column", "caption")
    texts = {sample["__key__"]: [sample["json"]["caption"]] for sample in READ["shards"]}
    assert {key: list(record.captions) for key, record in found.items()} == texts


def test_members_that_are_compressed_one_by_one(tmp_path):
    found = convert("compressed", tmp_path, "--keep", "file")
    check(found, "compressed", caption="txt.gz", label="cls.gz")
    assert all(found[sample["__key__"]].extra == {"file": sample["json.gz"]["file"]} for sample in READ["compressed"])


@pytest.mark.parametrize("side", ["left.jpg", "right.jpg"])
def test_one_of_two_images_and_suffixes_of_two_parts(tmp_path, side):
    columns = ("--image-column", side, "--caption-column", "caption.txt", "--label-column", "class.cls")
    check(
        convert("two_images", tmp_path, *columns), "two_images", image=(side,), caption="caption.txt", label="class.cls"
    )


def test_values_that_webdataset_encoded(tmp_path):
    check(convert("encoded", tmp_path), "encoded", caption="text")


def test_metadata_and_keys_beyond_ascii(tmp_path):
    found = convert("with_meta", tmp_path, "--keep", "__note__")
    check(found, "with_meta", caption="txt")
    assert {record.extra["__note__"] for record in found.values()} == {"x"}


def test_vectors_of_labels(tmp_path):
    found = convert("multilabel", tmp_path, "--label-column", "npy")
    expected = {sample["__key__"]: [i for i, one in enumerate(sample["npy"]) if one] for sample in READ["multilabel"]}
    assert {key: list(labels_of(record)) for key, record in found.items()} == expected


def test_a_text_of_several_lines_is_one_caption_unless_lines_are_asked_for(tmp_path, capsys):
    check(convert("several_lines", tmp_path), "several_lines", caption="txt")
    assert (
        "4 captions of several lines; if each line is a caption, repeat with --caption-lines" in capsys.readouterr().out
    )
    found = convert("several_lines", tmp_path, "--caption-lines", "--overwrite")
    expected = {sample["__key__"]: sample["txt"].split("\n") for sample in READ["several_lines"]}
    assert {key: list(record.captions) for key, record in found.items()} == expected
    assert "several lines" not in capsys.readouterr().out


def test_shards_that_share_keys(tmp_path):
    flags = ("--label-column", "cls")
    assert len(convert("same_keys", tmp_path, *flags)) == 3
    assert open_records(tmp_path / "out").manifest.rows_dropped == {"duplicate key of another sample": 3}
    found = convert("same_keys", tmp_path, *flags, "--prefix-keys", "--overwrite")
    check(found, "same_keys", label="cls", key=lambda one: f"{one['__shard__'].partition('.')[0]}/{one['__key__']}")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("dotted", "ends at its first dot, so the suffixes of images are .00000.jpg, .00001.jpg, .00002.jpg; choose"),
        ("two_images", "choose one with --image-column left.jpg (and --caption-column)"),
        ("bitmap", "no column looks like the image; name it with --image-column; it has: .ppm, .txt"),
        ("other_compression", "00000.tar.bz2: tar files compressed by bzip2, xz or zstd are not read (1 file)"),
        ("labeled", "or give --label-column if the data have labels instead; it has: .jpg, .cls, .png"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(form, message, tmp_path, capsys):
    assert call("webdataset", WRITTEN / form, tmp_path / "out") == 2
    assert message in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_an_image_format_that_is_not_read_is_a_reason_to_drop_rows(tmp_path):
    assert call("webdataset", WRITTEN / "bitmap", tmp_path / "out", "--image-column", "ppm") == 1
    assert open_records(tmp_path / "out").manifest.rows_dropped == {"undecodable image": 1}
