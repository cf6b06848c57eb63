"""The average of parameters in training: its recurrence over a run, checkpoints, resuming, scores, the model folder."""

import json
import logging
import shutil
from functools import partial

import equinox as eqx
import jax
import numpy as np
import pytest
from support import tiny_runs
from support.leaves import assert_bit_equal
from support.scored_runs import write_set

from clipa_eqx.cli import OK, run
from clipa_eqx.ema import EmaConfig
from clipa_eqx.evals.contrastive import ContrastiveConfig
from clipa_eqx.experiment import CheckpointConfig
from clipa_eqx.optim import OptimConfig
from clipa_eqx.planning.compiled import state_bytes
from clipa_eqx.programs.evaluate import main
from clipa_eqx.saved.model import load_model
from clipa_eqx.sharding import MeshConfig, make_mesh
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.loop import train
from clipa_eqx.training.memory import less_memory
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.replay import replay
from clipa_eqx.training.run_folder import read_record
from clipa_eqx.training.space import tree_bytes
from clipa_eqx.training.start import load_source
from clipa_eqx.trees import leaves_by_path

pytestmark = pytest.mark.usefixtures("quick_compile")

EMA = EmaConfig(decay=0.6)
FROZEN = "text/token/weight"
LOSS = "contrastive/test/loss"


def config_of_run(**fields):
    rules = ((FROZEN, None), *tiny_runs.run_config().optim.schedules)
    chosen = {
        "ema": EMA,
        "optim": OptimConfig(peak_lr=1e-2, schedules=rules),
        "on_non_finite": "skip",
        "checkpoint": CheckpointConfig(every_steps=4),
    }
    return tiny_runs.run_config(**(chosen | fields))


class Killed(BaseException):
    pass


def watched(*, states=None, die_before=None):
    """A compiler whose step spoils the temperature in steps 3 and 4, records parameters after each, and may die."""

    def compiler(*args):
        step = tiny_runs.compile_once(*args)

        def watching(state, batch):
            number = int(state.step) + 1
            if number == die_before:
                raise Killed
            if states is not None and not states:
                states[number - 1] = leaves_of(state.model)
            good = np.array(state.model.log_temperature)
            spoiled = with_temperature(state, np.full_like(good, np.inf)) if number in (3, 4) else state
            state, metrics = step(spoiled, batch)
            state = with_temperature(state, good) if number in (3, 4) else state
            if states is not None:
                states[number] = leaves_of(state.model)
            return state, metrics

        return watching

    return compiler


def with_temperature(state, value):
    placed = jax.device_put(value, state.model.log_temperature.sharding)
    return eqx.tree_at(lambda state: state.model.log_temperature, state, placed)


def leaves_of(model):
    return {path: np.array(leaf) for path, leaf in leaves_by_path(model).items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 12 steps of which two are skipped, and its parameters after each step."""
    config, folder, states = config_of_run(), tmp_path_factory.mktemp("whole") / "run", {}
    tiny_runs.train_on_one_device(config, folder, compiler=watched(states=states))
    return config, folder, states


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The same run, scored at steps 6 and 12."""
    folder = tmp_path_factory.mktemp("scored")
    data = write_set(folder / "test", first=50, count=11)
    config = config_of_run(contrastive=(ContrastiveConfig(data=data, every_steps=6, batch_size=16),))
    tiny_runs.train_on_one_device(config, folder / "run", compiler=watched())
    return config, folder / "run"


def saved_state(config, workdir, step=12, *, devices=1):
    made = tiny_runs.placed_state(config, devices=devices)
    with Checkpoints(workdir / "checkpoints", keep=None) as checkpoints:
        return checkpoints.restore(made.abstract, made.mesh, step=step)


def plain_average(states, steps, *, decay=EMA.decay):
    """The definition of the recurrence, in float64: from the first recorded parameters over those after these steps."""
    average = {path: leaf.astype(np.float64) for path, leaf in states[min(states)].items()}
    for n, step in enumerate(steps):
        d = min(decay, (1 + n) / (10 + n))
        average = {path: d * average[path] + (1 - d) * leaf for path, leaf in states[step].items()}
    return average


def test_the_average_of_a_run_is_that_of_a_plain_loop_without_the_skipped_steps(whole):
    config, folder, states = whole
    found = saved_state(config, folder).ema
    assert int(found.count) == 10
    wanted, leaves = (
        plain_average(states, [step for step in range(1, 13) if step not in (3, 4)]),
        leaves_of(found.model),
    )
    assert wanted.keys() - leaves.keys() == {FROZEN}
    for path, leaf in leaves.items():
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, wanted[path], rtol=0, atol=2e-6, err_msg=path)


def test_the_model_folder_has_the_average_and_says_so(whole):
    config, folder, states = whole
    loaded = load_model(folder / "model")
    assert_bit_equal(jax.tree.leaves(loaded.model), jax.tree.leaves(saved_state(config, folder).averaged))
    assert loaded.provenance.average == {"decay": 0.6, "warm_up": True, "updates": 10}
    equal = {path for path, leaf in leaves_of(loaded.model).items() if np.array_equal(leaf, states[12][path])}
    assert equal == {FROZEN}


def test_a_killed_run_resumes_to_the_same_average_bit_by_bit(whole, tmp_path):
    config, folder, _ = whole
    with pytest.raises(Killed):
        tiny_runs.train_on_one_device(config, tmp_path / "run", compiler=watched(die_before=11))
    tiny_runs.train_on_one_device(config, tmp_path / "run", compiler=watched())
    assert_bit_equal(saved_state(config, tmp_path / "run"), saved_state(config, folder))


def scores(folder):
    return [line[LOSS] for line in read_metrics(folder / "metrics.jsonl") if LOSS in line]


@pytest.mark.slow
def test_scores_of_a_run_are_those_of_its_average_also_before_it_ends(scored, tmp_path):
    config, folder = scored
    going = shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(going / "model")
    found = []
    for one in (folder, going):  # its model folder, and its last checkpoint
        out = tmp_path / f"{len(found)}.json"
        argv = [one, "--suite", "contrastive", "--data", config.contrastive[0].data, "--out", out]
        assert run(partial(main, [*map(str, argv), "--batch-size", "16"])) == OK
        found.append(json.loads(out.read_text())["loss"])
    np.testing.assert_allclose(found, scores(folder)[-1], rtol=1e-5)


@pytest.mark.slow
def test_a_run_may_score_its_parameters_instead(scored, tmp_path):
    config, folder = scored
    every = {"checkpoint": CheckpointConfig(every_steps=12), "contrastive": config.contrastive}
    raw = config_of_run(ema=EmaConfig(decay=0.6, evaluate=False), **every)
    tiny_runs.train_on_one_device(raw, tmp_path / "raw", compiler=reused(config))
    differing = np.abs(np.array(scores(tmp_path / "raw")) - np.array(scores(folder)))
    assert (differing > 1e-4).all()
    plain = shutil.copytree(tmp_path / "raw", tmp_path / "plain")
    shutil.rmtree(plain / "model")
    # Without the average, the last checkpoint gives the model of the last step.
    tiny_runs.train_on_one_device(config_of_run(ema=None, **every), plain, compiler=never)
    assert_bit_equal(load_model(plain / "model").model, saved_state(raw, tmp_path / "raw").model)
    assert load_model(tmp_path / "raw" / "model").provenance.average["updates"] == 10


def reused(config):
    """The step of another config that differs in what no step computes."""
    return lambda _, *rest: watched()(config, *rest)


def never(*args):
    return lambda state, batch: pytest.fail("a step was done")


@pytest.mark.slow
def test_a_run_may_begin_and_drop_its_average_when_it_resumes(whole, tmp_path, caplog):
    config, folder, states = whole
    without = shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(without / "model")
    shutil.rmtree(without / "checkpoints" / "12")
    plain = config_of_run(ema=None)
    with pytest.raises(Killed), caplog.at_level(logging.WARNING):
        tiny_runs.train_on_one_device(plain, without, compiler=watched(die_before=9))
    assert "checkpoint 8 has an average of the parameters, which is left out" in caplog.text
    strip_average(without / "checkpoints" / "8", plain, tmp_path)
    assert saved_state(config, without, 8).ema is None
    tiny_runs.train_on_one_device(config, without, compiler=watched())
    assert "checkpoint 8 has no average of the parameters: it starts here" in caplog.text
    found = saved_state(config, without).ema
    assert int(found.count) == 4
    late = {step: leaves for step, leaves in states.items() if step >= 8}
    for path, leaf in leaves_of(found.model).items():
        np.testing.assert_allclose(leaf, plain_average(late, range(9, 13))[path], rtol=0, atol=2e-6, err_msg=path)


def strip_average(checkpoint, config, scratch):
    """Save a checkpoint again as a run without average does."""
    state = saved_state(config, checkpoint.parent.parent, int(checkpoint.name))
    with Checkpoints(checkpoint.parent, keep=None) as checkpoints:
        about = checkpoints.record(int(checkpoint.name)).about
    with Checkpoints(scratch / "again", keep=1) as checkpoints:
        checkpoints.save(state, step=int(checkpoint.name), about=about)
    shutil.rmtree(checkpoint)
    shutil.copytree(scratch / "again" / checkpoint.name, checkpoint)


def test_a_run_folder_as_a_start_gives_its_average(whole):
    config, folder, _ = whole
    mesh = make_mesh(MeshConfig(), devices=tiny_runs.one_device())
    with jax.set_mesh(mesh):
        source = load_source(InitConfig(source=str(folder)), mesh)
    assert_bit_equal(source.model, saved_state(config, folder).averaged)


@pytest.mark.slow
def test_a_step_of_a_run_with_an_average_is_replayed_bit_for_bit(whole):
    config, folder, _ = whole
    compiler = tiny_runs.compile_once
    found = replay(config, folder, 10, record=read_record(folder), devices=tiny_runs.one_device(), compiler=compiler)
    assert (found.start, found.is_equal) == (8, True)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_an_average_split_over_8_devices_is_restored_bit_by_bit_onto_another_mesh(frozen, tmp_path):
    fields = {} if frozen else {"optim": OptimConfig(peak_lr=1e-3)}
    made = tiny_runs.placed_state(config_of_run(mesh=MeshConfig(fsdp=8), **fields), devices=8)
    split = [leaf for leaf in jax.tree.leaves(made.state.ema) if not leaf.sharding.is_fully_replicated]
    assert len(split) >= 10
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), devices=jax.devices()[:4])
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(made.state, step=3, about={})
        checkpoints.wait()
        restored = checkpoints.restore(made.abstract, mesh, step=3)
        model = checkpoints.restore_model(made.abstract.model, mesh, step=3)
    assert_bit_equal(restored.ema, made.state.ema)
    assert_bit_equal(model, made.state.averaged)


@pytest.mark.slow
def test_a_run_that_trains_some_leaves_averages_these_alone(tmp_path):
    """Its frozen leaves are stored once, next to the checkpoints."""
    config = config_of_run(trainable=("image/.*",), optim=OptimConfig(peak_lr=1e-2))
    with pytest.raises(Killed):
        tiny_runs.train_on_one_device(config, tmp_path / "run", compiler=watched(die_before=11))
    tiny_runs.train_on_one_device(config, tmp_path / "run", compiler=watched())
    state = saved_state(config, tmp_path / "run")
    paths = leaves_of(state.model).keys()
    assert leaves_of(state.ema.model).keys() == {path for path in paths if path.startswith("image/")}
    loaded = load_model(tmp_path / "run" / "model").model
    assert_bit_equal(jax.tree.leaves(loaded), jax.tree.leaves(state.averaged))
    mesh = make_mesh(MeshConfig(), devices=tiny_runs.one_device())
    with jax.set_mesh(mesh):
        source = load_source(InitConfig(source=str(tmp_path / "run")), mesh)
    assert_bit_equal(source.model, loaded)


def test_memory_and_space_count_the_average():
    with_one, without = (tiny_runs.placed_state(config_of_run(ema=ema), devices=1) for ema in (EMA, None))
    trained = [leaf for path, leaf in leaves_by_path(without.state.model).items() if path != FROZEN]
    assert tree_bytes(with_one.abstract) - tree_bytes(without.abstract) == tree_bytes(trained) + 4
    assert state_bytes(with_one.abstract, with_one.mesh).average == tree_bytes(trained) + 4
    assert state_bytes(without.abstract, without.mesh).average == 0
    assert any(line.startswith("--ema none") for line in less_memory(config_of_run(), devices=1))
    assert not any(line.startswith("--ema") for line in less_memory(config_of_run(ema=None), devices=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields", [{"mesh": MeshConfig(data=2, fsdp=4)}, {"mesh": MeshConfig(fsdp=4, tensor=2)}, {"micro_batch": 8}]
)
def test_on_8_devices_and_with_micro_batches_the_average_is_that_of_a_plain_loop_too(fields, tmp_path):
    config, states = config_of_run(**fields), {}
    train(config, tmp_path / "run", devices=jax.devices(), compiler=watched(states=states))
    found = saved_state(config, tmp_path / "run", devices=8).ema
    assert int(found.count) == 10
    wanted = plain_average(states, [step for step in range(1, 13) if step not in (3, 4)])
    for path, leaf in leaves_of(found.model).items():
        np.testing.assert_allclose(leaf, wanted[path], rtol=0, atol=2e-6, err_msg=path)


@pytest.mark.slow
def test_training_is_the_same_with_and_without_an_average():
    both = [tiny_runs.drive(config_of_run(ema=ema), devices=1, steps=6) for ema in (EMA, None)]
    np.testing.assert_allclose(both[0].losses, both[1].losses, rtol=1e-4)
    assert both[0].losses[0] == both[1].losses[0]
