"""Every kind and algorithm of the loss, on every mesh, has the values and gradients of the naive float64 functions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from support.meshes import mesh_of
from support.naive_losses import naive_correct, naive_sigmoid, naive_softmax

from clipa_eqx.losses.config import LossConfig
from clipa_eqx.losses.contrastive import contrastive_loss
from clipa_eqx.sharding import BATCH

MESHES = (None, (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 4))
ALGORITHMS = ("global", "sharded", "chunked", "ring")
KINDS = ("softmax", "sigmoid")
EMBED = 5
RTOL = ATOL = 1e-10
SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def mesh_for(shape):
    return None if shape is None else mesh_of(**dict(zip(("data", "fsdp", "tensor"), shape, strict=True)))


def inputs(batch, *, seed, kind, masked):
    rng = np.random.default_rng(seed)
    image, text = (rng.normal(size=(batch, EMBED)) for _ in range(2))
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    # Two equal texts and a perfect pair, so that the first of equal ones counts.
    text[batch // 2] = text[0] = image[0]
    mask = rng.random(batch) > 0.3 if masked else np.ones(batch, bool)
    mask[0] = True
    values = {"image": image, "text": text, "log_temperature": np.log(rng.uniform(1.0, 90.0))}
    if kind == "sigmoid":
        values["bias"] = rng.uniform(-12.0, 1.0)
    return jax.tree.map(jnp.asarray, values), mask, rng.normal(size=batch)


@functools.cache
def expected(batch, seed, kind, masked):
    """Output of the naive functions for the included pairs alone, and gradients of a weighted sum of the losses."""
    values, mask, weights = inputs(batch, seed=seed, kind=kind, masked=masked)
    rows = np.flatnonzero(mask)

    def total(values):
        image, text = values["image"][rows], values["text"][rows]
        rest = [values[name] for name in ("log_temperature", "bias") if name in values]
        losses = (naive_softmax if kind == "softmax" else naive_sigmoid)(image, text, *rest)
        return jnp.mean(losses) + jnp.sum(losses * weights[rows]), losses

    (_, losses), grads = jax.value_and_grad(total, has_aux=True)(values)
    whole = np.zeros(batch)
    whole[rows] = losses
    correct = np.zeros(batch, bool)
    correct[rows] = naive_correct(values["image"][rows], values["text"][rows])
    return whole, correct, grads


def check(config, shape, *, batch, seed, masked):
    values, mask, weights = inputs(batch, seed=seed, kind=config.kind, masked=masked)
    mesh = mesh_for(shape)
    if mesh is not None:
        split, whole = (NamedSharding(mesh, spec) for spec in (BATCH, PartitionSpec()))
        values = {name: jax.device_put(x, split if x.ndim else whole) for name, x in values.items()}

    # Compiling takes most of the time.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(values):
        out = contrastive_loss(**values, config=config, mesh=mesh, mask=jnp.asarray(mask) if masked else None)
        return out.loss + jnp.sum(out.losses * weights), out

    (_, out), grads = total(values)
    losses, correct, naive_grads = expected(batch, seed, config.kind, masked)
    np.testing.assert_allclose(out.losses, losses, rtol=RTOL, atol=ATOL)
    np.testing.assert_allclose(out.loss, losses[mask].mean(), rtol=RTOL)
    np.testing.assert_array_equal(out.correct, correct)
    np.testing.assert_allclose(out.accuracy, correct[mask].mean(), rtol=1e-6)
    assert grads.keys() == naive_grads.keys()
    for name, grad in naive_grads.items():
        np.testing.assert_allclose(grads[name], grad, rtol=RTOL, atol=ATOL * np.abs(grad).max(), err_msg=name)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_equal_the_naive_function(algorithm, kind):
    # 24 pairs are 6 per part; a chunk of 7 divides neither these nor the batch.
    check(LossConfig(kind=kind, algorithm=algorithm, chunk=7), (2, 2, 2), batch=24, seed=1, masked=True)


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(("batch", "chunk"), [(8, 1), (16, 3), (24, 7), (40, 40), (56, 1000)])
def test_values_and_gradients_equal_the_naive_function_on_every_mesh_at_every_size(
    shape, algorithm, kind, masked, batch, chunk
):
    check(LossConfig(kind=kind, algorithm=algorithm, chunk=chunk), shape, batch=batch, seed=batch, masked=masked)


@pytest.mark.parametrize("chunk", [5, pytest.param(1, marks=SLOW), pytest.param(13, marks=SLOW), 14])
def test_chunks_of_any_size_equal_the_naive_function_in_an_odd_batch(chunk):
    check(LossConfig(kind="softmax", algorithm="chunked", chunk=chunk), None, batch=13, seed=2, masked=True)
