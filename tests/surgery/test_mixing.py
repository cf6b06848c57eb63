"""Interpolated, averaged and cast models: their ends and fixed points are bit-equal, and unlike models are refused."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.leaves import assert_bit_equal
from support.random_clips import IMAGE, random_clip

from clipa_eqx import surgery
from clipa_eqx.errors import ConfigError
from clipa_eqx.trees import leaf_paths, leaves_by_path

pytestmark = pytest.mark.usefixtures("quick_compile")

ALPHAS = st.floats(0, 1, width=32)


def negative_zero(model):
    return eqx.tree_at(lambda m: m.image.class_token, model, -jnp.zeros(32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_ends_of_an_interpolation_are_the_models(dtype):
    a, b = (surgery.cast(random_clip(seed), dtype).model for seed in (0, 1))
    assert_bit_equal(surgery.interpolate(a, b, alpha=0.0).model, a)
    assert_bit_equal(surgery.interpolate(a, b, alpha=1.0).model, b)
    assert surgery.interpolate(a, b, alpha=0.0).report.leaves == ()


@settings(deadline=None, max_examples=3)
@given(alpha=ALPHAS)
def test_interpolation_is_linear_and_keeps_what_both_have(alpha):
    a, b = negative_zero(random_clip(0)), negative_zero(random_clip(1))
    assert_bit_equal(surgery.interpolate(a, a, alpha=alpha).model, a)
    mixed = leaves_by_path(surgery.interpolate(a, b, alpha=alpha).model)
    for path, left in leaves_by_path(a).items():
        right = np.asarray(leaves_by_path(b)[path], np.float64)
        expected = (1 - alpha) * np.asarray(left, np.float64) + alpha * right
        np.testing.assert_allclose(mixed[path], expected, rtol=1e-6, atol=1e-6, err_msg=path)
    back = leaves_by_path(surgery.interpolate(b, a, alpha=1 - alpha).model)
    for path, leaf in mixed.items():
        np.testing.assert_allclose(back[path], leaf, rtol=1e-6, atol=1e-6, err_msg=path)


@settings(deadline=None, max_examples=3)
@given(weights=st.lists(st.floats(0.125, 8, width=32), min_size=1, max_size=4))
def test_an_average_weighs_its_models(weights):
    models = [random_clip(seed) for seed in range(len(weights))]
    mean = surgery.average(models, weights=weights).model
    for path, leaf in leaves_by_path(mean).items():
        every = np.stack([np.asarray(leaves_by_path(model)[path], np.float64) for model in models])
        expected = np.average(every, axis=0, weights=weights)
        np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-6, err_msg=path)
    assert_bit_equal(surgery.average([models[0]] * len(weights), weights=weights).model, models[0])


def test_a_model_of_all_the_weight_is_the_average():
    models = [random_clip(seed) for seed in range(3)]
    for i, model in enumerate(models):
        assert_bit_equal(surgery.average(models, weights=[float(i == j) for j in range(3)]).model, model)
    alone, report = surgery.average(models[:1])
    assert_bit_equal(alone, models[0])
    assert report == surgery.SurgeryReport()
    report = surgery.average(models).report
    assert str(report).startswith("leaves: average of 3 models, shares 0.333333")
    assert {leaf.path for leaf in report.leaves} == set(leaf_paths(models[0]))


def test_models_that_differ_are_refused_with_all_differences():
    longer = random_clip(1, text={"length": 9}, image={"pool": "tok"})
    with pytest.raises(
        ConfigError, match=r"(?s)model 2 of 2.*text/position: \(9, 32\) found, \(8, 32\).*image.pool: 'tok'"
    ):
        surgery.interpolate(random_clip(), longer, alpha=0.5)
    with pytest.raises(ConfigError, match="model 3 of 3"):
        surgery.average([random_clip(), random_clip(1), longer])


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_extrapolation_is_refused(alpha):
    with pytest.raises(ConfigError, match=f"alpha is {alpha}"):
        surgery.interpolate(random_clip(), random_clip(1), alpha=alpha)


@pytest.mark.parametrize("weights", [(), (1.0,), (0.0, 0.0), (-1.0, 2.0), (float("inf"), 1.0)])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ConfigError, match=r"average: .*weights"):
        surgery.average([random_clip(), random_clip(1)], weights=weights)


def test_an_average_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="0 models"):
        surgery.average([])


def test_casting_there_and_back_rounds_once():
    model = random_clip()
    half, report = surgery.cast(model, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("bfloat16")}
    assert "log_temperature: float32[] -> bfloat16[]" in map(str, report.leaves)
    assert jax.eval_shape(half.encode_image, IMAGE).dtype == jnp.float32
    back = surgery.cast(half, "float32").model
    assert_bit_equal(surgery.cast(back, "bfloat16").model, half)
    for path, leaf in leaves_by_path(back).items():
        np.testing.assert_allclose(leaf, leaves_by_path(model)[path], rtol=2**-8, err_msg=path)
    same, report = surgery.cast(model, "float32")
    assert same is model
    assert report.changes == report.leaves == ()


def test_integers_are_no_type_of_weights():
    with pytest.raises(ConfigError, match="int8 is not a floating-point type"):
        surgery.cast(random_clip(), "int8")


def test_settings_that_matter_only_to_training_may_differ():
    blocks = dataclasses.replace(random_clip().config.text.blocks, dropout=0.1)
    other = random_clip(1, text={"blocks": blocks})
    assert surgery.interpolate(random_clip(), other, alpha=1.0).model.config == random_clip().config
