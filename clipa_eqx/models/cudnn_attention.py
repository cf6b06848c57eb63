"""Attention by cuDNN's flash attention, which never writes the weights of all pairs of tokens to memory."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from clipa_eqx.models.pinning import pin_batch


def cudnn_attention(
    q: Float[Array, "seq heads width"], k: Float[Array, "seq heads width"], v: Float[Array, "seq heads width"]
) -> Float[Array, "seq heads width"]:
    """Compute ``softmax(q k^T / sqrt(width)) v`` for each head, with bfloat16 operands and a float32 softmax.

    An odd number of tokens gets one more, whose key and value are left out by cuDNN and whose output is cut off. cuDNN
    needs that for a bias only, and there is none here, but JAX (0.10 to 0.11) refuses all gradients of odd lengths.

    Raises:
        NotImplementedError, RuntimeError: JAX finds no cuDNN, or heads that cuDNN cannot have (see ``kernels.py``).
    """
    tokens = q.shape[0]
    if tokens % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    q, k, v = (jnp.pad(x, ((0, 1), (0, 0), (0, 0))) for x in (q, k, v))
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        query_seq_lengths=_per_example(tokens + 1, q),
        key_value_seq_lengths=_per_example(tokens, q),
        implementation="cudnn",
    )
    return out[:tokens]


def _per_example(value: int, like: Float[Array, "seq heads width"]) -> Int32[Array, " 1"]:
    """A constant that ``vmap`` and the mesh split as they split ``like``, for cuDNN wants one per row of a device."""
    zero = jnp.sum(like[:0, 0, 0].astype(jnp.int32))
    return pin_batch(jnp.full(1, value, jnp.int32) + zero)
