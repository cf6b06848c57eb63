"""Operations in which float32 parameters meet activations of the compute dtype, which may be bfloat16.

Parameters stay float32 up to the operation that uses them, so that their gradients are summed over tokens, batch and
devices in float32; a cast before the layer would make these sums bfloat16. With equal dtypes, all functions are the
plain operations of JAX.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

PRODUCT = "bfloat16 product"
"""Name of the results of ``product`` for policies of ``jax.checkpoint``."""

HIGHEST = lax.Precision.HIGHEST
"""Precision of float32 products; by default, TPUs and GPUs round their operands to fewer bits."""


def product(x: Float[Array, "*seq in"], weight: Float[Array, "out in"]) -> Float[Array, "*seq out"]:
    """Compute ``x @ weight.T``, in bfloat16 if ``x`` is bfloat16; the gradient of the weight has the weight's dtype."""
    if x.dtype == jnp.bfloat16 and weight.dtype == jnp.float32:
        # Policies of ``jax.checkpoint`` know plain products only, and this one by its name.
        return checkpoint_name(_bfloat16_product(x, weight), PRODUCT)
    wide = jnp.promote_types(x.dtype, weight.dtype)
    # Without ``weight.T``, whose gradient would be computed transposed, and then copied.
    dimensions = (((x.ndim - 1,), (1,)), ((), ()))
    precision = HIGHEST if wide == jnp.float32 else None
    return lax.dot_general(x.astype(wide), weight.astype(wide), dimensions, precision=precision)


def add_parameter(x: Float[Array, "*shape"], parameter: Float[Array, "..."]) -> Float[Array, "*shape"]:
    """Add a broadcast parameter in the wider of both dtypes; the sum is rounded to the dtype of ``x``."""
    return (x + jnp.broadcast_to(parameter, x.shape)).astype(x.dtype)


def prepend(token: Float[Array, " dim"], x: Float[Array, "seq dim"]) -> Float[Array, "longer dim"]:
    """Put a learned token in front of the tokens ``x``, in their dtype."""
    wide = jnp.promote_types(x.dtype, token.dtype)
    return jnp.concatenate([token[None].astype(wide), x.astype(wide)]).astype(x.dtype)


@jax.custom_jvp
def _bfloat16_product(x: Float[Array, "*seq in"], weight: Float[Array, "out in"]) -> Float[Array, "*seq out"]:
    return x @ weight.astype(x.dtype).T


def _bfloat16_product_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    # The derivative by the weight has float32 weights and a float32 sum, and so has its transpose, the gradient, also
    # under ``vmap`` and ``scan``. Its operands are multiplied as bfloat16: the algorithm says so on all backends.
    (x, weight), (by_x, by_weight) = primals, tangents
    y = _bfloat16_product(x, weight)
    tangent = jnp.zeros_like(y)
    if not isinstance(by_x, SymbolicZero):
        tangent = by_x @ weight.astype(x.dtype).T
    if not isinstance(by_weight, SymbolicZero):
        wide = lax.dot_general(
            x,
            by_weight,
            (((x.ndim - 1,), (1,)), ((), ())),
            precision=lax.DotAlgorithmPreset.BF16_BF16_F32,
            preferred_element_type=jnp.float32,
        ).astype(x.dtype)
        tangent = wide if isinstance(by_x, SymbolicZero) else tangent + wide
    return y, tangent


_bfloat16_product.defjvp(_bfloat16_product_jvp, symbolic_zeros=True)
