"""Lists of labels, keys and values: nothing is cut to its first value, and scoring reads what conversion writes."""

import io
import json

import numpy as np
import pytest
from support import dumps
from support.conversions import call, ingest, write_tar
from support.dumps import jpeg, samples, write_table

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.records import Record
from clipa_eqx.errors import DataError
from clipa_eqx.evals.zero_shot import ZeroShotTransform
from conversion.records.diff import diff
from conversion.records.sources.values import as_labels, npy_labels

LABELS = ([1, 0], [2], [], [0, 1, 2])


def npy(values, dtype=np.int64):
    file = io.BytesIO()
    np.save(file, np.array(values, dtype))
    return file.getvalue()


def write_features(path, rows):
    """Write examples whose features are lists of whole numbers or of bytes."""
    import tensorflow as tf

    def feature(value):
        values = value if isinstance(value, list) else [value]
        if all(isinstance(one, bytes) for one in values) and values:
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in rows:
            features = tf.train.Features(feature={name: feature(value) for name, value in row.items()})
            writer.write(tf.train.Example(features=features).SerializeToString())


def write_real(folder):
    """Write TFDS's ``imagenet2012_real``: ``real_label`` is a list, of any length, of every image."""
    rows = [
        {"image": jpeg(i), "file_name": b"val_%d.JPEG" % i, "original_label": 9, "real_label": labels}
        for i, labels in enumerate(LABELS)
    ]
    write_features(folder / "imagenet2012_real-validation.tfrecord-00000-of-00001", rows)
    return "tfds"


def write_parquet(folder):
    write_table(
        folder / "0.parquet", {"jpg": [jpeg(i) for i in range(4)], "real_label": list(LABELS), "key": list("0123")}
    )
    return "parquet"


def write_lists(form):
    def write(folder):
        names = [row.key for row in dumps.write_images(folder, [samples(4)])]
        rows = [
            {"image": f"images/{name}.jpg", "real_label": labels} for name, labels in zip(names, LABELS, strict=True)
        ]
        lines = [json.dumps(row) for row in rows]
        (folder / f"list.{form}").write_text(json.dumps(rows) if form == "json" else "\n".join(lines))
        return "captions"

    return write


def write_tars(folder):
    about = [json.dumps({"real_label": labels}).encode() for labels in LABELS]
    write_tar(folder / "0.tar", [one for i in range(4) for one in ((f"{i}.jpg", jpeg(i)), (f"{i}.json", about[i]))])
    return "webdataset"


WRITERS = {
    "tfds": write_real, "parquet": write_parquet, "json": write_lists("json"), "jsonl": write_lists("jsonl"),
    "webdataset": write_tars,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_all_labels_are_written_in_the_form_that_scoring_reads(name, tmp_path):
    (tmp_path / "source").mkdir()
    kind = WRITERS[name](tmp_path / "source")
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind=kind, label_column="real_label")
    assert (manifest.rows_read, manifest.rows_dropped) == (4, {"missing label": 1})
    assert manifest.info["labels"] == {"lowest": 0, "highest": 2}
    records = list(open_records(tmp_path / "out"))
    assert [(record.label, dict(record.extra)) for record in records] == [
        (1, {"labels": "1,0"}), (2, {}), (0, {"labels": "0,1,2"})
    ]  # fmt: skip
    assert scored(records) == [[1, 0, -1], [2, -1, -1], [0, 1, 2]]


@pytest.mark.parametrize("name", WRITERS)
def test_a_list_that_is_kept_is_json_in_every_source_and_scoring_reads_it(name, tmp_path):
    (tmp_path / "source").mkdir()
    kind = WRITERS[name](tmp_path / "source")
    ingest(tmp_path / "source", tmp_path / "out", kind=kind, label_column="real_label", keep=("real_label",))
    kept = [record.extra["real_label"] for record in open_records(tmp_path / "out")]
    assert kept == ["[1, 0]", 2 if name == "tfds" else "[2]", "[0, 1, 2]"]  # a tf.Example has no scalars
    records = [Record(key="k", image=b"", extra={"labels": text}) for text in kept]
    assert scored(records) == [[1, 0, -1], [2, -1, -1], [0, 1, 2]]


def scored(records):
    transform = ZeroShotTransform(prepare_image=lambda data: np.zeros((1, 1, 3), np.uint8), max_labels=3)
    return [transform(record)["label"].tolist() for record in records]


@pytest.mark.parametrize("text", ["", "[]", "3,", "cat", "[3] 4"])
def test_labels_that_are_none_are_refused_by_scoring(text):
    with pytest.raises(DataError, match=r"extra\['labels'\] must be like '3,17'"):
        scored([Record(key="k", image=b"", extra={"labels": text})])


def test_texts_and_numbers_from_1_in_lists_are_numbered_too(tmp_path):
    texts = [["dog", "cat"], ["owl"], ["cat"], ["owl", "dog"]]
    write_table(tmp_path / "a.parquet", {"jpg": [jpeg(i) for i in range(4)], "label": texts})
    manifest = ingest(tmp_path / "a.parquet", tmp_path / "a", kind="parquet", label_column="label")
    assert manifest.class_names == ("cat", "dog", "owl")
    assert [record.extra.get("labels", record.label) for record in open_records(tmp_path / "a")] == ["1,0", 2, 0, "2,1"]
    write_table(tmp_path / "b.parquet", {"jpg": [jpeg(i) for i in range(4)], "label": [[1, 2], [3], [2], [1, 0]]})
    manifest = ingest(tmp_path / "b.parquet", tmp_path / "b", kind="parquet", label_column="label", first_label=1)
    assert [record.extra.get("labels", record.label) for record in open_records(tmp_path / "b")] == ["0,1", 2, 1]
    assert manifest.rows_dropped == {"no class name": 1}


def test_vectors_of_clip_benchmark_are_the_positions_of_1(tmp_path):
    vectors = [[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    members = [((f"{i}.webp", jpeg(i)), (f"{i}.npy", npy(vector))) for i, vector in enumerate(vectors)]
    write_tar(tmp_path / "0.tar", [one for pair in members for one in pair] + [("3.webp", jpeg(3)), ("3.npy", b"cut")])
    manifest = ingest(tmp_path / "0.tar", tmp_path / "out", label_column="npy")
    assert scored(open_records(tmp_path / "out")) == [[1, 3, -1], [0, -1, -1]]
    assert manifest.rows_dropped == {"missing label": 2}


@pytest.mark.parametrize(
    ("data", "labels"),
    [
        (npy([0, 1, 1]), [1, 2]),
        (npy([1.0, 0.0], np.float32), [0]),
        (npy(7), [7]),
        (npy([5, 2]), [5, 2]),
        (npy([3, -1]), [3]),
        (npy([True, False, True], np.bool_), [0, 2]),
    ],
)
def test_labels_of_a_numpy_file(data, labels):
    assert npy_labels(data) == labels


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 100,
        npy(["cat"], "U3"),
        npy([0, 1])[:-4],
        npy([1, -1, 0]),
        npy([0.5, 1.0, 0.0], np.float32),
        npy([2.5, 3.0], np.float32),
        npy([np.nan, 1.0], np.float32),
    ],
)
def test_a_file_without_labels_has_none(data):
    with pytest.raises((ValueError, EOFError)):
        npy_labels(data)


def test_labels_in_lists_of_any_form():
    assert as_labels([1, "cat", None, -1, [2]]) == (1, "cat", 2)
    assert as_labels([]) == as_labels(None) == as_labels(float("nan")) == ()
    assert as_labels(b"7") == (7,)


def test_a_key_with_several_values_is_no_key(tmp_path):
    rows = [{"jpg": jpeg(0), "txt": b"a", "key": [b"0", b"x"]}, {"jpg": jpeg(1), "txt": [b"b", b"c"], "key": [b"1"]}]
    write_features(tmp_path / "0.tfrecord", rows)
    ingest(tmp_path / "0.tfrecord", tmp_path / "out", kind="img2dataset", keep=("txt", "key"))
    records = list(open_records(tmp_path / "out"))
    assert [record.key for record in records] == ["0.tfrecord/00000000", "1"]
    assert [dict(record.extra) for record in records] == [
        {"txt": "a", "key": '["0", "x"]'}, {"txt": '["b", "c"]', "key": "1"}
    ]  # fmt: skip


def test_diff_looks_at_extra_in_any_order(tmp_path, capsys):
    (tmp_path / "source").mkdir()
    dumps.write_tars(tmp_path / "source", [samples(3)])
    ingest(tmp_path / "source", tmp_path / "a", keep=("url", "width"))
    ingest(tmp_path / "source", tmp_path / "b", keep=("width", "url"))
    ingest(tmp_path / "source", tmp_path / "c", keep=("url",))
    assert call("diff", tmp_path / "a", tmp_path / "b") == 0
    found = diff(str(tmp_path / "a"), str(tmp_path / "c"))
    assert (found.shared, found.changed, found.changed_extra, found.is_same) == (3, 0, 3, False)
    capsys.readouterr()
    assert call("diff", tmp_path / "a", tmp_path / "c") == 1
    shown = capsys.readouterr().out
    assert (
        "3 keys in both, 0 of them with other content\n3 keys with equal content and other values in `extra`" in shown
    )
    assert "  000000000 (shard-000000-000.array_record, record 0)" in shown


@pytest.mark.parametrize(
    ("text", "labels"), [("3,17", (3, 17)), ("[3, 17]", (3, 17)), ("[5]", (5,)), ("[]", ()), ("3, cat", ("3, cat",))]
)
def test_a_text_of_several_numbers_is_several_labels(text, labels):
    assert as_labels(text) == as_labels(text.encode()) == labels
