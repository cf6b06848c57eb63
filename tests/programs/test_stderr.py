"""Standard error of the programs: every line is ours, also if a run is interrupted, killed, resumed or refused."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from support import tiny_runs
from support.paths import ROOT

from clipa_eqx.data.array_record_writer import write_records

OURS = re.compile(r"\d\d:\d\d:\d\d [IWE] (clipa_eqx|conversion|scripts|quickstart)[.\w]*: \S.*")
CONFIG = '''"""A tiny run on two worker processes with an evaluation."""
from pathlib import Path

from support import tiny_runs

from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.durations import Duration
from clipa_eqx.evals.zero_shot import ZeroShotConfig

tiny_runs.folder = lambda: Path({folder!r})


def config():
    run = tiny_runs.run_config(
        duration=Duration(steps={steps}), zero_shot=(ZeroShotConfig(data={labeled!r}, templates=("a {{}}",)),)
    )
    return run
'''
WORKERS = ("--data.stream.workers", "2")


@pytest.fixture
def start(tmp_path):
    """Start a program on the tiny run of so many steps; its standard error is a file that is no terminal."""
    started = []
    labeled = tmp_path / "labeled"
    rows = list(tiny_runs.make_records(12))
    write_records((type(r)(key=r.key, image=r.image, label=0) for r in rows), labeled, class_names=("cat", "dog"))

    def begin(script, *arguments, steps=3):
        config = tmp_path / "run.py"
        config.write_text(CONFIG.format(folder=str(tiny_runs.folder()), steps=steps, labeled=str(labeled)))
        if script == "train":
            arguments = (config, "--workdir", tmp_path / "run", *WORKERS, *arguments)
        path = os.pathsep.join((str(ROOT / "tests"), str(ROOT)))
        quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
        process = subprocess.Popen(
            [sys.executable, f"scripts/{script}.py", *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | quick | {"PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


def lines_of(process, code):
    """The lines of standard error up to its end, which is that of the last process that has it open."""
    written = process.communicate(timeout=300)[1]
    assert process.returncode == code, written.decode()
    assert b"\r" not in written
    lines = written.decode().splitlines()
    foreign = [line for line in lines if not OURS.fullmatch(line) and not line.startswith(("error: ", "  "))]
    assert foreign == []
    return lines


def wait_for_step(tmp_path, process):
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_all_lines_of_an_interrupted_run_are_ours(start, tmp_path):
    process = start("train", steps=100_000)
    wait_for_step(tmp_path, process)
    process.send_signal(signal.SIGTERM)
    lines = lines_of(process, 75)
    assert "training on 1 x cpu" in lines[0]
    assert "saved" in lines[-1]


@pytest.mark.slow
def test_all_lines_of_a_run_that_is_finished_resumed_and_scored_are_ours(start, tmp_path):
    assert any("compiled in" in line for line in lines_of(start("train"), 0))
    assert any("resuming after step 3" in line for line in lines_of(start("train"), 0))
    scoring = ("--suite", "zero-shot", "--data", tmp_path / "labeled", "--out", tmp_path / "result.json")
    for model in (tmp_path / "run", tmp_path / "run" / "model"):
        assert "scoring on 1 x cpu" in lines_of(start("evaluate", model, *scoring, "--overwrite"), 0)[0]
    second = start("train", "--workdir", tmp_path / "second", "--init-from", tmp_path / "run")
    assert any("initialized from" in line for line in lines_of(second, 0))


@pytest.mark.slow
def test_all_lines_of_a_killed_run_are_ours(start, tmp_path):
    process = start("train", steps=100_000)
    wait_for_step(tmp_path, process)
    process.kill()
    lines_of(process, -signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--batch-sise", "4"),
        ("--data.sources.0.folder", "/nowhere"),
        ("--init-from", "/nowhere"),
        ("--batch-size", "1048576"),
    ],
)
def test_a_refused_run_has_one_error_and_no_folder(flags, start, tmp_path):
    lines = lines_of(start("train", *flags), 2)
    assert [line for line in lines if line.startswith("error: ")] == [
        lines[-1 - sum(x.startswith("  ") for x in lines)]
    ]
    assert not (tmp_path / "run").exists()
