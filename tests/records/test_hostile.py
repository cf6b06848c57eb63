"""Hostile and broken input: each bad row costs itself or the rest of its file, and the conversion continues."""

import io
import json
import os
import tarfile

import pytest
from support import dumps
from support.conversions import captions, ingest, keys, write_tar
from support.dumps import jpeg, samples, write_table

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.errors import DataError
from conversion.records.class_names import read_class_names

DEEP = "[" * 100_000 + "]" * 100_000


def texts(*values):
    import pyarrow as pa

    return pa.array(values, pa.binary()).view(pa.string())


def write_list(folder, rows):
    dumps.write_images(folder, [samples(1)])
    (folder / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / "list.jsonl"


@pytest.mark.parametrize(
    "path",
    ["a\0.jpg", "\ud800.jpg", "x" * 300 + ".jpg", "foo://a.jpg", "://a.jpg", "zip://a.jpg", "zip://a::/no.zip",
     "images", "images/000000000.jpg/a", "pipe.jpg", "/dev/zero", "loop.jpg"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_a_path_that_names_no_image_is_a_missing_image(path, kind, tmp_path):
    rows = [{"image": path, "caption": "a", "key": "0"}, {"image": "images/000000000.jpg", "caption": "b"}]
    source = write_list(tmp_path, rows)
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    if kind == "json":
        source = tmp_path / "list.json"
        source.write_text(json.dumps(rows))
    if kind == "parquet":
        source = tmp_path / "list.parquet"
        paths = [row["image"].encode(errors="surrogatepass") for row in rows]
        write_table(source, {"image_path": texts(*paths), "caption": texts(b"a", b"b")})
    manifest = ingest(source, tmp_path / "out", kind="parquet" if kind == "parquet" else "captions")
    assert manifest.rows_dropped in ({"missing image": 1}, {"key is not UTF-8": 1})
    assert captions(tmp_path / "out") == ["b"]


def test_a_pipe_among_images_or_shards_stops_nothing_for_ever(tmp_path):
    dumps.write_class_folders(tmp_path / "folder", [samples(2)])
    os.mkfifo(tmp_path / "folder/n01/pipe.jpg")
    assert ingest(tmp_path / "folder", tmp_path / "a", kind="folder").rows_dropped == {"missing image": 1}
    dumps.write_tars(tmp_path / "tars", [samples(1)])
    os.mkfifo(tmp_path / "tars/pipe.tar")
    with pytest.raises(DataError, match=r"pipe\.tar cannot be read: not a plain file"):
        ingest(tmp_path / "tars", tmp_path / "b")
    (tmp_path / "lists").mkdir()
    os.mkfifo(tmp_path / "lists/pipe.csv")
    with pytest.raises(DataError, match=r"pipe\.csv cannot be read: not a plain file"):
        ingest(tmp_path / "lists", tmp_path / "c", kind="captions")


def test_json_that_is_nested_without_end_costs_its_row(tmp_path):
    path = write_list(tmp_path, [{"image": "images/000000000.jpg", "caption": "a"}])
    path.write_text(f"{path.read_text()}{DEEP}\n")
    manifest = ingest(path, tmp_path / "a", kind="captions")
    assert (manifest.rows_written, manifest.rows_dropped) == (1, {"row cannot be parsed": 1})
    (tmp_path / "list.json").write_text(DEEP)
    with pytest.raises(DataError, match=r"list\.json is not valid JSON: nested too deeply"):
        ingest(tmp_path / "list.json", tmp_path / "b", kind="captions")
    members = [("0.jpg", jpeg(0)), ("0.txt", b"x"), ("0.json", b'{"url": "u"}'), ("1.jpg", jpeg(1)), ("1.txt", b"y")]
    write_tar(tmp_path / "tars/0.tar", [*members, ("1.json", DEEP.encode())])
    (tmp_path / "tars/0_stats.json").write_text(DEEP)
    manifest = ingest(tmp_path / "tars", tmp_path / "c", keep=("url",))
    assert (manifest.rows_written, manifest.rows_dropped) == (1, {"row cannot be parsed": 1})


@pytest.mark.parametrize("size", [-512, -(10**6), 2**62, 2**80], ids=str)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE])
@pytest.mark.parametrize("first", [True, False])
def test_a_tar_header_that_lies_about_its_size_ends_the_file(size, kind, first, tmp_path):
    member = tarfile.TarInfo("1.jpg")
    member.size, member.type = size, kind
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for suffix, value in (("jpg", jpeg(0)), ("txt", b"x")):
                good = tarfile.TarInfo(f"0.{suffix}")
                good.size = len(value)
                tar.addfile(good, io.BytesIO(value))
        data = file.getvalue().rstrip(b"\0")
    body = data + bytes(-len(data) % 512)
    lie = member.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "0.tar").write_bytes((lie + body if first else body + lie) + bytes(1024))
    manifest = ingest(tmp_path / "0.tar", tmp_path / "out")
    assert manifest.rows_dropped in ({"truncated shard": 1}, {"missing image": 1, "truncated shard": 1})
    assert keys(tmp_path / "out") == ([] if first else ["0"])


def header(name, size, kind):
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return bytearray(member.tobuf(tarfile.USTAR_FORMAT if kind == tarfile.XHDTYPE else tarfile.GNU_FORMAT))


def sparse_cut_in_its_map():
    block = header("s.jpg", 0, tarfile.GNUTYPE_SPARSE)
    block[482] = 1  # "a block of the map follows"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


LONG_NAMES = (bytes(header("././@LongLink", 5, tarfile.GNUTYPE_LONGNAME)) + b"name".ljust(512, b"\0")) * 1000
PAX = (bytes(header("p", 12, tarfile.XHDTYPE)) + b"12 path=abc\n".ljust(512, b"\0")) * 1000


@pytest.mark.parametrize("bad", [LONG_NAMES, PAX, sparse_cut_in_its_map()], ids=["long names", "pax", "sparse"])
def test_headers_upon_headers_in_a_tar_end_the_file(bad, tmp_path):
    write_tar(tmp_path / "good.tar", [("0.jpg", jpeg(0)), ("0.txt", b"x")])
    data = (tmp_path / "good.tar").read_bytes()
    with tarfile.open(tmp_path / "good.tar") as tar:
        end = max(member.offset_data + 512 * -(-member.size // 512) for member in tar)
    (tmp_path / "good.tar").write_bytes(data[:end] + bad)
    manifest = ingest(tmp_path / "good.tar", tmp_path / "out")
    assert (keys(tmp_path / "out"), manifest.rows_dropped) == (["0"], {"truncated shard": 1})


URLS = ["s3://b/x.jpg", "gs://b/x", "http://127.0.0.1:9/x.jpg", "zip://a.jpg::file:///etc/hostname",
        "tar://a::/no.tar", "ftp://127.0.0.1:9/x.jpg", "dir://x", "hdfs://x", "git+ssh://x", "memory://x.jpg",
        "file:///a::memory://b"]  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_row_cannot_name_a_filesystem_that_nobody_asked_for(kind, tmp_path):
    good = f"file://{tmp_path}/images/000000000.jpg"
    rows = [{"image": path, "caption": "a"} for path in (*URLS, good)]
    source = write_list(tmp_path, rows)
    if kind == "json":
        source = tmp_path / "list.json"
        source.write_text(json.dumps(rows))
    manifest = ingest(source, tmp_path / "out", kind="captions", examples=20)
    assert manifest.rows_dropped == {"missing image": len(URLS)}
    details = [example["detail"] for example in manifest.info["examples"]["missing image"]]
    assert sum("is not in the filesystem of the source" in detail for detail in details) >= len(URLS) - 1
    assert keys(tmp_path / "out") == [good]


def test_a_row_may_name_a_filesystem_of_the_images(tmp_path):
    import fsspec

    fsspec.filesystem("memory").pipe_file("/named/0.jpg", jpeg(0))
    source = write_list(tmp_path, [{"image": "memory://named/0.jpg", "caption": "a"}])
    assert ingest(source, tmp_path / "out", kind="captions", images="memory://other").rows_written == 1


@pytest.mark.parametrize("count", [10**30, -5, True, 1e300, "7"])
def test_statistics_that_cannot_be_a_count_are_not_believed(count, tmp_path):
    dumps.write_tars(tmp_path / "tars", [samples(1)])
    (tmp_path / "tars/00000_stats.json").write_text(json.dumps({"successes": count}))
    assert ingest(tmp_path / "tars", tmp_path / "out").rows_read == 1


@pytest.mark.parametrize("label", [2**70, 2**31, 1e300, "9" * 5000, [-1], {"a": 1}])
def test_a_label_that_is_no_class_number_is_missing(label, tmp_path):
    rows = [{"image": "images/000000000.jpg", "label": label}, {"image": "images/000000000.jpg", "label": 3}]
    path = write_list(tmp_path, [rows[0], {"image": "none.jpg", "label": 0}, rows[1]])
    manifest = ingest(path, tmp_path / "out", kind="captions", label_column="label")
    assert manifest.rows_dropped["missing label"] == 1
    assert [record.label for record in open_records(tmp_path / "out")] == [3]


def test_ids_and_captions_of_coco_are_whatever_somebody_wrote(tmp_path):
    dumps.write_coco(tmp_path, [samples(4)])
    path = tmp_path / "captions.json"
    listed = json.loads(path.read_text())
    for i, (number, caption) in enumerate([([0, 1], 7), ({"a": 1}, ["x", "y"]), (None, None), ("3", {"raw": "z"})]):
        listed["images"][i]["id"] = listed["annotations"][i]["image_id"] = number
        listed["annotations"][i]["caption"] = caption
    path.write_text(json.dumps(listed), encoding="utf-8-sig")  # and with a mark of byte order
    manifest = ingest(path, tmp_path / "out", kind="captions")
    assert captions(tmp_path / "out") == ["7", "x", "y", "z"]
    assert manifest.rows_dropped == {"missing caption": 1}


def test_line_ends_of_old_macs_are_reported(tmp_path):
    dumps.write_csv(tmp_path, [samples(2)])
    path = tmp_path / "list.csv"
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\r"))
    with pytest.raises(DataError, match=r"list\.csv: its first line is no header.*lines must end in LF or CR LF"):
        ingest(path, tmp_path / "out", kind="captions")


def test_a_list_without_a_header_is_reported(tmp_path):
    (tmp_path / "list.tsv").write_text("a cat\thttp://host/1.jpg\n")
    with pytest.raises(DataError, match=r"URLs of images .* such as http://host/1\.jpg, and has no header"):
        ingest(tmp_path / "list.tsv", tmp_path / "out", kind="captions")


def test_class_names_that_are_not_utf8_are_reported(tmp_path):
    dumps.write_tfds(tmp_path / "source", [samples(1)])
    (tmp_path / "source/label.labels.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"label\.labels\.txt cannot be read"):
        ingest(tmp_path / "source", tmp_path / "out", kind="tfds")


def test_a_caption_in_json_of_a_tar_that_is_not_utf8_is_called_so(tmp_path):
    members = [("0.jpg", jpeg(0)), ("0.json", b'{"caption": "caf\xe9", "url": "u"}')]
    write_tar(tmp_path / "0.tar", [*members, ("1.jpg", jpeg(1)), ("1.json", b'{"caption": "fine", "url": "caf\xe9"}')])
    manifest = ingest(tmp_path / "0.tar", tmp_path / "out", keep=("url",))
    assert manifest.rows_dropped == {"caption is not UTF-8": 1}
    assert [record.extra["url"] for record in open_records(tmp_path / "out")] == ["caf\\udce9"]


def nested(form):
    """Captions ``caf\\xe9`` and ``fine`` in a form that tables have."""
    import pyarrow as pa

    one = texts(b"caf\xe9", b"fine")
    return {
        "text": one,
        "large text": pa.array([b"caf\xe9", b"fine"], pa.large_binary()).view(pa.large_string()),
        "list": pa.ListArray.from_arrays([0, 1, 2], one),
        "large list": pa.LargeListArray.from_arrays([0, 1, 2], one),
        "map": pa.StructArray.from_arrays([one], ["raw"]),
        "list of maps": pa.ListArray.from_arrays([0, 1, 2], pa.StructArray.from_arrays([one], ["caption"])),
    }[form]


FORMS = ["text", "large text", "list", "large list", "map", "list of maps"]


@pytest.mark.parametrize("form", FORMS)
def test_a_text_that_is_not_utf8_at_any_depth_of_a_table_costs_one_row(form, tmp_path):
    write_table(tmp_path / "0.parquet", {"jpg": [jpeg(0), jpeg(1)], "caption": nested(form)})
    manifest = ingest(tmp_path / "0.parquet", tmp_path / "out", kind="parquet", keep=("caption",))
    assert manifest.rows_dropped == {"caption is not UTF-8": 1}
    assert captions(tmp_path / "out") == ["fine"]


@pytest.mark.parametrize("how", ["dictionary", "view"])
def test_dictionaries_and_views_of_tables_are_read(how, tmp_path):
    import pyarrow as pa

    def encode(values, kind):
        one = pa.array(values, kind)
        if how == "dictionary":
            return one.dictionary_encode()
        return one.cast({pa.string(): pa.string_view(), pa.binary(): pa.binary_view()}[kind])

    rows = dumps.write_images(tmp_path, [samples(3)])
    columns = {
        "status": encode(["success", "success", "failed_to_download"], pa.string()),
        "caption": encode(["a", "b", "c"], pa.string()),
    }
    paths = encode([f"images/{row.key}.jpg" for row in rows], pa.string())
    for name, column in (("image_path", paths), ("jpg", encode([row.image for row in rows], pa.binary()))):
        write_table(tmp_path / f"{name}.parquet", {**columns, name: column})
        manifest = ingest(tmp_path / f"{name}.parquet", tmp_path / f"out-{name}", kind="parquet")
        assert manifest.rows_dropped == {"download failed": 1}
        assert [record.image for record in open_records(tmp_path / f"out-{name}")] == [rows[0].image, rows[1].image]


def test_a_date_that_python_cannot_hold_is_kept_as_its_number(tmp_path):
    import pyarrow as pa

    when = pa.array([2**62, 0], pa.int64()).cast(pa.timestamp("us"))
    write_table(tmp_path / "0.parquet", {"jpg": [jpeg(0), jpeg(1)], "caption": ["a", "b"], "when": when})
    ingest(tmp_path / "0.parquet", tmp_path / "out", kind="parquet", keep=("when",))
    assert [record.extra["when"] for record in open_records(tmp_path / "out")] == [2**62, '"1970-01-01 00:00:00"']


def test_labels_that_are_no_unicode_become_class_names_with_escapes(tmp_path):
    rows = [{"image": "images/000000000.jpg", "label": "\ud800"}, {"image": "none.jpg", "label": "b"}]
    path = write_list(tmp_path, rows)
    path.write_bytes(path.read_bytes().replace(b'"b"', b'"caf\xe9"'))
    manifest = ingest(path, tmp_path / "out", kind="captions", label_column="label", key_column=None)
    assert manifest.class_names == ("\\ud800", "caf\\udce9")


@pytest.mark.parametrize("text", ['["a", "\\ud800"]', '["a", "caf\udce9"]', DEEP], ids=["surrogate", "bytes", "deep"])
def test_class_names_in_json_that_are_no_unicode_or_no_list_are_refused(text, tmp_path):
    (tmp_path / "names.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=r"names\.json (holds the name '.*', which is not Unicode|cannot be read)"):
        read_class_names(tmp_path / "names.json")
