"""A run that is interrupted and resumed is bit by bit the run that was not interrupted."""

import os
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest
from support import tiny_runs
from support.leaves import assert_bit_equal
from support.paths import ROOT
from support.tiny_models import tiny_clip_config

from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.reporting import Reports
from clipa_eqx.training.stopping import Interrupted

pytestmark = pytest.mark.usefixtures("quick_compile")

# Each checkpoint waits for the previous one, which leaves time to kill the longer run midway.
STEPS, KILLED_STEPS = 12, 24
CLOCKS = {
    "time",
    "images_per_second",
    "images_per_second_per_device",
    "seconds_per_step",
    "input_bound_percent",
}
"""Metrics that are not functions of the state."""

CONFIG = '''"""A run with everything random on."""
from support import tiny_runs
from support.tiny_models import tiny_clip_config
from pathlib import Path
from clipa_eqx.durations import Duration

tiny_runs.folder = lambda: Path({folder!r})


def config():
    return tiny_runs.run_config(model=tiny_clip_config(**tiny_runs.STOCHASTIC), duration=Duration(steps={steps}))
'''


def start(config, workdir, *, log):
    """Start ``scripts/train.py`` on one device, as a separate process that writes to a file."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), str(ROOT))),
    }
    command = [sys.executable, "scripts/train.py", str(config), "--workdir", str(workdir)]
    with log.open("w") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=file)


def wait_for(is_reached, process, *, log):
    deadline = time.monotonic() + 300
    while not is_reached():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.002)


def deterministic(workdir):
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


def final_state(workdir, *, steps):
    made = tiny_runs.placed_state(tiny_runs.run_config(model=tiny_clip_config(**tiny_runs.STOCHASTIC)), devices=1)
    with Checkpoints(workdir / "checkpoints", keep=3) as checkpoints:
        assert checkpoints.latest() == steps
        return checkpoints.restore(made.abstract, made.mesh, step=steps)


def assert_same_runs(workdir, whole, *, steps=STEPS):
    lines = deterministic(workdir)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert lines == deterministic(whole)
    assert_bit_equal(final_state(workdir, steps=steps), final_state(whole, steps=steps))
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (workdir, whole)]
    assert weights[0] == weights[1]


def test_a_run_killed_without_warning_resumes_bit_by_bit(tmp_path):
    config = tmp_path / "run.py"
    config.write_text(CONFIG.format(folder=str(tiny_runs.folder()), steps=KILLED_STEPS))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    logs = [tmp_path / f"{name}.log" for name in ("whole", "killed", "resumed")]
    processes = [start(config, whole, log=logs[0]), start(config, killed, log=logs[1])]
    try:
        wait_for((killed / "checkpoints" / "4").exists, processes[1], log=logs[1])
        wait_for(lambda: len(read_metrics(killed / "metrics.jsonl")) >= 6, processes[1], log=logs[1])
        processes[1].send_signal(signal.SIGKILL)
        assert processes[1].wait() == -signal.SIGKILL
        assert len(read_metrics(killed / "metrics.jsonl")) < KILLED_STEPS, "the run was over before it was killed"
        assert not (killed / "model").exists()
        processes.append(start(config, killed, log=logs[2]))
        assert processes[0].wait(timeout=300) == 0, logs[0].read_text()
        assert processes[2].wait(timeout=300) == 0, logs[2].read_text()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert "resuming after step" in logs[2].read_text()
    assert_same_runs(killed, whole, steps=KILLED_STEPS)


def test_sigterm_saves_the_step_and_the_run_resumes_bit_by_bit(tmp_path):
    config = tiny_runs.run_config(model=tiny_clip_config(**tiny_runs.STOCHASTIC))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    tiny_runs.train_on_one_device(config, whole)
    finish = Reports.finish

    def stop_after_step_6(self, numbers, **rest):
        finish(self, numbers, **rest)
        if numbers.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with (
        mock.patch.object(Reports, "finish", stop_after_step_6),
        pytest.raises(Interrupted, match="after step 7 of 12"),
    ):
        tiny_runs.train_on_one_device(config, stopped)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert [line["step"] for line in read_metrics(stopped / "metrics.jsonl")] == list(range(1, 8))
    tiny_runs.train_on_one_device(config, stopped)
    assert_same_runs(stopped, whole)
    assert tiny_runs.train_on_one_device(config, stopped).steps == STEPS
    assert_same_runs(stopped, whole)  # starting a finished run again changes nothing
