"""The choice of columns: once, before anything is written. No row takes another one, no later file changes them."""

import json

import pytest
from support import dumps
from support.conversions import captions, ingest, keys, write_tar
from support.dumps import jpeg, samples, write_examples, write_table

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.errors import DataError


def members(number, **others):
    return [(f"{number}.{suffix}", value) for suffix, value in {"jpg": jpeg(number), **others}.items()]


def with_title(number, **others):
    return members(number, json=b'{"title": "of the page"}', **others)


def write_mixed_tars(folder):
    write_tar(folder / "0.tar", [*with_title(0), *with_title(1, txt=b"1"), *with_title(2), *with_title(3, txt=b"3")])


def write_mixed_examples(folder):
    rows = [{"jpg": jpeg(i), "key": b"%d" % i, "title": b"of the page"} for i in range(4)]
    write_examples(folder / "0.tfrecord", [{**row, "txt": row["key"]} if i % 2 else row for i, row in enumerate(rows)])


def write_mixed_lines(folder):
    dumps.write_images(folder, [samples(4)])
    rows = [{"image": f"images/{row.key}.jpg", "title": "of the page"} for row in samples(4)]
    lines = [json.dumps({**row, "txt": str(i)} if i % 2 else row) for i, row in enumerate(rows)]
    (folder / "list.jsonl").write_text("\n".join([*lines, ""]))


@pytest.mark.parametrize(
    ("kind", "write"),
    [("webdataset", write_mixed_tars), ("img2dataset", write_mixed_examples)],
)
def test_a_row_without_the_caption_of_the_others_does_not_take_another(kind, write, tmp_path):
    write(tmp_path / "source")
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind=kind)
    assert captions(tmp_path / "out") == ["1", "3"]
    assert manifest.rows_dropped == {"missing caption": 2}
    assert manifest.info["command"]["columns"]["caption"] == (".txt" if kind == "webdataset" else "txt")
    ingest(tmp_path / "source", tmp_path / "titles", kind=kind, caption_column="title")
    assert captions(tmp_path / "titles") == ["of the page"] * 4


def test_a_list_has_the_caption_that_most_of_its_rows_have(tmp_path):
    write_mixed_lines(tmp_path / "source")
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="captions")
    assert (captions(tmp_path / "out"), manifest.rows_dropped) == (["of the page"] * 4, {})
    ingest(tmp_path / "source", tmp_path / "second", kind="captions", caption_column="txt")
    assert captions(tmp_path / "second") == ["1", "3"]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("row", "stray", "written"),
    [
        ({"file_name": None, "text": "c"}, {"file_name": None, "text": "c", "caption": "stray"}, 4),
        ({"file_name": None, "text": "c", "caption": None}, {"file_name": None, "text": "c"}, 4),
        ({"file_name": None, "caption": "c"}, {"path": None, "caption": "c"}, 3),
    ],
)
def test_one_stray_entry_of_a_list_costs_no_other(suffix, row, stray, written, tmp_path):
    dumps.write_images(tmp_path, [samples(4)])
    names = [f"images/{one.key}.jpg" for one in samples(4)]
    rows = [
        {field: name if field in ("file_name", "path") else value for field, value in one.items()}
        for name, one in zip(names, (row, row, row, stray), strict=True)
    ]
    path = tmp_path / f"list.{suffix}"
    path.write_text(json.dumps(rows) if suffix == "json" else "".join(f"{json.dumps(one)}\n" for one in rows))
    manifest = ingest(path, tmp_path / "out", kind="captions")
    assert (manifest.rows_read, manifest.rows_written) == (4, written)
    assert set(captions(tmp_path / "out")) == {"c"}


def test_a_row_without_a_key_has_its_place_and_no_other_column(tmp_path):
    rows = [{"jpg": jpeg(i), "txt": b"a", "id": b"same", "key": b"%d" % i} for i in range(3)]
    del rows[1]["key"], rows[2]["key"]
    write_examples(tmp_path / "0.tfrecord", rows)
    ingest(tmp_path / "0.tfrecord", tmp_path / "out", kind="img2dataset")
    assert keys(tmp_path / "out") == ["0", "0.tfrecord/00000001", "0.tfrecord/00000002"]


def test_suffixes_of_images_are_one_column_unless_a_sample_has_two(tmp_path):
    png = dumps.odd_images()["rgba.png"]
    write_tar(tmp_path / "a.tar", [*members(0, txt=b"a"), ("1.png", png), ("1.txt", b"b")])
    assert ingest(tmp_path / "a.tar", tmp_path / "a", validate="header").rows_written == 2
    masked = [*members(0, png=png, txt=b"a"), ("1.png", png), ("1.txt", b"b")]
    write_tar(tmp_path / "b.tar", masked)
    assert ingest(tmp_path / "b.tar", tmp_path / "b").rows_dropped == {"missing image": 1}


def test_a_caption_is_looked_for_in_as_many_files_as_it_takes(tmp_path):
    write_tar(tmp_path / "source/0.tar", members(0))
    write_tar(tmp_path / "source/1.tar", members(1, txt=b"a", json=b'{"url": "u"}'))
    manifest = ingest(tmp_path / "source", tmp_path / "out", keep=("url",))
    assert (captions(tmp_path / "out"), manifest.rows_dropped) == (["a"], {"missing caption": 1})


@pytest.mark.parametrize("options", [{"caption_column": "nope"}, {"keep": ("sha265",)}, {}])
def test_a_wrong_column_claims_nothing_however_many_work(options, tmp_path):
    text = {"title" if not options else "txt": b"a"}  # a member `.title` is not a field `title`
    for name, first, count in (("0", 0, 40), ("1", 100, 1)):
        rows = [one for i in range(first, first + count) for one in members(i, **text)]
        write_tar(tmp_path / f"source/{name}.tar", rows)
    with pytest.raises(DataError, match=r"no column (looks like the caption|'nope'|'sha265').*it has: "):
        ingest(tmp_path / "source", tmp_path / "out", workers=2, **options)
    assert not (tmp_path / "out").exists()


def test_later_tables_without_a_column_lose_rows_and_end_nothing(tmp_path):
    images = [jpeg(i) for i in range(4)]
    tables = [
        {"key": ["0"], "jpg": images[:1], "caption": ["a"], "url": ["u"]},
        {"key": ["1"], "jpg": images[1:2], "caption": ["b"]},
        {"key": ["2"], "jpg": images[2:3], "url": ["u"]},
        {"other": [1, 2]},
        {"jpg": images[3:4], "caption": ["d"], "id": ["same"]},
    ]
    for number, columns in enumerate(tables):
        write_table(tmp_path / f"source/{number}.parquet", columns)
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="parquet", keep=("url",))
    assert manifest.rows_dropped == {"missing caption": 1, "missing image": 2}
    records = open_records(tmp_path / "out")
    assert [(one.key, dict(one.extra)) for one in records] == [
        ("0", {"url": "u"}),
        ("1", {}),
        ("4.parquet/00000000", {}),
    ]
    with pytest.raises(DataError, match=r"0\.parquet: no column 'URL'"):
        ingest(tmp_path / "source", tmp_path / "second", kind="parquet", keep=("URL",))
