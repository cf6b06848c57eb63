"""Tars in directory order: the members of a sample are joined wherever they are, and the account closes."""

import gzip
import itertools
import random

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.conversions import call, captions, content, ingest, keys, write_tar
from support.dumps import jpeg

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.errors import DataError

COUNT = 60


def pairs(count=COUNT, *, third=False):
    suffixes = {"jpg": jpeg, "txt": lambda i: b"caption %d" % i, "json": lambda i: b'{"url": "u%d"}' % i}
    chosen = ("jpg", "txt", "json") if third else ("jpg", "txt")
    return [(f"d/{i:05d}.{suffix}", suffixes[suffix](i)) for i in range(count) for suffix in chosen]


def shuffled(members):
    return random.Random(0).sample(members, len(members))


def one_kind_first(members):
    return sorted(members, key=lambda member: member[0].endswith("txt"))


ORDERS = {"directory order": shuffled, "images first": one_kind_first, "texts first": lambda m: one_kind_first(m)[::-1]}


@pytest.mark.parametrize("order", ORDERS)
def test_all_samples_are_kept_in_any_order_of_the_members(order, tmp_path, capsys):
    write_tar(tmp_path / "0.tar", ORDERS[order](pairs()))
    assert call("webdataset", tmp_path / "0.tar", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "rows: 60 read, 60 written\n" in shown
    assert "members of one sample are not next to each other in 1 tar file: they were joined" in shown
    assert "tar --sort=name" in shown
    found = {record.key: record for record in open_records(tmp_path / "out")}
    assert sorted(found) == [f"d/{i:05d}" for i in range(COUNT)]
    assert all(found[f"d/{i:05d}"].captions == (f"caption {i}",) for i in range(COUNT))
    assert all(found[f"d/{i:05d}"].image == jpeg(i) for i in range(COUNT))


def test_images_before_all_texts_are_joined_also_behind_the_first_rows(tmp_path):
    small = jpeg(0)
    members = [(f"{i}.jpg", small) for i in range(300)] + [(f"{i}.txt", b"%d" % i) for i in range(300)]
    write_tar(tmp_path / "0.tar", members)
    manifest = ingest(tmp_path / "0.tar", tmp_path / "out", validate="header")
    assert (manifest.rows_read, manifest.rows_dropped) == (300, {})
    assert captions(tmp_path / "out") == [str(i) for i in range(300)]


@pytest.mark.parametrize("how", ["gzip", "remote", "workers"])
def test_compressed_and_remote_tars_are_joined_too(how, tmp_path):
    members = shuffled(pairs(9, third=True))
    write_tar(tmp_path / "tars/0.tar", members)
    write_tar(tmp_path / "tars/1.tar", [(f"x{name}", value) for name, value in pairs(3)])
    ingest(tmp_path / "tars", tmp_path / "whole", keep=("url",))
    source, workers = tmp_path / "tars", 1
    if how == "gzip":
        (source / "0.tar.gz").write_bytes(gzip.compress((source / "0.tar").read_bytes()))
        (source / "0.tar").unlink()
    elif how == "remote":
        fsspec.filesystem("memory").put(str(source), "/scattered", recursive=True)
        source = "memory://scattered"
    else:
        workers = 2
    manifest = ingest(source, tmp_path / "out", workers=workers, keep=("url",))
    assert (manifest.rows_read, manifest.rows_written, manifest.info["scattered_tars"]) == (12, 12, 1)
    shards = [
        {name: data for name, data in content(tmp_path / one).items() if "json" not in name} for one in ("out", "whole")
    ]
    assert shards[0] == shards[1]


def test_a_sample_that_lacks_a_member_is_one_row_with_its_reason(tmp_path):
    members = shuffled([one for one in pairs(9) if one[0] not in ("d/00003.txt", "d/00005.jpg")])
    write_tar(tmp_path / "0.tar", members)
    manifest = ingest(tmp_path / "0.tar", tmp_path / "out")
    assert (manifest.rows_read, manifest.rows_written) == (9, 7)
    assert manifest.rows_dropped == {"missing caption": 1, "missing image": 1}


def test_a_sample_that_returns_with_the_same_members_is_a_duplicate(tmp_path):
    again = [("0.jpg", jpeg(7)), ("0.txt", b"other")]
    members = [("0.jpg", jpeg(0)), ("0.txt", b"a"), ("1.jpg", jpeg(1)), ("1.txt", b"b"), *again]
    write_tar(tmp_path / "0.tar", members)
    manifest = ingest(tmp_path / "0.tar", tmp_path / "out")
    assert (manifest.rows_read, manifest.rows_dropped) == (3, {"duplicate key of another sample": 1})
    assert "scattered_tars" not in manifest.info
    write_tar(tmp_path / "1.tar", [*members, ("1.json", b"{}")])  # now read again, and joined
    manifest = ingest(tmp_path / "1.tar", tmp_path / "joined")
    assert (manifest.rows_read, manifest.rows_dropped) == (3, {"duplicate key of another sample": 1})
    assert (
        content(tmp_path / "joined")["shard-000000-000.array_record"]
        == content(tmp_path / "out")["shard-000000-000.array_record"]
    )


@pytest.mark.parametrize("cut", [700, 3000, 9000])
def test_a_cut_tar_gives_what_comes_before_the_cut(cut, tmp_path):
    write_tar(tmp_path / "0.tar", one_kind_first(pairs(20))[::-1])  # texts first
    path = tmp_path / "1.tar"
    path.write_bytes((tmp_path / "0.tar").read_bytes().rstrip(b"\0")[:-cut])
    manifest = ingest(path, tmp_path / "out")
    assert manifest.rows_read == 21
    assert manifest.rows_dropped["truncated shard"] == 1
    assert manifest.rows_dropped["missing image"] == 20 - manifest.rows_written
    assert 0 < manifest.rows_written < 20
    assert all(record.image == jpeg(int(record.key[2:])) for record in open_records(tmp_path / "out"))


def test_a_cut_compressed_tar_gives_what_comes_before_the_cut(tmp_path):
    members = [
        (name, jpeg(i, width=80, height=60) if name.endswith("jpg") else b"a") for i, (name, _) in enumerate(pairs(20))
    ]
    write_tar(tmp_path / "0.tar", shuffled(members))
    path = tmp_path / "1.tar.gz"
    path.write_bytes(gzip.compress((tmp_path / "0.tar").read_bytes())[:-20_000])
    manifest = ingest(path, tmp_path / "out")
    assert manifest.info["scattered_tars"] == manifest.rows_dropped["truncated shard"] == 1
    assert 5 < manifest.rows_written < 20
    assert len(manifest.info["damaged_sources"]) == 1


def test_texts_that_name_classes_are_found_in_scattered_tars(tmp_path):
    members = [
        (f"{i}.{suffix}", value)
        for i in range(6)
        for suffix, value in (("jpg", jpeg(i)), ("cls", b"cat" if i % 2 else b"dog"))
    ]
    write_tar(tmp_path / "0.tar", shuffled(members))
    manifest = ingest(tmp_path / "0.tar", tmp_path / "out", label_column="cls")
    assert (manifest.class_names, manifest.rows_written) == (("cat", "dog"), 6)
    assert all(record.label == (0 if int(record.key) % 2 else 1) for record in open_records(tmp_path / "out"))


def test_a_limit_takes_the_first_samples_of_a_scattered_tar(tmp_path):
    write_tar(tmp_path / "0.tar", one_kind_first(pairs(9)))
    manifest = ingest(tmp_path / "0.tar", tmp_path / "out", limit=4)
    assert (manifest.rows_read, keys(tmp_path / "out")) == (4, [f"d/{i:05d}" for i in range(4)])


def test_images_without_any_text_are_refused_as_before(tmp_path):
    write_tar(tmp_path / "0.tar", [(f"{i}.jpg", jpeg(i)) for i in range(3)])
    with pytest.raises(DataError, match="no column looks like the caption"):
        ingest(tmp_path / "0.tar", tmp_path / "out")


NAMES = st.permutations([f"{i}.{suffix}" for i, suffix in itertools.product(range(3), ("jpg", "txt", "json"))])


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=NAMES)
def test_any_order_of_members_gives_the_same_samples(names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tar")
    values = {"jpg": jpeg(0), "txt": b"a", "json": b"{}"}
    write_tar(folder / "0.tar", [(name, values[name.partition(".")[2]]) for name in names])
    manifest = ingest(folder / "0.tar", folder / "out")
    assert (manifest.rows_read, manifest.rows_dropped) == (3, {})
    assert sorted(keys(folder / "out")) == ["0", "1", "2"]
