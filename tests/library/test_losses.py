"""Symmetries of the contrastive loss, masked pairs, and equality of the loss that is split over devices."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.meshes import mesh_of

from clipa_eqx.errors import ConfigError, ShardingError
from clipa_eqx.losses.softmax import sharded_softmax_contrastive, softmax_contrastive

LOG_TEMPERATURE = jnp.log(jnp.asarray(1 / 0.07))


@functools.partial(jax.jit, static_argnums=1)
def _unit(key, batch, embed=5):
    x = jr.normal(key, (batch, embed))
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


@functools.cache
def _pairs(batch, seed=0):
    image, text = jr.split(jr.key(seed))
    return _unit(image, batch), _unit(text, batch)


@jax.jit
def _global(image, text, log_temperature, mask=None):
    return softmax_contrastive(image, text, log_temperature=log_temperature, mask=mask)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_reordering_pairs_reorders_losses_and_correctness(seed):
    image, text = _pairs(6, seed % 7)
    order = jr.permutation(jr.key(seed), 6)
    out, moved = _global(image, text, LOG_TEMPERATURE), _global(image[order], text[order], LOG_TEMPERATURE)
    np.testing.assert_allclose(moved.losses, out.losses[order], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(moved.correct, out.correct[order])
    np.testing.assert_allclose(moved.loss, out.loss, rtol=1e-5)


def test_loss_is_the_same_with_towers_exchanged():
    image, text = _pairs(7)
    np.testing.assert_allclose(
        _global(image, text, LOG_TEMPERATURE).losses, _global(text, image, LOG_TEMPERATURE).losses, rtol=1e-6
    )


def test_loss_of_embeddings_without_information_is_the_log_of_the_batch():
    same = jnp.ones((9, 4)) / 2
    np.testing.assert_allclose(_global(same, same, LOG_TEMPERATURE).loss, np.log(9), rtol=1e-6)


def test_masked_pairs_have_no_influence_and_no_gradient():
    image, text = _pairs(6)
    mask = jnp.array([True, False, True, True, False, True])

    def loss(image):
        return softmax_contrastive(image, text, log_temperature=LOG_TEMPERATURE, mask=mask).loss

    value, grads = jax.jit(jax.value_and_grad(loss))(image)
    kept = _global(image[mask], text[mask], LOG_TEMPERATURE)
    np.testing.assert_allclose(value, kept.loss, rtol=1e-6)
    np.testing.assert_array_equal(grads[~mask], 0.0)
    assert np.all(np.any(np.asarray(grads[mask]) != 0, axis=1))


def test_a_batch_of_only_masked_pairs_has_loss_zero_and_finite_gradients():
    image, text = _pairs(3)
    mask = jnp.zeros(3, bool)

    def loss(image):
        out = softmax_contrastive(image, text, log_temperature=LOG_TEMPERATURE, mask=mask)
        return out.loss, out.accuracy

    (value, accuracy), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(image)
    assert (float(value), float(accuracy)) == (0.0, 0.0)
    np.testing.assert_array_equal(grads, 0.0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 1, 1), (1, 8, 1), (4, 2, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_sharded_value_and_gradients_equal_the_global_ones(shape, masked):
    mesh, batch = mesh_of(data=shape[0], fsdp=shape[1], tensor=shape[2]), 24  # three or six rows a device
    image, text = _pairs(batch)
    mask = jnp.arange(batch) % 5 != 1 if masked else None
    weights = jnp.arange(1.0, batch + 1)

    def scalar(form, image, text, log_temperature):
        out = form(image, text, log_temperature=log_temperature, mask=mask)
        return out.loss + jnp.sum(out.losses * weights), out

    forms = (
        softmax_contrastive,
        functools.partial(sharded_softmax_contrastive, mesh=mesh, axis_names=("data", "fsdp")),
    )
    results = []
    with jax.set_mesh(mesh):
        for form in forms:
            run = jax.value_and_grad(functools.partial(scalar, form), argnums=(0, 1, 2), has_aux=True)
            results.append(jax.jit(run)(image, text, LOG_TEMPERATURE))
    (_, expected), expected_grads = results[0]
    (_, found), found_grads = results[1]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)
    for a, b in zip(found_grads, expected_grads, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-5 * weights.max())


def test_a_batch_that_the_devices_do_not_divide_is_an_error():
    image, text = _pairs(12)
    with pytest.raises(ShardingError, match=r"12 pairs cannot be split into 8 .* use a multiple of 8"):
        sharded_softmax_contrastive(
            image, text, log_temperature=LOG_TEMPERATURE, mesh=mesh_of(data=4, fsdp=2), axis_names=("data", "fsdp")
        )


def test_an_axis_that_the_mesh_lacks_is_an_error():
    image, text = _pairs(8)
    with pytest.raises(ConfigError, match=r"\['batch'\] are not axes"):
        sharded_softmax_contrastive(
            image, text, log_temperature=LOG_TEMPERATURE, mesh=mesh_of(data=1, fsdp=1), axis_names=("batch",)
        )


def test_logits_on_a_device_are_own_rows_times_all_columns():
    mesh, batch = mesh_of(data=8), 64
    image, text = _pairs(batch)

    def loss(image, text):
        out = sharded_softmax_contrastive(image, text, log_temperature=LOG_TEMPERATURE, mesh=mesh, axis_names=("data",))
        return out.loss

    text_of_program = jax.jit(jax.grad(loss)).lower(image, text).compile().as_text()
    assert f"f32[{batch // 8},{batch}]" in text_of_program
    assert f"f32[{batch},{batch}]" not in text_of_program
