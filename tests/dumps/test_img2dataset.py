"""Downloads by img2dataset in each of its forms: every key, caption and image is what the tool itself reads."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.conversions import call, ingest
from support.dump_table import run_row

from clipa_eqx.data.array_record_reader import open_records

WRITTEN = Path(__file__).parent / "written/img2dataset"
READ = json.loads((WRITTEN / "read.json").read_text(encoding="utf-8"))
ROWS = {
    "webdataset": ("cc12m", "python -m conversion.records img2dataset cc12m/ data/cc12m"),
    "tfrecord": (
        "laion400m",
        "python -m conversion.records img2dataset laion400m/ data/laion400m --keep url similarity",
    ),
    "parquet": ("coyo700m", "python -m conversion.records img2dataset coyo700m/ data/coyo700m"),
    "files": ("cc3m", "python -m conversion.records img2dataset cc3m/ data/cc3m"),
    "datacomp": (
        "datacomp/shards/small",
        "python -m conversion.records img2dataset datacomp/shards/small data/datacomp --keep uid",
    ),
}
LOST_BY_THE_TOOL = "000013"  # by its form tfrecord, because of an empty list


def kept(form):
    """The rows that have an image and a caption."""
    return {key: row for key, row in READ[form].items() if row["image"] and row["captions"] not in ([], [""])}


def assert_read_like_the_tool(form, folder):
    records = {record.key: record for record in open_records(folder)}
    assert set(records) == set(kept(form))
    for key, row in kept(form).items():
        assert list(records[key].captions) == row["captions"]
        assert hashlib.sha256(records[key].image).hexdigest() == row["image"]


@pytest.fixture(params=ROWS)
def form(request):
    return request.param


def test_every_row_is_what_the_tool_reads(form, tmp_path, monkeypatch):
    name, command = ROWS[form]
    shutil.copytree(WRITTEN / ("datacomp/shards/small" if form == "datacomp" else form), tmp_path / name)
    assert run_row(command, tmp_path, monkeypatch) == 0
    target = tmp_path / "data" / name.partition("/")[0]
    assert_read_like_the_tool(form, target)
    for record in open_records(target) if "--keep" in command else ():
        assert set(record.extra) == set(command.partition("--keep ")[2].split())


def test_the_forms_differ_only_in_rows_without_caption_and_in_what_the_tool_lost():
    forms = [{key: row for key, row in kept(form).items() if key != LOST_BY_THE_TOOL} for form in READ]
    assert [LOST_BY_THE_TOOL in READ[form] for form in ("files", "parquet", "tfrecord", "webdataset")] == [1, 1, 0, 1]
    assert all(one == forms[1] for one in forms[1:])


def test_every_download_is_accounted_for(form, tmp_path):
    """The shards of two forms hold no failed rows; there the statistics next to the shards have their number."""
    manifest = ingest(WRITTEN / form, tmp_path / "out", kind="img2dataset")
    failed = [row["status"] for row in READ[form].values() if row["image"] is None]
    empty = sum(row["captions"] in ([], [""]) for row in READ[form].values())
    dropped = dict(manifest.rows_dropped)
    assert dropped.pop("empty caption", 0) + dropped.pop("missing caption", 0) == empty
    if form in ("parquet", "files"):
        assert dropped == {"download failed": len(failed)}
        assert "downloads" not in manifest.info
        assert manifest.rows_read == len(READ[form])
        return
    lost = int(form == "tfrecord")
    assert dropped == ({"truncated shard": 1} if lost else {})
    assert manifest.info["downloads"] == {"total": len(READ[form]) + lost, "failed": len(failed)}
    assert manifest.rows_read == len(READ[form]) + lost - len(failed)


def test_a_subset_of_datacomp_is_that_of_its_uids(tmp_path, monkeypatch):
    """The array is written by the statement of DataComp's own baselines."""
    folder = tmp_path / "datacomp/shards/small"
    shutil.copytree(WRITTEN / "datacomp/shards/small", folder)
    ingest(folder, tmp_path / "all", kind="img2dataset", keep=("uid",))
    uids = {record.key: record.extra["uid"] for record in open_records(tmp_path / "all")}
    chosen = sorted(uids)[::2]
    pairs = [(int(uids[key][:16], 16), int(uids[key][16:32], 16)) for key in chosen]
    np.save(tmp_path / "uids.npy", np.sort(np.array(pairs, np.dtype("u8,u8"))))
    command = "python -m conversion.records img2dataset datacomp/shards/small data/datacomp-subset --subset uids.npy"
    assert run_row(command, tmp_path, monkeypatch) == 0
    assert [record.key for record in open_records(tmp_path / "data/datacomp-subset")] == chosen


def test_failed_downloads_are_in_the_closing_lines(tmp_path, capsys):
    assert call("img2dataset", WRITTEN / "webdataset", tmp_path / "out") == 0
    assert "img2dataset reports 17 downloads, 2 failed, for which the source has no rows" in capsys.readouterr().out


def test_other_sources_read_the_same_shards(tmp_path):
    for kind, form in (("webdataset", "webdataset"), ("parquet", "parquet"), ("parquet", "files"), ("pairs", "files")):
        ingest(WRITTEN / form, tmp_path / f"{kind}-{form}", kind=kind)
    for name in ("webdataset-webdataset", "parquet-parquet", "parquet-files"):
        assert_read_like_the_tool(name.partition("-")[2], tmp_path / name)
    assert {record.key for record in open_records(tmp_path / "pairs-files")} == {
        f"{key[:-1].zfill(5)}/{key}" for key in kept("files")
    }
