"""Conversions on a Ray cluster of two nodes: the same bytes as one process, whatever happens to workers and nodes."""

import pytest
from support import dumps
from support.conversions import content, ingest
from support.dumps import samples
from support.ray_clusters import two_nodes

from clipa_eqx.cluster.engine import Engine
from conversion.records import convert as module
from conversion.records.options import IngestOptions

KINDS = {
    "img2dataset": ("img2dataset", dumps.write_img2dataset),
    "tfds": ("tfds", dumps.write_tfds),
    "webdataset": ("webdataset", dumps.write_tars),
    "parquet": ("parquet", dumps.write_parquet),
    "files": ("parquet", dumps.write_files),
    "folder": ("folder", dumps.write_class_folders),
    "coco": ("captions", dumps.write_coco),
    "csv": ("captions", dumps.write_csv),
    "jsonl": ("captions", dumps.write_jsonl),
}
SLOW = [name for name in KINDS if name not in ("webdataset", "csv")]


@pytest.fixture(scope="module")
def cluster():
    with two_nodes() as found:
        yield found


@pytest.fixture
def engine(cluster):
    return Engine(kind="ray", address=cluster.address)


def convert(source, target, engine, *, kind="webdataset", workers=None, overwrite=False, **options):
    return module.convert(
        kind,
        str(source),
        str(target),
        options=IngestOptions(**options),
        engine=engine,
        workers=workers,
        overwrite=overwrite,
    )


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in KINDS])
def test_two_nodes_write_the_bytes_of_one_process(name, engine, tmp_path):
    kind, write = KINDS[name]
    rows = samples(9)
    shards = [dumps.with_corrupt_image(rows[:3]), rows[3:6], [*rows[6:], rows[1]]]
    if kind != "webdataset":
        shards[2] = rows[6:]
    (tmp_path / "source").mkdir()
    write(tmp_path / "source", shards)
    options = {"records_per_shard": 2}
    manifest = ingest(tmp_path / "source", tmp_path / "one", kind=kind, **options)
    assert convert(tmp_path / "source", tmp_path / "two", engine, kind=kind, **options) == manifest
    assert content(tmp_path / "two") == content(tmp_path / "one")
