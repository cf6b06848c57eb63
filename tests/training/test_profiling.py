"""Traces of steps: which steps they have, where they are, and that nothing else of the run changes."""

import gzip
import json
import os
import signal
from unittest import mock

import jax
import pytest
from support import tiny_runs
from support.tiny_models import tiny_clip_config
from support.train_processes import deterministic

from clipa_eqx.cli import USAGE, run
from clipa_eqx.errors import ConfigError
from clipa_eqx.programs import train as program
from clipa_eqx.training.profiling import ProfiledSteps
from clipa_eqx.training.reporting import Reports
from clipa_eqx.training.stopping import Interrupted

pytestmark = pytest.mark.usefixtures("quick_compile")

STEPS = 12


@pytest.fixture(scope="module")
def config():
    return tiny_runs.run_config(model=tiny_clip_config(**tiny_runs.STOCHASTIC))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run without a trace."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    tiny_runs.train_on_one_device(config, workdir)
    return workdir


def traced_steps(workdir):
    """The steps in the only trace of a run folder, which viewers read."""
    (path,) = (workdir / "profile").glob("plugins/profile/*/*.trace.json.gz")
    assert list(path.parent.glob("*.xplane.pb"))
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sorted({int(event["args"]["step_num"]) for event in events if event.get("name") == "train"})


def test_a_trace_has_the_steps_that_were_asked_for_and_changes_nothing(config, whole, tmp_path):
    tiny_runs.train_on_one_device(config, tmp_path / "run", profile=ProfiledSteps(5, 7))
    assert traced_steps(tmp_path / "run") == [5, 6, 7]
    assert deterministic(tmp_path / "run") == deterministic(whole)
    models = [(folder / "model/model.safetensors").read_bytes() for folder in (tmp_path / "run", whole)]
    assert models[0] == models[1]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [ProfiledSteps(1, 1), ProfiledSteps(STEPS, STEPS)])
def test_the_first_and_the_last_step_can_be_traced(config, tmp_path, steps):
    tiny_runs.train_on_one_device(config, tmp_path / "run", profile=steps)
    assert traced_steps(tmp_path / "run") == [steps.first]


@pytest.fixture
def interrupted(config, tmp_path):
    """A run folder whose training was interrupted in step 6, while steps 4 to 9 were traced."""
    finish = Reports.finish

    def stop_after_step_5(self, numbers, **rest):
        finish(self, numbers, **rest)
        if numbers.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with mock.patch.object(Reports, "finish", stop_after_step_5), pytest.raises(Interrupted, match="after step 6"):
        tiny_runs.train_on_one_device(config, tmp_path / "run", profile=ProfiledSteps(4, 9))
    return tmp_path / "run"


def test_an_interruption_writes_what_was_traced_and_the_same_command_traces_the_rest(config, interrupted, caplog):
    assert traced_steps(interrupted) == [4, 5, 6]
    for path in (interrupted / "profile").glob("plugins/profile/*"):
        path.rename(interrupted / "before")
    tiny_runs.train_on_one_device(config, interrupted, profile=ProfiledSteps(4, 9))
    assert traced_steps(interrupted) == [7, 8, 9]
    assert "this start begins after step 6 of steps 4 to 9; the trace has steps 7 to 9" in caplog.text


def test_steps_that_are_over_are_a_warning_so_that_the_same_command_resumes(config, interrupted, caplog):
    before = sorted((interrupted / "profile").rglob("*"))
    assert tiny_runs.train_on_one_device(config, interrupted, profile=ProfiledSteps(2, 6)).steps == STEPS
    assert sorted((interrupted / "profile").rglob("*")) == before
    assert "begins after step 6 of steps 2 to 6; nothing is profiled" in caplog.text


@pytest.mark.parametrize("call", ["start_trace", "stop_trace"])
def test_a_trace_that_cannot_be_made_does_not_end_the_run(config, tmp_path, caplog, call):
    stop = jax.profiler.stop_trace

    def fail(*_, **__):
        if call == "stop_trace":
            stop()
        raise RuntimeError("no space left on device")

    with mock.patch.object(jax.profiler, call, fail):
        result = tiny_runs.train_on_one_device(config, tmp_path / "run", profile=ProfiledSteps(5, 7))
    assert result.steps == STEPS
    (message,) = [one.getMessage() for one in caplog.records if "no space left" in one.getMessage()]
    assert "steps 5 to 7" in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not START:STOP"),
        ("10", "is not START:STOP"),
        ("10-12", "is not START:STOP"),
        ("a:b", "is not START:STOP"),
        ("-1:3", "is not START:STOP"),
        ("1:2:3", "is not START:STOP"),
        ("0:3", "steps are counted from 1"),
        ("12:10", "has no step"),
        ("1:101", "has 101 steps; a trace has at most 100"),
    ],
)
def test_steps_that_make_no_sense_are_refused(text, reason):
    with pytest.raises(ConfigError, match=reason):
        ProfiledSteps.of(text)


def test_steps_are_read_as_they_are_written():
    assert ProfiledSteps.of("10:12") == (10, 12)
    assert str(ProfiledSteps.of("7:7")) == "step 7"


CONFIG = """from support import tiny_runs

def config():
    return tiny_runs.run_config()
"""


@pytest.mark.parametrize(
    ("steps", "reason"),
    [("12:10", "--profile 12:10 has no step"), ("10:13", "ends after the run, which has 12 steps")],
)
def test_the_program_refuses_them_with_one_message_and_leaves_no_folder(
    tmp_path, capsys, logging_as_before, steps, reason
):
    (tmp_path / "config.py").write_text(CONFIG)
    arguments = [str(tmp_path / "config.py"), "--workdir", str(tmp_path / "run"), "--profile", steps]
    assert run(lambda: program.main(arguments)) == USAGE
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert reason in errors[0]
    assert not (tmp_path / "run").exists()
