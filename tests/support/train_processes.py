"""Training as processes that can be killed, and the comparison of what they leave with an uninterrupted run."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.metrics import read_metrics
from support import tiny_runs
from support.leaves import assert_bit_equal
from support.paths import ROOT
from support.tiny_models import WORDS, tiny_clip_config

CLOCKS = {
    "time",
    "images_per_second",
    "images_per_second_per_device",
    "seconds_per_step",
    "input_bound_percent",
}
"""Metrics that are not functions of the state."""

_CONFIG = '''"""A run with everything random on and with scores. It records its phases and the samples of each step."""
import json
import os
from pathlib import Path

from support import tiny_runs
from support.tiny_models import tiny_clip_config
from clipa_eqx.durations import Duration
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.experiment import CheckpointConfig
from clipa_eqx.training import loop
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.reporting import Reports

DATA = Path({folder!r})
tiny_runs.folder = lambda: DATA


def record(variable, value):
    if variable in os.environ:
        with open(os.environ[variable], "ab", buffering=0) as file:
            file.write(json.dumps(value).encode() + b"\\n")


def with_marks(function, before, after):
    def marked(*args, **rest):
        record("PHASES", before)
        done = function(*args, **rest)
        record("PHASES", after)
        return done

    return marked


def finish_and_record(self, numbers, *, _finish=Reports.finish, **rest):
    _finish(self, numbers, **rest)
    record("SAMPLES", [numbers.step, numbers.sample_id.tolist()])


Reports.finish = with_marks(finish_and_record, "reporting", "step")
Checkpoints.restore = with_marks(Checkpoints.restore, "restore", "state")
Checkpoints.save = with_marks(Checkpoints.save, "saving", "save")
loop.first_state = with_marks(loop.first_state, "first state", "state")
loop.claim_on_all = with_marks(loop.claim_on_all, "claim", "claimed")
loop.evaluate_model = with_marks(loop.evaluate_model, "evaluation", "evaluated")
loop.save_model = with_marks(loop.save_model, "final model", "end")
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
    made = tiny_runs.placed_state(tiny_runs.run_config(model=tiny_clip_config(**tiny_runs.STOCHASTIC)), devices=1)
    with Checkpoints(workdir / "checkpoints", keep=3) as checkpoints:
        assert checkpoints.latest() == steps
        return checkpoints.restore(made.abstract, made.mesh, step=steps)


def assert_same_runs(workdir: Path, whole: Path, *, steps: int) -> None:
    """The metrics, states and models of two finished runs are equal bit by bit."""
    lines = deterministic(workdir)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert lines == deterministic(whole)
    assert_bit_equal(final_state(workdir, steps=steps), final_state(whole, steps=steps))
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (workdir, whole)]
    assert weights[0] == weights[1]


def samples(path: Path) -> dict[int, list[int]]:
    """The samples of each step that ``SAMPLES`` names. A step that was done again has the same ones."""
    found: dict[int, list[int]] = {}
    for line in path.read_text().splitlines():
        try:
            step, ids = json.loads(line)
        except ValueError:  # a kill interrupted the write; the next process wrote behind it
            continue
        assert found.setdefault(step, ids) == ids
    return found
