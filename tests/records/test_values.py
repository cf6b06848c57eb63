"""Values and columns of sources: JSON of any depth, names that are chosen by use, and files that are only counted."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa_eqx.data.records import Record, decode_record, encode_record
from clipa_eqx.errors import DataError
from conversion.records.listing import FoundFile
from conversion.records.options import IngestOptions
from conversion.records.rows import Columns, printable
from conversion.records.sources.columns import check_values, choose_column, choose_listed, count_names, is_image_name
from conversion.records.sources.planning import digest_of, ignored_files, named_columns, suffix_of
from conversion.records.sources.values import as_extra, as_label, from_json, kept_values

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON)
def test_json_is_read_from_text_and_bytes_of_any_encoding(value):
    text = json.dumps(value)
    assert from_json(text) == value
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert from_json(text.encode(encoding)) == value


@settings(deadline=None)
@given(JSON)
def test_every_value_has_a_plain_form_that_a_record_can_hold(value):
    record = Record(key="k", image=b"", extra={"value": as_extra(value)})
    assert decode_record(encode_record(record), where="here") == record
    if isinstance(value, list | dict):
        assert json.loads(str(record.extra["value"])) == value


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a": ', "}"), ('[{"a": ', "}]")])
def test_json_of_more_than_64_levels_is_refused_and_of_fewer_is_read(opening, closing):
    levels = opening.count("[") + opening.count("{")
    most = 64 // levels
    assert from_json(opening * most + "1" + closing * most) is not None
    with pytest.raises(ValueError, match="nested too deeply"):
        from_json(opening * (most + 1) + "1" + closing * (most + 1))


def test_many_lists_next_to_each_other_are_not_deep():
    assert from_json(json.dumps([[i] for i in range(200)])) == [[i] for i in range(200)]
    assert from_json(json.dumps("[" * 500)) == "[" * 500


def test_a_byte_that_is_not_utf8_spoils_only_its_own_text():
    found = from_json(b'{"a": "caf\xe9", "b": "caf\xc3\xa9"}')
    assert found == {"a": "caf\udce9", "b": "café"}


@pytest.mark.parametrize(
    "value",
    [
        2**31,
        "2147483648",
        -1,
        "-1",
        True + 2**31,
        "",
        " ",
        "1.5",
        "1" * 5000,
        "x" * 201,
        float("nan"),
        float("inf"),
        [1],
    ],
)
def test_numbers_that_are_no_class_are_no_label(value):
    assert as_label(value) is None


@settings(deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_a_class_number_is_one_in_any_form(number):
    assert {
        as_label(form) for form in (number, str(number), f" {number}\n".encode(), float(number), f"{number}.0")
    } == {number}


@pytest.mark.parametrize("text", ["cat", "n01440764", "nan", "1e3", "3 cats", "0x1", "-", "x" * 200])
def test_a_text_that_is_no_number_may_name_a_class(text):
    assert as_label(text) == as_label(f" {text}\n".encode()) == text


def test_only_columns_that_a_row_has_are_kept():
    assert kept_values({"a": 1, "b": [2]}, ("b", "nonsuch")) == {"b": "[2]"}


def choose(asked, names, **options):
    return choose_column(asked, names, ("txt", "caption"), what="caption", where="a.tar", **options)


def test_the_column_asked_for_wins_then_the_usual_names_in_their_order():
    assert choose("other", ["caption", "txt", "other"]) == "other"
    assert choose(None, ["caption", "other", "txt"]) == "txt"
    assert choose(None, ["other", "caption"]) == "caption"
    assert choose(None, ["other"]) is None


@pytest.mark.parametrize(
    ("asked", "options", "words"),
    [
        ("no", {}, r"a.tar: no column 'no' for the caption \(--caption-column\); it has: x, y"),
        ("no", {"flag": "--keep"}, r"\(--keep\)"),
        (None, {"needed": True}, r"looks like the caption; name it with --caption-column, or give --label-column if"),
    ],
)
def test_a_column_that_is_not_there_is_refused_with_those_that_are(asked, options, words):
    with pytest.raises(DataError, match=words):
        choose(asked, ["x", "y"], **options)


def listed(entries, captions=None, **options):
    return choose_listed(entries, captions, options=IngestOptions(**options), where="list.json")


def test_a_list_takes_the_usual_column_that_most_entries_fill():
    assert listed({"path": 1, "file_name": 5, "caption": 2, "text": 9}) == Columns(path="file_name", caption="text")
    assert listed({"file": 3, "image": 3, "title": 1}).path == "file"  # the order of the names decides among equals
    assert listed({"file": 3}, {"caption": 1, "title": 4}).caption == "title"


def test_karpathys_folder_and_name_are_joined_by_the_name():
    assert listed({"filename": 1, "filepath": 9, "sentences": 1}) == Columns(path="filename", caption="sentences")


def test_a_list_needs_images_and_captions_unless_it_has_labels():
    assert listed({"path": 1, "class": 1}, label_column="class") == Columns(path="path", label="class")
    with pytest.raises(DataError, match="no column looks like the caption"):
        listed({"path": 1, "class": 1})
    with pytest.raises(DataError, match="no column looks like the image"):
        listed({"caption": 1})


def test_names_are_counted_by_the_values_under_them():
    assert count_names([{"a": 1, "b": None}, {"a": None}, {"c": 0}]) == {"a": 1, "b": 0, "c": 1}


def test_every_column_to_keep_or_of_a_condition_must_exist():
    check_values(["a", "b"], options=IngestOptions(keep=("b",), where=("a > 1",)), where="here")
    with pytest.raises(DataError, match=r"no column 'c' for the extra \(--keep\)"):
        check_values(["a", "b"], options=IngestOptions(keep=("b", "c")), where="here")
    with pytest.raises(DataError, match=r"no column 'c' for the condition \(--where\)"):
        check_values(["a", "b"], options=IngestOptions(where=("b > c",)), where="here")


@pytest.mark.parametrize(
    ("name", "expected"), [("a.JPG", True), ("x/a.b.webp", True), ("a.jpg.txt", False), ("jpg", False)]
)
def test_images_are_known_by_their_suffix(name, expected):
    assert is_image_name(name) == expected


@pytest.mark.parametrize(
    ("name", "suffix"), [("a/b.TAR", ".tar"), ("a.d/b", ""), ("b.tar.gz", ".gz"), (".hidden", ".hidden")]
)
def test_the_suffix_of_a_file_is_that_of_its_name(name, suffix):
    assert suffix_of(name) == suffix


def test_files_that_are_not_read_are_counted_by_suffix_without_sidecars():
    names = ["a.txt", "b.TXT", "c", "0.parquet", "0_stats.json", "x.json", "d.\udcff"]
    found = ignored_files(FoundFile(name, name, 1) for name in names)
    assert found == {"ignored_files": {"": 1, ".json": 1, ".txt": 2, ".\\udcff": 1}}
    assert ignored_files([FoundFile("0.parquet", "0.parquet", 1)]) == {}


def test_a_digest_knows_names_sizes_and_their_order():
    a, b = FoundFile("/x/a", "a", 1), FoundFile("/x/b", "b", 1)
    digests = {
        digest_of(one) for one in ([], [a], [a, b], [b, a], [a._replace(size=2)], [a._replace(name="a1", size=1)])
    }
    assert len(digests) == 6
    assert digest_of([a._replace(path="/elsewhere/a")]) == digest_of([a])


def test_chosen_columns_are_named_by_use_and_printable():
    assert named_columns(Columns(image="jpg", caption="caf\udce9")) == {"image": "jpg", "caption": "caf\\udce9"}
    assert printable("größe \udcff") == "größe \\udcff"
