"""Dumps that img2dataset itself wrote, in each of its output formats (``img2dataset_dumps/make.py`` makes them)."""

import json
import shutil
from pathlib import Path

import pytest
from support.conversions import ingest

from clipa_eqx.data.array_record_reader import open_records

DUMPS = Path(__file__).parent / "img2dataset_dumps"
FORMS = ("webdataset", "tfrecord", "parquet", "files")
ROWS = json.loads((DUMPS / "rows.json").read_text())
PER_SHARD = 5
# Tables hold the rows of failed downloads, and missing captions that differ from empty ones.
IN_TABLES = {"parquet", "files"}


def key_of(number):
    """The key that img2dataset gives a row: number of the shard, then of the row in it."""
    return f"{number // PER_SHARD:05d}{number % PER_SHARD}"


EXPECTED = {key_of(i): row for i, row in enumerate(ROWS) if row["failure"] is None and row["caption"]}


def statistics(form):
    """The sum over the shards of what img2dataset reports."""
    found = [json.loads(path.read_text()) for path in sorted((DUMPS / form).glob("*_stats.json"))]
    names = ("count", "successes", "failed_to_download", "failed_to_resize")
    return {name: sum(one[name] for one in found) for name in names}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Manifest and records by form."""
    found = {}
    for form in FORMS:
        out = tmp_path_factory.mktemp(form) / "out"
        manifest = ingest(DUMPS / form, out, kind="img2dataset", keep=("uid", "similarity", "error_message"))
        found[form] = manifest, {record.key: record for record in open_records(out)}
    return found


@pytest.mark.parametrize("form", FORMS)
def test_the_counts_are_those_that_img2dataset_reports(form, converted):
    said = statistics(form)
    assert (said["count"], said["successes"]) == (len(ROWS), sum(row["failure"] is None for row in ROWS))
    failed = said["failed_to_download"] + said["failed_to_resize"]
    manifest, records = converted[form]
    if form in IN_TABLES:
        assert manifest.rows_read == said["count"]
        assert manifest.rows_dropped == {"download failed": failed, "empty caption": 1, "missing caption": 1}
        assert "downloads" not in manifest.info
    else:
        assert manifest.rows_read == said["successes"]
        assert manifest.rows_dropped == {"empty caption": 2}
        assert manifest.info["downloads"] == {"total": said["count"], "failed": failed}
    assert manifest.info["damaged_sources"] == []
    assert manifest.rows_written == len(records) == len(EXPECTED)


@pytest.mark.parametrize("form", FORMS)
def test_keys_and_captions_are_those_of_the_list(form, converted):
    _, records = converted[form]
    assert {key: record.captions for key, record in records.items()} == {
        key: (row["caption"],) for key, row in EXPECTED.items()
    }
    assert {key: record.extra["uid"] for key, record in records.items()} == {
        key: row["uid"] for key, row in EXPECTED.items()
    }


def test_all_forms_hold_the_same_samples(converted):
    for name in ("key_fingerprint", "content_fingerprint"):
        assert len({manifest.info[name] for manifest, _ in converted.values()}) == 1
    for _, records in converted.values():
        assert {key: record.image for key, record in records.items()} == {
            key: record.image for key, record in converted["files"][1].items()
        }


def test_tfrecord_files_hold_numbers_in_half_the_precision_and_no_missing_values(converted):
    exact = {key: record.extra for key, record in converted["parquet"][1].items()}
    assert [key for key, extra in exact.items() if extra["similarity"] is None] == [key_of(2)]
    for form in ("webdataset", "files"):
        assert {key: record.extra for key, record in converted[form][1].items()} == exact
    for key, record in converted["tfrecord"][1].items():
        given = exact[key]["similarity"]
        assert record.extra["error_message"] == ""
        if given is None:
            assert record.extra["similarity"] == ""
        else:
            assert record.extra["similarity"] == pytest.approx(given, rel=1e-7)


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_the_source_of_the_form_reads_the_same(form, converted, tmp_path):
    manifest = ingest(DUMPS / form, tmp_path / "out", kind=form)
    for name in ("key_fingerprint", "content_fingerprint"):
        assert manifest.info[name] == converted[form][0].info[name]


def stopped(form, folder):
    """A dump whose last shard but one img2dataset had just begun when it was killed."""
    shutil.copytree(DUMPS / form, folder)
    for path in folder.glob("0000[23]*"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name in {"00002.parquet", f"00002.{'tar' if form == 'webdataset' else form}"}:
            path.write_bytes(b"")
        else:
            path.unlink()
    (folder / "_tmp").mkdir()
    (folder / "_tmp/2.feather").write_bytes(b"ARROW1")
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_a_shard_that_img2dataset_did_not_finish_is_reported(form, tmp_path):
    manifest = ingest(stopped(form, tmp_path / "source"), tmp_path / "out", kind="img2dataset")
    assert manifest.rows_dropped["truncated shard"] == 1
    (damage,) = manifest.info["damaged_sources"]
    assert (damage["source"].partition(".")[0], damage["rows_lost"]) == ("00002", "unknown")
    assert {record.key for record in open_records(tmp_path / "out")} == {key for key in EXPECTED if key < key_of(10)}


def test_a_tfrecord_file_without_statistics_is_whole_if_its_table_is(tmp_path):
    shutil.copytree(DUMPS / "tfrecord", tmp_path / "source")
    for path in (tmp_path / "source").glob("*_stats.json"):
        path.unlink()
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="img2dataset")
    assert (manifest.rows_dropped, manifest.rows_written) == ({"empty caption": 2}, len(EXPECTED))
