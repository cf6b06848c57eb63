"""Small layers whose kernels and initializers we control: Linear, LayerNorm, Attention, Mlp, dropout.

Every module has fields, ``init`` and ``__call__`` on ONE example; use ``jax.vmap`` for a batch. ``key=None`` means
deterministic. The dtype of the input is the dtype in which a layer computes; parameters are cast where they are used
(``mixed.py``), so that their gradients keep their own dtype.
"""

import math
from contextlib import nullcontext
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from clipa_eqx.models.cudnn_attention import cudnn_attention
from clipa_eqx.models.mixed import add_parameter, product

Gelu = Literal["tanh", "exact"]
InitStyle = Literal["xavier", "scaled"]
AttentionKernel = Literal["xla", "cudnn"]


class Linear(eqx.Module):
    """Affine map ``x @ weight.T + bias`` over the last axis; the weight is (out, in), the bias may be None."""

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"] | None

    def __call__(self, x: Float[Array, "*seq in"]) -> Float[Array, "*seq out"]:
        y = product(x, self.weight)
        return y if self.bias is None else add_parameter(y, self.bias)


class LayerNorm(eqx.Module):
    """Layer normalization over the last axis. Statistics are float32, ``var = max(0, E[x^2] - E[x]^2)`` as in Flax."""

    weight: Float[Array, " dim"]
    bias: Float[Array, " dim"]
    eps: float = eqx.field(static=True)

    @classmethod
    def init(cls, dim: int, *, eps: float) -> "LayerNorm":
        """Initialize with weight one and bias zero."""
        return cls(weight=jnp.ones(dim), bias=jnp.zeros(dim), eps=eps)

    @jax.named_scope("layer_norm")
    def __call__(self, x: Float[Array, "*seq dim"]) -> Float[Array, "*seq dim"]:
        wide = x.astype(jnp.float32)
        mean = jnp.mean(wide, axis=-1, keepdims=True)
        mean_of_squares = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        variance = jnp.maximum(0.0, mean_of_squares - jnp.square(mean))
        scale = jax.lax.rsqrt(variance + self.eps) * jnp.broadcast_to(self.weight.astype(jnp.float32), x.shape)
        y = (wide - mean) * scale + jnp.broadcast_to(self.bias.astype(jnp.float32), x.shape)
        return y.astype(x.dtype)


class Attention(eqx.Module):
    """Multi-head attention without a mask; q, k, v and out are separate, so that rules and adapters can name them."""

    q: Linear
    k: Linear
    v: Linear
    out: Linear
    heads: int = eqx.field(static=True)
    kernel: AttentionKernel = eqx.field(static=True, default="xla")  # of a step (kernels.py), never saved

    @classmethod
    def init(cls, dim: int, *, heads: int, style: InitStyle, residual_depth: int, key: PRNGKeyArray) -> "Attention":
        """Initialize with Xavier-uniform weights, or normal ones of standard deviation dim^-1/2 ("scaled").

        "scaled" multiplies the output weight by (2 residual_depth)^-1/2 (docs/reference.md F1.6).
        """
        kq, kk, kv, ko = jr.split(key, 4)
        if style == "xavier":
            q, k, v, out = (xavier_uniform(x, (dim, dim)) for x in (kq, kk, kv, ko))
        else:
            std = dim**-0.5
            q, k, v = (std * jr.normal(x, (dim, dim)) for x in (kq, kk, kv))
            out = std * (2 * residual_depth) ** -0.5 * jr.normal(ko, (dim, dim))
        q, k, v, out = (Linear(weight=w, bias=jnp.zeros(dim)) for w in (q, k, v, out))
        return cls(q=q, k=k, v=v, out=out, heads=heads)

    @jax.named_scope("attention")
    def __call__(
        self, x: Float[Array, "queries dim"], source: Float[Array, "seq dim"] | None = None
    ) -> Float[Array, "queries dim"]:
        """Attend from the tokens ``x`` to the tokens ``source`` (to ``x`` itself if None)."""
        source = x if source is None else source

        def split(y: Array) -> Array:
            return y.reshape(y.shape[0], self.heads, -1)

        q, k, v = split(self.q(x)), split(self.k(source)), split(self.v(source))
        # ``dot_product_attention`` has no argument for the precision. The products of its gradient inherit this one.
        with jax.default_matmul_precision("highest") if k.dtype == jnp.float32 else nullcontext():
            attended = (cudnn_attention if self.kernel == "cudnn" else jax.nn.dot_product_attention)(q, k, v)
        return self.out(attended.reshape(x.shape))


class Mlp(eqx.Module):
    """Linear, GELU, Linear; dropout after the GELU."""

    fc_in: Linear
    fc_out: Linear
    gelu: Gelu = eqx.field(static=True)

    @classmethod
    def init(
        cls, dim: int, hidden: int, *, gelu: Gelu, style: InitStyle, residual_depth: int, key: PRNGKeyArray
    ) -> "Mlp":
        """Initialize with Xavier-uniform weights, or normal ones ("scaled") (docs/reference.md F1.6).

        Standard deviations of "scaled" are (2 dim)^-1/2 for the first and dim^-1/2 (2 residual_depth)^-1/2 for the
        second weight.
        """
        k_in, k_out = jr.split(key)
        if style == "xavier":
            w_in, w_out = xavier_uniform(k_in, (hidden, dim)), xavier_uniform(k_out, (dim, hidden))
        else:
            w_in = (2 * dim) ** -0.5 * jr.normal(k_in, (hidden, dim))
            w_out = dim**-0.5 * (2 * residual_depth) ** -0.5 * jr.normal(k_out, (dim, hidden))
        return cls(
            fc_in=Linear(weight=w_in, bias=jnp.zeros(hidden)),
            fc_out=Linear(weight=w_out, bias=jnp.zeros(dim)),
            gelu=gelu,
        )

    @jax.named_scope("mlp")
    def __call__(
        self, x: Float[Array, "seq dim"], *, dropout_rate: float = 0.0, key: PRNGKeyArray | None = None
    ) -> Float[Array, "seq dim"]:
        hidden = jax.nn.gelu(self.fc_in(x), approximate=self.gelu == "tanh")
        return self.fc_out(dropout(hidden, dropout_rate, key=key))


def dropout(x: Float[Array, "*shape"], rate: float, *, key: PRNGKeyArray | None) -> Float[Array, "*shape"]:
    """Zero each element with probability ``rate`` and divide the others by ``1 - rate``; identity without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jr.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def drop_path(
    x: Float[Array, "seq dim"], rate: Float[Array, ""] | None, *, key: PRNGKeyArray | None
) -> Float[Array, "seq dim"]:
    """Drop the residual branch of one example with probability ``rate`` (docs/reference.md F1.8).

    A branch that stays is divided by ``1 - rate``. The identity if ``rate`` or ``key`` is None.
    """
    if key is None or rate is None:
        return x
    keep = 1.0 - rate
    branch = jnp.floor(keep + jr.uniform(key)) / keep
    return x * branch.astype(x.dtype)


def l2_normalize(z: Float[Array, " embed"]) -> Float[Array, " embed"]:
    """Compute ``z / (|z| + 1e-8)`` in float32, the reference's normalization (``models/two_towers.py``)."""
    wide = z.astype(jnp.float32)
    return wide / (jnp.linalg.norm(wide) + 1e-8)


def xavier_uniform(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "out in"]:
    """Sample uniformly in +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""
    limit = math.sqrt(6.0 / sum(shape))
    return jr.uniform(key, shape, minval=-limit, maxval=limit)


def lecun_normal(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "out in"]:
    """Sample a normal of variance 1 / fan_in, truncated at two standard deviations (Flax's default for kernels)."""
    return jax.nn.initializers.lecun_normal(in_axis=1, out_axis=0)(key, shape, jnp.float32)
