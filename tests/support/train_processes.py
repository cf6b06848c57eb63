"""Training as processes that can be killed, and the comparison of what they leave with an uninterrupted run."""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.json_config import from_json
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.run_folder import read_record
from support import tiny_runs
from support.leaves import assert_bit_equal
from support.paths import ROOT
from support.tiny_models import WORDS

CLOCKS = {
    "time",
    "images_per_second",
    "images_per_second_per_device",
    "seconds_per_step",
    "input_bound_percent",
    "host_seconds_per_step",
}
"""Metrics that are not functions of the state."""

_CONFIG = '''"""A run with everything random on and with scores. It records its phases and the samples of each step."""
import json
import os
from pathlib import Path

from support import phase_marks, tiny_runs
from support.tiny_models import tiny_clip_config
from clipa_eqx.durations import Duration
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.experiment import CheckpointConfig
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.reporting import Reports

DATA = Path({folder!r})
tiny_runs.folder = lambda: DATA

phase_marks.install()
{before}

def config():
    return tiny_runs.run_config(
        model=tiny_clip_config(**tiny_runs.STOCHASTIC),
        duration=Duration(steps={steps}),
        checkpoint=CheckpointConfig(every_steps={every}, keep={keep}),
        zero_shot=(ZeroShotConfig(data=str(DATA / "labeled"), templates=("{{}}",), every_steps={every}),),
    )
'''


def write_config(path: Path, *, steps: int, every: int = 4, keep: int = 3, before: str = "") -> Path:
    """A config file for ``start``; ``before`` is Python that the training process executes first."""
    folder = tiny_runs.folder()
    if not (folder / "labeled").exists():
        labeled = (dataclasses.replace(r, label=i % 2) for i, r in enumerate(tiny_runs.make_records(16)))
        write_records(labeled, folder / "labeled", class_names=WORDS[:2])
    path.write_text(_CONFIG.format(folder=str(folder), steps=steps, every=every, keep=keep, before=before))
    return path


def start(config: Path, workdir: Path, *flags: str, log: Path, **variables: str) -> subprocess.Popen[bytes]:
    """Start ``scripts/train.py`` on one device, as a separate process that writes to a file."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), str(ROOT))),
        **variables,
    }
    command = [sys.executable, "scripts/train.py", str(config), "--workdir", str(workdir), *flags]
    with log.open("w") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=file)


def wait_for(is_reached: Callable[[], bool], process: subprocess.Popen[bytes], *, log: Path) -> None:
    """Wait until something is there that a process makes. Fails if the process ends first."""
    deadline = time.monotonic() + 300
    while not is_reached():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.002)


def deterministic(workdir: Path) -> list[dict]:
    """The metrics that are functions of the state."""
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


def final_state(workdir: Path, *, steps: int):
    """The state of the last step."""
    config = from_json(ExperimentConfig, read_record(workdir)["config"])
    made = tiny_runs.placed_state(config, devices=1)
    with Checkpoints(workdir / "checkpoints", keep=3) as checkpoints:
        assert checkpoints.latest() == steps
        return checkpoints.restore(made.abstract, made.mesh, step=steps)


def assert_same_runs(workdir: Path, whole: Path, *, steps: int) -> None:
    """The metrics, states and models of two finished runs are equal bit by bit."""
    assert_same_metrics_and_model(workdir, whole, steps=steps)
    assert_bit_equal(final_state(workdir, steps=steps), final_state(whole, steps=steps))


def assert_same_metrics_and_model(workdir: Path, whole: Path, *, steps: int) -> None:
    """The metrics and the models of two finished runs are equal bit by bit."""
    lines = deterministic(workdir)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert lines == deterministic(whole)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (workdir, whole)]
    assert weights[0] == weights[1]
