"""Pooling of tokens to one vector: the kinds of both towers and the attention pool (MAP head)."""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.layers import Attention, LayerNorm, Mlp, xavier_uniform
from clipa_eqx.models.mixed import prepend
from clipa_eqx.models.pinning import pin_batch

ImagePool = Literal["gap", "tok", "first", "map"]
TextPool = Literal["last", "tok", "gap"]


class MapHead(eqx.Module):
    """Multi-head attention pooling: a learned probe attends to all tokens, then LN and MLP with a residual."""

    probe: Float[Array, " dim"]
    attn: Attention
    norm: LayerNorm
    mlp: Mlp

    @classmethod
    def init(cls, config: BlockConfig, *, key: PRNGKeyArray) -> "MapHead":
        """Initialize with Xavier-uniform weights, at the sizes of the tower's blocks."""
        k_probe, k_attn, k_mlp = jr.split(key, 3)
        return cls(
            probe=xavier_uniform(k_probe, (1, config.width))[0],
            attn=Attention.init(config.width, heads=config.heads, style="xavier", residual_depth=1, key=k_attn),
            norm=LayerNorm.init(config.width, eps=config.norm_eps),
            mlp=Mlp.init(config.width, config.mlp_dim, gelu=config.gelu, style="xavier", residual_depth=1, key=k_mlp),
        )

    def __call__(self, x: Float[Array, "seq dim"]) -> Float[Array, " dim"]:
        """Pool the tokens of one example."""
        # A probe of the dtype of ``x`` gives one query for the complete batch. A wider one has a query per example: the
        # gradient of the query is then summed over the batch in the probe's dtype.
        query = self.probe[None] if self.probe.dtype == x.dtype else pin_batch(prepend(self.probe, x)[:1])
        y = self.attn(query, x)
        return (y + self.mlp(self.norm(y)))[0]


def pool_image(
    x: Float[Array, "seq dim"], pool: ImagePool, *, norm: LayerNorm | None, map_head: MapHead | None
) -> Float[Array, " dim"]:
    """Pool the tokens of one image; token 0 is the class token.

    "gap" averages the patch tokens, then normalizes. "tok" normalizes, then takes the class token. "first" takes the
    class token without a norm. "map" attends over all tokens. This order is that of the reference's ``models/vit.py``;
    big_vision and open_clip differ.

    Args:
        x: tokens after the last block.
        pool: kind of pooling.
        norm: the tower's final norm; present for "gap" and "tok" only.
        map_head: the attention pool; present for "map" only.
    """
    if pool == "map" and map_head is not None:
        return map_head(x)
    if pool == "gap" and norm is not None:
        return norm(jnp.mean(x[1:], axis=0))
    return x[0] if norm is None else norm(x)[0]


def pool_text(x: Float[Array, "seq dim"], pool: TextPool) -> Float[Array, " dim"]:
    """Pool the normalized tokens of one text.

    "last" takes the last position (padding for short captions), "tok" the [CLS] token, "gap" the mean of all others.
    """
    match pool:
        case "last":
            return x[-1]
        case "tok":
            return x[0]
        case "gap":
            return jnp.mean(x[1:], axis=0)
