"""Several caption columns: the captions of all, in the order of the columns; what is empty or missing is counted."""

import csv
import json

import pytest
from support import dumps
from support.conversions import call, content, error_of, write_tar
from support.dumps import jpeg, samples, write_examples, write_table

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.manifest import read_manifest

# Of the second row `short` is empty, of the third it is missing.
ROWS = [
    {"txt": "a", "short": "b", "long": "c"},
    {"txt": "d", "short": "", "long": "f"},
    {"txt": "g", "long": "i"},
]
EXPECTED = {
    ("long", "txt", "short"): [("c", "a", "b"), ("f", "d"), ("i", "g")],
    ("short", "long"): [("b", "c"), ("f",), ("i",)],
}
COLUMNS = ("txt", "short", "long")


def write_webdataset(folder):
    for i, row in enumerate(ROWS):
        fields = json.dumps({name: row[name] for name in ("short", "long") if name in row}).encode()
        members = [(f"{i}.jpg", jpeg(i)), (f"{i}.txt", row["txt"].encode()), (f"{i}.json", fields)]
        write_tar(folder / f"{i}.tar", members)


def write_pairs(folder):
    folder.mkdir()
    for i, row in enumerate(ROWS):
        (folder / f"{i}.jpg").write_bytes(jpeg(i))
        (folder / f"{i}.json").write_text(json.dumps(row))


def write_parquet(folder):
    write_table(
        folder / "0.parquet",
        {"jpg": [jpeg(i) for i in range(3)], **{name: [row.get(name) for row in ROWS] for name in COLUMNS}},
    )


def write_img2dataset(folder):
    texts = [{name: text.encode() for name, text in row.items()} for row in ROWS]
    write_examples(folder / "0.tfrecord", [{"jpg": jpeg(i), **row} for i, row in enumerate(texts)])


def listed(folder):
    names = [row.key for row in dumps.write_images(folder, [samples(3)])]
    return [{"image": f"images/{name}.jpg", **row} for name, row in zip(names, ROWS, strict=True)]


def write_json(folder):
    (folder / "list.json").write_text(json.dumps(listed(folder)))


def write_jsonl(folder):
    (folder / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in listed(folder)))


def write_csv(folder):
    rows = listed(folder)
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", *COLUMNS], restval="")
        writer.writeheader()
        writer.writerows(rows)


def write_coco(folder):
    rows = listed(folder)
    images = [{"id": i, "file_name": row["image"]} for i, row in enumerate(rows)]
    notes = [{"image_id": i, **row} for i, row in enumerate(ROWS)]
    (folder / "coco.json").write_text(json.dumps({"images": images, "annotations": notes}))


FORMS = {
    "webdataset": ("webdataset", write_webdataset),
    "pairs": ("pairs", write_pairs),
    "parquet": ("parquet", write_parquet),
    "img2dataset": ("img2dataset", write_img2dataset),
    "json": ("captions", write_json),
    "jsonl": ("captions", write_jsonl),
    "csv": ("captions", write_csv),
    "coco": ("captions", write_coco),
}


def flags(columns):
    return [word for name in columns for word in ("--caption-column", name)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("columns", EXPECTED)
def test_a_record_has_the_captions_of_all_columns_in_order(columns, form, tmp_path):
    kind, write = FORMS[form]
    columns = columns if form != "pairs" else tuple(name for name in columns)
    write(tmp_path / "source")
    command = [kind, tmp_path / "source", tmp_path / "out", *flags(columns)]
    assert call(*command) == 0
    assert sorted(record.captions for record in open_records(tmp_path / "out")) == sorted(EXPECTED[columns])
    info = read_manifest(tmp_path / "out").info
    lost = {"empty caption": 2} if form == "csv" else {"empty caption": 1, "missing caption": 1}
    assert info["captions_dropped"] == lost
    assert info["command"]["caption_column"] == list(columns)
    member = "." if form == "webdataset" else ""
    assert info["command"]["columns"]["caption"] == [f"{member}txt" if name == "txt" else name for name in columns]
    before = content(tmp_path / "out")
    assert call(*command) == 0  # finished: nothing to do
    assert content(tmp_path / "out") == before
    assert call(*command[:3], *flags(columns[::-1])) == 2


def test_one_column_is_recorded_as_it_always_was(tmp_path):
    write_csv(tmp_path / "source")
    assert call("captions", tmp_path / "source", tmp_path / "out", "--caption-column", "long") == 0
    command = read_manifest(tmp_path / "out").info["command"]
    assert (command["caption_column"], command["columns"]["caption"]) == ("long", "long")


@pytest.mark.parametrize("form", FORMS)
def test_a_column_that_does_not_exist_is_named(form, tmp_path, capsys):
    kind, write = FORMS[form]
    write(tmp_path / "source")
    assert call(kind, tmp_path / "source", tmp_path / "out", *flags(["txt", "nope"])) == 2
    assert "no column 'nope' for the caption (--caption-column); it has: " in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_a_column_named_twice_is_a_mistake(tmp_path, capsys):
    write_csv(tmp_path / "source")
    assert call("captions", tmp_path / "source", tmp_path / "out", *flags(["txt", "short", "txt"])) == 2
    assert "--caption-column names a column twice: txt, short, txt" in error_of(capsys)


def test_two_columns_after_one_flag_get_a_hint(tmp_path, capsys):
    write_csv(tmp_path / "source")
    assert call("captions", tmp_path / "source", tmp_path / "out", "--caption-column", "txt", "short") == 2
    assert "--caption-column and --where may be repeated, with one value each time" in error_of(capsys)
    assert call("captions", "--caption-column", "txt", tmp_path / "source", tmp_path / "out") == 0


def test_columns_to_keep_may_be_given_in_several_flags(tmp_path):
    write_csv(tmp_path / "source")
    columns = ("--keep", "txt", "--keep", "short", "image")
    assert call("captions", tmp_path / "source", tmp_path / "out", "--caption-column", "long", *columns) == 0
    assert read_manifest(tmp_path / "out").info["command"]["keep"] == ["txt", "short", "image"]
    assert dict(open_records(tmp_path / "out")[0].extra) == {"txt": "a", "short": "b", "image": "images/000000000.jpg"}


@pytest.mark.parametrize(
    "repeated",
    [
        ("--limit", "1", "--limit", "2"),
        ("--limit=1", "--limit=1"),
        ("--key-column", "a", "--key-column", "b"),
        ("--overwrite", "--overwrite"),
    ],
)
def test_any_other_flag_is_given_once(repeated, tmp_path, capsys):
    write_csv(tmp_path / "source")
    assert call("captions", tmp_path / "source", tmp_path / "out", *repeated) == 2
    flag = repeated[0].partition("=")[0]
    assert error_of(capsys) == f"error: {flag} is given twice; give it once; --help lists the arguments"
    assert not (tmp_path / "out").exists()
