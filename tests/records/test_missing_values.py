"""NaN, by which pandas writes a missing value, is none in every source; texts that read like it are texts."""

import json

import pytest
from support import dumps
from support.conversions import captions, ingest, keys, write_tar
from support.dumps import jpeg, samples, write_table

from clipa_eqx.data.array_record_reader import open_records
from conversion.records.sources.values import as_captions, as_extra, as_key, as_label, is_missing

NAN = float("nan")
TEXTS = ("nan", "NaN", "None", "NA", "null", "N/A")


@pytest.mark.parametrize("value", [NAN, None])
def test_a_missing_value_has_no_form(value):
    assert is_missing(value)
    assert as_captions(value) == (None,)
    assert as_captions(["a", value]) == ("a", None)
    assert as_captions([{"raw": value}]) == (None,)
    assert as_key(value) is None
    assert as_label(value) is None
    assert as_extra(value) is None
    assert as_extra([1.5, value, {"a": [value]}]) == '[1.5, null, {"a": [null]}]'


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_a_text(text):
    assert not is_missing(text)
    assert as_captions(text) == (text,)
    assert as_captions([text.encode()]) == (text.encode(),)
    assert as_key(text) == text
    assert as_extra(text) == text


@pytest.mark.parametrize(
    ("value", "key"), [("", None), (b"", None), (0, "0"), (7, "7"), (b"caf\xe9", b"caf\xe9"), (1.5, "1.5")]
)
def test_a_key_is_a_text_or_bytes_and_never_empty(value, key):
    assert as_key(value) == key


def write_rows(form, folder, rows):
    """Write rows of ``caption``, ``id`` and ``score``, each with an image."""
    names = [row.key for row in dumps.write_images(folder, [samples(len(rows))])]
    listed = [{"image": f"images/{name}.jpg", **row} for name, row in zip(names, rows, strict=True)]
    if form == "json":
        (folder / "list.json").write_text(json.dumps(listed))
    elif form == "jsonl":
        (folder / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in listed))
    elif form == "tar":
        members = [((f"{i}.jpg", jpeg(i)), (f"{i}.json", json.dumps(row).encode())) for i, row in enumerate(rows)]
        write_tar(folder / "0.tar", [member for pair in members for member in pair])


KINDS = {"json": "captions", "jsonl": "captions", "tar": "webdataset"}


@pytest.mark.parametrize("form", KINDS)
def test_nan_in_json_is_a_missing_caption_key_and_value(form, tmp_path):
    rows = [{"caption": text, "id": i, "score": 0.5} for i, text in enumerate(TEXTS)]
    rows += [{"caption": NAN, "id": 90, "score": 1.0}, {"caption": ["a", NAN], "id": NAN, "score": NAN}]
    write_rows(form, tmp_path / "source", rows)
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind=KINDS[form], key_column="id", keep=("score",))
    assert manifest.rows_dropped == {"missing caption": 1}
    assert manifest.info["captions_dropped"] == {"missing caption": 1}
    assert captions(tmp_path / "out") == [*TEXTS, "a"]
    position = {"tar": "7"}.get(form, "images/000000007.jpg")
    assert keys(tmp_path / "out") == ["0", "1", "2", "3", "4", "5", position]
    assert open_records(tmp_path / "out")[6].extra == {"score": None}


def test_nan_in_a_table_is_a_missing_caption_and_key(tmp_path):
    import pyarrow as pa

    def column(*values):
        return pa.array(values, pa.float64(), from_pandas=False)

    images = [jpeg(i) for i in range(3)]
    texts = pa.array([["nan"], ["b"], ["c"]])
    write_table(tmp_path / "a.parquet", {"jpg": images, "key": column(1.0, NAN, NAN), "caption": texts})
    ingest(tmp_path / "a.parquet", tmp_path / "a", kind="parquet", keep=("key",))
    assert keys(tmp_path / "a") == ["1.0", "a.parquet/00000001", "a.parquet/00000002"]
    assert captions(tmp_path / "a") == ["nan", "b", "c"]
    assert open_records(tmp_path / "a")[1].extra == {"key": None}
    mixed = pa.array([[{"caption": "a"}, {"caption": None}], [{"caption": None}], None])
    write_table(tmp_path / "b.parquet", {"jpg": images, "caption": mixed})
    manifest = ingest(tmp_path / "b.parquet", tmp_path / "b", kind="parquet")
    assert manifest.rows_dropped == {"missing caption": 2}


def test_a_column_of_nan_is_not_taken_for_the_caption(tmp_path):
    rows = [{"caption": NAN, "text": f"{i}"} for i in range(3)]
    write_rows("jsonl", tmp_path / "source", rows)
    ingest(tmp_path / "source", tmp_path / "out", kind="captions")
    assert captions(tmp_path / "out") == ["0", "1", "2"]


def test_an_entry_whose_path_or_split_is_nan_is_one_row_without_an_image(tmp_path):
    dumps.write_images(tmp_path, [samples(1)])
    rows = [{"image": "images/000000000.jpg", "caption": "a", "split": "train"}]
    rows += [{"image": NAN, "caption": "b", "split": "train"}, {"image": NAN, "caption": "c", "split": NAN}]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    manifest = ingest(tmp_path / "list.json", tmp_path / "out", kind="captions")
    assert (manifest.rows_read, manifest.rows_dropped) == (3, {"missing image": 2})
    manifest = ingest(tmp_path / "list.json", tmp_path / "split", kind="captions", split="train")
    assert (manifest.rows_read, manifest.rows_dropped) == (2, {"missing image": 1})
