"""Two processes of a run: what stops or fails in one of them ends both, quickly, and with a message."""

import re
import sys

import pytest
from support import tiny_runs
from support.process_groups import free_port, run_commands
from support.train_processes import deterministic

from clipa_eqx.cli import FAILED, INTERRUPTED, OK, STALLED, USAGE
from clipa_eqx.training.flight import recorded_steps
from clipa_eqx.training.metrics import read_metrics

pytestmark = pytest.mark.slow

PROGRAM = '''"""One of two processes; something happens in process 1, at the place that ``what`` names."""
import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

process, port, folder, workdir, what = sys.argv[1:]
import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, int(process))

from support import tiny_runs
from clipa_eqx.cli import INTERRUPTED, end_now, run
from clipa_eqx.errors import DataError
from clipa_eqx.evals import embeddings
from clipa_eqx.evals.contrastive import ContrastiveConfig
from clipa_eqx.training import loop
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.compiled_step import compile_step
from clipa_eqx.training.stopping import Interrupted

tiny_runs.folder = lambda: Path(folder)
scored = ContrastiveConfig(data=str(Path(folder) / "records"), batch_size=16, every_steps=4)
config = tiny_runs.run_config(watchdog=20.0 if what == "stuck" else 300.0, contrastive=(scored,))
is_here = process == "1"


def notice():
    """Get a preemption notice, and give it the seconds that it takes to every process."""
    if is_here:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3)


def before(function, act):
    def wrapped(*args, **rest):
        act()
        return function(*args, **rest)

    return wrapped


def compiler(*args):
    if what == "notice while compiling":
        notice()
    step, calls = compile_step(*args), []

    def wrapped(state, batch):
        calls.append(1)
        if len(calls) == 3 and is_here:
            if what == "stuck":
                time.sleep(1000)
            if what == "bad record":
                raise DataError("record 17 is damaged, planted")
            if what == "bug":
                raise ZeroDivisionError("planted")
        return step(state, batch)

    return wrapped


once = []


def slow_rows(*args, **rest):
    """The second batch of an evaluation in process 1."""
    once.append(1)
    if len(once) == 2 and what == "notice while scoring":
        notice()
    found = rows(*args, **rest)
    if len(once) == 2 and what == "not finite" and is_here:
        found[0] = float("nan")
    return found


rows = embeddings.local_rows
if what in ("notice while scoring", "not finite"):
    embeddings.local_rows = slow_rows
if what == "failed save" and is_here:

    def fail(self):
        if self._saving is not None:
            with self._explained():
                raise OSError(28, "No space left on device")

    Checkpoints.check = fail
if what == "notice before the first step":
    loop.first_state = before(loop.first_state, notice)


def train():
    try:
        loop.train(config, Path(workdir), compiler=compiler)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return INTERRUPTED


code = run(train)
print("seconds", time.time(), file=sys.stderr)
if code in (0, INTERRUPTED):
    sys.exit(code)
end_now(code)
'''


@pytest.fixture
def run_two(tmp_path):
    (tmp_path / "process.py").write_text(PROGRAM)

    def start(what, *, workdir="run"):
        port = free_port()
        command = [sys.executable, str(tmp_path / "process.py")]
        folders = [str(tiny_runs.folder()), str(tmp_path / workdir)]
        return run_commands([[*command, str(i), str(port), *folders, what] for i in (0, 1)])

    return start


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ("bad record", USAGE, "DataError: record 17 is damaged, planted"),
        ("bug", FAILED, "ZeroDivisionError: planted"),
        ("failed save", USAGE, "CheckpointError: checkpoint 4 could not be written to .*No space left on device"),
    ],
)
def test_the_failure_of_one_ends_both_with_its_message(run_two, what, code, message):
    (ours, said), (theirs, cause) = run_two(what)
    assert (ours, theirs) == (code, code), f"{said}\n\n{cause}"
    assert re.search(rf"process 1 failed \({message}", said), said
    assert re.search(message.partition(": ")[2], cause), cause
    ends = [float(re.search(r"seconds ([\d.]+)", text)[1]) for text in (said, cause) if "seconds" in text]
    assert max(ends) - min(ends) < 15


def test_embeddings_of_one_that_are_not_finite_end_both(run_two):
    """The loss of the scores is that of all rows: each process finds by itself that it is not finite."""
    for code, said in run_two("not finite"):
        assert code == USAGE, said
        assert "error: contrastive: the loss is not finite; is the model damaged, or did training diverge?" in said
        assert "Traceback" not in said


def test_a_stuck_collective_fires_the_watchdog_of_both(run_two, tmp_path):
    found = run_two("stuck")
    for process, (code, said) in enumerate(found):
        assert code == STALLED, said
        text = (tmp_path / f"run/flight/stacks-{process}.txt").read_text()
        assert f"process {process} of 2" in text.splitlines()[0]
        assert "in train" in text
    assert any("no progress for" in said for _, said in found)
    # The last steps are written by both, with the samples of each.
    lines = recorded_steps(tmp_path / "run/flight")[2]
    assert [(line["process"], len(line["sample_id"])) for line in lines] == [(0, 8), (1, 8)]
    assert run_two("nothing")[0][0] == OK  # the same command resumes


@pytest.mark.parametrize("what", ["notice while compiling", "notice before the first step", "notice while scoring"])
def test_a_notice_to_one_stops_both_at_the_same_place_and_loses_nothing(run_two, tmp_path, what):
    for code, said in run_two(what):
        assert code == INTERRUPTED, said
    if what == "notice while scoring":
        assert [line["step"] for line in read_metrics(tmp_path / "run/metrics.jsonl")] == [1, 2, 3]
        assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["4"]
    else:
        assert not list((tmp_path / "run").glob("checkpoints/*"))
    for code, said in run_two("nothing"):
        assert code == OK, said
    for code, said in run_two("nothing", workdir="whole"):
        assert code == OK, said
    assert deterministic(tmp_path / "run") == deterministic(tmp_path / "whole")
