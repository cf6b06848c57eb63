"""A run that is killed at any moment, without warning and again and again, ends as the run that was not."""

import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from support import train_processes
from support.train_processes import assert_same_runs, samples, wait_for, write_config

STEPS = 12

# A phase begins with a mark or, for some, with the process, its lock, or a committed checkpoint. The longest delay
# before the kill, in seconds, covers the phase and some of what follows.
LONGEST = {
    "start-up": 3.0,
    "compile": 1.5,
    "claim": 0.05,
    "first state": 0.5,
    "restore": 0.3,
    "state": 0.3,
    "step": 0.05,
    "reporting": 0.01,
    "evaluation": 0.3,
    "saving": 0.05,
    "save": 0.1,
    "between": 0.1,
    "final model": 0.1,
    "end": 0.3,
}
ROUND = (
    "start-up", "compile", "claim", "first state", "state", "step", "saving", "save", "between", "restore",
    "evaluation", "reporting", "final model", "end",
)  # fmt: skip
"""Phases of one run in an order in which each is still ahead, however far the processes before came."""


class Killed(NamedTuple):
    """A run that was killed once in each of some phases and then resumed to its end."""

    workdir: Path
    samples: Path
    phases: Counter[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def config(folder):
    return write_config(folder / "run.py", steps=STEPS)


def start(config, run, log):
    cache = str(config.parent / "cache")
    variables = {
        "SAMPLES": f"{run}.samples",
        "PHASES": f"{log}.phases",
        # Each process would compile the same step; what is compiled once is read from here.
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return train_processes.start(config, run, log=log, **variables)


@pytest.fixture(scope="module")
def whole(folder, config):
    return resumed(config, folder / "whole")


def resumed(config, run):
    """Start or resume a run and wait for its end."""
    log = run.parent / f"{run.name}.log"
    process = start(config, run, log)
    try:
        assert process.wait(timeout=300) == 0, log.read_text()
    finally:
        process.kill()
    return run


def kill_in(phase, config, run, *, draw, log):
    """Start or resume a run and kill it some time after a phase began; False if it was over before."""
    process = start(config, run, log)
    marks = Path(f"{log}.phases")
    nth = draw.randint(1, 3) if phase in ("step", "reporting") else 1

    def is_reached():
        match phase:
            case "start-up":
                return True
            case "compile":
                return (run / "run.lock").exists()
            case "between":  # a checkpoint is committed
                return any(path.name.isdigit() for path in (run / "checkpoints").glob("*"))
            case _:
                return marks.exists() and marks.read_text().count(f'"{phase}"') >= nth

    try:
        wait_for(is_reached, process, log=log)
        time.sleep(draw.uniform(0, LONGEST[phase]))
    finally:
        process.send_signal(signal.SIGKILL)
        code = process.wait()
    assert code in (0, -signal.SIGKILL), log.read_text()
    return code != 0


def kill_and_resume(config, run, phases, *, seed):
    draw, killed = random.Random(seed), Counter()
    for number, phase in enumerate(phases):
        log = run.parent / f"{run.name}-{number}.log"
        killed[phase] += kill_in(phase, config, run, draw=draw, log=log)
    resumed(config, run)
    return Killed(run, Path(f"{run}.samples"), killed)


def assert_unharmed(killed, whole):
    assert_same_runs(killed.workdir, whole, steps=STEPS)
    seen, expected = samples(killed.samples), samples(Path(f"{whole}.samples"))
    assert sorted(expected) == list(range(1, STEPS + 1))
    assert seen == expected
    assert sorted(path.name for path in killed.workdir.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_a_run_killed_in_three_phases_is_the_uninterrupted_run(config, whole, folder):
    killed = kill_and_resume(config, folder / "killed", ("compile", "save", "final model"), seed=0)
    assert killed.phases.total() >= 2  # the last one may be too late
    assert_unharmed(killed, whole)


@pytest.mark.slow
def test_six_runs_killed_in_each_of_fourteen_phases_are_the_uninterrupted_run(config, whole, folder):
    seeds = range(1, 7)
    with ThreadPoolExecutor(2) as pool:  # a process that starts uses one core
        runs = list(pool.map(lambda seed: kill_and_resume(config, folder / f"{seed}", ROUND, seed=seed), seeds))
    killed = sum((run.phases for run in runs), Counter())
    for run in runs:
        assert_unharmed(run, whole)
    assert killed.total() >= 60, killed
    assert min(killed[phase] for phase in ROUND) >= 2, killed
