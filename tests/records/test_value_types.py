"""Columns of the wrong type are refused before anything is written; nothing long is printed or stored as a key."""

import base64
import json

import pytest
from support import dumps
from support.conversions import call, error_of, ingest, keys, write_tar
from support.dumps import jpeg, samples, write_examples, write_table

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.errors import DataError
from conversion.records.rows import Columns, short_key
from conversion.records.sources.columns import choose_column
from conversion.records.sources.value_types import check_types, is_base64

ROWS = {
    "image": [jpeg(i) for i in range(3)],
    "caption": ["a", "b", "c"],
    "width": [24, 24, 24],
    "score": [0.5, 0.25, 0.75],
    "tokens": [[1, 2], [3], [4]],
    "key": ["0", "1", "2"],
}
BASE64 = [base64.b64encode(jpeg(i, width=200, height=200)).decode() for i in range(3)]
WRONG = {
    "parquet": [
        ("image", "width", "'width' holds values of type int64, expected paths of image files, or their bytes; name"),
        ("caption", "width", "'width' holds values of type int64, expected texts; name another with --caption-column"),
        ("caption", "tokens", "type list<.*int64>, expected texts"),
        ("caption", "image", "type binary, expected texts"),
        ("label", "score", "type double, expected class numbers, or short texts"),
        ("label", "image", "type binary, expected class numbers"),
        ("key", "image", "type binary, expected texts or numbers"),
        ("key", "tokens", "expected texts or numbers; name another with --key-column"),
    ],
    "img2dataset": [
        ("image", "width", "'width' holds whole numbers such as 24, expected the bytes of image files"),
        ("caption", "width", "lists of whole numbers such as 24, expected texts"),
        ("caption", "image", r"lists of image files \(.* bytes\), expected texts"),
        ("label", "caption64", "looks like base64"),
        ("image", "caption64", "expected the bytes of image files, or maps with them; it looks like base64"),
        ("key", "image", r"image files \(.* bytes\), expected texts or numbers"),
    ],
    "webdataset": [
        ("caption", "width", "'width' holds whole numbers such as 24, expected texts"),
        ("caption", "tokens", "lists of whole numbers such as 1, expected texts"),
        ("label", "score", "fractions such as 0.5, expected class numbers"),
        ("key", "tokens", "lists of whole numbers such as 1, expected texts or numbers"),
    ],
    "captions": [
        ("image", "width", "'width' holds whole numbers such as 24, expected paths of image files"),
        (
            "image",
            "base64",
            r"'base64' holds texts such as '/9j/.{36}\.\.\.' \(.* characters\).*; it looks like base64",
        ),
        ("caption", "score", "fractions such as 0.5, expected texts"),
        ("caption", "base64", "it looks like base64"),
        ("key", "tokens", "expected texts or numbers"),
    ],
}
CASES = [(kind, *case) for kind, cases in WRONG.items() for case in cases]


def write(kind, folder):
    rows = [dict(zip(ROWS, values, strict=True)) for values in zip(*ROWS.values(), strict=True)]
    if kind == "parquet":
        write_table(folder / "0.parquet", ROWS)
    elif kind == "img2dataset":
        for row, text in zip(rows, BASE64, strict=True):
            row.update(caption64=text.encode(), caption=row["caption"].encode(), key=row["key"].encode())
        write_examples(
            folder / "0.tfrecord", [{k: v for k, v in row.items() if isinstance(v, bytes | int)} for row in rows]
        )
    elif kind == "webdataset":
        for row in rows:
            about = json.dumps({name: value for name, value in row.items() if name != "image"}).encode()
            row["members"] = [(f"{row['key']}.jpg", row["image"]), (f"{row['key']}.json", about)]
        write_tar(folder / "0.tar", [member for row in rows for member in row["members"]])
    else:
        names = [row.key for row in dumps.write_images(folder, [samples(3)])]
        for row, name, text in zip(rows, names, BASE64, strict=True):
            row.update(image=f"images/{name}.jpg", base64=text)
        (folder / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.mark.parametrize(("kind", "use", "column", "words"), CASES)
def test_a_column_of_the_wrong_type_is_refused_at_the_start(kind, use, column, words, tmp_path):
    write(kind, tmp_path / "source")
    with pytest.raises(DataError, match=words) as caught:
        ingest(tmp_path / "source", tmp_path / "out", kind=kind, **{f"{use}_column": column})
    assert len(str(caught.value)) < 600
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", WRONG)
def test_the_usual_columns_of_these_sources_are_right(kind, tmp_path):
    write(kind, tmp_path / "source")
    assert ingest(tmp_path / "source", tmp_path / "out", kind=kind).rows_written == 3


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "parquet"])
def test_images_in_base64_are_called_so_and_not_printed(form, tmp_path, capsys):
    rows = [{"image": text, "caption": "a"} for text in BASE64]
    if form == "parquet":
        write_table(tmp_path / "list.parquet", {"image": BASE64, "caption": ["a"] * 3})
    elif form == "csv":
        (tmp_path / "list.csv").write_text("image,caption\n" + "".join(f"{text},a\n" for text in BASE64))
    else:
        lines = [json.dumps(row) for row in rows]
        (tmp_path / f"list.{form}").write_text(json.dumps(rows) if form == "json" else "\n".join(lines))
    kind = "parquet" if form == "parquet" else "captions"
    assert call(kind, tmp_path / f"list.{form}", tmp_path / "out") == 2
    message = error_of(capsys)
    assert "it looks like base64: decode the images to files or bytes first" in message
    assert len(message) < 600
    assert not (tmp_path / "out").exists()


def test_one_value_of_the_wrong_type_costs_its_own_row(tmp_path):
    dumps.write_images(tmp_path, [samples(2)])
    rows = [
        {"image": "images/000000000.jpg", "caption": "a"},
        {"image": BASE64[0], "caption": "b"},
        {"image": 7, "caption": "c"},
    ]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    manifest = ingest(tmp_path / "list.json", tmp_path / "out", kind="captions")
    assert manifest.rows_dropped == {"missing image": 2}
    assert len((tmp_path / "out/manifest.json").read_text()) < 4000


def test_a_header_that_is_no_header_is_not_printed_in_full(tmp_path, capsys):
    (tmp_path / "list.tsv").write_text(f"17\ta cat\t{BASE64[0]}\n" * 3)
    assert call("captions", tmp_path / "list.tsv", tmp_path / "out") == 2
    message = error_of(capsys)
    assert "no column looks like the image" in message
    assert len(message) < 600
    with pytest.raises(DataError, match=r"it has: c0, c1, .*, c49, and 950 more$"):
        choose_column("x", [f"c{i}" for i in range(1000)], (), what="label", where="here")


def test_a_long_key_is_stored_by_its_beginning_and_a_hash(tmp_path):
    long = ["k" * 400, "k" * 399 + "x", "k" * 300]
    write_table(tmp_path / "0.parquet", {"key": long, "jpg": ROWS["image"], "caption": ["a", "b", "c"]})
    assert ingest(tmp_path / "0.parquet", tmp_path / "out", kind="parquet").rows_written == 3
    found = keys(tmp_path / "out")
    assert found == [short_key(key) for key in long]
    assert len(set(found)) == 3
    assert [len(key) for key in found] == [235, 235, 300]
    assert open_records(tmp_path / "out")[0].key.startswith("k" * 200 + "...")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (BASE64[0], True),
        (BASE64[0].encode(), True),
        (f"data:image/jpeg;base64,{BASE64[0]}", True),
        (base64.encodebytes(jpeg(0)).decode(), True),
        (base64.b64encode(dumps.odd_images()["rgba.png"]).decode(), True),
        (jpeg(0), False),
        ("/9j/short", False),
        ("images/000000000.jpg", False),
        ("a" * 400, False),
        ("A photo of a cat. " * 20, False),
        (7, False),
        (None, False),
    ],
)
def test_base64_of_an_image_is_recognized(value, expected):
    assert is_base64(value) is expected


def test_a_column_is_right_if_one_of_its_values_is_and_missing_ones_do_not_count():
    nan = float("nan")
    check_types([{"a": None}, {"a": nan}, {}], Columns(caption="a"), where="x")
    check_types([{"a": 1}, {"a": "text"}], Columns(caption="a"), where="x")
    check_types([{"a": [None, 1, "text"]}], Columns(caption="a"), where="x")
    check_types([{"a": -1}], Columns(label="a"), where="x")
    check_types([{"a": ""}], Columns(label="a"), where="x")
    with pytest.raises(DataError, match="truth values such as True, expected texts"):
        check_types([{"a": nan}, {"a": True}], Columns(caption="a"), where="x")
    with pytest.raises(DataError, match="maps, expected class numbers"):
        check_types([{"a": {"b": 1}}], Columns(label="a"), where="x")
