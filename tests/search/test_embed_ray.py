"""Embedding on a Ray cluster of two nodes: the bytes of one process, whatever happens to nodes and to the command."""

import contextlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from support.paths import ROOT
from support.ray_clusters import NODE, two_nodes
from support.ray_work import other_facts
from support.scored_runs import noise_png

from clipa_eqx.cli import OK, USAGE, run
from clipa_eqx.cluster.attempts import Setting
from clipa_eqx.cluster.connection import Cluster
from clipa_eqx.cluster.lasting import LastingProcesses
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.records import Record
from clipa_eqx.locks.owner import this_process
from clipa_eqx.programs import embedding_cluster
from clipa_eqx.programs.embed import main

pytestmark = pytest.mark.usefixtures("quick_compile")

# The devices of these tests, for the processes of nodes.
DEVICES = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
PROGRAM = """
import json, sys
from clipa_eqx.cli import run
from clipa_eqx.programs.embed import main
code = run(lambda: main(json.loads(sys.argv[1])))
import jax
assert not jax._src.xla_bridge._backends, "JAX was started in this process"
sys.exit(code)
"""


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in DEVICES.items():
            patch.setenv(name, value)
        with two_nodes() as found:
            yield found


def write_photos(folder, count):
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:03}.png").write_bytes(noise_png(i) if i != 4 else b"no image")
    return folder


@pytest.fixture
def photos(tmp_path):
    """Ten images, one of which is none."""
    return write_photos(tmp_path / "photos", 10)


def command(model_folder, out, *more, images=None, size=2):
    inputs = ["--images", str(images)] if images is not None else []
    options = ["--shard-inputs", str(size), "--batch-size", "8", "--on-unreadable", "skip"]
    return [str(model_folder), *inputs, "--out", str(out), *options, *map(str, more)]


def on(cluster):
    return "--engine", f"ray:{cluster.address}"


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def call(words):
    return run(partial(main, words))


def start(words):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def shards_in(folder):
    return len(list(folder.glob("[0-9]*.json")))


def wait_until(reached, *, seconds=60.0):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@contextlib.contextmanager
def cluster_of_this_process(engine, *, facts, at_once):
    """Takes the place of a cluster."""
    yield Cluster(setting=Setting(run="a", facts=facts, expected=facts(), folder="."))


def tasks_of_this_process(cluster, work, jobs, *, name, watch, processes, repeated=None):
    """Run tasks one after the other, with what crosses processes pickled."""
    assert cluster.setting.facts() == cluster.setting.expected  # what nodes compare
    for job in jobs:
        assert name(job)
        yield (
            job,
            pickle.loads(pickle.dumps(work(pickle.loads(pickle.dumps(job)), lambda units: watch(units, "1 task")))),
        )


def test_the_jobs_for_nodes_write_the_bytes_of_one_process(model_folder, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(embedding_cluster, "connected", cluster_of_this_process)
    monkeypatch.setattr(embedding_cluster, "run_tasks", tasks_of_this_process)
    monkeypatch.setattr(embedding_cluster, "compare_nodes", lambda setting: None)
    monkeypatch.setattr(
        embedding_cluster, "lasting_processes", lambda most: contextlib.nullcontext(LastingProcesses(most))
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").write_text("a cat\nzwei Hunde\n\na red bicycle\n")
    write_records([Record(key=str(i), image=noise_png(i), captions=("one", "two")) for i in range(5)], "records")
    for number, given in enumerate((["--images", "photos"], ["--texts", "texts"], ["--texts", "records"])):
        two, one = f"two{number}", f"one{number}"
        assert call(command(model_folder, two, "--engine", "ray", *given)) == OK
        if number == 0:
            shown = capsys.readouterr().out
            assert "9 images in 5 shards, 5 of them new" in shown
            assert re.search(r"left out.*1 input\n  004\.png", shown)
        assert call(command(model_folder, one, *given)) == OK
        assert content_of(tmp_path / two) == content_of(tmp_path / one)


@pytest.mark.slow
def test_two_nodes_write_the_bytes_of_one_process(cluster, model_folder, photos, tmp_path, capsys):
    assert call(command(model_folder, tmp_path / "two", *on(cluster), images=photos)) == OK
    shown = capsys.readouterr().out
    assert "9 images in 5 shards, 5 of them new" in shown
    assert re.search(r"left out.*1 input\n  004\.png", shown)
    assert call(command(model_folder, tmp_path / "one", images=photos)) == OK
    assert content_of(tmp_path / "two") == content_of(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lines", "captions", "record images"])
def test_two_nodes_write_the_bytes_of_one_process_of_all_inputs(kind, cluster, model_folder, tmp_path):
    (tmp_path / "texts").write_text("a cat\nzwei Hunde\n\na red bicycle " + "very " * 40 + "\n" * 3)
    records = [Record(key=str(i), image=noise_png(i), captions=("one", f"two {i}")) for i in range(7)]
    write_records(records, tmp_path / "records", records_per_shard=3)
    given = {
        "lines": ["--texts", tmp_path / "texts"],
        "captions": ["--texts", tmp_path / "records"],
        "record images": ["--images", tmp_path / "records"],
    }[kind]
    more = ["--dtype", "float16", "--parquet"]
    assert call(command(model_folder, tmp_path / "two", *on(cluster), *given, *more)) == OK
    assert call(command(model_folder, tmp_path / "one", *given, *more)) == OK
    assert content_of(tmp_path / "two") == content_of(tmp_path / "one")


@pytest.mark.slow
def test_a_killed_node_costs_only_its_shards(cluster, model_folder, tmp_path, capsys, caplog):
    images = write_photos(tmp_path / "many", 120)
    (victim,) = cluster.worker_nodes

    def kill():
        wait_until(lambda: shards_in(tmp_path / "two") >= 6)
        os.kill(victim.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        assert call(command(model_folder, tmp_path / "two", *on(cluster), images=images)) == OK
    finally:
        thread.join()
        cluster.remove_node(victim, allow_graceful=False)
        cluster.add_node(**NODE)
    captured = capsys.readouterr()
    assert "119 images in 60 shards, 60 of them new" in captured.out
    assert re.search(r"shard \d+ \(images [\d,]+ to [\d,]+\) failed .*attempt 2 of 3 follows", captured.err)
    assert call(command(model_folder, tmp_path / "one", images=images)) == OK
    assert content_of(tmp_path / "two") == content_of(tmp_path / "one")


@pytest.mark.slow
def test_a_killed_command_resumes_with_the_shards_that_are_missing(cluster, model_folder, tmp_path):
    images, out = write_photos(tmp_path / "many", 160), tmp_path / "two"
    words = command(model_folder, out, *on(cluster), images=images)
    process = start(words)
    wait_until(lambda: shards_in(out) >= 5 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("[0-9]*.json")}
    assert 5 <= len(kept) < 80
    again = start(words)
    shown, _ = again.communicate(timeout=120)
    assert again.returncode == 0, shown
    (new,) = map(int, re.findall(r"in 80 shards, (\d+) of them new", shown))
    assert 0 < new <= 80 - len(kept)
    assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())
    assert call(command(model_folder, tmp_path / "one", images=images)) == OK
    assert content_of(out) == content_of(tmp_path / "one")


@pytest.mark.slow
def test_a_process_loads_the_model_once_and_one_process_suffices(cluster, model_folder, photos, tmp_path, capsys):
    words = command(model_folder, tmp_path / "two", *on(cluster), "--workers", 1, images=photos)
    assert call(words) == OK
    assert call(words) == OK
    assert "0 of them new" in capsys.readouterr().out
    assert call(command(model_folder, tmp_path / "one", images=photos)) == OK
    assert content_of(tmp_path / "two") == content_of(tmp_path / "one")


@pytest.mark.slow
def test_mistakes_arrive_as_one_message_and_leave_nothing(cluster, model_folder, photos, tmp_path, capsys, monkeypatch):
    def refused(*words, images=photos, model=model_folder):
        assert call(command(model, tmp_path / "out", *on(cluster), *words, images=images)) == USAGE
        assert not (tmp_path / "out").exists()
        (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return message

    assert "photos is a folder that clipa_eqx did not write; expected a run folder or" in refused(model=photos)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", lambda self, text: None)  # as on a disk of this node only
        assert "nodes of the cluster are not like this one" in refused()
    with monkeypatch.context() as patch:
        patch.setattr(embedding_cluster, "facts_of_vectors", other_facts)
        assert "give all of them the same versions" in refused()
    words = command(model_folder, tmp_path / "out", *on(cluster), images=photos)
    assert call(["refuse" if word == "skip" else word for word in words]) == USAGE
    assert "error: input 5, 004.png: cannot decode image" in capsys.readouterr().err
    assert "embed.lock" not in os.listdir(tmp_path / "out")


def test_what_does_not_go_together_is_refused(model_folder, photos, tmp_path, capsys):
    for words, message in (
        (["--engine", "ray", "--distributed"], "leave out --distributed"),
        (["--workers", "2"], "--workers has no effect without --engine ray"),
        (["--engine", "ray", "--workers", "0"], "--workers is 0"),
        (["--engine", "dask"], "choose local, ray or ray:HOST:PORT"),
    ):
        assert call(command(model_folder, tmp_path / "out", *words, images=photos)) == USAGE
        assert message in capsys.readouterr().err
    assert call(command(model_folder, "gs://bucket/out", images=photos)) == USAGE
    assert "--out gs://bucket/out is in a bucket; give a local folder" in capsys.readouterr().err


def test_a_folder_that_another_host_writes_is_respected_and_a_lost_one_left(
    model_folder, photos, tmp_path, capsys, monkeypatch
):
    from clipa_eqx.search import embedding

    out, real = tmp_path / "out", embedding.write_shard

    def taken(*arguments, **options):
        owner = {"token": "theirs", **this_process(), "host": "elsewhere", "stage": 0}
        (out / "embed.lock").write_text(json.dumps(owner))
        return real(*arguments, **options)

    monkeypatch.setattr("clipa_eqx.locks.fence.PATIENCE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "write_shard", taken)
        assert call(command(model_folder, out, images=photos)) == USAGE
    assert re.search(r"out was taken over by process \d+ on elsewhere", capsys.readouterr().err)
    assert sorted(path.name for path in out.iterdir()) == ["embed.lock", "embeddings.json"]
