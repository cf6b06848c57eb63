"""Digits of a small loss in float32, and the choice among equal texts, in every kind and algorithm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.meshes import mesh_of
from support.naive_losses import naive_sigmoid, naive_softmax

from clipa_eqx.losses.config import LossConfig
from clipa_eqx.losses.contrastive import contrastive_loss

BATCH_SIZE = 16
ALGORITHMS = ("global", "sharded", "chunked", "ring")


def output(config, image, text, **scalars):
    """On four devices, compiled fast."""
    mesh = mesh_of(data=2, fsdp=2, tensor=1)
    loss = functools.partial(contrastive_loss, config=config, mesh=mesh, **scalars)
    return jax.jit(loss, compiler_options={"xla_backend_optimization_level": 0})(image, text)


def separated():
    """Pairs whose similarity exceeds all others by about 0.12."""
    rng = np.random.default_rng(0)
    common, own = np.sqrt(0.88), np.eye(BATCH_SIZE) * np.sqrt(0.12)
    rows = np.concatenate([np.full((BATCH_SIZE, 1), common), own], axis=1) + rng.normal(0, 1e-3, (BATCH_SIZE, 17))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_small_softmax_loss_keeps_its_digits(algorithm):
    rows, log_temperature = separated(), np.float32(np.log(100.0))
    with jax.enable_x64(True):
        exact = naive_softmax(*(jnp.asarray(rows, jnp.float64) for _ in range(2)), jnp.asarray(log_temperature, float))
        exact = np.asarray(exact)
    # Logits near 100 have a spacing of 7.6e-6, which would be 8% of these losses.
    assert 1e-5 < exact.min() < exact.max() < 1e-3
    out = output(LossConfig(algorithm=algorithm, chunk=6), rows, rows, log_temperature=jnp.asarray(log_temperature))
    assert out.losses.dtype == jnp.float32
    np.testing.assert_allclose(out.losses, exact, rtol=0, atol=3e-7)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_small_sigmoid_loss_keeps_its_digits(algorithm):
    rows, log_temperature, bias = separated(), np.float32(np.log(100.0)), np.float32(-94.0)
    with jax.enable_x64(True):
        wide = (jnp.asarray(x, jnp.float64) for x in (rows, rows, log_temperature, bias))
        exact = np.asarray(naive_sigmoid(*wide))
    config = LossConfig(kind="sigmoid", algorithm=algorithm, chunk=6)
    out = output(config, rows, rows, log_temperature=jnp.asarray(log_temperature), bias=jnp.asarray(bias))
    assert exact.max() < 0.5
    np.testing.assert_allclose(out.losses, exact, rtol=1e-4)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_first_of_equal_texts_counts_on_whichever_device_it_is(kind, algorithm):
    # Texts 1 and 3 (same device), 2 and 9 (different devices and chunks), 5 and 15 are equal.
    image = np.eye(BATCH_SIZE, dtype=np.float32)
    for later, first in ((3, 1), (9, 2), (15, 5)):
        image[later] = image[first]
    scalars = {"log_temperature": jnp.zeros(())} | ({"bias": jnp.asarray(-1.0)} if kind == "sigmoid" else {})
    out = output(LossConfig(kind=kind, algorithm=algorithm, chunk=6), image, image, **scalars)
    assert np.flatnonzero(~np.asarray(out.correct)).tolist() == [3, 9, 15]
