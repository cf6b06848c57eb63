"""A run that is interrupted and resumed is bit by bit the run that was not interrupted."""

import os
import signal
from unittest import mock

import pytest
from support import tiny_runs
from support.tiny_models import tiny_clip_config
from support.train_processes import assert_same_runs

from clipa_eqx.evals.contrastive import ContrastiveConfig
from clipa_eqx.training import checkpoint, loop
from clipa_eqx.training.device_batches import DeviceBatches
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.reporting import Reports
from clipa_eqx.training.stopping import Interrupted

pytestmark = pytest.mark.usefixtures("quick_compile")

STEPS = 12


@pytest.fixture(scope="module")
def config():
    scored = ContrastiveConfig(data=str(tiny_runs.folder() / "records"), batch_size=64, every_steps=4)
    return tiny_runs.run_config(model=tiny_clip_config(**tiny_runs.STOCHASTIC), contrastive=(scored,))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    tiny_runs.train_on_one_device(config, workdir)
    return workdir


def test_sigterm_saves_the_step_and_the_run_resumes_bit_by_bit(config, whole, tmp_path):
    stopped, finish = tmp_path / "stopped", Reports.finish

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
    assert_same_runs(stopped, whole, steps=STEPS)
    assert tiny_runs.train_on_one_device(config, stopped).steps == STEPS
    assert_same_runs(stopped, whole, steps=STEPS)  # starting a finished run again changes nothing


def before(function):
    """A function that first gets a SIGTERM."""

    def interrupted(*args, **rest):
        os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **rest)

    return interrupted


def test_an_evaluation_that_is_interrupted_is_repeated_before_its_line_is_written(config, whole, tmp_path):
    stopped = tmp_path / "stopped"
    for _ in range(2):  # also while it is repeated
        with (
            mock.patch.object(loop, "evaluate_model", before(loop.evaluate_model)),
            pytest.raises(Interrupted, match="after step 4 of 12 and saved"),
        ):
            tiny_runs.train_on_one_device(config, stopped)
        assert [line["step"] for line in read_metrics(stopped / "metrics.jsonl")] == [1, 2, 3]
        assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["4"]
    evaluate, scored_steps = loop.evaluate_model, iter((4, 8, 12))

    def interrupted_at_the_end(*args, **rest):
        if next(scored_steps) == STEPS:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, **rest)

    with (
        mock.patch.object(loop, "evaluate_model", interrupted_at_the_end),
        pytest.raises(Interrupted, match="after step 12 of 12 and saved"),
    ):
        tiny_runs.train_on_one_device(config, stopped)
    assert not (stopped / "model").exists()
    tiny_runs.train_on_one_device(config, stopped)
    assert_same_runs(stopped, whole, steps=STEPS)


def test_a_signal_during_a_save_completes_it_and_one_while_the_model_is_written_completes_the_run(
    config, whole, tmp_path
):
    stopped = tmp_path / "stopped"
    with (
        mock.patch.object(checkpoint, "leaf_checksums", before(checkpoint.leaf_checksums)),
        pytest.raises(Interrupted, match="after step 4 of 12 and saved"),
    ):
        tiny_runs.train_on_one_device(config, stopped)
    assert [line["step"] for line in read_metrics(stopped / "metrics.jsonl")] == [1, 2, 3, 4]
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["4"]
    with mock.patch.object(loop, "save_model", before(loop.save_model)):
        assert tiny_runs.train_on_one_device(config, stopped).steps == STEPS
    assert_same_runs(stopped, whole, steps=STEPS)


@pytest.mark.parametrize(("owner", "name"), [(loop, "prepare"), (loop, "claim_on_all"), (DeviceBatches, "take")])
def test_a_signal_before_the_first_step_ends_the_start_at_once(config, tmp_path, owner, name):
    with (
        mock.patch.object(owner, name, before(getattr(owner, name))),
        pytest.raises(Interrupted, match="before this start did a step"),
    ):
        tiny_runs.train_on_one_device(config, tmp_path / "run")
    assert not (tmp_path / "run" / "run.lock").exists()
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    if name == "prepare":
        assert not (tmp_path / "run").exists()
