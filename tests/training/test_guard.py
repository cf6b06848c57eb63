"""The guard of a fine-tune: it ends a run that destroys the model, and keeps the score of the start over restarts."""

import dataclasses
import logging
import math
import re
import shutil
from typing import Any
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_runs
from support.paths import ROOT
from support.planted_models import PREPROCESS, plant
from support.scored_runs import NAMES, noise_png, write_set
from support.tiny_models import SIZE, VOCAB, tiny_clip_config

from clipa_eqx.cli import GUARDED, exit_code_of
from clipa_eqx.data.images.augment import ImageConfig
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.durations import Duration
from clipa_eqx.errors import CheckpointError, ConfigError, GuardError
from clipa_eqx.evals.contrastive import ContrastiveConfig
from clipa_eqx.evals.guard import GuardConfig
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.experiment import CheckpointConfig, DataConfig, DataSource
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.optim import OptimConfig
from clipa_eqx.programs import describe
from clipa_eqx.programs.describe import describe_run
from clipa_eqx.saved.model import load_model, save_model
from clipa_eqx.schedules import Cosine
from clipa_eqx.sharding import MeshConfig, make_mesh
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.training.checkpoint_record import committed_steps, newest_record
from clipa_eqx.training.guarding import Guard, check_guard
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.start import first_state
from clipa_eqx.training.state import TrainState
from clipa_eqx.training.step_end import StepEnd
from clipa_eqx.training.stopping import Interrupted, StopRequests

pytestmark = pytest.mark.usefixtures("quick_compile")

LOSS, TOP1 = "contrastive/test/loss", "zero_shot/test/top1"
CAREFUL, DESTRUCTIVE = 1e-7, 3.0
NUMBERS = ("loss", "accuracy", "temperature", "image_norm", "text_norm", "grad_norm", "param_norm", "update_norm")


def overheating(*_):
    """A compiler whose step only raises the temperature, to 1,000: the loss of a model that knows little then rises."""

    def step(state, batch):
        hot = jax.device_put(np.float32(np.log(1000)), state.model.log_temperature.sharding)
        count = jax.device_put(np.int32(int(state.step) + 1), state.step.sharding)
        after = eqx.tree_at(lambda state: (state.model.log_temperature, state.step), state, (hot, count))
        return after, {name: jnp.ones(()) for name in NUMBERS}

    return step


def never(*args):
    raise AssertionError("the step was compiled")


def guard_of(run):
    return newest_record(run / "checkpoints").about["guard"]


@pytest.fixture(scope="module")
def destroyed(tmp_path_factory):
    """A run whose loss rises, and the error that ended it. Its weights to start from are gone since."""
    folder = tmp_path_factory.mktemp("destroyed")
    rng = np.random.default_rng(0)
    abstract = abstract_clip(tiny_clip_config())
    model = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), abstract)
    vocab = load_tokenizer(str(tiny_runs.folder() / "vocab.txt"), model_vocab=VOCAB)
    save_model(folder / "start", model, tokenizer=vocab, preprocess=EvalImageConfig(size=SIZE), provenance={})
    # Saved only at the end, except for the state that is too bad.
    config = tiny_runs.run_config(
        duration=Duration(steps=6),
        init=InitConfig(source=str(folder / "start")),
        contrastive=(
            ContrastiveConfig(data=write_set(folder / "test", first=50, count=9), every_steps=2, batch_size=16),
        ),
        checkpoint=CheckpointConfig(every_steps=6),
        guard=GuardConfig(score=LOSS, largest_fall=0.5),
    )
    with pytest.raises(GuardError) as caught:
        tiny_runs.train_on_one_device(config, folder / "run", compiler=overheating)
    (folder / "start").rename(folder / "away")
    return config, folder / "run", caught.value


def test_a_score_that_falls_too_far_ends_the_run(destroyed):
    _, run, error = destroyed
    [line] = [line for line in read_metrics(run / "metrics.jsonl") if LOSS in line]
    assert line["step"] == 2
    known = guard_of(run)
    assert known == {**known, "score": LOSS, "last": [2, line[LOSS]]}
    before, now = known["before"], line[LOSS]
    assert now > before + 0.5
    words = str(error)
    assert words.startswith(
        f"guard: {LOSS} was {before:.4f} before the first step and is {now:.4f} after step 2: worse by "
    )
    for advice in (
        "allows 0.5.",
        "--optim.peak-lr below 0.001,",
        "(trainable, docs",
        f"Interpolate(source={str(run)!r}, alpha=0.5)",
    ):
        assert advice in words
    assert exit_code_of(error) == GUARDED == 3
    assert committed_steps(run / "checkpoints") == [2]
    assert not (run / "model").exists()


def test_the_same_command_ends_at_once_with_the_same_message(destroyed):
    config, run, error = destroyed
    with pytest.raises(GuardError) as caught:
        tiny_runs.train_on_one_device(config, run, compiler=never)
    assert str(caught.value) == str(error)


def test_a_run_that_may_lose_more_resumes_with_the_score_of_its_start(destroyed, tmp_path, caplog):
    config, run, _ = destroyed
    again = shutil.copytree(run, tmp_path / "run")
    before = guard_of(run)["before"]
    free = dataclasses.replace(config, guard=GuardConfig(score=LOSS, largest_fall=100.0))
    with caplog.at_level(logging.INFO):
        tiny_runs.train_on_one_device(free, again, compiler=overheating)
    known = guard_of(again)
    assert (known["before"], known["last"][0]) == (before, 6)
    assert (
        f"guard: {LOSS} was {before:.4f} before the first step and is {known['last'][1]:.4f} after step 6"
        in caplog.text
    )
    assert (again / "model").exists()
    shown = "\n".join(describe_run(again, None))
    assert (
        f"guard: {LOSS} {before:.4f} before the first step, {known['last'][1]:.4f} after step 6; largest fall" in shown
    )


def test_the_advised_weights_between_start_and_end_are_those_that_the_page_starts_from(destroyed):
    config, run, _ = destroyed
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8").split("What to try after such an end")[1]
    names: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], names)
    [mix] = names["init"].surgery
    surgery = (dataclasses.replace(mix, source=str(run)),)
    init = dataclasses.replace(names["init"], source=str(run.with_name("away")), surgery=surgery)
    mixed = dataclasses.replace(config, init=init)
    optimizer, abstract = tiny_runs.optimizer_and_state(mixed)
    mesh = make_mesh(MeshConfig(), devices=tiny_runs.one_device())
    vocab = load_tokenizer(config.data.vocab, model_vocab=VOCAB).vocab_sha256
    first = first_state(mixed, optimizer, abstract=abstract, mesh=mesh, vocab_sha256=vocab)
    hot, start = float(np.log(1000)), load_model(run.with_name("away")).model.log_temperature
    np.testing.assert_allclose(first.model.log_temperature, (hot + start) / 2, rtol=1e-6)


def test_a_guard_that_is_left_out_for_a_while_keeps_its_score(destroyed, tmp_path):
    config, run, _ = destroyed
    without = Guard(dataclasses.replace(config, guard=None), run)
    without.resume({"guard": guard_of(run)})
    without.check()
    assert without.about() == {"guard": guard_of(run)}
    other = dataclasses.replace(config, guard=GuardConfig(score="contrastive/test/accuracy"))
    again = shutil.copytree(run, tmp_path / "run")
    with pytest.raises(CheckpointError, match=rf"'contrastive/test/accuracy' was not measured .* \(it was '{LOSS}'\)"):
        tiny_runs.train_on_one_device(other, again, compiler=never)


def test_a_guard_of_random_weights_is_refused(destroyed, tmp_path):
    config = dataclasses.replace(destroyed[0], init=None)
    with pytest.raises(ConfigError, match=rf"guard.score '{LOSS}' cannot fall: the run starts from random weights"):
        tiny_runs.train_on_one_device(config, tmp_path / "run", compiler=never)
    assert not (tmp_path / "run").exists()


def test_a_run_that_began_without_a_guard_cannot_get_one(destroyed):
    config, run, _ = destroyed
    with pytest.raises(CheckpointError, match=r"was not measured before the first step of .* \(it had no guard\)"):
        Guard(config, run).resume({})


def test_a_score_that_is_measured_otherwise_than_before_gives_a_warning(destroyed, caplog):
    config, run, _ = destroyed
    free = GuardConfig(score=LOSS, largest_fall=100.0)
    [test] = config.contrastive
    often = dataclasses.replace(config, guard=free, contrastive=(dataclasses.replace(test, every_steps=1),))
    check_guard(often, run)
    assert "other settings" not in caplog.text
    other = dataclasses.replace(config, guard=free, contrastive=(dataclasses.replace(test, batch_size=8),))
    check_guard(other, run)
    assert f"guard: {LOSS} was measured before the first step with other settings" in caplog.text
    assert "evaluation.batch_size: 16 then, 8 now" in caplog.text
    resumed = Guard(other, run)
    resumed.resume({"guard": guard_of(run)})
    assert resumed.about() == {"guard": {**guard_of(run), "last": tuple(guard_of(run)["last"])}}
    early = {name: value for name, value in guard_of(run).items() if name != "measured_by"}
    resumed.resume({"guard": early})
    assert resumed.differences() == []


def test_a_checkpoint_without_the_score_of_the_start_is_refused(destroyed):
    config, run, _ = destroyed
    known = {"score": LOSS, "before": None, "last": [2, 1.0]}
    guard = Guard(config, run)
    with pytest.raises(CheckpointError, match=r"was not measured before .* \(the measurement was interrupted\)"):
        guard.resume({"guard": known})
    guard.take(2, {LOSS: 1.0})
    guard.check()
    assert guard.summary() is None
    with mock.patch.object(describe, "newest_record", return_value=mock.Mock(leaves={}, about={"guard": known})):
        shown = "\n".join(describe_run(run, None))
    assert f"guard: {LOSS} not measured before the first step, 1.0000 after step 2" in shown


def test_an_interrupted_first_score_ends_the_run_although_a_preemption_is_reported_once(destroyed):
    stops = StopRequests(is_alone=False)

    def scores(due, state):
        assert stops.poll()

    parts = mock.Mock(config=destroyed[0], evaluations=[], stops=stops, _scores=scores)
    with (
        mock.patch("jax.experimental.multihost_utils.reached_preemption_sync_point", side_effect=(True, False)),
        pytest.raises(Interrupted, match="before this start did a step"),
    ):
        StepEnd.score_start(parts, mock.Mock(spec=TrainState))
    assert not parts.guard.start.called


def test_a_guard_names_a_score_of_its_run(destroyed):
    with pytest.raises(
        ConfigError, match=r"guard\.score 'zero_shot/other/top1' is no score of this run; its scores are"
    ):
        dataclasses.replace(destroyed[0], guard=GuardConfig(score="zero_shot/other/top1"))


@pytest.mark.parametrize("fall", [-0.1, math.nan])
def test_a_limit_that_is_no_fall_is_refused(fall):
    with pytest.raises(ConfigError, match=r"guard\.largest_fall is .*; it must be at least 0"):
        GuardConfig(score=TOP1, largest_fall=fall)


def test_a_loss_falls_by_rising_and_nan_is_never_allowed():
    loss, top1 = GuardConfig(score="contrastive/test/loss", largest_fall=0.5), GuardConfig(score=TOP1)
    assert [loss.allows(1.0, now) for now in (0.1, 1.5, 1.6, math.nan)] == [True, True, False, False]
    assert [top1.allows(0.5, now) for now in (0.9, 0.46, 0.44, math.nan)] == [True, True, False, False]


def test_a_fall_of_exactly_the_limit_is_allowed_in_spite_of_rounding():
    assert 0.75 - 0.7 > 0.05
    assert GuardConfig(score=TOP1).allows(0.75, 0.7)
    assert GuardConfig(score=TOP1, largest_fall=0.0).allows(0.75, 0.75)
    assert not GuardConfig(score=TOP1).allows(0.75, 0.6999)


def test_no_limit_is_advised_for_a_score_that_is_not_finite(destroyed):
    config, run, _ = destroyed
    guard = Guard(config, run)
    guard.start({LOSS: 1.0})
    for value in (math.nan, math.inf):
        assert guard.take(2, {LOSS: value})
        with pytest.raises(GuardError, match=rf"is {value}.* after step 2") as caught:
            guard.check()
        assert "--guard.largest-fall" not in str(caught.value)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A model that classifies all images of the set ``test`` next to it: the folder, and the model's config."""
    folder = tmp_path_factory.mktemp("planted")
    plant(folder / "model", {noise_png(50 + i): NAMES[i % 3] for i in range(9)}, templates=("{}",))
    write_set(folder / "test", first=50, count=9)
    return folder, load_model(folder / "model").model.config


def config_of_run(planted, source, rate, **fields):
    """A run of 6 steps that is scored and saved after steps 2, 4 and 6."""
    folder, model = planted
    chosen = {
        "model": model,
        "data": DataConfig(
            sources=(DataSource(folder=str(tiny_runs.folder() / "records")),),
            image=ImageConfig(size=PREPROCESS.size),
            stream=StreamConfig(threads=1, prefetch_batches=1),
        ),
        "optim": OptimConfig(peak_lr=rate, schedules=((".*", Cosine()),)),
        "duration": Duration(steps=6),
        "eval_image": PREPROCESS,
        "init": InitConfig(source=str(source)),
        "zero_shot": (ZeroShotConfig(data=str(folder / "test"), templates="class_name_only", every_steps=2),),
        "checkpoint": CheckpointConfig(every_steps=2),
        "guard": GuardConfig(score=TOP1),
    }
    return tiny_runs.run_config(**(chosen | fields))


@pytest.mark.slow
def test_a_learning_rate_that_destroys_the_model_ends_the_run(planted, tmp_path):
    config = config_of_run(planted, planted[0] / "model", DESTRUCTIVE)
    with pytest.raises(
        GuardError, match=rf"guard: {TOP1} was 1\.0000 before the first step .* after step 2: worse by "
    ):
        tiny_runs.train_on_one_device(config, tmp_path / "run")
    assert guard_of(tmp_path / "run")["last"][1] < 0.7


@pytest.mark.slow
def test_a_careful_fine_tune_passes_and_reports_both_scores_after_a_kill(planted, tmp_path, caplog):
    source = shutil.copytree(planted[0] / "model", tmp_path / "start")
    config, run = config_of_run(planted, source, CAREFUL), tmp_path / "run"

    class Killed(BaseException):
        pass

    def dying(*args):
        step = tiny_runs.compile_once(*args)

        def until(state, batch):
            if int(state.step) == 4:
                raise Killed
            return step(state, batch)

        return until

    with pytest.raises(Killed), caplog.at_level(logging.INFO):
        tiny_runs.train_on_one_device(config, run, compiler=dying)
    assert (
        f"guard: {TOP1} is 1.0000 before the first step; the run ends if it is worse by more than 0.05" in caplog.text
    )
    assert guard_of(run) == {**guard_of(run), "score": TOP1, "before": 1.0, "last": [4, 1.0]}
    shutil.rmtree(source)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        tiny_runs.train_on_one_device(config, run)
    assert "is 1.0000 before the first step" not in caplog.text  # it is not measured again
    assert f"guard: {TOP1} was 1.0000 before the first step and is 1.0000 after step 6" in caplog.text
    shown = "\n".join(describe_run(run, None))
    assert f"guard: {TOP1} 1.0000 before the first step, 1.0000 after step 6; largest fall allowed 0.05" in shown
