"""Subsets: only rows whose id is in a file are kept, for each form of file and each kind of source with columns."""

import hashlib
import json

import numpy as np
import pytest
from support import dumps
from support.conversion_locks import files
from support.conversions import call, content, error_of, ingest, interrupted, keys, write_tar
from support.dumps import jpeg, samples, write_table

from clipa_eqx.buckets.bucket import bucket_at
from clipa_eqx.data.array_record_reader import open_records

ROWS = 6  # of each source, in two files
CHOSEN = (1, 4, 5)


def uid(number):
    return hashlib.md5(str(number).encode()).hexdigest()


def pairs(numbers):
    """The ids of rows as DataComp's tools write them."""
    uids = map(uid, numbers)
    return np.array([(int(one[:16], 16), int(one[16:32], 16)) for one in uids], np.dtype("u8,u8"))


def about(row):
    number = int(row.key)
    return {"key": row.key, "uid": uid(number), "number": number, "name": f"row {number}"}


def write_uid_tars(folder):
    for part in range(2):
        rows = [one for row in samples(3, first=3 * part) for one in members(row)]
        write_tar(folder / f"0000{part}.tar", rows)


def members(row, **more):
    described = json.dumps({**about(row), **more}).encode()
    return [(f"{row.key}.jpg", row.image), (f"{row.key}.json", described), (f"{row.key}.txt", row.captions[0])]


def write_uid_tables(folder):
    for part in range(2):
        rows = samples(3, first=3 * part)
        described = [about(row) for row in rows]
        columns = {name: [one[name] for one in described] for name in described[0]}
        images, texts = [row.image for row in rows], [row.captions[0].decode() for row in rows]
        write_table(folder / f"0000{part}.parquet", {**columns, "jpg": images, "caption": texts})


def write_uid_examples(folder):
    for part in range(2):
        rows = samples(3, first=3 * part)
        examples = [{name: coded(value) for name, value in about(row).items()} for row in rows]
        full = [{**one, "jpg": row.image, "txt": row.captions[0]} for one, row in zip(examples, rows, strict=True)]
        dumps.write_examples(folder / f"0000{part}.tfrecord", full)


def coded(value):
    return value.encode() if isinstance(value, str) else value


def write_uid_list(folder, suffix):
    dumps.write_images(folder, [samples(ROWS)])
    rows = [{"image": f"images/{row.key}.jpg", "caption": "c", **about(row)} for row in samples(ROWS)]
    if suffix == "csv":
        text = "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows), ""])
    else:
        text = json.dumps(rows) if suffix == "json" else "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / f"list.{suffix}").write_text(text)


def write_uid_pairs(folder):
    folder.mkdir()
    for row in samples(ROWS):
        (folder / f"{row.key}.jpg").write_bytes(row.image)
        (folder / f"{row.key}.json").write_text(json.dumps({"caption": "c", **about(row)}))


def write_uid_coco(folder):
    rows = dumps.write_images(folder, [samples(ROWS)])
    images = [{"id": i, "file_name": f"images/{row.key}.jpg", **about(row)} for i, row in enumerate(rows)]
    texts = [{"image_id": i, "caption": "c"} for i in range(ROWS)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": texts}))


SOURCES = {
    "coco": ("captions", write_uid_coco),
    "webdataset": ("webdataset", write_uid_tars),
    "parquet": ("parquet", write_uid_tables),
    "tfrecord": ("img2dataset", write_uid_examples),
    "json": ("captions", lambda folder: write_uid_list(folder, "json")),
    "jsonl": ("captions", lambda folder: write_uid_list(folder, "jsonl")),
    "csv": ("captions", lambda folder: write_uid_list(folder, "csv")),
    "pairs": ("pairs", write_uid_pairs),
}


@pytest.fixture
def tars(tmp_path):
    """Two tars of three samples, each with a uid in its JSON."""
    write_uid_tars(tmp_path / "source")
    return tmp_path / "source"


def kept(folder):
    """The numbers of the rows that a record folder holds."""
    return [int("".join(filter(str.isdigit, key))) for key in keys(folder)]


@pytest.mark.parametrize("name", SOURCES)
def test_exactly_the_rows_of_the_file_are_kept_from_each_kind_of_source(name, tmp_path):
    kind, write = SOURCES[name]
    write(tmp_path / "source")
    np.save(tmp_path / "ids.npy", pairs([5, 1, 77, 4, 99]))
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind=kind, subset=str(tmp_path / "ids.npy"))
    assert kept(tmp_path / "out") == list(CHOSEN)
    assert (manifest.rows_read, manifest.rows_dropped) == (ROWS, {"not in the subset": 3})
    command = manifest.info["command"]
    assert command["columns"]["subset"] == "uid"
    assert command.keys() - {"columns"} == {"kind", "source", "parts", "source_files", "subset", "subset_sha256"}
    assert [dict(record.extra) for record in open_records(tmp_path / "out")] == [{}] * 3
    assert manifest.info["subset"] == {
        "file": str(tmp_path / "ids.npy"),
        "sha256": hashlib.sha256((tmp_path / "ids.npy").read_bytes()).hexdigest(),
        "ids": 5,
        "met": 3,
        "never_met": 2,
        "examples": [uid(77), uid(99)],
    }


def binary(values, kind):
    import pyarrow as pa

    return pa.array(values, kind(pa))


def test_a_uid_in_capitals_or_bytes_in_the_source_is_the_same_uid(tmp_path):
    uids = [uid(0).upper(), uid(1), uid(2)]
    columns = {"key": list("abc"), "jpg": [jpeg(i) for i in range(3)], "caption": ["c"] * 3}
    write_table(tmp_path / "texts.parquet", {**columns, "uid": uids})
    write_table(
        tmp_path / "bytes.parquet",
        {**columns, "uid": binary([bytes.fromhex(one) for one in uids], lambda pa: pa.binary(16))},
    )
    np.save(tmp_path / "ids.npy", pairs([0, 2]))
    for name in ("texts", "bytes"):
        path = tmp_path / f"{name}.parquet"
        ingest(path, tmp_path / name, kind="parquet", subset=str(tmp_path / "ids.npy"))
        assert keys(tmp_path / name) == ["a", "c"], name


def test_repeated_and_missing_ids_are_counted_and_harmless(tars, tmp_path):
    write_table(tmp_path / "ids.parquet", {"uid": [uid(5), None, uid(1), "", uid(5), uid(9), uid(9).upper(), None]})
    manifest = ingest(tars, tmp_path / "out", subset=str(tmp_path / "ids.parquet"))
    assert kept(tmp_path / "out") == [1, 5]
    entry = {name: manifest.info["subset"][name] for name in ("ids", "repeated", "missing", "met", "never_met")}
    assert entry == {"ids": 8, "repeated": 2, "missing": 3, "met": 2, "never_met": 1}
    assert manifest.info["subset"]["examples"] == [uid(9)]


def test_examples_of_absent_ids_are_the_first_of_the_file(tars, tmp_path, monkeypatch):
    from conversion.records import subset

    absent = [30, 20, 40, 10]
    np.save(tmp_path / "ids.npy", pairs([1, *absent, 0, *range(50, 70)]))
    for name, most in (("few", 2**20), ("many", 0)):  # both ways to find them
        monkeypatch.setattr(subset, "_MOST_ABSENT", most)
        monkeypatch.setattr(subset, "_BLOCK", 1)
        manifest = ingest(tars, tmp_path / name, subset=str(tmp_path / "ids.npy"), examples=3)
        assert manifest.info["subset"]["examples"] == [uid(one) for one in absent[:3]]
    assert content(tmp_path / "few") == content(tmp_path / "many")


def test_a_row_without_an_id_and_one_that_cannot_be_parsed_have_reasons_of_their_own(tmp_path):
    rows = samples(5)
    texts = [{"uid": uid(0)}, {}, {"uid": None}, {"uid": 7}]
    parts = [members(row, **text) for row, text in zip(rows, texts, strict=False)]
    del_uid = json.dumps({"key": "x"}).encode()
    parts[1][1] = (parts[1][1][0], del_uid)
    parts.append([(f"{rows[4].key}.jpg", rows[4].image), (f"{rows[4].key}.json", b"{"), (f"{rows[4].key}.txt", b"a")])
    write_tar(tmp_path / "0.tar", [one for part in parts for one in part])
    np.save(tmp_path / "ids.npy", pairs([0]))
    manifest = ingest(tmp_path / "0.tar", tmp_path / "out", subset=str(tmp_path / "ids.npy"))
    assert manifest.rows_dropped == {"no id for the subset": 3, "row cannot be parsed": 1}
    details = [one["detail"] for one in manifest.info["examples"]["no id for the subset"]]
    assert details[:2] == ["no uid", "no uid"]
    assert details[2].startswith("uid 7, expected 128-bit uids")


def test_failed_downloads_and_missing_images_are_looked_up_too(tmp_path):
    status = ["success", "failed_to_download", "failed_to_download", "success"]
    columns = {"key": [f"{i}" for i in range(4)], "uid": [uid(i) for i in range(4)], "status": status}
    images = [jpeg(0), None, None, None]
    write_table(tmp_path / "0.parquet", {**columns, "jpg": images, "caption": ["c"] * 4})
    np.save(tmp_path / "ids.npy", pairs([0, 1, 3]))
    manifest = ingest(tmp_path / "0.parquet", tmp_path / "out", kind="parquet", subset=str(tmp_path / "ids.npy"))
    assert manifest.rows_dropped == {"download failed": 1, "missing image": 1, "not in the subset": 1}
    assert (manifest.info["subset"]["met"], manifest.info["subset"]["never_met"]) == (3, 0)


@pytest.mark.parametrize("kind", ["captions", "parquet", "pairs"])
def test_images_of_rows_outside_are_not_read(kind, tmp_path):
    """Their files are folders here, which would end the conversion if they were read."""
    source = tmp_path / "source"
    if kind == "parquet":
        dumps.write_images(source, [samples(ROWS)])
        table = {name: [about(row)[name] for row in samples(ROWS)] for name in ("key", "uid")}
        paths = [f"images/{row.key}.jpg" for row in samples(ROWS)]
        write_table(source / "0.parquet", {**table, "image_path": paths, "caption": ["c"] * ROWS})
    else:
        (write_uid_pairs if kind == "pairs" else SOURCES["jsonl"][1])(source)
    np.save(tmp_path / "ids.npy", pairs(CHOSEN))
    read = []
    from conversion.records.sources import images

    real = images._read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_read", lambda place, path, **more: (read.append(path), real(place, path, **more))[1])
        ingest(source, tmp_path / "out", kind=kind, subset=str(tmp_path / "ids.npy"))
    assert kept(tmp_path / "out") == list(CHOSEN)
    assert {int(path.rpartition("/")[2][:-4]) for path in read if path.endswith(".jpg")} == set(CHOSEN)


def test_values_are_kept_as_before_and_the_column_of_the_ids_is_not(tars, tmp_path):
    np.save(tmp_path / "ids.npy", pairs([2]))
    ingest(tars, tmp_path / "out", subset=str(tmp_path / "ids.npy"), keep=("number", "name"))
    assert [dict(one.extra) for one in open_records(tmp_path / "out")] == [{"number": 2, "name": "row 2"}]
    ingest(tars, tmp_path / "uid", subset=str(tmp_path / "ids.npy"), keep=("uid",))
    assert [dict(one.extra) for one in open_records(tmp_path / "uid")] == [{"uid": uid(2)}]


def test_keys_are_looked_up_as_records_have_them(tars, tmp_path):
    np.save(tmp_path / "ids.npy", np.array(["00000/000000001", "000000002"]))
    manifest = ingest(tars, tmp_path / "out", subset=str(tmp_path / "ids.npy"), prefix_keys=True)
    assert keys(tmp_path / "out") == ["00000/000000001"]
    assert manifest.info["subset"]["examples"] == ["000000002"]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6])
def test_a_limit_counts_all_rows_and_looks_up_no_more(limit, tars, tmp_path):
    np.save(tmp_path / "ids.npy", pairs([0, 2, 3, 5]))
    manifest = ingest(tars, tmp_path / "out", subset=str(tmp_path / "ids.npy"), limit=limit)
    assert kept(tmp_path / "out") == [number for number in (0, 2, 3, 5) if number < limit]
    assert manifest.rows_read == limit
    assert manifest.info["subset"]["met"] == manifest.rows_written


def test_the_bytes_do_not_depend_on_interruptions_and_no_id_is_sorted_twice(tmp_path, monkeypatch):
    for part, first in ((0, 0), (1, 3), (2, 1)):  # the last tar repeats keys of the others
        rows = [one for row in samples(3, first=first) for one in members(row)]
        write_tar(tmp_path / f"source/{part}.tar", rows)
    np.save(tmp_path / "ids.npy", pairs([3, 1, 8]))
    chosen = {"subset": str(tmp_path / "ids.npy"), "where": ("number != 4",)}
    manifest = ingest(tmp_path / "source", tmp_path / "one", **chosen)
    assert manifest.rows_dropped == {"duplicate key": 2, "not in the subset": 5}
    for after in (1, 2, 3):
        interrupted(monkeypatch, tmp_path / "source", tmp_path / f"{after}", after=after, **chosen)
        (ids,) = (tmp_path / f"{after}/_unfinished").glob("subset-*.ids")
        before = ids.stat().st_ino
        interrupted(monkeypatch, tmp_path / "source", tmp_path / f"{after}", after=0, **chosen)
        assert ids.stat().st_ino == before  # they are not sorted again
        ids.write_bytes(ids.read_bytes()[:-1])
        ingest(tmp_path / "source", tmp_path / f"{after}", **chosen)
    for name in ("1", "2", "3"):
        assert content(tmp_path / name) == content(tmp_path / "one"), name


def test_a_part_whose_positions_are_lost_is_converted_again(tars, tmp_path, monkeypatch):
    np.save(tmp_path / "ids.npy", pairs([0, 3]))
    chosen = {"subset": str(tmp_path / "ids.npy")}
    ingest(tars, tmp_path / "whole", **chosen)
    interrupted(monkeypatch, tars, tmp_path / "out", after=1, **chosen)
    (tmp_path / "out/_unfinished/part-000000.met").unlink()
    ingest(tars, tmp_path / "out", **chosen)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_file_with_other_ids_is_another_command(tars, tmp_path, monkeypatch, capsys):
    path = tmp_path / "ids.npy"
    np.save(path, pairs([0]))
    arguments = ["webdataset", tars, tmp_path / "out", "--subset", path]
    interrupted(monkeypatch, tars, tmp_path / "out", after=1, subset=str(path))
    np.save(path, pairs([1]))
    assert call(*arguments) == 2
    assert "unfinished conversion by another command (the file of the subset has changed)" in error_of(capsys)
    np.save(path, pairs([0]))
    assert call(*arguments) == 0
    capsys.readouterr()
    np.save(path, pairs([1]))
    assert call(*arguments) == 2
    assert "holds records already (the file of the subset has changed)" in error_of(capsys)
    assert call("webdataset", tars, tmp_path / "out") == 2
    assert f"subset was {str(path)!r}, now None" in error_of(capsys)
    assert call(*arguments, "--overwrite") == 0
    assert kept(tmp_path / "out") == [1]


def test_ids_and_records_may_be_in_other_filesystems(tars, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    np.save(tmp_path / "ids.npy", pairs([1, 5, 8]))
    memory.pipe_file("/subsets/ids.npy", (tmp_path / "ids.npy").read_bytes())
    manifest = ingest(tars, "memory://subset-out", subset="memory://subsets/ids.npy")
    local = ingest(tars, tmp_path / "out", subset=str(tmp_path / "ids.npy"))
    assert (manifest.rows_written, manifest.info["subset"]["met"]) == (2, 2)
    assert manifest.info["subset"] == {**local.info["subset"], "file": "memory://subsets/ids.npy"}
    assert [path for path in memory.ls("/subset-out", detail=False) if "_unfinished" in path] == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_several_workers_find_the_same_ids_in_a_bucket(scheme, tars, servers, tmp_path):
    np.save(tmp_path / "ids.npy", pairs([1, 5, 8]))
    bucket_at(servers(scheme).url("subsets")).write("ids.npy", (tmp_path / "ids.npy").read_bytes())
    url = servers(scheme).url("subsets/ids.npy")
    ingest(tars, tmp_path / "out", subset=url)
    ingest(tars, servers(scheme).url("out"), subset=url, workers=2)
    assert files(servers(scheme).url("out")) == content(tmp_path / "out")


def test_the_closing_lines_have_the_account_of_the_ids(tars, tmp_path, capsys):
    np.save(tmp_path / "ids.npy", pairs([1, 1, 5, 8]))
    assert call("webdataset", tars, tmp_path / "out", "--subset", tmp_path / "ids.npy") == 0
    shown = capsys.readouterr().out
    assert "rows: 6 read, 2 written, 4 not in the subset\n" in shown
    line = f"subset {tmp_path}/ids.npy: 4 ids, 1 repeated; rows have 2 of them, and no row has 1, such as {uid(8)}\n"
    assert line in shown
    np.save(tmp_path / "ids.npy", pairs(range(ROWS)))
    assert call("webdataset", tars, tmp_path / "all", "--subset", tmp_path / "ids.npy") == 0
    assert f"subset {tmp_path}/ids.npy: 6 ids; rows have all\n" in capsys.readouterr().out


def test_a_subset_without_any_row_says_so_with_an_id_of_both_sides(tars, tmp_path, capsys):
    np.save(tmp_path / "ids.npy", pairs([8]))
    assert call("webdataset", tars, tmp_path / "out", "--subset", tmp_path / "ids.npy") == 1
    shown = capsys.readouterr().out
    expected = f"no row is in the subset: its ids are such as {uid(8)}, and the rows have ids such as uid '{uid(0)}'"
    assert expected in shown
    assert "no row was kept: not in the subset, such as 000000000 of 00000.tar" in shown
