"""A run that is interrupted and goes on is bit by bit the run that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import tiny
from tiny import quick_compile  # noqa: F401

from clipa_eqx.checkpoint import Checkpoints
from clipa_eqx.training.loop import Interrupted
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.reporting import Reports

ROOT = Path(__file__).parents[1]
STEPS = 12
CLOCKS = {
    "time",
    "images_per_second",
    "images_per_second_per_device",
    "seconds_per_step",
    "input_bound_percent",
}
"""Metrics that are no function of the state."""

CONFIG = '''"""A run with everything random on."""
import tiny
from pathlib import Path

tiny.folder = lambda: Path({folder!r})


def config():
    return tiny.run_config(model=tiny.model_config(**tiny.STOCHASTIC))
'''


def start(config, workdir):
    """scripts/train.py on one device, as a process of its own."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(ROOT / "tests"),
    }
    return subprocess.Popen(
        [sys.executable, "scripts/train.py", str(config), "--workdir", str(workdir)],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process, workdir, step):
    path, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
    while not (path.exists() and any(line["step"] >= step for line in read_metrics(path))):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def deterministic(workdir):
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


def final_state(workdir):
    made = tiny.placed_state(tiny.run_config(model=tiny.model_config(**tiny.STOCHASTIC)), devices=1)
    with Checkpoints(workdir / "checkpoints", keep=3) as checkpoints:
        assert checkpoints.latest() == STEPS
        return checkpoints.restore(made.abstract, made.mesh, step=STEPS)


def assert_same_runs(workdir, whole):
    lines = deterministic(workdir)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines == deterministic(whole)
    tiny.assert_bit_equal(final_state(workdir), final_state(whole))
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (workdir, whole)]
    assert weights[0] == weights[1]


def test_a_run_killed_without_warning_goes_on_bit_by_bit(tmp_path):
    config = tmp_path / "run.py"
    config.write_text(CONFIG.format(folder=str(tiny.folder())))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    processes = [start(config, whole), start(config, killed)]
    try:
        wait_for_step(processes[1], killed, 6)
        processes[1].send_signal(signal.SIGKILL)
        processes[1].communicate()
        assert processes[1].returncode == -signal.SIGKILL
        before = len(read_metrics(killed / "metrics.jsonl"))
        assert before < STEPS, "the run was over before it was killed"
        assert not (killed / "model").exists()
        processes.append(start(config, killed))
        for process in (processes[0], processes[2]):
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said
        assert "going on after step" in said
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert_same_runs(killed, whole)


def test_sigterm_saves_the_step_and_the_run_goes_on_bit_by_bit(tmp_path):
    config = tiny.run_config(model=tiny.model_config(**tiny.STOCHASTIC))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    tiny.train_on_one_device(config, whole)
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
        tiny.train_on_one_device(config, stopped)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert [line["step"] for line in read_metrics(stopped / "metrics.jsonl")] == list(range(1, 8))
    tiny.train_on_one_device(config, stopped)
    assert_same_runs(stopped, whole)
    assert tiny.train_on_one_device(config, stopped).steps == STEPS
    assert_same_runs(stopped, whole)  # starting a finished run again changes nothing
