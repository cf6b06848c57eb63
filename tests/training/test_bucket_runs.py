"""Run folders in buckets, against real servers on loopback: the guarantees of a local run folder."""

import json
import os
import signal
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from support import tiny_runs
from support.bucket_runs import downloaded
from support.bucket_servers import bucket_server
from support.dropping_proxy import dropping_proxy
from support.tiny_models import WORDS, tiny_clip_config
from support.train_processes import assert_same_runs, start, wait_for, write_config

from clipa_eqx.buckets.bucket import bucket_at
from clipa_eqx.buckets.mirror import local_copy
from clipa_eqx.cli import OK
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.durations import Duration
from clipa_eqx.errors import CheckpointError, ConfigError
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.programs import evaluate, replay
from clipa_eqx.programs.targets import show
from clipa_eqx.saved.model import load_model
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.training.profiling import ProfiledSteps
from clipa_eqx.training.reporting import Reports
from clipa_eqx.training.restoring import read_newest
from clipa_eqx.training.run_lock import run_lock
from clipa_eqx.training.stopping import Interrupted
from clipa_eqx.trees import leaves_by_path

pytestmark = pytest.mark.usefixtures("quick_compile")

STEPS = 12
SCHEMES = ("gs", pytest.param("s3", marks=pytest.mark.slow))


@pytest.fixture(scope="module", params=SCHEMES)
def server(request):
    with bucket_server(request.param) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.variables(patience=5).items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def config():
    return tiny_runs.run_config(model=tiny_clip_config(**tiny_runs.STOCHASTIC), tensorboard=True)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A local run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    tiny_runs.train_on_one_device(config, folder)
    return folder


@contextmanager
def stopped_after_step_7():
    """Stop the run of the block with a signal while step 6 is reported."""
    finish = Reports.finish

    def stop(self, numbers, **rest):
        finish(self, numbers, **rest)
        if numbers.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with mock.patch.object(Reports, "finish", stop), pytest.raises(Interrupted, match="after step 7"):
        yield


@pytest.fixture(scope="module")
def run(server, config):
    """The address of a run that was stopped after step 7, resumed, and started again after its end."""
    url = server.url("runs/one")
    with stopped_after_step_7():
        tiny_runs.train_on_one_device(config, url, profile=ProfiledSteps(2, 3))
    found = bucket_at(url).names()
    assert [name for name in found if name.endswith("record/metadata")] == [
        f"checkpoints/{step}/record/metadata" for step in (4, 7)
    ]
    assert not any(name.startswith("run.lock") for name in found)
    assert bucket_at(url).read("metrics.jsonl").count(b"\n") == 7
    tiny_runs.train_on_one_device(config, url)
    assert tiny_runs.train_on_one_device(config, url).steps == STEPS
    return url


def test_a_run_that_is_stopped_and_resumed_in_a_bucket_is_the_local_run(run, whole, tmp_path):
    # The copy also shows that a run in a bucket can be brought home.
    assert_same_runs(downloaded(run, tmp_path / "copy"), whole, steps=STEPS)
    names = bucket_at(run).names()
    assert {"config.json", "metrics.jsonl", "report.html", "model/config.json"} <= names.keys()
    assert len([name for name in names if name.startswith("tensorboard/")]) == 1
    assert not any("tmp" in name or name.startswith(".") for name in names)


def test_a_trace_is_uploaded_and_stays_when_the_run_resumes_without_a_copy_of_it(run):
    assert len([name for name in bucket_at(run).names() if name.startswith("profile/") and name.endswith(".pb")]) == 1
    assert not (local_copy(run, with_weights=False) / "profile").exists()


def test_another_run_a_second_job_and_a_foreign_folder_are_refused(run, server, config):
    with pytest.raises(CheckpointError, match=rf"run folder {run} is of another run.*\n  batch_size: 16 there, 8 now"):
        tiny_runs.train_on_one_device(tiny_runs.run_config(model=config.model, batch_size=8, tensorboard=True), run)
    before = bucket_at(run).names()
    with (
        run_lock(local_copy(run, with_weights=False)),
        pytest.raises(CheckpointError, match=rf"run folder {run} is in use by process {os.getpid()} on"),
    ):
        tiny_runs.train_on_one_device(config, run)
    assert bucket_at(run).names() == before
    bucket_at(server.url("photos")).write("a.jpg", b"1")
    with pytest.raises(CheckpointError, match=r"photos is not empty and has no config.json"):
        tiny_runs.train_on_one_device(config, server.url("photos"))
    assert list(bucket_at(server.url("photos")).names()) == ["a.jpg"]


@pytest.mark.slow
def test_programs_and_new_runs_read_the_bucket(run, whole, server, config, capsys):
    loaded, local = load_model(f"{run}/model"), load_model(whole / "model")
    for path, leaf in leaves_by_path(loaded.model).items():
        np.testing.assert_array_equal(leaf, leaves_by_path(local.model)[path])
    show(Path(run), (), program="show", sheet=None, samples=1, mesh=None)
    text = capsys.readouterr().out
    assert "latest checkpoint: 12" in text
    assert f"model: {run}/model" in text
    assert "clipa_eqx_copy" not in text
    mesh = tiny_runs.placed_state(config, devices=1).mesh
    step, model = read_newest(
        local_copy(run), lambda found, step: found.restore_model(abstract_clip(config.model), mesh, step=step)
    )
    assert step == STEPS
    np.testing.assert_array_equal(jax.tree.leaves(model)[0], jax.tree.leaves(local.model)[0])
    again = tiny_runs.run_config(model=config.model, init=InitConfig(source=run), tensorboard=True)
    tiny_runs.train_on_one_device(again, server.url("runs/two"))
    assert bucket_at(server.url("runs/two")).read("metrics.jsonl").count(b"\n") == STEPS


@pytest.mark.slow
def test_evaluate_and_replay_read_the_bucket(run, whole, tmp_path, capsys, logging_as_before):
    rows = (replace(one, label=i % 2) for i, one in enumerate(tiny_runs.make_records(16)))
    write_records(rows, tmp_path / "labeled", class_names=WORDS[:2])
    scores = []
    for source in (run, str(whole)):
        out = tmp_path / f"{len(scores)}.json"
        arguments = [source, "--suite", "zero-shot", "--data", str(tmp_path / "labeled"), "--out", str(out)]
        evaluate.main([*arguments, "--templates", "class_name_only"])
        scores.append(json.loads(out.read_text())["top1"])
    assert scores[0] == scores[1]
    capsys.readouterr()
    assert replay.main([run, "10"]) == OK
    text = capsys.readouterr().out
    assert "step 10, replayed from checkpoint 8" in text
    assert "same bits" in text
    assert "differs" not in text
    with pytest.raises(CheckpointError, match=rf"{run} has no checkpoint from before step 2"):
        replay.main([run, "2"])


@pytest.mark.slow
def test_unfinished_checkpoints_are_ignored_and_damaged_ones_set_aside(run, server, config, whole, tmp_path, caplog):
    bucket, copy = bucket_at(run), bucket_at(server.url("runs/damaged"))
    for name in bucket.names():
        if not name.startswith("model/"):
            copy.write(name, bucket.read(name))
    # A process was killed before the record of step 12 was there, and step 8 is damaged.
    copy.delete(["checkpoints/12/record/metadata"])
    damaged = next(name for name in copy.names("checkpoints/8") if name.endswith("/c/0"))
    copy.write(damaged, copy.read(damaged)[:-1] + b"?")
    with caplog.at_level("INFO", logger="clipa_eqx.training.restoring"):
        tiny_runs.train_on_one_device(config, copy.url)
    assert f"checkpoint {copy.url}/checkpoints/8 is damaged" in caplog.text
    assert f"it is now {copy.url}/damaged_checkpoints/8-" in caplog.text
    assert "resuming after step" in caplog.text
    assert_same_runs(downloaded(copy.url, tmp_path / "copy"), whole, steps=STEPS)


@pytest.fixture(scope="module")
def kind(tmp_path_factory):
    """The config file of runs in processes of their own."""
    return write_config(tmp_path_factory.mktemp("processes") / "config.py", steps=STEPS)


@pytest.fixture(scope="module")
def local(kind):
    """A local run of it that nothing interrupted."""
    folder = kind.with_name("local")
    assert started(kind, folder, log=kind.with_name("local.log")).wait(timeout=300) == 0
    return folder


def started(kind, workdir, *, log, **variables):
    """A process that trains. What one of them compiles, the next ones read."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(kind.with_name("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return start(kind, workdir, log=log, **cache, **variables)


@pytest.mark.slow
def test_connections_that_drop_are_survived(server, kind, local, tmp_path):
    log, url = tmp_path / "log", server.url("runs/dropped")
    with dropping_proxy(server.port) as proxy:
        proxy.drop_each(7)
        process = started(kind, url, log=log, **server.variables(port=proxy.port, patience=20))
        assert (process.wait(timeout=300), proxy.dropped > 10) == (0, True), log.read_text()
    assert_same_runs(downloaded(url, tmp_path / "copy"), local, steps=STEPS)


@pytest.mark.slow
def test_a_long_outage_is_one_error_after_which_the_run_resumes(server, kind, local, tmp_path):
    log, url = tmp_path / "log", server.url("runs/outage")
    with dropping_proxy(server.port) as proxy:
        process = started(kind, url, log=log, **server.variables(port=proxy.port, patience=5))
        wait_for(lambda: len(bucket_at(url).names("checkpoints")) > 0, process, log=log)
        proxy.down()
        # The patience, and a try for what else is uploaded or removed. A driver alone repeats each request for 30 s.
        assert process.wait(timeout=90) == 2, log.read_text()
        last = log.read_text().strip().splitlines()[-1]
        assert url in last
        assert "run the same command again" in last
        assert "Traceback" not in log.read_text()
        proxy.up()
        process = started(kind, url, log=log, **server.variables(port=proxy.port))
        assert process.wait(timeout=300) == 0, log.read_text()
    assert_same_runs(downloaded(url, tmp_path / "again"), local, steps=STEPS)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_is_the_local_run(server, kind, local, tmp_path):
    log, url = tmp_path / "log", server.url("runs/killed")
    for lines in (1, 3, 5, 9, 11):
        marks = tmp_path / f"marks-{lines}"
        process = started(kind, url, log=log, SAMPLES=str(marks), **server.variables())
        wait_for(lambda marks=marks, lines=lines: _count(marks) >= min(lines, 4), process, log=log)
        process.kill()
        process.wait()
    assert started(kind, url, log=log, **server.variables()).wait(timeout=300) == 0, log.read_text()
    assert_same_runs(downloaded(url, tmp_path / "copy"), local, steps=STEPS)


def _count(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_missing_bucket_or_package_and_another_scheme_are_one_message(server, config, monkeypatch):
    with pytest.raises(
        CheckpointError, match=rf"^{server.scheme}://nosuch/run: .* there is no bucket nosuch; create it"
    ):
        tiny_runs.train_on_one_device(config, f"{server.scheme}://nosuch/run")
    with pytest.raises(
        ConfigError, match=r"az://bucket/run is no local path and in no bucket of the kinds gs:// and s3"
    ):
        tiny_runs.train_on_one_device(config, "az://bucket/run")
    package = {"gs": "gcsfs", "s3": "s3fs"}[server.scheme]
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(
        ConfigError, match=rf"needs the package {package}, which is not installed: pip install {package}"
    ):
        tiny_runs.train_on_one_device(config, server.url("runs/three"))


@pytest.mark.slow
def test_a_local_run_that_was_copied_to_a_bucket_is_refused(server, config, whole):
    bucket = bucket_at(server.url("runs/copied"))
    for path in whole.rglob("*"):
        if path.is_file():
            bucket.upload(path, path.relative_to(whole).as_posix())
    with pytest.raises(CheckpointError, match="has checkpoints that a run in a local folder wrote"):
        tiny_runs.train_on_one_device(config, bucket.url)


@pytest.mark.slow
def test_frozen_leaves_are_stored_once_in_a_bucket(server, config, tmp_path):
    heads = replace(config, trainable=("(image|text)/head/weight",), tensorboard=False)
    tiny_runs.train_on_one_device(heads, tmp_path / "local")
    url = server.url("runs/heads")
    with stopped_after_step_7():
        tiny_runs.train_on_one_device(heads, url)
    bucket = bucket_at(url)
    frozen = bucket.names("frozen_leaves")
    assert [name for name in frozen if name.endswith("record/metadata")] == ["frozen_leaves/0/record/metadata"]
    tiny_runs.train_on_one_device(heads, url)
    assert bucket.names("frozen_leaves") == frozen
    assert not any("/blocks/" in name for name in bucket.names("checkpoints"))
    assert_same_runs(downloaded(url, tmp_path / "copy"), tmp_path / "local", steps=STEPS)
    again = replace(heads, trainable=None, init=InitConfig(source=url), duration=Duration(steps=1))
    bucket.delete(list(bucket.names("model")))
    tiny_runs.train_on_one_device(again, tmp_path / "again")
    bucket.delete(frozen)
    with pytest.raises(CheckpointError, match="its frozen leaves"):
        tiny_runs.train_on_one_device(heads, url)
