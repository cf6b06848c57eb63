"""Conversions with ``--where``: rows selected from each kind of source, the account of the others, and mistakes."""

import json
import re

import pytest
from support import dumps
from support.conversions import call, error_of, ingest, keys, write_tar
from support.dumps import jpeg, samples, write_table

from clipa_eqx.data.array_record_reader import open_records

ABOUT = [
    {"similarity": 0.31, "width": 512, "lang": "en"},
    {"similarity": 0.2, "width": 512, "lang": "en"},
    {"similarity": 0.35, "width": 128, "lang": "de"},
    {"similarity": None, "width": 512, "lang": "en"},
    {"similarity": 0.4, "width": 300, "lang": "fr"},
    {"similarity": 0.5, "width": 300, "lang": "de"},
]


def write_tars(folder):
    rows = zip(samples(6), ABOUT, strict=True)
    parts = [{"jpg": row.image, "json": json.dumps(about).encode(), "txt": b"c"} for row, about in rows]
    write_tar(
        folder / "0.tar", [(f"{i}.{suffix}", data) for i, part in enumerate(parts) for suffix, data in part.items()]
    )


def write_tables(folder):
    columns = {name: [about[name] for about in ABOUT] for name in ABOUT[0]}
    write_table(
        folder / "0.parquet", {"key": list("012345"), "jpg": [jpeg(i) for i in range(6)], "txt": ["c"] * 6, **columns}
    )


def write_csv(folder):
    dumps.write_images(folder, [samples(6)])
    lines = [f"images/{row.key}.jpg,c,{i}" for i, row in enumerate(samples(6))]
    described = [",".join("" if value is None else str(value) for value in about.values()) for about in ABOUT]
    rows = [f"{line},{values}" for line, values in zip(lines, described, strict=True)]
    (folder / "list.csv").write_text("\n".join(["image,caption,key,similarity,width,lang", *rows, ""]))


def write_examples(folder):
    import tensorflow as tf

    def feature(value):
        if isinstance(value, float):
            return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[] if value is None else [value]))

    folder.mkdir()
    with tf.io.TFRecordWriter(str(folder / "0.tfrecord")) as writer:
        for i, about in enumerate(ABOUT):
            values = {**about, "lang": about["lang"].encode(), "key": b"%d" % i, "jpg": jpeg(i), "txt": b"c"}
            features = {name: feature(value) for name, value in values.items()}
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


WRITERS = {
    "webdataset": write_tars,
    "parquet": write_tables,
    "captions": write_csv,
    "img2dataset": write_examples,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_conditions_select_rows_of_each_kind_of_source(kind, tmp_path):
    WRITERS[kind](tmp_path / "source")
    options = {"key_column": "key"} if kind == "captions" else {}
    manifest = ingest(
        tmp_path / "source",
        tmp_path / "out",
        kind=kind,
        where=("similarity > 0.3 and width >= 256", "lang in ['en', 'de']"),
        **options,
    )
    assert keys(tmp_path / "out") == ["0", "5"]
    assert manifest.rows_dropped == {"no value for --where": 1, "not selected by --where": 3}
    details = [one["detail"] for one in manifest.info["examples"]["not selected by --where"]]
    assert re.match(r"similarity > 0\.3 and width >= 256: similarity = '?0\.2", details[0])
    assert details[2] == "lang in ['en', 'de']: lang = 'fr'"
    assert [dict(record.extra) for record in open_records(tmp_path / "out")] == [{}, {}]
    recorded = json.loads((tmp_path / "out/manifest.json").read_text())["info"]["command"]["where"]
    assert recorded == ["similarity > 0.3 and width >= 256", "lang in ['en', 'de']"]


def test_a_later_value_of_another_kind_costs_its_row(tmp_path):
    values = [1, 2, "many", [3], 4]
    rows = [(f"{i}.json", json.dumps({"n": value}).encode()) for i, value in enumerate(values)]
    images = [(f"{i}.jpg", jpeg(i)) for i in range(5)]
    texts = [(f"{i}.txt", b"c") for i in range(5)]
    write_tar(tmp_path / "0.tar", [one for three in zip(images, rows, texts, strict=True) for one in three])
    manifest = ingest(tmp_path / "0.tar", tmp_path / "out", where=("n > 1 or n is None",), keep=("n",))
    assert manifest.rows_dropped == {"no value for --where": 2, "not selected by --where": 1}
    assert [record.extra["n"] for record in open_records(tmp_path / "out")] == [2, 4]
    (first, _) = manifest.info["examples"]["no value for --where"]
    assert first["detail"] == "n > 1 or n is None: n = 'many'; n is of another kind"


def test_more_rows_than_are_evaluated_at_once_stay_in_order(tmp_path):
    count = 200
    image = jpeg(0)
    columns = {"key": [f"{i:03d}" for i in range(count)], "n": list(range(count)), "jpg": [image] * count}
    write_table(tmp_path / "0.parquet", {**columns, "txt": ["c"] * count})
    chosen = {"kind": "parquet", "validate": "header", "where": ("n < 3 or n >= 63",)}
    for limit in (None, 64, 65):
        most = limit or count
        manifest = ingest(tmp_path / "0.parquet", tmp_path / f"{limit}", limit=limit, **chosen)
        expected = [i for i in range(most) if i < 3 or i >= 63]
        assert keys(tmp_path / f"{limit}") == [f"{i:03d}" for i in expected]
        assert manifest.rows_read == most
        dropped = [one["key"] for one in manifest.info["examples"].get("not selected by --where", [])]
        assert dropped == [f"{i:03d}" for i in range(3, 63) if i < most][:10]


def test_filters_come_before_the_checks_of_images(tmp_path):
    bad = b"no image"
    columns = {"key": list("abcd"), "n": [1, 2, 3, None], "jpg": [jpeg(0), bad, bad, bad], "txt": ["c"] * 4}
    write_table(tmp_path / "0.parquet", columns)
    manifest = ingest(tmp_path / "0.parquet", tmp_path / "out", kind="parquet", where=("n < 3",))
    expected = {"no value for --where": 1, "not selected by --where": 1, "undecodable image": 1}
    assert manifest.rows_dropped == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "similarty > 0.3"], r"no column 'similarty' for the condition \(--where\); it has: .*similarity"),
        (
            ["--where", "lang > 0.3"],
            "--where 'lang > 0.3': column 'lang' holds texts such as 'en' in the first rows of",
        ),
        (["--where", "width > 1", "--where", "open('x')"], r"'open\('x'\)' is not allowed"),
    ],
)
def test_a_mistake_is_one_message_and_claims_nothing(arguments, message, tmp_path, capsys):
    write_tables(tmp_path / "source")
    assert call("parquet", tmp_path / "source", tmp_path / "out", *arguments) == 2
    assert re.search(message, shown := error_of(capsys).replace('"', "'")), shown
    assert not (tmp_path / "out").exists()


def test_a_condition_that_nothing_meets_says_so(tmp_path, capsys):
    write_tables(tmp_path / "source")
    assert call("parquet", tmp_path / "source", tmp_path / "out", "--where", "width > 9000") == 1
    shown = capsys.readouterr().out
    assert "rows: 6 read, 0 written, 6 not selected by --where" in shown
    assert "no row was kept: not selected by --where, such as 0 of 0.parquet (width > 9000: width = 512)" in shown


def test_without_pyarrow_the_package_is_named(tmp_path, monkeypatch, capsys):
    from conversion.records import condition_values

    write_tars(tmp_path / "source")
    monkeypatch.setattr(condition_values, "is_installed", lambda package: False)
    assert call("webdataset", tmp_path / "source", tmp_path / "out", "--where", "width > 1") == 2
    assert "evaluated by pyarrow, which is not installed: pip install pyarrow" in error_of(capsys)


def test_other_expressions_are_another_command_and_none_are_the_old_one(tmp_path, capsys):
    write_tables(tmp_path / "source")
    plain = ingest(tmp_path / "source", tmp_path / "plain", kind="parquet")
    assert not {"where", "subset", "subset_column", "subset_sha256"} & plain.info["command"].keys()
    arguments = ["parquet", tmp_path / "source", tmp_path / "out", "--where", "width > 1"]
    assert call(*arguments) == 0
    assert call(*arguments) == 0
    assert call(*arguments, "--where", "width > 2") == 2
    assert "where was ['width > 1'], now ['width > 1', 'width > 2']" in error_of(capsys)
