"""Manifests: any closed account round-trips to the same bytes, and every malformed field is refused by name."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa_eqx.data.manifest import Manifest, manifest_from_json, manifest_to_json, read_manifest
from clipa_eqx.data.shards import ShardInfo
from clipa_eqx.errors import DataError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
COUNTS = st.integers(0, 2**40)
NAMES = st.lists(st.text("abc-.", min_size=1, max_size=4).filter(lambda name: name.strip(".")), max_size=4, unique=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def manifests(draw):
    shards = tuple(
        ShardInfo(name=name, count=draw(COUNTS), bytes=draw(COUNTS), sha256=f"{draw(COUNTS):064x}")
        for name in draw(NAMES)
    )
    dropped = draw(st.dictionaries(TEXTS, COUNTS, max_size=3))
    written = sum(shard.count for shard in shards)
    return Manifest(
        shards=shards,
        rows_read=written + sum(dropped.values()),
        rows_written=written,
        rows_dropped=dropped,
        class_names=draw(st.none() | st.lists(TEXTS, max_size=3).map(tuple)),
        info=draw(st.dictionaries(TEXTS, JSON, max_size=3)),
    )


@settings(deadline=None)
@given(manifests())
def test_a_manifest_survives_its_file(manifest):
    data = manifest_to_json(manifest)
    found = manifest_from_json(data, where="here")
    assert found == manifest
    assert manifest_to_json(found) == data


GOOD = {
    "version": 1,
    "shards": [{"name": "a", "count": 3, "bytes": 50, "sha256": "00"}],
    "rows_read": 4,
    "rows_written": 3,
    "rows_dropped": {"too small": 1},
    "class_names": ["cat", "dog"],
    "info": {"source": "test"},
}


def change(content, path, value):
    """A copy of the content with another value at a path of keys and places."""
    content = json.loads(json.dumps(content))
    *outer, last = path
    inner = content
    for key in outer:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return content


def test_the_content_that_the_cases_change_is_valid():
    assert manifest_from_json(json.dumps(GOOD).encode(), where="here").rows_read == 4


@pytest.mark.parametrize("path", [(name,) for name in GOOD] + [("shards", 0, name) for name in GOOD["shards"][0]])
def test_each_field_is_needed(path):
    with pytest.raises(DataError, match=r"version None|fields missing or unknown|a shard needs") as caught:
        manifest_from_json(json.dumps(change(GOOD, path, ...)).encode(), where="there")
    assert str(caught.value).startswith("there")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), "1", "manifest version '1'"),
        (("shards",), {}, "shards must be a list"),
        (("shards", 0), "a", "shard must be a map"),
        (("shards", 0, "name"), 3, "shard name must be a text"),
        (("shards", 0, "name"), "", "shard name '' must be a file name"),
        (("shards", 0, "name"), ".", "must be a file name inside the folder"),
        (("shards", 0, "name"), "..", "must be a file name inside the folder"),
        (("shards", 0, "name"), "/etc/a", "must be a file name inside the folder"),
        (("shards", 0, "name"), "b/a", "must be a file name inside the folder"),
        (("shards", 0, "count"), 3.0, "count of a must be a whole number, got 3.0"),
        (("shards", 0, "count"), True, "count of a must be a whole number, got True"),
        (("shards", 0, "count"), -3, "must not be negative"),
        (("shards", 0, "bytes"), "50", "bytes of a must be a whole number"),
        (("shards", 0, "sha256"), None, "sha256 of a must be a text"),
        (("shards", 0, "extra"), 1, "a shard needs name, count, bytes, sha256"),
        (("rows_read",), None, "rows_read must be a whole number"),
        (("rows_written",), 3.0, "rows_written must be a whole number"),
        (("rows_dropped",), [], "rows_dropped must be a map"),
        (("rows_dropped", "too small"), "1", r"rows_dropped\['too small'\] must be a whole number"),
        (("class_names", 1), 7, "class_names must be a text, got 7"),
        (("class_names",), "cat", "class_names must be a list"),
        (("info",), None, "info must be a map"),
    ],
)
def test_a_malformed_field_is_named_with_its_value(path, value, message):
    with pytest.raises(DataError, match=message) as caught:
        manifest_from_json(json.dumps(change(GOOD, path, value)).encode(), where="there")
    assert str(caught.value).startswith("there")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b'{"version": 1} more', b"[1]", b"null", b"1"])
def test_a_text_that_is_no_manifest_is_refused_with_its_place(text):
    with pytest.raises(DataError, match=r"^there"):
        manifest_from_json(text, where="there")


def test_a_folder_and_a_file_in_its_place_are_distinct_mistakes(tmp_path):
    with pytest.raises(DataError, match=r"has no manifest.*`.*conversion.records SOURCE .* DST` converts images"):
        read_manifest(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="does not exist"):
        read_manifest(tmp_path / "file")
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(DataError, match="has no manifest"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("info", [{"a": float("nan")}, {"a": float("inf")}, {"a": b"bytes"}, {"a": "\ud800"}])
def test_info_that_a_file_cannot_hold_is_refused(info):
    with pytest.raises(DataError, match="info must be plain JSON"):
        manifest_to_json(Manifest(shards=(), rows_read=0, rows_written=0, info=info))
