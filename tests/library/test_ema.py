"""The average of parameters: its recurrence against a plain loop, what it leaves untouched, and its settings."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.leaves import assert_bit_equal
from support.tiny_models import tiny_clip_config

from clipa_eqx.ema import EmaConfig, new_average, update_average, with_average
from clipa_eqx.errors import ConfigError
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.optim import OptimConfig, trained_leaves
from clipa_eqx.schedules import Cosine
from clipa_eqx.trees import leaves_by_path


def walk(steps, *, seed=0):
    """Parameters of a tree of two leaves, the first and those after each step."""
    rng = np.random.default_rng(seed)
    shapes = {"a": (3, 4), "b": (2,)}
    return [
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(steps + 1)
    ]


def plain(params, *, decay, warm_up):
    """The definition of the recurrence, in float64."""
    average = {name: leaf.astype(np.float64) for name, leaf in params[0].items()}
    for n, now in enumerate(params[1:]):
        d = min(decay, (1 + n) / (10 + n)) if warm_up else decay
        average = {name: d * average[name] + (1 - d) * leaf for name, leaf in now.items()}
    return average


@pytest.mark.parametrize(("decay", "warm_up"), [(0.9, True), (0.9, False), (0.9999, True), (0.0, False)])
def test_the_recurrence_is_that_of_a_plain_loop(decay, warm_up):
    params = walk(40)
    config = EmaConfig(decay=decay, warm_up=warm_up)
    average = new_average(jax.tree.map(jnp.asarray, params[0]), {"a": True, "b": True})
    move = jax.jit(lambda average, now: update_average(average, now, config, is_skipped=False))
    for now in params[1:]:
        average = move(average, now)
    for name, wanted in plain(params, decay=decay, warm_up=warm_up).items():
        np.testing.assert_allclose(average.model[name], wanted, rtol=0, atol=1e-6)
    assert int(average.count) == 40


def test_the_first_parameters_lose_their_weight_at_once():
    """The numbers of the docstring of ``warm_up``: 0.1 of the average after the first update, 0.02 after the second."""
    zero, one = {"a": jnp.zeros(())}, {"a": jnp.ones(())}
    average = new_average(one, {"a": True})
    shares = []
    for _ in range(2):
        average = update_average(average, zero, EmaConfig(), is_skipped=False)
        shares.append(round(float(average.model["a"]), 2))
    assert shares == [0.1, 0.02]


def test_a_skipped_update_changes_no_bit():
    params = {"a": jnp.array([-0.0, 0.0, 1e-30, 3.0])}
    average = new_average(params, {"a": True})
    spoiled = {"a": jnp.array([np.nan, np.inf, 1.0, 0.0])}
    move = jax.jit(update_average, static_argnames="config")
    after = move(average, spoiled, config=EmaConfig(), is_skipped=jnp.array(True))
    assert_bit_equal(after, average)
    assert int(move(average, params, config=EmaConfig(), is_skipped=jnp.array(False)).count) == 1


def test_parameters_that_stay_keep_their_average_bit_by_bit():
    params = {"a": jnp.asarray(walk(0)[0]["a"])}
    average = new_average(params, {"a": True})
    for _ in range(5):
        average = update_average(average, params, EmaConfig(decay=0.7), is_skipped=False)
    assert_bit_equal(average.model, params)


def test_only_leaves_that_are_trained_have_an_average():
    rng = np.random.default_rng(0)
    model = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract_clip(tiny_clip_config()))
    rules = (("text/.*", None), ("image/blocks/0/.*", None), (".*", Cosine()))
    averaged = trained_leaves(OptimConfig(peak_lr=1e-3, schedules=rules), model)
    average = jax.jit(lambda model: new_average(model, averaged))(model)
    paths = leaves_by_path(average.model).keys()
    # Of a stack, the first block is frozen and the second is trained.
    assert paths == {path for path in leaves_by_path(model) if not path.startswith("text/")}
    moved = jax.tree.map(lambda leaf: leaf + 1, model)
    move = jax.jit(partial(update_average, config=EmaConfig(decay=0.5, warm_up=False), is_skipped=False))
    average = move(average, moved)
    combined = leaves_by_path(with_average(moved, average))
    for path, leaf in leaves_by_path(model).items():
        np.testing.assert_allclose(combined[path], leaf + (0.5 if path in paths else 1.0), atol=1e-6, err_msg=path)
    assert with_average(moved, None) is moved


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_outside_of_0_and_1_is_refused(decay):
    with pytest.raises(ConfigError, match=r"ema\.decay is .*; it must be at least 0 and below 1"):
        EmaConfig(decay=decay)
