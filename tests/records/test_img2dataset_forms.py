"""Forms of img2dataset's output: which one a folder has, mixtures, incomplete shards, and lists next to them."""

import re
import shutil

import pytest
from support import dumps
from support.conversions import call, error_of, ingest, keys, write_tar
from support.dumps import jpeg, samples, write_table

from clipa_eqx.data.array_record_reader import open_records

NEXT_TO_SHARDS = {"key": ["0"], "status": ["success"], "caption": ["a"], "url": ["u"]}


def write_tars(folder):
    dumps.write_tars(folder, [samples(2)], stats=True)
    write_table(folder / "00000.parquet", NEXT_TO_SHARDS)


def write_examples(folder):
    dumps.write_img2dataset(folder, [samples(2)])
    write_table(folder / "00000.parquet", NEXT_TO_SHARDS)


def write_tables(folder):
    dumps.write_parquet(folder, [samples(2)])


def write_files(folder):
    dumps.write_files(folder, [samples(2)], failed=1)
    for path in folder.glob("*/*.jpg"):
        path.with_suffix(".txt").write_text("of the text file")
        path.with_suffix(".json").write_text("{}")


FORMS = {"tars": write_tars, "examples": write_examples, "tables": write_tables, "files": write_files}


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_a_pattern_and_a_file_give_the_same(form, tmp_path):
    FORMS[form](tmp_path / "source")
    suffix = {"tars": "tar", "examples": "tfrecord", "tables": "parquet", "files": "parquet"}[form]
    for name, source in (("a", "source"), ("b", f"source/*.{suffix}"), ("c", f"source/00000.{suffix}")):
        manifest = ingest(tmp_path / source, tmp_path / name, kind="img2dataset")
        assert keys(tmp_path / name) == ["000000000", "000000001"]
        assert "ignored_files" not in manifest.info
        assert manifest.rows_dropped == ({"download failed": 1} if form == "files" else {})


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("tars", "examples", r"1 tar file \(such as a/00000.tar\) and 1 TFRecord file \(such as b/00000.tfrecord\)"),
        ("tars", "tables", r"1 tar file \(such as a/00000.tar\) and 1 .parquet file of no such shard \(such as b/0"),
        ("examples", "files", r"1 TFRecord file \(such as a/00000.tfrecord\) and 1 .parquet file of no such shard"),
        (
            "files",
            "tables",
            r"1 .parquet file with a folder of images \(such as a/.* and 1 .parquet file with images in",
        ),
    ],
)
def test_several_forms_are_named_with_their_counts(first, second, said, tmp_path, capsys):
    FORMS[first](tmp_path / "source/a")
    FORMS[second](tmp_path / "source/b")
    assert call("img2dataset", tmp_path / "source", tmp_path / "out") == 2
    message = error_of(capsys)
    assert "holds several forms of img2dataset's output: " in message
    assert re.search(said, message), message
    for name in ("a", "b"):
        assert call("img2dataset", tmp_path / "source" / name, tmp_path / f"out-{name}") == 0


def test_a_tar_that_is_lost_is_an_error_and_the_list_of_downloads_is_not(tmp_path, capsys):
    write_tars(tmp_path / "source")
    write_table(tmp_path / "source/urls/0000.parquet", {"url": ["u"], "caption": ["a"]})
    write_table(tmp_path / "source/part-00000.parquet", {"url": ["u"], "caption": ["a"]})
    assert call("img2dataset", tmp_path / "source", tmp_path / "out") == 0
    write_table(tmp_path / "source/00001.parquet", NEXT_TO_SHARDS)
    assert call("img2dataset", tmp_path / "source", tmp_path / "second") == 2
    assert "1 .parquet file of no such shard (such as 00001.parquet)" in error_of(capsys)


def test_a_shard_of_files_without_any_image_belongs_to_the_form(tmp_path):
    write_files(tmp_path / "source")
    dumps.write_files(tmp_path / "other", [[]], failed=2)
    shutil.copyfile(tmp_path / "other/00000.parquet", tmp_path / "source/00001.parquet")
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="img2dataset")
    assert (manifest.rows_written, manifest.rows_dropped) == (2, {"download failed": 3})


def test_images_of_a_shard_whose_table_is_missing_are_counted(tmp_path, capsys):
    dumps.write_files(tmp_path / "source", [samples(2), samples(3, first=2)])
    (tmp_path / "source/00001.parquet").unlink()
    assert call("img2dataset", tmp_path / "source", tmp_path / "out") == 0
    assert "not read: 3 .jpg files" in capsys.readouterr().out


def test_a_column_of_paths_of_the_list_is_not_that_of_the_images(tmp_path):
    dumps.write_files(tmp_path / "source", [samples(1)])
    columns = {"key": ["000000000"], "status": ["success"], "caption": ["a"], "file_name": ["train/7.jpg"]}
    write_table(tmp_path / "source/00000.parquet", columns)
    ingest(tmp_path / "source", tmp_path / "out", kind="img2dataset", keep=("file_name",))
    (record,) = open_records(tmp_path / "out")
    assert record.image == samples(1)[0].image
    assert dict(record.extra) == {"file_name": "train/7.jpg"}


@pytest.mark.parametrize("form", ["tars", "examples"])
def test_splits_are_not_mixed(form, tmp_path, capsys):
    for split in ("train", "val"):
        FORMS[form](tmp_path / "cc3m" / split)
    assert call("img2dataset", tmp_path / "cc3m", tmp_path / "out") == 2
    assert "holds several splits, choose with --split" in error_of(capsys)
    assert call("img2dataset", tmp_path / "cc3m", tmp_path / "out", "--split", "train") == 0
    assert open_records(tmp_path / "out").manifest.info["split"] == "train"
    assert len(keys(tmp_path / "out")) == 2


def test_names_whose_dots_are_taken_for_suffixes_are_shown_with_their_suffixes(tmp_path, capsys):
    names = ("a.b", "c", "d.e.f")
    write_tar(
        tmp_path / "0.tar",
        [(f"{name}.{suffix}", value) for name in names for suffix, value in (("jpg", jpeg(1)), ("txt", b"a"))],
    )
    manifest = ingest(tmp_path / "0.tar", tmp_path / "out")
    details = {one["key"]: one["detail"] for one in manifest.info["examples"]["missing image"]}
    assert details == {
        "a": "no image among: b.jpg, b.txt; the name of a sample ends at its first dot",
        "d": "no image among: e.f.jpg, e.f.txt; the name of a sample ends at its first dot",
    }
    write_tar(tmp_path / "1.tar", [("a.jpg", jpeg(1)), ("a.txt", b"a"), ("b.txt", b"b")])
    (only,) = ingest(tmp_path / "1.tar", tmp_path / "second").info["examples"]["missing image"]
    assert only["detail"] == "no image among: txt"
