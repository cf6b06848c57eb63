"""Products and sums of float32 parameters and bfloat16 activations: values, gradients and their dtypes."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from clipa_eqx.models.mixed import add_parameter, prepend, product

ROWS, IN, OUT = 4096, 16, 8


def gradient_of(weight, x, direction):
    """The gradient of a sum over rows, each mapped alone as the towers are."""

    def loss(weight):
        rows = jax.vmap(lambda row, by: jnp.sum(product(row[None], weight)[0].astype(jnp.float32) * by))(x, direction)
        return jnp.sum(rows)

    return jax.jit(jax.grad(loss))(weight)


def test_a_gradient_that_is_summed_in_float32_is_closer_to_float64_by_a_factor_of_ten():
    x = (1 + jr.uniform(jr.key(0), (ROWS, IN))).astype(jnp.bfloat16)
    direction = (1 + jr.uniform(jr.key(1), (ROWS, OUT))).astype(jnp.bfloat16).astype(jnp.float32)
    weight = jr.normal(jr.key(2), (OUT, IN))
    oracle = np.asarray(direction, np.float64).T @ np.asarray(x.astype(jnp.float32), np.float64)
    # As on 64 devices: each has the gradient of its rows, and the gradients are added.
    parts = list(zip(jnp.split(x, 64), jnp.split(direction, 64), strict=True))
    ours = sum(gradient_of(weight, *part) for part in parts)
    cast_above = sum(gradient_of(weight.astype(jnp.bfloat16), *part) for part in parts)
    assert (ours.dtype, cast_above.dtype) == (jnp.float32, jnp.bfloat16)
    error, former = (np.abs(np.asarray(g, np.float64) - oracle).max() / oracle.max() for g in (ours, cast_above))
    assert error < 1e-5
    assert former > 1e-3
    assert error * 10 < former


def test_the_product_is_that_of_the_rounded_weight():
    x, weight = jr.normal(jr.key(0), (5, IN)).astype(jnp.bfloat16), jr.normal(jr.key(1), (OUT, IN))
    y = product(x, weight)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, x @ weight.astype(jnp.bfloat16).T)
    # Forward derivatives, gradients per example, and the gradient by the input.
    _, tangent = jax.jvp(lambda w: product(x, w), (weight,), (weight,))
    np.testing.assert_allclose(tangent.astype(np.float32), y.astype(np.float32), rtol=2e-2, atol=2e-2)
    per_example = jax.vmap(jax.grad(lambda w, row: jnp.sum(product(row[None], w).astype(jnp.float32))), (None, 0))
    grads = per_example(weight, x)
    assert (grads.shape, grads.dtype) == ((5, OUT, IN), jnp.float32)
    np.testing.assert_array_equal(grads, jnp.broadcast_to(x[:, None, :], grads.shape).astype(jnp.float32))
    by_x = jax.grad(lambda x: jnp.sum(product(x, weight).astype(jnp.float32)))(x)
    assert by_x.dtype == jnp.bfloat16
    hessian = jax.hessian(lambda w: jnp.sum(jnp.square(product(x, w).astype(jnp.float32))))(weight)
    assert np.isfinite(hessian).all()


@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("p_dtype", ["float32", "bfloat16"])
def test_equal_dtypes_are_the_plain_operations_and_others_are_rounded_once(x_dtype, p_dtype):
    x, p = jr.normal(jr.key(0), (5, IN)).astype(x_dtype), jr.normal(jr.key(1), (IN,)).astype(p_dtype)
    wide_x, wide_p = x.astype(jnp.float32), p.astype(jnp.float32)
    added, longer = add_parameter(x, p), prepend(p, x)
    assert added.dtype == longer.dtype == x.dtype
    np.testing.assert_array_equal(added, (wide_x + wide_p[None]).astype(x_dtype))
    np.testing.assert_array_equal(longer, jnp.concatenate([p[None].astype(x_dtype), x]))
    grads = jax.grad(lambda p: jnp.sum((add_parameter(x, p) + prepend(p, x)[1:]).astype(jnp.float32)))(p)
    assert grads.dtype == p.dtype
    assert product(x, p[None]).dtype == x.dtype


def test_float32_products_have_all_bits_in_both_directions():
    x, weight = jnp.ones((5, IN)), jnp.ones((OUT, IN))
    traced = jax.make_jaxpr(jax.grad(lambda x, w: jnp.sum(product(x, w) ** 2), argnums=(0, 1)))(x, weight)
    products = [e.params["precision"] for e in traced.jaxpr.eqns if e.primitive.name == "dot_general"]
    assert products == [(jax.lax.Precision.HIGHEST,) * 2] * 3
