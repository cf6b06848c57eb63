"""Remat: how many products the backward pass computes again, in both dtypes of the towers."""

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from clipa_eqx.models.blocks import BlockConfig, init_blocks, run_blocks


def products(dtype, remat):
    """Number of matrix products in the loops of a gradient, each loop's body counted once."""
    config = BlockConfig(width=32, depth=2, mlp_dim=64, heads=2, remat=remat)

    def total(blocks, x):
        out = jax.vmap(lambda one: run_blocks(blocks, one, config=config, key=None, keep_traces=False).stream)(x)
        return jnp.sum(out.astype(jnp.float32))

    blocks = init_blocks(config, key=jr.key(0))
    return str(jax.make_jaxpr(jax.grad(total))(blocks, jnp.zeros((3, 5, 32), dtype))).count("= dot_general")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dots_keeps_the_products_with_weights_and_full_keeps_none(dtype):
    kept = products(dtype, "none")
    assert products(dtype, "dots") == kept + 2  # scores of attention, and their product with the values
    assert products(dtype, "full") == kept + 7  # and those with the weights, except the last, which no gradient needs
