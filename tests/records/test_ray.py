"""Conversions on a Ray cluster of two nodes: the same bytes as one process, whatever happens to workers and nodes."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial

import fsspec
import numpy as np
import pytest
from support import dumps, ray_work
from support.conversions import call, content, error_of, ingest, interrupted
from support.dumps import samples
from support.paths import ROOT
from support.ray_clusters import NODE, ray_processes, two_nodes

from clipa_eqx.cluster import repeating
from clipa_eqx.cluster import tasks as tasks_module
from clipa_eqx.cluster.engine import Engine
from clipa_eqx.cluster.tasks import TaskTraceback
from clipa_eqx.errors import ConfigError, DataError
from conversion.records import convert as module
from conversion.records import nodes
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
QUICK = ("webdataset", "csv")  # others import TensorFlow or pyarrow in both worker processes
PARTS = 6


@pytest.fixture(scope="module")
def cluster():
    """Two nodes, and a connection of this process that the conversions of the tests share."""
    import ray

    with two_nodes() as found:
        ray.init(found.address, log_to_driver=False, configure_logging=False)
        try:
            yield found
        finally:
            ray.shutdown()


@pytest.fixture(autouse=True)
def quick_attempts(monkeypatch):
    monkeypatch.setattr(repeating, "WAITS", (0.05, 0.05))


@pytest.fixture
def engine(cluster):
    return Engine(kind="ray", address=cluster.address)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Parts of which the last repeats keys, so that it is written again at the end."""
    folder = tmp_path_factory.mktemp("dump")
    shards = [samples(3, first=3 * i) for i in range(PARTS)]
    shards[-1] = [*shards[-1], shards[0][0], replace(shards[1][0], captions=(b"other",))]
    dumps.write_tars(folder / "source", shards)
    return folder / "source"


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "out"
    ingest(source, folder)
    return content(folder)


def convert(source, target, engine, *, kind="webdataset", workers=None, **options):
    return module.convert(
        kind, str(source), str(target), options=IngestOptions(**options), engine=engine, workers=workers
    )


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in KINDS])
def test_two_nodes_write_the_bytes_of_one_process(name, engine, tmp_path):
    kind, write = KINDS[name]
    rows = samples(9)
    shards = [dumps.with_corrupt_image(rows[:3]), rows[3:6], rows[6:]]
    (tmp_path / "source").mkdir()
    write(tmp_path / "source", shards)
    manifest = ingest(tmp_path / "source", tmp_path / "one", kind=kind, records_per_shard=2)
    assert convert(tmp_path / "source", tmp_path / "two", engine, kind=kind, records_per_shard=2) == manifest
    assert content(tmp_path / "two") == content(tmp_path / "one")


SLOW = [pytest.param({"limit": limit}, marks=pytest.mark.slow) for limit in (1, 99)]


@pytest.mark.parametrize("chosen", [{"limit": 7}, {"where": ("url != 'http://host/000000004'",)}, *SLOW])
def test_limits_and_filters_take_the_same_rows(chosen, source, engine, tmp_path):
    if "where" in chosen:
        np.save(tmp_path / "keys.npy", np.array(["000000001", "000000004", "000000009"]))
        chosen = {**chosen, "subset": str(tmp_path / "keys.npy")}
    ingest(source, tmp_path / "one", **chosen)
    convert(source, tmp_path / "two", engine, **chosen)
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_texts_as_labels_are_collected_on_the_nodes(engine, tmp_path):
    dumps.write_table(tmp_path / "source/a.parquet", {"jpg": [dumps.jpeg(1)], "key": ["a"], "label": ["cat"]})
    dumps.write_table(tmp_path / "source/b.parquet", {"jpg": [dumps.jpeg(2)], "key": ["b"], "label": ["ant"]})
    given = {"kind": "parquet", "label_column": "label"}
    assert convert(tmp_path / "source", tmp_path / "two", engine, **given).class_names == ("ant", "cat")
    ingest(tmp_path / "source", tmp_path / "one", **given)
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_a_killed_worker_costs_only_its_part(source, whole, engine, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "convert_part", partial(ray_work.killed_once, tmp_path, 2))
    with caplog.at_level(logging.WARNING):
        convert(source, tmp_path / "out", engine)
    assert content(tmp_path / "out") == whole
    again = [2, PARTS - 1]  # the last one for its duplicate keys
    assert ray_work.attempts(tmp_path) == Counter([*range(PARTS), *again])
    (said,) = [record.getMessage() for record in caplog.records if "attempt" in record.getMessage()]
    assert re.fullmatch(
        r"part 2 \(00002\.tar\) failed on node .+: its worker process died; .*; attempt 2 of 3 follows in .+ s", said
    )


@pytest.mark.parametrize("lives_on", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_killed_node_costs_only_its_parts(lives_on, source, whole, cluster, engine, tmp_path, monkeypatch, caplog):
    (victim,) = cluster.worker_nodes
    monkeypatch.setattr(tasks_module, "_LOOK_EVERY", 0.1)
    monkeypatch.setattr(module, "convert_part", partial(ray_work.node_killed_once, tmp_path, victim.node_id, lives_on))
    try:
        with caplog.at_level(logging.WARNING):
            convert(source, tmp_path / "out", engine)
    finally:
        cluster.remove_node(victim, allow_graceful=False)
        cluster.add_node(**NODE)
    assert content(tmp_path / "out") == whole
    lost = int((tmp_path / "lost").read_text())
    assert ray_work.attempts(tmp_path) == Counter([*range(PARTS), lost, PARTS - 1])
    assert f"part {lost} (0000{lost}.tar) failed on node" in caplog.text
    assert "attempt 2 of 3 follows" in caplog.text


def test_a_node_with_a_full_disk_ends_no_conversion(source, whole, cluster, engine, tmp_path, monkeypatch):
    (full,) = cluster.worker_nodes
    monkeypatch.setattr(module, "convert_part", partial(ray_work.on_full_disk, tmp_path, full.node_id))
    convert(source, tmp_path / "out", engine)
    assert content(tmp_path / "out") == whole
    attempts = ray_work.attempts(tmp_path)
    assert max(attempts[number] for number in range(PARTS - 1)) == 2  # the last part is written again at the end


def test_storage_that_fails_is_tried_three_times_and_then_named(source, engine, tmp_path, monkeypatch):
    down = OSError(5, "the disk is away")
    monkeypatch.setattr(module, "convert_part", partial(ray_work.failing, tmp_path, down, 99))
    with pytest.raises(DataError) as caught:
        convert(source, tmp_path / "out", engine, workers=1)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("part 0 (00000.tar) failed 3 times; repeat the same command to resume")
    assert len(lines) == 4
    assert all(re.search(r"on node .+: OSError: .*the disk is away", line) for line in lines[1:])
    assert ray_work.attempts(tmp_path)[0] == 3


def test_storage_that_recovers_leaves_no_trace(source, whole, engine, tmp_path, monkeypatch):
    work = partial(ray_work.failing, tmp_path, TimeoutError("no answer"), 2)
    monkeypatch.setattr(module, "convert_part", work)
    convert(source, tmp_path / "out", engine)
    assert content(tmp_path / "out") == whole
    assert min(ray_work.attempts(tmp_path).values()) == 3


def test_mistakes_and_bugs_arrive_as_they_were_raised_and_once(source, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "convert_part", ray_work.refused)
    with pytest.raises(DataError, match=r"^part \d has no such column$"):
        convert(source, tmp_path / "a", engine)
    monkeypatch.setattr(module, "convert_part", ray_work.broken)
    with pytest.raises(KeyError, match="a bug of ours") as caught:
        convert(source, tmp_path / "b", engine)
    assert isinstance(caught.value.__cause__, TaskTraceback)
    assert "in broken" in str(caught.value.__cause__)


def test_an_interrupted_conversion_is_resumed_by_the_other_engine(source, whole, engine, tmp_path, monkeypatch):
    interrupted(monkeypatch, source, tmp_path / "out", after=2)
    with monkeypatch.context() as patch:
        patch.setattr(module, "convert_part", partial(ray_work.noted, tmp_path))
        convert(source, tmp_path / "out", engine)
    assert ray_work.attempts(tmp_path) == Counter([*range(2, PARTS), PARTS - 1])
    assert content(tmp_path / "out") == whole
    down = partial(ray_work.failing, tmp_path, ValueError("stop"), 99)
    monkeypatch.setattr(module, "convert_part", down)
    with pytest.raises(ValueError, match="stop"):
        convert(source, tmp_path / "back", engine)
    monkeypatch.undo()
    ingest(source, tmp_path / "back")
    assert content(tmp_path / "back") == whole


def test_a_node_with_other_versions_is_refused_before_anything_is_written(source, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "facts_of_bytes", lambda kind, options: ray_work.other_facts())
    with pytest.raises(ConfigError) as caught:
        convert(source, tmp_path / "out", engine)
    lines = str(caught.value).splitlines()
    assert "give all of them the same versions" in lines[0]
    assert len(lines) == 3
    assert all(re.search(r"node .+ \(.+\): pillow is 1\.0, here 2\.0$", line) for line in lines[1:])
    assert not (tmp_path / "out").exists()


def test_a_node_that_sees_another_destination_is_refused_and_old_records_stay(source, engine, tmp_path, monkeypatch):
    ingest(source, tmp_path / "out")
    before = content(tmp_path / "out")
    monkeypatch.setattr(nodes, "write_file", lambda place, name, text: None)  # as on a disk of this node only
    with pytest.raises(ConfigError, match=r"the destination .*out is another one or none \(is it on a local disk\?\)"):
        module.convert(
            "webdataset",
            str(source),
            str(tmp_path / "out"),
            options=IngestOptions(min_side=2),
            engine=engine,
            overwrite=True,
        )
    assert content(tmp_path / "out") == before


def test_what_other_processes_cannot_see_is_refused(source, engine):
    with pytest.raises(ConfigError, match=r"--engine ray: memory://bucket/out exists in this process only"):
        convert(source, "memory://bucket/out", engine)
    assert not fsspec.filesystem("memory").exists("/bucket/out")


@pytest.mark.parametrize("options", [["--min-side", "-3"], ["--records-per-shard", "0"], ["--first-label", "1"]])
def test_a_mistake_in_the_options_gets_the_message_of_the_local_engine(options, source, cluster, tmp_path, capsys):
    said = []
    for engine in ("local", f"ray:{cluster.address}"):
        assert call("webdataset", source, tmp_path / "out", *options, "--engine", engine) == 2
        said.append(error_of(capsys))
    assert said[0] == said[1]


def start(source, target, *options, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "conversion.records", "webdataset", str(source), str(target), *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_until(reached, *, seconds=60.0):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def parts_done(target):
    return {path.name: path.stat().st_mtime_ns for path in target.glob("_unfinished/part-*.json")}


def stopped(source, target, number, *, send=os.kill, **environment):
    """Start a conversion on a cluster, stop it after its first part, and return its exit code and what it printed."""
    process = start(source, target, "--engine", "ray", **environment)
    wait_until(lambda: parts_done(target) or process.poll() is not None)
    send(process.pid, number)
    shown, _ = process.communicate(timeout=60)
    return process.returncode, shown


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A source whose conversion takes some seconds on two processors."""
    folder = tmp_path_factory.mktemp("long")
    images = [dumps.jpeg(i, width=1200, height=900) for i in range(2)]
    shards = [[dumps.Sample(f"{part}-{i}", images[i % 2], (b"text",), 0) for i in range(30)] for part in range(PARTS)]
    dumps.write_tars(folder / "source", shards)
    return folder / "source"


@pytest.mark.slow
def test_a_killed_driver_leaves_no_task_and_the_same_command_resumes(long, cluster, tmp_path):
    code, shown = stopped(long, tmp_path / "out", signal.SIGKILL, RAY_ADDRESS=cluster.address)
    assert code == -signal.SIGKILL, shown
    wait_until(lambda: not tasks())
    done = parts_done(tmp_path / "out")
    assert 1 <= len(done) < PARTS
    time.sleep(1)
    assert parts_done(tmp_path / "out") == done
    shards = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*")}
    again = start(long, tmp_path / "out", "--engine", f"ray:{cluster.address}")
    shown, _ = again.communicate(timeout=120)
    assert again.returncode == 0, shown
    assert f"resuming: {len(done)} of {PARTS} parts are done" in shown
    ingest(long, tmp_path / "one")
    assert content(tmp_path / "out") == content(tmp_path / "one")
    kept = {f"shard-{name[5:11]}-000.array_record" for name in done}
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == shards[name] for name in kept)


@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False], ids=["its own cluster", "a cluster that runs"])
@pytest.mark.parametrize(
    ("number", "send", "code"),
    [
        (signal.SIGINT, os.killpg, 130),
        (signal.SIGTERM, os.kill, 143),
        (signal.SIGTERM, os.killpg, 143),
        (signal.SIGHUP, os.killpg, 129),
    ],
    ids=["terminal", "supervisor", "scheduler", "closed terminal"],
)
def test_a_signal_stops_with_a_word_and_ends_all_tasks(number, send, code, own, long, cluster, tmp_path):
    before = ray_processes()
    address = "local" if own else cluster.address
    returned, shown = stopped(long, tmp_path / "out", number, send=send, RAY_ADDRESS=address, HOME=str(tmp_path))
    assert returned == code, shown
    assert re.search("interrupted|terminated", shown)
    assert "repeat the same command to resume" in shown
    assert "Traceback" not in shown
    wait_until(lambda: not tasks() and ray_processes() <= before)
    assert not (tmp_path / "out/manifest.json").exists()
    assert not (tmp_path / ".ray").exists()  # a token there would change the user's other clusters


@pytest.mark.slow
def test_other_versions_of_ray_in_the_cluster_are_one_message(source, cluster, tmp_path):
    import ray

    kv = ray.experimental.internal_kv
    key, space = b"CLUSTER_METADATA", "cluster"
    before = kv._internal_kv_get(key, namespace=space)
    kv._internal_kv_put(key, before.replace(ray.__version__.encode(), b"2.0.0"), namespace=space)
    try:
        process = start(source, tmp_path / "out", "--engine", f"ray:{cluster.address}")
        shown, _ = process.communicate(timeout=60)
    finally:
        kv._internal_kv_put(key, before, namespace=space)
    assert process.returncode == 2, shown
    assert "has other versions (Ray: 2.0.0, Python: " in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def tasks():
    """The command lines of worker processes that run a part."""
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in shown.splitlines() if line.startswith("ray::part ")]
