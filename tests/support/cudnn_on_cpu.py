"""cuDNN's attention where there is no GPU: its lowering for CUDA, and a stand-in for its kernels on CPUs.

The stand-in replaces the two primitives that hold the custom calls. Everything around them is JAX's own: the rules
for ``vmap``, for gradients and for meshes. It computes by the definition from what the kernels are given, in float32.
"""

import contextlib
from unittest import mock

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax._src.interpreters import mlir


@contextlib.contextmanager
def cudnn_present():
    """Let JAX trace cuDNN's attention on a machine that lacks cuDNN, which it asks for its version."""
    with mock.patch.object(cudnn, "check_cudnn_version", return_value=91000):
        yield


@contextlib.contextmanager
def any_dtype():
    """Let JAX trace cuDNN's attention also in float32, in which the stand-in can be compared exactly."""
    with mock.patch.object(cudnn, "check_layout"):
        yield


def register_stand_in():
    """Make CPUs compute what cuDNN's kernels compute. Other programs are not changed: CPUs have no such kernels."""
    forward = mlir.lower_fun(_forward, multiple_results=True)
    mlir.register_lowering(cudnn._dot_product_attention_fwd_p, forward, platform="cpu")
    backward = mlir.lower_fun(_backward, multiple_results=True)
    mlir.register_lowering(cudnn._dot_product_attention_bwd_p, backward, platform="cpu")


def _weights(q, k, scale, kv_lengths, mask_type, sums=None):
    """The float32 attention weights, and the logarithms of the sums that they were divided by."""
    logits = scale * jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.float32)
    if mask_type == cudnn.MaskType.PADDING:
        assert kv_lengths.shape == q.shape[:1]
        logits = jnp.where(jnp.arange(k.shape[1])[None, None, None] < kv_lengths[:, None, None, None], logits, -jnp.inf)
    else:
        assert mask_type == cudnn.MaskType.NO_MASK
    sums = jax.nn.logsumexp(logits, axis=-1) if sums is None else sums
    return jnp.exp(logits - sums[..., None]), sums


def _forward(q, k, v, bias, q_lengths, kv_lengths, *others, scale, is_training, layout, mask_type, **options):
    assert layout == cudnn.AttentionLayout.BTNH.value
    assert q.ndim == k.ndim == v.ndim == 4
    assert q.dtype == k.dtype == v.dtype
    assert q.shape[1] % 2 == 0
    weights, sums = _weights(q, k, scale, kv_lengths, mask_type)
    out = jnp.einsum("bnts,bsnh->btnh", weights, v.astype(jnp.float32)).astype(q.dtype)
    return (out, sums) if is_training else (out,)


def _backward(
    q, k, v, bias, q_lengths, kv_lengths, q_offsets, kv_offsets, k_pages, v_pages, sums, out, by_out, **options
):
    scale = options["scale"]
    weights, _ = _weights(q, k, scale, kv_lengths, options["mask_type"], sums)
    by_out = by_out.astype(jnp.float32)
    by_v = jnp.einsum("bnts,btnh->bsnh", weights, by_out)
    by_weights = jnp.einsum("btnh,bsnh->bnts", by_out, v.astype(jnp.float32))
    dots = jnp.einsum("btnh,btnh->bnt", by_out, out.astype(jnp.float32))
    by_logits = scale * weights * (by_weights - dots[..., None])
    by_q = jnp.einsum("bnts,bsnh->btnh", by_logits, k.astype(jnp.float32))
    by_k = jnp.einsum("bnts,btnh->bsnh", by_logits, q.astype(jnp.float32))
    return by_q.astype(q.dtype), by_k.astype(k.dtype), by_v.astype(v.dtype)
