"""Labels that are texts, and labels that count from 1: matched by name, numbered, shifted, or refused; never lost."""

import json
import shutil

import pytest
from support import dumps
from support.conversions import call, error_of, ingest, write_tar
from support.dumps import jpeg, samples, write_examples, write_table

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.errors import DataError
from conversion.records.labels import Classes

TEXTS = ("cat", "dog", "cat", "7up", "n01440764")
SORTED = ("7up", "cat", "dog", "n01440764")


def write_labels(kind, folder, labels):
    """Write rows with a label each, the last rows in a second file where a source has files."""
    folder.mkdir(exist_ok=True)
    rows = [{"key": f"{i}", "jpg": jpeg(i), "label": label} for i, label in enumerate(labels)]
    encoded = [
        {**row, "label": label.encode() if isinstance(label, str) else label}
        for row, label in zip(rows, labels, strict=True)
    ]
    half = len(rows) // 2 + 1
    for number, piece in enumerate((slice(0, half), slice(half, None))):
        if kind == "parquet":
            write_table(folder / f"{number}.parquet", {name: [row[name] for row in rows[piece]] for name in rows[0]})
        elif kind == "img2dataset":
            write_examples(
                folder / f"{number}.tfrecord", [{**row, "key": row["key"].encode()} for row in encoded[piece]]
            )
        elif kind == "webdataset":
            members = [
                (f"{row['key']}.{suffix}", value)
                for row in rows[piece]
                for suffix, value in (("jpg", row["jpg"]), ("label", f"{row['label']}\n".encode()))
            ]
            write_tar(folder / f"{number}.tar", members)
    if kind in ("json", "jsonl", "csv"):
        names = [row.key for row in dumps.write_images(folder, [samples(len(rows))])]
        listed = [{"image": f"images/{name}.jpg", "label": label} for name, label in zip(names, labels, strict=True)]
        if kind == "json":
            (folder / "list.json").write_text(json.dumps(listed))
        elif kind == "jsonl":
            (folder / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in listed))
        else:
            lines = [f"{row['image']},{row['label']}" for row in listed]
            (folder / "list.csv").write_text("\n".join(["image,label", *lines]))
    return "captions" if kind in ("json", "jsonl", "csv") else kind


KINDS = ("parquet", "img2dataset", "webdataset", "json", "jsonl", "csv")


def labels_of(folder):
    return [record.label for record in open_records(folder)]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_numbered_in_sorted_order_and_become_the_class_names(kind, tmp_path):
    source = write_labels(kind, tmp_path / "source", TEXTS)
    options = {"kind": source, "label_column": "label", "records_per_shard": 2}
    manifest = ingest(tmp_path / "source", tmp_path / "out", **options)
    assert manifest.class_names == SORTED
    assert labels_of(tmp_path / "out") == [SORTED.index(text) for text in TEXTS]
    assert (manifest.rows_dropped, manifest.info["labels"]) == ({}, {"lowest": 0, "highest": 3})
    assert ingest(tmp_path / "source", tmp_path / "out", **options) == manifest  # the same command: nothing to do


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_matched_with_the_given_names(kind, tmp_path):
    source = write_labels(kind, tmp_path / "source", TEXTS)
    manifest = ingest(
        tmp_path / "source", tmp_path / "out", kind=source, label_column="label", class_names=("dog", "cat")
    )
    assert labels_of(tmp_path / "out") == [1, 0, 1]
    assert manifest.class_names == ("dog", "cat")
    assert manifest.rows_dropped == {"no class name": 2}
    assert {one["detail"] for one in manifest.info["examples"]["no class name"]} == {"label 7up", "label n01440764"}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_stay_numbers_and_may_be_texts(kind, tmp_path):
    source = write_labels(
        kind, tmp_path / "source", [0, 2, 1, 2] if kind in ("parquet", "img2dataset") else ["0", "2", "1.0", "02"]
    )
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind=source, label_column="label")
    assert labels_of(tmp_path / "out") == [0, 2, 1, 2]
    assert (manifest.class_names, manifest.info["labels"]) == (None, {"lowest": 0, "highest": 2})


def test_numbers_among_texts_are_names_too(tmp_path):
    write_labels("csv", tmp_path / "source", ["cat", "7", "dog", "7"])
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="captions", label_column="label")
    assert (manifest.class_names, labels_of(tmp_path / "out")) == (("7", "cat", "dog"), [1, 0, 2, 0])


def test_the_first_rows_decide_and_a_text_among_numbers_has_no_class(tmp_path, monkeypatch):
    from conversion.records import labels

    monkeypatch.setattr(labels, "_FIRST_ROWS", 2)
    write_labels("csv", tmp_path / "source", ["0", "1", "cat"])
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="captions", label_column="label")
    assert (labels_of(tmp_path / "out"), manifest.rows_dropped) == ([0, 1], {"no class name": 1})


def test_one_text_among_numbers_changes_no_number(tmp_path):
    write_labels("csv", tmp_path / "source", ["10", "2", "cat", "0"])
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="captions", label_column="label")
    assert (labels_of(tmp_path / "out"), manifest.class_names) == ([10, 2, 0], None)
    assert manifest.rows_dropped == {"no class name": 1}


def test_numbers_that_are_class_names_are_matched_with_them(tmp_path):
    write_labels("csv", tmp_path / "source", ["7", "8", "none", "8"])
    options = {"kind": "captions", "label_column": "label", "class_names": ("none", "7", "8")}
    assert ingest(tmp_path / "source", tmp_path / "out", **options).rows_dropped == {}
    assert labels_of(tmp_path / "out") == [1, 2, 0, 2]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_classes_are_those_of_the_chosen_split(kind, tmp_path):
    rows = [("train" if i % 4 else "test", f"train {i}" if i % 4 else f"test {i}") for i in range(16)]
    (tmp_path / "source/images").mkdir(parents=True)
    for i in range(16):
        (tmp_path / f"source/images/{i}.jpg").write_bytes(jpeg(i))
    listed = [{"image": f"images/{i}.jpg", "split": split, "label": label} for i, (split, label) in enumerate(rows)]
    lines = {
        "csv": ["image,split,label", *(",".join(row.values()) for row in listed)],
        "jsonl": list(map(json.dumps, listed)),
        "json": [json.dumps(listed)],
    }
    if kind == "parquet":
        write_table(tmp_path / "source/0.parquet", {name: [row[name] for row in listed] for name in listed[0]})
    else:
        (tmp_path / f"source/list.{kind}").write_text("\n".join(lines[kind]))
    options = {"kind": "parquet" if kind == "parquet" else "captions", "label_column": "label", "split": "test"}
    manifest = ingest(tmp_path / "source", tmp_path / "out", **options)
    assert (manifest.rows_written, manifest.rows_dropped) == (4, {})
    assert manifest.class_names == ("test 0", "test 12", "test 4", "test 8")


def test_texts_are_found_by_several_processes_and_without_images(tmp_path):
    write_labels("csv", tmp_path / "source", TEXTS)
    shutil.rmtree(tmp_path / "source/images")
    options = {"kind": "captions", "label_column": "label", "records_per_shard": 2, "workers": 2}
    manifest = ingest(tmp_path / "source", tmp_path / "out", **options)
    assert (manifest.class_names, manifest.rows_dropped) == (SORTED, {"missing image": 5})


def test_too_many_different_texts_are_no_labels(tmp_path, monkeypatch):
    from conversion.records import labels

    monkeypatch.setattr(labels, "_MOST_CLASSES", 3)
    write_labels("csv", tmp_path / "source", TEXTS)
    with pytest.raises(DataError, match=r"more than 3 different texts as labels; are they captions.*--caption-column"):
        ingest(tmp_path / "source", tmp_path / "out", kind="captions", label_column="label")


def test_two_classes_of_one_name_cannot_be_matched(tmp_path):
    write_labels("csv", tmp_path / "source", TEXTS)
    with pytest.raises(DataError, match=r"the labels are texts, and two classes are named 'cat'"):
        ingest(
            tmp_path / "source",
            tmp_path / "out",
            kind="captions",
            label_column="label",
            class_names=("cat", "dog", "cat"),
        )


def test_a_text_in_cls_names_a_class_next_to_captions(tmp_path):
    members = [
        ("0.jpg", jpeg(0)),
        ("0.txt", b"a"),
        ("0.cls", b"dog\n"),
        ("1.jpg", jpeg(1)),
        ("1.txt", b"b"),
        ("1.cls", b"cat\n"),
    ]
    write_tar(tmp_path / "0.tar", members)
    assert ingest(tmp_path / "0.tar", tmp_path / "out").class_names == ("cat", "dog")
    assert [(record.label, record.captions) for record in open_records(tmp_path / "out")] == [(1, ("a",)), (0, ("b",))]


def write_imagenet(folder, labels, *, name="train-00000-of-00002"):
    rows = [
        {
            "image/encoded": jpeg(i),
            "image/class/label": label,
            "image/filename": b"n%d.JPEG" % label,
            "image/class/text": b"x",
        }
        for i, label in enumerate(labels)
    ]
    write_examples(folder / name, rows)


FLAGS = ("--label-column", "image/class/label")


def test_shards_of_imagenet_are_found_and_count_from_the_first_label(tmp_path, capsys):
    write_imagenet(tmp_path / "source", [1, 3])
    write_imagenet(tmp_path / "source", [2], name="train-00001-of-00002")
    (tmp_path / "names.txt").write_text("tench\ngoldfish\nshark\n")
    named = (*FLAGS, "--class-names", tmp_path / "names.txt")
    assert call("img2dataset", tmp_path / "source", tmp_path / "out", *named, "--first-label", "1") == 0
    assert labels_of(tmp_path / "out") == [0, 2, 1]
    assert [record.key for record in open_records(tmp_path / "out")][:2] == ["n1.JPEG", "n3.JPEG"]
    assert "3 classes: 0 = tench, 1 = goldfish, 2 = shark" in capsys.readouterr().out


def test_labels_from_1_are_refused_before_anything_is_complete_and_the_advice_works(tmp_path, capsys):
    write_imagenet(tmp_path / "source", [1, 3, 2])
    (tmp_path / "names.txt").write_text("tench\ngoldfish\nshark\n")
    command = ("img2dataset", tmp_path / "source", tmp_path / "out", *FLAGS, "--class-names", tmp_path / "names.txt")
    for _ in range(2):
        assert call(*command) == 2
        message = error_of(capsys)
        assert "the labels are 1 to 3, and there are 3 class names, so the source counts from 1" in message
        assert not (tmp_path / "out/manifest.json").exists()
    assert message.endswith("repeat with --first-label 1 --overwrite")
    assert call(*command, "--first-label", "1", "--overwrite") == 0
    assert labels_of(tmp_path / "out") == [0, 2, 1]


@pytest.mark.parametrize(("labels", "dropped"), [([0, 3, 2], 1), ([1, 2], 0), ([1, 4], 1), ([0, 1], 0)])
def test_labels_with_0_or_without_the_one_after_the_last_name_are_no_reason_to_stop(labels, dropped, tmp_path):
    write_labels("csv", tmp_path / "source", list(map(str, labels)))
    manifest = ingest(
        tmp_path / "source", tmp_path / "out", kind="captions", label_column="label", class_names=("a", "b", "c")
    )
    assert manifest.rows_dropped.get("no class name", 0) == dropped


def test_a_label_before_the_first_one_has_no_class(tmp_path):
    write_labels("csv", tmp_path / "source", ["0", "1", "2"])
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="captions", label_column="label", first_label=1)
    assert (labels_of(tmp_path / "out"), manifest.rows_dropped) == ([0, 1], {"no class name": 1})


@pytest.mark.parametrize(
    ("labels", "column", "words"),
    [(["cat", "dog"], "label", "labels are texts"), (["1", "2"], None, "no labels; name them with --label-column")],
)
def test_a_first_label_that_changes_nothing_is_refused(labels, column, words, tmp_path):
    write_labels("csv", tmp_path / "source", labels)
    with pytest.raises(DataError, match=f"--first-label does not apply: .*{words}"):
        ingest(
            tmp_path / "source",
            tmp_path / "out",
            kind="captions",
            label_column=column,
            caption_column="image",
            first_label=1,
        )
    assert not (tmp_path / "out").exists()


def test_a_first_label_is_refused_if_the_source_names_its_classes(tmp_path):
    dumps.write_tfds(tmp_path / "source", [[]])
    with pytest.raises(DataError, match="--first-label does not apply: the source has the names of its classes"):
        ingest(tmp_path / "source", tmp_path / "out", kind="tfds", first_label=1)


def test_labels_without_names_are_shown_with_a_hint(tmp_path, capsys):
    write_labels("csv", tmp_path / "source", ["1", "2"])
    assert call("captions", tmp_path / "source", tmp_path / "out", "--label-column", "label") == 0
    assert (
        "labels: 1 to 2; none is 0: if the source counts from 1, repeat with --first-label 1" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("name", "owned"),
    [("train-00000-of-01024", True), ("a/x-00000-of-00010", True), ("x.tfrecord-00000-of-00010", True),
     ("x.array_record-00000-of-00010", False), ("train-00000-of-00010.parquet", False), ("notes", False)],
)  # fmt: skip
def test_names_of_shards(name, owned):
    from conversion.records.sources.plain_tfrecords import is_tfrecord_name

    assert is_tfrecord_name(name) is owned


def test_classes_without_names_take_any_number():
    assert Classes().has(Classes().number(5))
    assert not Classes().has(Classes().number("cat"))
    assert not Classes(first=1).has(Classes(first=1).number(0))
    assert not Classes(count=2).has(2)
