"""Hidden companions of files and folders, as Macs, notebooks and download caches leave them: ignored and counted."""

import pytest
from support import dumps
from support.conversions import ingest, write_tar
from support.dumps import jpeg, samples

WRITERS = {
    "img2dataset": (dumps.write_img2dataset, "._00000.tfrecord"),
    "tfds": (dumps.write_tfds, "._imagenet2012-train.tfrecord-00000-of-00001"),
    "webdataset": (dumps.write_tars, "._00000.tar"),
    "parquet": (dumps.write_parquet, "._00000.parquet"),
    "captions": (dumps.write_csv, "._list.csv"),
    "folder": (dumps.write_class_folders, "n01/._000000000.jpg"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_hidden_files_are_counted_and_are_no_damage(kind, tmp_path):
    write, companion = WRITERS[kind]
    (tmp_path / "source").mkdir()
    write(tmp_path / "source", [samples(3)])
    plain = ingest(tmp_path / "source", tmp_path / "plain", kind=kind)
    name = companion.rpartition("/")[2].removeprefix("._")
    for path in (companion, f".ipynb_checkpoints/{name}", f"__MACOSX/x/._{name}", ".DS_Store"):
        (tmp_path / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / path).write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind=kind)
    assert (manifest.rows_read, manifest.rows_dropped) == (plain.rows_read, {})
    assert manifest.info["damaged_sources"] == []
    assert manifest.info["hidden_files"] == 4
    assert "hidden_files" not in plain.info
    assert manifest.info.get("ignored_files") == plain.info.get("ignored_files")
    assert manifest.info["content_fingerprint"] == plain.info["content_fingerprint"]


def test_a_pattern_leaves_hidden_files_out_and_a_named_one_is_meant(tars, tmp_path):
    (tars / "._00000.tar").write_bytes(b"of a Mac")
    manifest = ingest(tars / "*.tar", tmp_path / "a")
    assert (manifest.rows_written, manifest.rows_dropped) == (6, {})
    (tars / "00000.tar").rename(tars / ".hidden.tar")
    assert ingest(tars / ".hidden.tar", tmp_path / "b").rows_written == 2


def test_a_source_inside_of_a_hidden_folder_is_read(tars, tmp_path):
    tars.rename(tmp_path / ".cache")
    assert ingest(tmp_path / ".cache", tmp_path / "out").rows_written == 6


def test_hidden_members_of_tars_are_counted(tmp_path):
    names = ("__MACOSX/._0", "./.ipynb_checkpoints/0", "./a/.0")
    members = [("./a/0.jpg", jpeg(0)), ("./a/0.txt", b"x"), *((f"{name}.jpg", b"of a Mac") for name in names)]
    write_tar(tmp_path / "0.tar", members)
    manifest = ingest(tmp_path / "0.tar", tmp_path / "out")
    assert (manifest.rows_read, manifest.rows_written) == (1, 1)
    assert manifest.info["ignored_members"] == 3
