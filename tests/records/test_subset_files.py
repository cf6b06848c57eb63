"""Files of ids: each form gives the ids of the same rows, however a source writes them; mistakes have one message."""

import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.conversions import call, error_of, write_tar
from support.dumps import jpeg, write_table

from clipa_eqx.errors import DataError
from conversion.records import sorted_ids
from conversion.records.ids import id_of, ids_of_numbers, mixed, text_id, unpack_ids
from conversion.records.options import IngestOptions
from conversion.records.rows import short_key
from conversion.records.sorted_ids import SortedIds, write_sorted
from conversion.records.subset import with_usual_column
from conversion.records.subset_file import hash_subset, open_subset

UIDS = ["00112233445566778899aabbccddeeff", "ffffffffffffffffffffffffffffffff", "00000000000000000000000000000001"]
RAW = [bytes.fromhex(uid) for uid in UIDS]
PAIRS = np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in UIDS], np.dtype("u8,u8"))
NUMBERS = [0, 12, 2**63 - 1]
TEXTS = ["a", "photo of a cat", "\N{SNOWMAN}"]


def column(values, kind):
    import pyarrow as pa

    return pa.array(values, kind(pa))


def write(path, content):
    if isinstance(content, np.ndarray):
        np.save(path.with_suffix(".npy"), content)
        return path.with_suffix(".npy")
    write_table(path.with_suffix(".parquet"), content() if callable(content) else content)
    return path.with_suffix(".parquet")


def ids_in(path, asked=None):
    with open_subset(str(path), column=asked) as file:
        chunks = list(file.chunks())
        return file, [one.astype(">u8").tobytes() for chunk in chunks for one in chunk.ids]


# Content of a file, the form it has, the values of a source that are the same ids, and the source's usual column.
FORMS = {
    "pairs": (PAIRS, "uids", UIDS, None),
    "big-endian pairs": (PAIRS.astype(">u8,>u8"), "uids", [uid.upper() for uid in UIDS], None),
    "pairs with names": (PAIRS.astype([("high", "u8"), ("low", "u8")]), "uids", RAW, None),
    "texts of uids": (np.array(UIDS), "texts", [uid.upper() for uid in UIDS], None),
    "bytes of uids": (np.array([uid.encode() for uid in UIDS]), "texts", UIDS, None),
    "numbers": (np.array(NUMBERS), "numbers", NUMBERS, None),
    "small numbers": (np.array([-1, 5], "i1"), "numbers", [-1, "5"], None),
    "unsigned numbers": (np.array([2**64 - 1, 7], ">u8"), "numbers", [2**64 - 1, 7.0], None),
    "padded digits": (np.array([12, 0]), "numbers", ["000000012", "+0"], None),
    "texts": (np.array(TEXTS), "texts", TEXTS, None),
    "texts of digits": (np.array(["12", "-3"]), "texts", [12, -3.0], None),
    "bytes": (np.array([text.encode() for text in TEXTS]), "texts", TEXTS, None),
    "a table of uids": ({"key": ["x"] * 3, "uid": UIDS}, "texts", UIDS, "uid"),
    "a table of keys": ({"key": TEXTS, "other": NUMBERS}, "texts", TEXTS, "key"),
    "a table of one column": ({"mine": NUMBERS}, "numbers", NUMBERS, "mine"),
    "16 bytes": (lambda: {"uid": column(RAW, lambda pa: pa.binary(16))}, "uids", UIDS, "uid"),
    "any bytes": (lambda: {"uid": column(RAW, lambda pa: pa.large_binary())}, "uids", UIDS, "uid"),
    "large texts": (lambda: {"uid": column(TEXTS, lambda pa: pa.large_string())}, "texts", TEXTS, "uid"),
    "a dictionary": (
        lambda: {"uid": column(TEXTS, lambda pa: pa.string()).dictionary_encode()},
        "texts",
        TEXTS,
        "uid",
    ),
    "small unsigned numbers": (lambda: {"uid": column([1, 2], lambda pa: pa.uint8())}, "numbers", [1, 2], "uid"),
}


@pytest.mark.parametrize("name", FORMS)
def test_each_form_of_file_holds_the_ids_that_a_source_writes_in_its_own_form(name, tmp_path):
    content, form, values, usual = FORMS[name]
    file, ids = ids_in(write(tmp_path / "ids", content))
    assert ids == [id_of(value, form) for value in values]
    assert (file.form, file.rows) == (form, len(values))
    options = with_usual_column(IngestOptions(subset="x"), file)
    is_pairs = isinstance(content, np.ndarray) and form == "uids"
    assert (options.subset_column, options.usual_subset_column) == ("uid" if is_pairs else None, usual)


def test_a_table_is_read_by_the_column_of_the_source_if_it_has_it(tmp_path):
    path = write(tmp_path / "ids", {"uid": UIDS, "number": NUMBERS})
    assert ids_in(path, "number")[0].column == "number"
    assert ids_in(path, "other")[0].column == "uid"


def test_a_table_of_several_row_groups_is_read_in_order(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from conversion.records import id_tables

    monkeypatch.setattr(id_tables, "_ROWS_AT_ONCE", 7)
    pq.write_table(pa.table({"uid": list(range(100))}), tmp_path / "ids.parquet", row_group_size=11)
    assert ids_in(tmp_path / "ids.parquet")[1] == [id_of(number, "numbers") for number in range(100)]


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (None, "uids"),
        (12, "uids"),
        (UIDS[0][:-1], "uids"),
        (UIDS[0][:-1] + "g", "uids"),
        (" " * 2 + UIDS[0][2:], "uids"),
        (b"\xff" * 15, "uids"),
        (True, "numbers"),
        (0.5, "numbers"),
        (2.0**60, "numbers"),
        ("12.0", "numbers"),
        ("", "numbers"),
        ("\N{ARABIC-INDIC DIGIT ONE}", "numbers"),
        (None, "texts"),
        ("", "texts"),
        (0.5, "texts"),
        (False, "texts"),
        (b"\xff", "texts"),
        ("\udcff", "texts"),
    ],
)
def test_a_value_that_is_no_id_of_the_form_has_none(value, form):
    assert id_of(value, form) is None


def test_ids_are_equal_only_as_documented():
    texts = [
        "a",
        "A",
        "a ",
        "12",
        "012",
        "+12",
        UIDS[0],
        UIDS[0][:-1],
        "\N{LATIN SMALL LETTER E WITH ACUTE}",
        "e\u0301",
    ]
    assert len({id_of(text, "texts") for text in texts}) == len(texts)
    assert id_of(UIDS[0].upper(), "texts") == id_of(UIDS[0], "uids") == RAW[0]
    numbers = [0, 1, -1, 2**63, -(2**63), 2**64 - 1]
    assert len({id_of(number, "numbers") for number in numbers}) == len(numbers)
    assert id_of(2**70, "numbers") == id_of(-(2**80), "numbers")  # in no file
    assert id_of(2**70, "numbers") not in {id_of(number, "numbers") for number in numbers}
    long = "http://host/" + "a" * 400
    assert text_id(long.encode()) == text_id(short_key(long).encode())  # a record has the short one as its key


halves = st.integers(0, 5) | st.integers(0, 2**64 - 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(halves, halves), max_size=20), min_size=1, max_size=5), st.integers(1, 30))
def test_sorted_ids_find_what_a_set_finds(tmp_path_factory, chunks, per_bucket):
    known = {pair for chunk in chunks for pair in chunk}
    arrays = [np.array(chunk, np.uint64).reshape(-1, 2) for chunk in chunks]
    rows = sum(map(len, chunks))
    folder = tmp_path_factory.mktemp("sorted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_ids, "_IDS_PER_BUCKET", per_bucket)
        count = write_sorted(iter(arrays), folder / "ids", rows=rows, folder=folder)
    assert (count, [path.name for path in folder.iterdir()]) == (len(known), ["ids"])
    if not rows:
        return
    ids = SortedIds.open(folder / "ids", rows=rows, count=count)
    wanted = [*known, *((a ^ 1, b) for a, b in known), *((a, b ^ 1) for a, b in known)]
    positions = ids.find(np.array(wanted, np.uint64).reshape(-1, 2))
    assert [position >= 0 for position in positions] == [one in known for one in wanted]
    assert sorted(positions[: len(known)].tolist()) == list(range(count))
    some = np.flatnonzero(np.arange(count) % 2)
    found = ids.some(some).find(np.array(list(known), np.uint64).reshape(-1, 2))
    assert (found >= 0).tolist() == [position % 2 == 1 for position in positions[: len(known)].tolist()]


def test_ids_that_share_their_upper_half_once_mixed_are_found():
    high = np.array([3, 5, 5, 5, 8], np.uint64)
    ids = SortedIds(high, np.array([1, 1, 4, 9, 1], np.uint64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_ids, "mixed", lambda ids: ids)
        wanted = [(5, 9), (5, 5), (5, 10), (8, 1), (8, 2), (9, 0), (5, 1)]
        assert ids.find(np.array(wanted, np.uint64)).tolist() == [3, -1, -1, 4, -1, -1, 1]


@pytest.mark.parametrize("kind", ["consecutive", "consecutive in the upper half", "multiples", "random"])
def test_bits_are_mixed_one_to_one_and_spread_over_all_buckets(kind):
    count = 2**16
    ids = np.zeros((count, 2), np.uint64)
    match kind:
        case "consecutive":
            ids = ids_of_numbers(np.arange(count))
        case "consecutive in the upper half":
            ids[:, 0] = np.arange(count)
        case "multiples":
            ids = ids_of_numbers(np.arange(count) * 2**32)
        case _:
            ids = np.random.default_rng(0).integers(0, 2**64, (count, 2), np.uint64)
    found = mixed(ids)
    assert len(np.unique(found, axis=0)) == count
    sizes = np.bincount((found[:, 0] >> np.uint64(56)).astype(int), minlength=256)
    assert sizes.min() > 0.6 * count / 256
    assert sizes.max() < 1.5 * count / 256


def test_sorting_holds_a_part_of_the_ids_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sorted_ids, "_IDS_PER_BUCKET", 2**15)
    rows = 2**21  # 32 MiB
    chunks = (ids_of_numbers(np.arange(start, start + 2**15)) for start in range(0, rows, 2**15))
    tracemalloc.start()
    try:
        assert write_sorted(chunks, tmp_path / "ids", rows=rows, folder=tmp_path) == rows
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * rows / 3
    ids = SortedIds.open(tmp_path / "ids", rows=rows, count=rows)
    assert (ids.find(ids_of_numbers(np.array([0, rows - 1, rows]))) >= 0).tolist() == [True, True, False]


def test_repeats_of_an_id_take_neither_memory_nor_space(tmp_path):
    rows, per_chunk = 2**21, 2**15  # 32 MiB
    chunk = ids_of_numbers(np.arange(per_chunk) % 3)
    written = []

    def chunks():
        for _ in range(rows // per_chunk):
            yield chunk
            written.append(sum(path.stat().st_size for path in tmp_path.iterdir()))

    tracemalloc.start()
    try:
        assert write_sorted(chunks(), tmp_path / "ids", rows=rows, folder=tmp_path) == 3
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * rows / 3
    assert max(written) <= 16 * 3 * rows // per_chunk
    ids = SortedIds.open(tmp_path / "ids", rows=rows, count=3)
    assert (ids.find(ids_of_numbers(np.arange(4))) >= 0).tolist() == [True, True, True, False]


def damaged_table(path):
    write_table(path, {"uid": [f"{i}" * 50 for i in range(1000)]})
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(2000) + data[2004:])


def named(path, columns, names):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_arrays([pa.array(one) for one in columns], names), path)


MISTAKES = {
    "nothing.npy": (lambda path: None, r"nothing\.npy does not exist"),
    "ids.txt": (lambda path: path.touch(), r"expected a file with ids that ends in \.npy or \.parquet"),
    "folder.npy": (lambda path: path.mkdir(), "is a folder; give one file"),
    "empty.npy": (lambda path: np.save(path, PAIRS[:0]), "holds no ids, so no row would be kept"),
    "empty.parquet": (lambda path: write_table(path, {"uid": []}), "holds (no ids|values of type null)"),
    "missing.parquet": (
        lambda path: write_table(path, {"uid": column([None, ""], lambda pa: pa.string())}),
        "holds only missing ids, so no row would be kept",
    ),
    "objects.npy": (
        lambda path: np.save(path, np.array(UIDS, object), allow_pickle=True),
        r"holds Python objects, which are not read.*array\.astype\('U'\)",
    ),
    "raw.npy": (lambda path: path.write_bytes(PAIRS.tobytes()), r"is no numpy array.*np\.memmap\(OLD, 'u8,u8', 'r'\)"),
    "cut.npy": (
        lambda path: (np.save(path, PAIRS), path.write_bytes(path.read_bytes()[:-1])),
        "is no numpy array, or it is cut",
    ),
    "square.npy": (lambda path: np.save(path, np.zeros((3, 2), "u8")), r"of shape \(3, 2\).*\.view\('u8,u8'\)\.ravel"),
    "fractions.npy": (lambda path: np.save(path, np.zeros(3)), r"is an array of float64; expected pairs of numbers"),
    "triples.npy": (lambda path: np.save(path, np.zeros(3, "u8,u8,u8")), "is an array of .*; expected pairs"),
    "scalar.npy": (lambda path: np.save(path, np.array(3)), r"of shape \(\); expected one dimension"),
    "several.parquet": (
        lambda path: write_table(path, {"a": [1], "b": [2]}),
        r"has no column 'uid' or 'key'; name the column with --subset-column.*it has a, b",
    ),
    "twice.parquet": (lambda path: named(path, [[1], [2]], ["uid", "uid"]), "has several columns 'uid'"),
    "fractions.parquet": (
        lambda path: write_table(path, {"uid": [0.5]}),
        "column 'uid' holds values of type double; expected texts, whole numbers, or uids as 16 bytes",
    ),
    "short.parquet": (
        lambda path: write_table(path, {"uid": [b"abc"]}),
        "column 'uid' holds 3 bytes where 16 are expected: b'abc'",
    ),
    "text.parquet": (lambda path: path.write_text("uid"), "is no Parquet table, or it is damaged"),
    "damaged.parquet": (damaged_table, r"damaged\.parquet (is damaged|cannot be read)"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_file_that_is_no_list_of_ids_is_one_message_and_claims_nothing(name, tmp_path, capsys):
    make, message = MISTAKES[name]
    make(tmp_path / name)
    write_tar(tmp_path / "0.tar", [("0.jpg", jpeg(0)), ("0.txt", b"a"), ("0.json", f'{{"uid": "{UIDS[0]}"}}'.encode())])
    assert call("webdataset", tmp_path / "0.tar", tmp_path / "out", "--subset", tmp_path / name) == 2
    assert re.search(message, shown := error_of(capsys)), shown
    assert not (tmp_path / "out").exists()


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path):
    np.save(tmp_path / "ids.npy", PAIRS)
    with open_subset(str(tmp_path / "ids.npy"), column=None) as file:
        first = hash_subset(file)
        np.save(tmp_path / "ids.npy", PAIRS[::-1])
        assert hash_subset(file) != first
        with pytest.raises(DataError, match="was changed while it was read; repeat the command"):
            list(file.chunks())


SOURCE_MISTAKES = [
    (
        ["--subset-column", "uid"],
        "--subset-column names the column with the ids of a subset, so it needs --subset FILE",
    ),
    (
        ["--subset", "pairs.npy"],
        r"no column 'uid' for the ids \(--subset-column\); it has: jpg, txt, json, id, kind, word",
    ),
    (["--subset", "pairs.npy", "--subset-column", "UID"], r"no column 'UID' for the ids \(--subset-column\)"),
    (
        ["--subset", "pairs.npy", "--subset-column", "id"],
        "column 'id' holds values such as 7 in the first rows of .*, and the file holds 128-bit uids",
    ),
    (["--subset", "numbers.npy", "--subset-column", "kind"], "column 'kind' holds values such as 'x' .* whole numbers"),
    (
        ["--subset", "pairs.npy", "--subset-column", "word"],
        "column 'word' holds values such as 'sixteen letters!' in .*, and the file holds 128-bit uids",
    ),
    (["--subset", "numbers.npy"], "the keys are values such as 'a' .* the file holds whole numbers; name the column"),
]


@pytest.mark.parametrize(("arguments", "message"), SOURCE_MISTAKES)
def test_a_source_without_such_ids_is_one_message_and_claims_nothing(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("pairs.npy", PAIRS)
    np.save("numbers.npy", np.array(NUMBERS))
    write_tar(
        tmp_path / "0.tar",
        [("a.jpg", jpeg(0)), ("a.txt", b"a"), ("a.json", b'{"id": 7, "kind": "x", "word": "sixteen letters!"}')],
    )
    assert call("webdataset", "0.tar", "out", *arguments) == 2
    assert re.search(message, shown := error_of(capsys)), shown
    assert not (tmp_path / "out").exists()


def test_keys_with_the_name_of_their_file_are_no_numbers(tmp_path, capsys):
    np.save(tmp_path / "numbers.npy", np.array(NUMBERS))
    write_tar(tmp_path / "0.tar", [("12.jpg", jpeg(0)), ("12.txt", b"a")])
    arguments = ["webdataset", tmp_path / "0.tar", tmp_path / "out", "--subset", tmp_path / "numbers.npy"]
    assert call(*arguments, "--prefix-keys") == 2
    assert re.search(r"the keys \(--prefix-keys\) are values such as '0/12' .* whole numbers", error_of(capsys))
    assert not (tmp_path / "out").exists()
    assert call(*arguments) == 0


def test_sources_without_columns_take_no_subset(tmp_path):
    from conversion.records.convert import convert

    for options in (IngestOptions(subset="x.npy"), IngestOptions(where=("a > 1",))):
        with pytest.raises(DataError, match="source folder has no columns, so --subset and --where do not apply"):
            convert("folder", str(tmp_path), str(tmp_path / "out"), options=options)


def test_ids_are_unpacked_in_their_order():
    assert unpack_ids([]).shape == (0, 2)
    assert unpack_ids(RAW).tolist() == [list(pair) for pair in PAIRS.tolist()]
