"""Strengths by leaf and by layer: each transformation against a loop over the layers in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipa_eqx.errors import ConfigError
from clipa_eqx.layerwise import add_decay, keep_trained, per_layer, scale_and_negate

DEPTH = 3
LAYERED = np.array([0.0, 0.5, 2.0], np.float32)


@pytest.fixture
def tree():
    rng = np.random.default_rng(0)
    blocks = {"bias": rng.normal(size=(DEPTH,)), "weight": rng.normal(size=(DEPTH, 2, 4))}
    return jax.tree.map(jnp.float32, {"blocks": blocks, "head": rng.normal(size=(2,))})


def strengths(layered, plain):
    return {"blocks/bias": layered, "blocks/weight": layered, "head": plain}


def apply(transformation, updates, params=None):
    made, state = transformation.update(updates, transformation.init(updates), params)
    return made, state


def test_a_tuple_over_depth_becomes_a_vector_and_a_value_a_number():
    made = per_layer((None, "x", "xyz"), lambda one: len(one or ""))
    assert isinstance(made, np.ndarray)
    assert (made.tolist(), made.dtype) == ([0, 1, 3], np.float32)
    assert per_layer("xy", lambda one: float(len(one))) == 2.0


def test_frozen_layers_get_zeros_even_from_infinite_gradients(tree):
    tree["blocks"]["weight"] = tree["blocks"]["weight"].at[0].set(jnp.inf)
    tree["blocks"]["bias"] = tree["blocks"]["bias"].at[0].set(jnp.nan)
    kept, _ = apply(keep_trained(strengths(LAYERED, 1.0)), tree)
    for name in ("weight", "bias"):
        assert not kept["blocks"][name][0].any()
        np.testing.assert_array_equal(kept["blocks"][name][1:], tree["blocks"][name][1:])
    np.testing.assert_array_equal(kept["head"], tree["head"])


def test_a_completely_frozen_leaf_is_left_to_the_mask(tree):
    kept, _ = apply(keep_trained(strengths(0.0, 0.0)), tree)
    assert all(a is b for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(tree), strict=True))


def test_decay_adds_each_layers_strength_times_its_parameters(tree):
    params = jax.tree.map(lambda leaf: leaf + 1, tree)
    decayed, _ = apply(add_decay(strengths(LAYERED, 0.25)), tree, params)
    for layer, strength in enumerate(LAYERED):
        for name in ("weight", "bias"):
            expected = tree["blocks"][name][layer] + strength * params["blocks"][name][layer]
            np.testing.assert_allclose(decayed["blocks"][name][layer], expected, rtol=1e-6)
    np.testing.assert_allclose(decayed["head"], tree["head"] + 0.25 * params["head"], rtol=1e-6)


def test_no_decay_adds_nothing_even_to_infinite_parameters(tree):
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.inf), tree)
    decayed, _ = apply(add_decay(strengths(np.zeros(DEPTH, np.float32), 0.0)), tree, params)
    assert all(a is b for a, b in zip(jax.tree.leaves(decayed), jax.tree.leaves(tree), strict=True))


def test_decay_without_parameters_says_how_to_call_it(tree):
    with pytest.raises(ConfigError, match=r"optimizer\.update\(grads, state, params\)"):
        apply(add_decay(strengths(1.0, 1.0)), tree)


def test_each_layer_follows_its_own_schedule_and_none_freezes(tree):
    multipliers = {"up": lambda count: count + 1.0, "down": lambda count: 10.0 - count}
    schedules = {"blocks/bias": ("up", None, "down"), "blocks/weight": ("up", None, "down"), "head": None}
    transformation = scale_and_negate(0.1, strengths(LAYERED + 1, 1.0), schedules, multipliers)
    state = transformation.init(tree)
    for done in range(2):
        scaled, state = transformation.update(tree, state)
        assert int(state.updates_done) == done + 1
        for layer, value in enumerate((done + 1, 0, 10 - done)):
            for name in ("weight", "bias"):
                expected = -0.1 * (LAYERED[layer] + 1) * value * tree["blocks"][name][layer]
                np.testing.assert_allclose(scaled["blocks"][name][layer], expected, rtol=1e-5)
        assert not scaled["head"].any()
