"""Layout of CLIP_benchmark's exports: incomplete or contradicting files are one error each, and nothing is written."""

import io
import shutil

import fsspec
import numpy as np
import pytest
from support.conversions import call, captions, error_of, ingest, keys, write_tar
from support.dumps import jpeg

from clipa_eqx.data.array_record_reader import open_records


def write_split(folder, count, *, shards=1, suffix="cls", value=None):
    per_shard = -(-count // shards)
    for shard in range(shards):
        numbers = range(shard * per_shard, min(count, (shard + 1) * per_shard))
        members = [
            (f"s{i:07d}.{name}", content)
            for i in numbers
            for name, content in (("webp", jpeg(i)), (suffix, str(i % 3).encode() if value is None else value(i)))
        ]
        write_tar(folder / f"{shard}.tar", members)
    (folder / "nshards.txt").write_text(f"{shards}\n")


def write_set(folder, *, splits=("test",), **options):
    for split in splits:
        write_split(folder / split, 6, **options)
    (folder / "classnames.txt").write_text("cat\n dog \nowl\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}.\nthe {c}, seen\n")
    return folder


def vector(length):
    def value(number):
        file = io.BytesIO()
        np.save(file, np.arange(length) == number % length)
        return file.getvalue()

    return value


def lose_a_shard(root):
    (root / "test/1.tar").unlink()


def add_a_shard(root):
    shutil.copyfile(root / "test/0.tar", root / "test/5.tar")


def lose_the_count(root):
    (root / "test/nshards.txt").unlink()


def write(name, text):
    return lambda root: (root / name).write_bytes(text)


def add_a_set(root):
    write_set(root / "other")


def make_vectors(root):
    write_split(root / "test", 6, shards=3, suffix="npy", value=vector(4))
    (root / "dataset_type.txt").write_text("multilabel\n")


def take_labels(root):
    write_split(root / "test", 6, shards=3, suffix="txt")


WRONG = {
    "a shard is missing": (lose_a_shard, "lacks 1 of the 3 tar files that nshards.txt counts: 1.tar; fetch them"),
    "a shard is left over": (add_a_shard, "has tar files that nshards.txt (3) does not count: 5.tar"),
    "no count": (lose_the_count, "lacks nshards.txt, which CLIP_benchmark writes: the number of tar files"),
    "no number": (write("test/nshards.txt", b"three"), "must hold the number of tar files, got 'three'"),
    "a number without end": (write("test/nshards.txt", b"9" * 5000), "must hold the number of tar files, got '999"),
    "zero": (write("test/nshards.txt", b"0"), "must hold the number of tar files, got '0'"),
    "an unknown type": (
        write("dataset_type.txt", b"captioning"),
        "says 'captioning'; it must be one of classification, multilabel, retrieval",
    ),
    "a class without a name": (write("classnames.txt", b"cat\n\nowl\n"), "classnames.txt: line 2 is empty"),
    "templates that are no text": (
        write("zeroshot_classification_templates.txt", b"\xff{c}"),
        "zeroshot_classification_templates.txt cannot be read",
    ),
    "two sets": (add_a_set, "holds several data sets, give the folder of one"),
    "vectors of another length": (make_vectors, "have vectors of 4 labels (.npy), and there are 3 class names"),
    "no labels": (take_labels, "no column 'cls' for the label (--label-column); it has: .webp, .txt"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_set_that_contradicts_itself_is_one_error(case, tmp_path, capsys):
    change, message = WRONG[case]
    root = write_set(tmp_path / "set", shards=3)
    change(root)
    assert call("webdataset", root, tmp_path / "out") == 2
    assert message in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path):
    root = write_set(tmp_path / "set")
    write_split(root / "test", 22, shards=11)
    manifest = ingest(root, tmp_path / "out")
    assert keys(tmp_path / "out") == [f"s{i:07d}" for i in range(22)]
    assert manifest.class_names == ("cat", "dog", "owl")
    assert manifest.templates == ("a {c}.", "the {c}, seen")


def test_a_pattern_takes_the_shards_that_are_there(tmp_path):
    root = write_set(tmp_path / "set", shards=3)
    lose_a_shard(root)
    assert ingest(root / "test/*.tar", tmp_path / "out").rows_written == 4


def test_a_label_beyond_the_class_names_is_a_reason(tmp_path):
    root = write_set(tmp_path / "set")
    (root / "classnames.txt").write_text("cat\ndog\n")
    assert ingest(root, tmp_path / "out").rows_dropped == {"no class name": 2}


def test_a_set_without_class_names_has_labels_alone(tmp_path):
    root = write_set(tmp_path / "set")
    (root / "classnames.txt").unlink()
    manifest = ingest(root, tmp_path / "out")
    assert (manifest.class_names, manifest.info["labels"]) == (None, {"lowest": 0, "highest": 2})


def test_given_names_replace_those_of_the_set_if_there_are_as_many(tmp_path, capsys):
    root = write_set(tmp_path / "set")
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    assert call("webdataset", root, tmp_path / "out", "--class-names", names) == 2
    assert "3 classes" in error_of(capsys)
    names.write_text("a\nb\nc\n")
    assert call("webdataset", root, tmp_path / "out", "--class-names", names) == 0
    assert open_records(tmp_path / "out").manifest.class_names == ("a", "b", "c")


def test_a_row_without_label_is_lost_and_not_kept_without(tmp_path):
    root = write_set(tmp_path / "set")
    write_split(root / "test", 3, value=lambda i: b"" if i else b"1")
    manifest = ingest(root, tmp_path / "out")
    assert (manifest.rows_written, manifest.rows_dropped) == (1, {"missing label": 2})


def test_blank_lines_of_a_retrieval_set_are_no_captions(tmp_path):
    root = tmp_path / "set"
    write_split(root / "test", 1, suffix="txt", value=lambda i: b"a dog\n\na cat\r\n  \n")
    (root / "dataset_type.txt").write_text("retrieval")
    ingest(root, tmp_path / "out")
    assert captions(tmp_path / "out") == ["a dog", "a cat"]


def test_a_set_in_a_bucket(tmp_path):
    root = write_set(tmp_path / "set", splits=("test", "train"))
    fs = fsspec.filesystem("memory")
    fs.put(str(root), "/bench/set", recursive=True)
    try:
        for source in ("memory://bench/set/test", "memory://bench/set"):
            manifest = ingest(source, tmp_path / "out", split="test", overwrite=True)
            assert (manifest.rows_written, manifest.class_names) == (6, ("cat", "dog", "owl"))
    finally:
        fs.rm("/bench", recursive=True)


def test_a_change_of_the_templates_is_a_change_of_the_source(tmp_path, capsys):
    root = write_set(tmp_path / "set")
    ingest(root, tmp_path / "out")
    (root / "zeroshot_classification_templates.txt").write_text("one {c}\n")
    assert call("webdataset", root, tmp_path / "out") == 2
    assert "the source has changed" in error_of(capsys)


def test_tars_of_several_splits_ask_for_one(tmp_path, capsys):
    for name in ("photos-train-0.tar", "photos-val-0.tar"):
        write_tar(tmp_path / "set" / name, [("0.jpg", jpeg(0)), ("0.txt", name.encode())])
    assert call("webdataset", tmp_path / "set", tmp_path / "out") == 2
    assert "holds several splits, choose with --split" in error_of(capsys)
    assert call("webdataset", tmp_path / "set", tmp_path / "out", "--split", "val") == 0
    assert captions(tmp_path / "out") == ["photos-val-0.tar"]


def test_members_without_a_suffix_are_counted(tmp_path, capsys):
    write_tar(tmp_path / "set/0.tar", [("README", b"x"), ("0.jpg", jpeg(0)), ("0.txt", b"a"), ("dir.d/LICENSE", b"y")])
    assert call("webdataset", tmp_path / "set", tmp_path / "out") == 0
    manifest = open_records(tmp_path / "out").manifest
    assert (manifest.rows_read, manifest.info["ignored_members"]) == (1, 2)
    assert "ignored: 2 members of tar files" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"\x1f\x8bbroken", b""])
def test_a_compressed_member_that_is_damaged_loses_its_row(content, tmp_path):
    write_tar(
        tmp_path / "set/0.tar",
        [("0.jpg", jpeg(0)), ("0.txt", b"a"), ("1.jpg", jpeg(1)), ("1.txt.gz", content)],
    )
    assert ingest(tmp_path / "set", tmp_path / "out").rows_dropped == {"missing caption": 1}
