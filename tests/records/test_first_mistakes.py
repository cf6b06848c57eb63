"""Mistakes of a first try, and files as people have them: the answer names the next command, or none is needed."""

import json
import unicodedata

import pytest
from support import dumps
from support.conversions import call, ingest
from support.dumps import jpeg, samples, write_table

import conversion.records.__main__ as program
from clipa_eqx.cli import run
from clipa_eqx.data.array_record_reader import open_records


def write_images(folder, names):
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i))


def refused(capsys, *arguments):
    """The message of a command that is refused."""
    assert run(lambda: call(*arguments)) == 2
    return capsys.readouterr().err


def test_usual_columns_are_found_in_any_case(tmp_path):
    write_images(tmp_path / "a", ["1.jpg", "2.jpg"])
    (tmp_path / "a/list.CSV").write_bytes(b"\xef\xbb\xbfImage;Caption\r\n1.jpg;one\r\n2.jpg;two\r\n")
    ingest(tmp_path / "a", tmp_path / "out", kind="captions")
    assert {one.key: one.captions for one in open_records(tmp_path / "out")} == {"1.jpg": ("one",), "2.jpg": ("two",)}
    write_table(tmp_path / "0.parquet", {"ID": ["k"], "Image": [jpeg(0)], "image": [jpeg(1)], "TEXT": ["a"]})
    (record,) = _records(tmp_path / "0.parquet", tmp_path / "table", kind="parquet")
    assert record.image == jpeg(1)  # the exact name comes first
    assert record.key == "0.parquet/00000000"  # keys are taken by their exact names only


def _records(source, target, *, kind):
    ingest(source, target, kind=kind)
    return list(open_records(target))


@pytest.mark.parametrize(("on_disk", "in_list"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_umlauts_of_macos_and_of_others_name_the_same_image(on_disk, in_list, tmp_path):
    write_images(tmp_path / "a", [unicodedata.normalize(on_disk, "Grün/Bär.jpg")])
    listed = unicodedata.normalize(in_list, "Grün/Bär.jpg")
    (tmp_path / "a/list.csv").write_text(f"image,caption\n{listed},a bear\n", encoding="utf-8")
    manifest = ingest(tmp_path / "a", tmp_path / "out", kind="captions")
    assert (manifest.rows_written, manifest.rows_dropped) == (1, {})
    assert "images_in_no_list" not in manifest.info


def test_a_list_without_a_header_is_refused_because_its_first_row_would_be_lost(tmp_path, capsys):
    write_images(tmp_path / "a", ["1.jpg", "2.jpg"])
    (tmp_path / "a/list.csv").write_text("1.jpg,one\n2.jpg,two\n")
    message = refused(capsys, "captions", tmp_path / "a", tmp_path / "out", "--image-column", "1.jpg")
    assert "has no header: its first line is the row of '1.jpg'; write a line" in message
    assert "'image,caption'" in message


def test_class_folders_without_images_and_numbers_as_names_are_pointed_out(tmp_path, capsys):
    write_images(tmp_path / "a", ["cat/1.jpg", "dog/2.jpg"])
    (tmp_path / "a/notes").mkdir()
    assert call("folder", tmp_path / "a", tmp_path / "out") == 0
    assert "of these has no images: notes; if a folder is no class, remove it" in capsys.readouterr().out
    assert open_records(tmp_path / "out").manifest.info["classes_without_images"] == ["notes"]
    write_images(tmp_path / "b", ["0/1.jpg", "10/2.jpg"])
    assert call("folder", tmp_path / "b", tmp_path / "numbers") == 0
    assert "the class names are numbers: name the classes with --class-names FILE" in capsys.readouterr().out


def test_labels_without_names_or_captions_are_for_scoring_with_names(tmp_path, capsys):
    write_table(tmp_path / "0.parquet", {"image": [jpeg(0), jpeg(1)], "label": [0, 1]})
    assert call("parquet", tmp_path / "0.parquet", tmp_path / "out", "--label-column", "label") == 0
    shown = capsys.readouterr().out
    assert "the classes have no names, which a score needs: repeat with --class-names FILE --overwrite" in shown
    assert "evaluate" in shown
    assert "--class-names FILE --out" in shown
    assert "minimal.py" not in shown


def test_a_list_whose_images_are_all_elsewhere_ends_with_the_flag_that_names_their_folder(tmp_path, capsys):
    write_images(tmp_path / "a/Images", ["1.jpg"])
    (tmp_path / "a/captions.txt").write_text("image,caption\n1.jpg,one\n")
    assert call("captions", tmp_path / "a", tmp_path / "out") == 1
    assert "(no such file); is --images the folder that all paths are relative to?" in capsys.readouterr().out


def test_images_of_other_splits_are_not_called_unlisted(tmp_path, capsys):
    for split in ("train", "test"):
        write_images(tmp_path / "a" / split, ["1.jpg"])
        (tmp_path / "a" / split / "metadata.csv").write_text("file_name,text\n1.jpg,one\n")
    assert call("captions", tmp_path / "a", tmp_path / "out", "--split", "train") == 0
    assert "no list names" not in capsys.readouterr().out


def test_source_and_destination_in_the_wrong_order(tmp_path, capsys):
    dumps.write_tars(tmp_path / "tars", [samples(1)])
    ingest(tmp_path / "tars", tmp_path / "out")
    for kind in ("captions", "pairs", "webdataset"):
        message = refused(capsys, kind, tmp_path / "out", tmp_path / "new")
        assert "is a record folder, which a conversion writes; give the source first: SRC DST" in message
    assert not (tmp_path / "new").exists()


def test_the_same_source_written_in_another_way_is_not_called_changed(tmp_path, capsys):
    write_images(tmp_path / "a", ["cat/1.jpg"])
    ingest(tmp_path / "a", tmp_path / "out", kind="folder")
    message = refused(capsys, "folder", f"{tmp_path / 'a'}/", tmp_path / "out")
    assert "source was" in message
    assert "has changed" not in message


def test_tables_that_only_describe_shards_are_not_called_missing(tmp_path, capsys):
    dumps.write_tars(tmp_path / "tars", [samples(1)])
    (shard,) = (tmp_path / "tars").glob("*.tar")
    write_table(shard.with_suffix(".parquet"), {"key": ["0"], "status": ["success"]})
    message = refused(capsys, "parquet", tmp_path / "tars", tmp_path / "out")
    assert f"files such as {shard.stem}.parquet only describe the shards next to them" in message
    assert "is it for the source `webdataset`?" in message


def test_class_folders_in_splits_are_no_pairs_whatever_the_split(tmp_path, capsys):
    write_images(tmp_path / "a", ["train/n01440764/1.jpg", "val/n01440764/ILSVRC2012_val_00000001.jpg"])
    (tmp_path / "a/LICENSE").write_text("free")
    message = refused(capsys, "pairs", tmp_path / "a", tmp_path / "out")
    assert "it holds 2 .jpg files and 1 without a suffix; is it for the source `imagenet`?" in message


def test_a_json_file_that_is_no_list_asks_for_the_list(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/notes.json").write_text(json.dumps({"hello": 1}))
    message = refused(capsys, "captions", tmp_path / "a", tmp_path / "out")
    assert "if another file is the list, give that file, not its folder" in message


def test_ctrl_c_ends_with_the_command_to_resume(tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "convert", interrupt)
    assert run(lambda: call("folder", tmp_path / "a", tmp_path / "out")) == 130
    assert "interrupted; repeat the same command to resume" in capsys.readouterr().err


def test_several_labels_of_an_image_end_with_the_number_that_scoring_needs(tmp_path, capsys):
    labels = [[0], [0, 2, 1], [1, 2]]
    write_table(tmp_path / "0.parquet", {"image": [jpeg(i) for i in range(3)], "labels": labels})
    (tmp_path / "names.txt").write_text("cat\ndog\ncow\n")
    flags = ("--label-column", "labels", "--class-names", tmp_path / "names.txt")
    assert call("parquet", tmp_path / "0.parquet", tmp_path / "out", *flags) == 0
    assert "--max-labels 3 --out" in capsys.readouterr().out
    assert open_records(tmp_path / "out").manifest.info["most_labels"] == 3
