"""Class folders and their names: the label of a folder, the number of names, and folders that are no classes."""

import json

import pytest
from support.conversions import call, error_of, ingest
from support.dumps import jpeg, write_tfds

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.errors import DataError
from conversion.records.class_names import describe_classes

IDS = ("n01440764", "n02102040", "n02979186")


@pytest.fixture
def source(tmp_path):
    """Write one image into each of the folders."""

    def write(*folders):
        for i, name in enumerate(folders):
            (tmp_path / "source" / name).mkdir(parents=True)
            (tmp_path / "source" / name / f"{i}.jpg").write_bytes(jpeg(i))
        return tmp_path / "source"

    return write


def labels(folder):
    return {record.key.partition("/")[0]: record.label for record in open_records(folder)}


def test_folders_that_are_all_numbers_are_in_the_order_of_the_numbers(source, tmp_path, capsys):
    folder = source(*map(str, range(12)))
    (tmp_path / "names.txt").write_text("".join(f"name {i}\n" for i in range(12)))
    assert call("folder", folder, tmp_path / "out", "--class-names", tmp_path / "names.txt") == 0
    assert labels(tmp_path / "out") == {str(i): i for i in range(12)}
    shown = capsys.readouterr().out
    assert "12 classes: 0 = name 0 (0 in the source), 1 = name 1 (1 in the source), " in shown
    assert "11 = name 11 (11 in the source)" in shown


def test_one_name_that_is_no_number_makes_all_of_them_texts(source, tmp_path):
    ingest(source("10", "9", "a"), tmp_path / "out", kind="folder")
    assert labels(tmp_path / "out") == {"10": 0, "9": 1, "a": 2}


def test_numbers_with_zeros_in_front_and_gaps_have_their_rank(source, tmp_path):
    manifest = ingest(source("02", "10", "1", "001"), tmp_path / "out", kind="folder")
    assert manifest.class_names == ("001", "1", "02", "10")


def test_hidden_folders_are_no_classes_and_their_files_are_counted(source, tmp_path, capsys):
    folder = source("cat", "dog", ".ipynb_checkpoints", "__MACOSX/cat", "dog/.cache")
    (folder / "cat/._0.jpg").write_bytes(b"of a Mac")
    (folder / ".empty").mkdir()
    assert call("folder", folder, tmp_path / "out") == 0
    assert labels(tmp_path / "out") == {"cat": 0, "dog": 1}
    manifest = open_records(tmp_path / "out").manifest
    assert (manifest.class_names, manifest.rows_read, manifest.info["hidden_files"]) == (("cat", "dog"), 2, 4)
    shown = capsys.readouterr().out
    assert "2 classes: 0 = cat, 1 = dog\n" in shown
    assert "ignored: 4 hidden files" in shown


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train/cat", "train/dog", "test/cat"), "holds the splits test, train, which are no classes; .*source/test,"),
        (("Val/cat",), "holds the splits Val"),
        (("train", "test"), "holds the splits test, train"),
        (("train2017/cat", "val2017/cat"), "holds the splits train2017, val2017, which are no classes"),
        (("train/cat", "test/cat", "extra/cat"), "holds the splits test, train, which are no classes"),
        (("Data/CLS-LOC/train/n01440764", "Data/x/n02102040"), "one class folder with images, Data, .*: CLS-LOC, x;"),
    ],
)
def test_folders_above_the_class_folders_are_refused(folders, words, source, tmp_path):
    folder = source(*folders)
    (folder / "Annotations").mkdir()
    with pytest.raises(DataError, match=words):
        ingest(folder, tmp_path / "out", kind="folder")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "folders",
    [("train", "bus"), ("a/1",), ("a/1", "b/1"), ("a/1", "a/2", "b/1"), ("train/a", "bus"), ("train/a", "bus", "test")],
)
def test_classes_may_be_called_train_and_may_have_folders_inside(folders, source, tmp_path):
    assert ingest(source(*folders), tmp_path / "out", kind="folder").rows_written == len(folders)


@pytest.mark.parametrize("count", [1, 2, 4, 1000])
def test_another_number_of_names_than_folders_is_refused_with_both(count, source, tmp_path, capsys):
    folder = source("cat", "dog", "owl")
    (tmp_path / "names.json").write_text(json.dumps([f"name {i}" for i in range(count)]))
    assert call("folder", folder, tmp_path / "out", "--class-names", tmp_path / "names.json") == 2
    message = error_of(capsys)
    assert "has 3 classes" in message
    assert f"--class-names has {count:,} name" in message
    assert "0 = cat, 1 = dog, 2 = owl" in message
    assert not (tmp_path / "out").exists()


def test_folders_that_are_ids_need_no_names(source, tmp_path, capsys):
    folder = source(*IDS)
    with pytest.raises(DataError, match=r"WordNet ids of ImageNet.*leave --class-names out"):
        ingest(folder, tmp_path / "out", kind="folder", class_names=("a",) * 1000)
    assert call("folder", folder, tmp_path / "out") == 0
    assert "3 classes: 0 = n01440764 (tench), 1 = n02102040 (English Springer Spaniel), " in capsys.readouterr().out


def test_names_of_tfds_are_as_many_as_its_classes(tmp_path):
    write_tfds(tmp_path / "source", [[]])
    with pytest.raises(DataError, match="has 2 classes, but --class-names has 3 names"):
        ingest(tmp_path / "source", tmp_path / "out", kind="tfds", class_names=("a", "b", "c"))


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n \r\n"])
def test_empty_last_lines_of_names_are_none(end, source, tmp_path):
    folder = source("a", "b")
    (tmp_path / "names.txt").write_bytes(f"\ufeffcat\ndog{end}".encode())
    assert call("folder", folder, tmp_path / "out", "--class-names", tmp_path / "names.txt") == 0
    assert open_records(tmp_path / "out").manifest.class_names == ("cat", "dog")
    write_tfds(tmp_path / "tfds", [[]])
    (tmp_path / "tfds/label.labels.txt").write_text(f"cat\ndog{end}")
    assert ingest(tmp_path / "tfds", tmp_path / "out-tfds", kind="tfds").class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("names.txt", "cat\n\ndog\n", "line 2 is empty"),
        ("names.txt", "\n\n", "the file is empty"),
        ("names.json", '["cat", " "]', "an empty name"),
        ("names.json", "[]", "an empty name, or none"),
        ("names.json", '{"0": "cat"}', "must be a list of names"),
    ],
)
def test_a_file_without_a_name_per_class_is_refused(name, content, words, source, tmp_path, capsys):
    (tmp_path / name).write_text(content)
    assert call("folder", source("a", "b"), tmp_path / "out", "--class-names", tmp_path / name) == 2
    assert words in error_of(capsys)


def test_many_classes_are_shown_by_their_ends():
    shown = describe_classes([f"c{i}" for i in range(1000)])
    assert shown == "1,000 classes: 0 = c0, 1 = c1, 2 = c2, ..., 997 = c997, 998 = c998, 999 = c999"
    assert describe_classes(["x" * 500]) == f"1 class: 0 = {'x' * 40}..."
