"""Steps with a non-finite loss or gradient: skipped without a trace in the state, counted, and limited."""

import dataclasses
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import tiny_runs
from support.leaves import assert_bit_equal
from support.tiny_models import tiny_clip_config

from clipa_eqx.errors import NonFiniteError
from clipa_eqx.experiment import CheckpointConfig
from clipa_eqx.training import non_finite
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.trees import leaves_by_path

pytestmark = pytest.mark.usefixtures("quick_compile")


def config_of_run(**fields):
    return tiny_runs.run_config(model=tiny_clip_config(**tiny_runs.STOCHASTIC), **fields)


def poisoned(*steps):
    """A compiler whose step gets an infinite temperature in some steps, so that the loss there is not finite."""

    def compiler(*args):
        step = tiny_runs.compile_once(*args)

        def poison(state, batch):
            if int(state.step) + 1 not in steps:
                return step(state, batch)
            good = state.model.log_temperature.copy()
            bad = jax.device_put(jnp.full_like(good, np.inf), good.sharding)
            after, metrics = step(dataclasses.replace(state, model=_with(state.model, bad)), batch)
            return dataclasses.replace(after, model=_with(after.model, good)), metrics

        return poison

    return compiler


def _with(model, log_temperature):
    return eqx.tree_at(lambda m: m.log_temperature, model, log_temperature)


@pytest.mark.parametrize("leaf", ["loss", "gradient"])
def test_an_update_that_is_skipped_changes_no_bit(leaf):
    params = {"a": jnp.array([-0.0, 0.0, 1e-30, 3.0]), "b": jnp.array([2.0])}
    optimizer, grads = _adam(), jax.tree.map(jnp.ones_like, params)
    state = optimizer.update(grads, optimizer.init(params), params)[1]
    if leaf == "gradient":
        grads["b"] = jnp.array([np.nan])
    loss = jnp.array(np.inf if leaf == "loss" else 1.0)
    updates, after, metrics = jax.jit(non_finite.update, static_argnums=0, static_argnames="on_non_finite")(
        optimizer, grads, state, params, loss=loss, on_non_finite="skip"
    )
    assert_bit_equal(jax.tree.map(lambda p, u: p + u, params, updates), params)
    assert_bit_equal(after, state)
    assert int(metrics["skipped"]) == 1


def test_a_good_update_is_that_of_the_policy_stop():
    params = {"a": jnp.array([-0.0, 0.0, 1e-30, 3.0]), "b": jnp.array([2.0])}
    optimizer, grads = _adam(), jax.tree.map(lambda leaf: leaf - 0.5, params)
    both = [
        jax.jit(non_finite.update, static_argnums=0, static_argnames="on_non_finite")(
            optimizer, grads, optimizer.init(params), params, loss=jnp.array(1.0), on_non_finite=policy
        )
        for policy in ("stop", "skip")
    ]
    assert_bit_equal(*(found[:2] for found in both))
    assert [int(found[2].get("skipped", -1)) for found in both] == [-1, 0]


@pytest.mark.slow
def test_a_good_step_is_the_step_of_the_policy_stop(tmp_path):
    states = []
    for policy in ("stop", "skip"):
        config = config_of_run(on_non_finite=policy)
        tiny_runs.train_on_one_device(config, tmp_path / policy)
        states.append(final_state(config, tmp_path / policy))
    assert_bit_equal(*states)
    assert [line["skipped_steps"] for line in read_metrics(tmp_path / "skip/metrics.jsonl")] == [0] * 12


def test_skipped_steps_are_counted_and_resumed_exactly(tmp_path):
    config = config_of_run(on_non_finite="skip", checkpoint=CheckpointConfig(every_steps=4))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tiny_runs.train_on_one_device(config, whole, compiler=poisoned(3, 4, 6))
    lines = read_metrics(whole / "metrics.jsonl")
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3]
    assert [np.isfinite(line["loss"]) for line in lines] == [step not in (3, 4, 6) for step in range(1, 13)]
    assert [line["update_norm"] == 0 for line in lines[1:]] == [step in (3, 4, 6) for step in range(2, 13)]
    # The optimizer did not count the skipped steps, and its learning rate follows its count.
    assert [line["lr"] for line in lines[2:5]] == [lines[2]["lr"]] * 3
    assert int(optimizer_count(final_state(config, whole))) == 12 - 3

    class Killed(BaseException):
        pass

    def killer(*args):
        step = poisoned(3, 4, 6)(*args)

        def dying(state, batch):
            if int(state.step) == 8:
                raise Killed
            return step(state, batch)

        return dying

    with pytest.raises(Killed):
        tiny_runs.train_on_one_device(config, parts, compiler=killer)
    tiny_runs.train_on_one_device(config, parts, compiler=poisoned(3, 4, 6))
    assert_bit_equal(final_state(config, parts), final_state(config, whole))
    counts = [line["skipped_steps"] for line in read_metrics(parts / "metrics.jsonl")]
    assert counts == [line["skipped_steps"] for line in lines]


def test_ten_skipped_steps_in_a_row_end_the_run(tmp_path):
    config = config_of_run(on_non_finite="skip")
    with pytest.raises(NonFiniteError, match="the last 10 steps, 2 to 11, were all skipped: the weights are the cause"):
        tiny_runs.train_on_one_device(config, tmp_path, compiler=poisoned(*range(2, 12)))


def test_a_run_that_stopped_may_resume_and_skip(tmp_path):
    config = config_of_run()
    with pytest.raises(NonFiniteError, match=re.escape("step 6 gave loss=nan")) as stop:
        tiny_runs.train_on_one_device(config, tmp_path, compiler=poisoned(6))
    assert "--on-non-finite skip" in str(stop.value)
    assert re.search(r"replay.* 6` finds the record", str(stop.value))
    result = tiny_runs.train_on_one_device(config_of_run(on_non_finite="skip"), tmp_path, compiler=poisoned(6))
    assert result.metrics["skipped_steps"] == 1


def final_state(config, workdir):
    made = tiny_runs.placed_state(config, devices=1)
    with Checkpoints(workdir / "checkpoints", keep=None) as checkpoints:
        return checkpoints.restore(made.abstract, made.mesh, step=12)


def optimizer_count(state):
    counts = [leaf for path, leaf in leaves_by_path(state.opt_state).items() if path.endswith("count")]
    assert len({int(count) for count in counts}) == 1
    return counts[0]


def _adam():
    return optax.adam(1e-2)
