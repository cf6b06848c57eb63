"""Pre-norm transformer blocks, stacked over depth and run by one ``lax.scan``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from clipa_eqx.errors import ConfigError
from clipa_eqx.models.layers import Attention, Gelu, InitStyle, LayerNorm, Mlp, drop_path, dropout
from clipa_eqx.models.mixed import PRODUCT
from clipa_eqx.models.pinning import pin_batch

Remat = Literal["none", "dots", "full"]

# Values that the forward pass saves for the backward pass: all of them; outputs of matrix products without batch axes
# (the reference's "minimal"); only the residual stream between blocks (the reference's "actcp").
_REMAT_POLICIES: dict[Remat, Callable[..., Any] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(PRODUCT),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Sizes, numerics and regularization of one tower's stack of blocks.

    Attributes:
        width: token width.
        depth: number of blocks.
        mlp_dim: hidden width of the MLP.
        heads: attention heads; must divide ``width``.
        norm_eps: LayerNorm epsilon: 1e-6 for Flax weights, 1e-5 for open_clip weights.
        gelu: "tanh" for Flax weights, "exact" for open_clip weights.
        dropout: rate after the position embedding, attention, GELU and MLP; active only with a key.
        drop_path: stochastic-depth rate of the last block, rising linearly from 0; active only with a key.
        remat: values saved per block for the backward pass: "none" saves all, "dots" the matrix products, "full" none.
        init: "xavier" (the reference's image tower) or "scaled" (its text tower, and both towers of its t5x branch).
        init_depth: depth in the residual scale of "scaled"; None is the true depth, 12 the reference's constant.

    Raises:
        ConfigError: a size below 1, heads that do not divide the width, or a rate outside [0, 1).
    """

    width: int
    depth: int
    mlp_dim: int
    heads: int
    norm_eps: float = 1e-6
    gelu: Gelu = "tanh"
    dropout: float = 0.0
    drop_path: float = 0.0
    remat: Remat = "none"
    init: InitStyle = "xavier"
    init_depth: int | None = None

    def __post_init__(self) -> None:
        for name in ("width", "depth", "mlp_dim", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"BlockConfig.{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.heads:
            raise ConfigError(f"BlockConfig.heads={self.heads} does not divide width={self.width}")
        for name in ("dropout", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"BlockConfig.{name} is {getattr(self, name)}; it must be in [0, 1)")


class BlockTrace(NamedTuple):
    """Intermediate values of one block, or of all blocks stacked over depth, in the order of computation.

    Attributes:
        attention: output of the attention branch.
        after_attention: residual stream after the attention branch is added.
        mlp: output of the MLP branch.
        after_mlp: residual stream after the MLP branch is added, which is the block's output.
    """

    attention: Float[Array, "*depth seq dim"]
    after_attention: Float[Array, "*depth seq dim"]
    mlp: Float[Array, "*depth seq dim"]
    after_mlp: Float[Array, "*depth seq dim"]


class BlocksOutput(NamedTuple):
    """Result of a stack of blocks: the residual stream after the last one, and the traces if they were kept."""

    stream: Float[Array, "seq dim"]
    traces: BlockTrace | None


class Block(eqx.Module):
    """LN, attention, residual; LN, MLP, residual. In a stack of blocks every leaf has a leading depth axis."""

    norm1: LayerNorm
    attn: Attention
    norm2: LayerNorm
    mlp: Mlp

    @classmethod
    def init(cls, config: BlockConfig, *, key: PRNGKeyArray) -> "Block":
        """Initialize one block (docs/reference.md F1.6)."""
        k_attn, k_mlp = jr.split(key)
        residual_depth = config.depth if config.init_depth is None else config.init_depth
        return cls(
            norm1=LayerNorm.init(config.width, eps=config.norm_eps),
            attn=Attention.init(
                config.width, heads=config.heads, style=config.init, residual_depth=residual_depth, key=k_attn
            ),
            norm2=LayerNorm.init(config.width, eps=config.norm_eps),
            mlp=Mlp.init(
                config.width,
                config.mlp_dim,
                gelu=config.gelu,
                style=config.init,
                residual_depth=residual_depth,
                key=k_mlp,
            ),
        )

    def __call__(
        self,
        x: Float[Array, "seq dim"],
        *,
        dropout_rate: float,
        drop_path_rate: Float[Array, ""] | None,
        key: PRNGKeyArray | None,
    ) -> BlockTrace:
        """Run the block on the tokens of one example; dropout and stochastic depth are off without a key."""
        k_attn, k_path1, k_gelu, k_mlp, k_path2 = (None,) * 5 if key is None else jr.split(key, 5)
        attention = self.attn(self.norm1(x))
        after_attention = x + drop_path(dropout(attention, dropout_rate, key=k_attn), drop_path_rate, key=k_path1)
        mlp = self.mlp(self.norm2(after_attention), dropout_rate=dropout_rate, key=k_gelu)
        after_mlp = after_attention + drop_path(dropout(mlp, dropout_rate, key=k_mlp), drop_path_rate, key=k_path2)
        return BlockTrace(attention, after_attention, mlp, after_mlp)


def init_blocks(config: BlockConfig, *, key: PRNGKeyArray) -> Block:
    """Initialize ``config.depth`` blocks independently and stack them leaf by leaf."""
    return eqx.filter_vmap(lambda k: Block.init(config, key=k))(jr.split(key, config.depth))


def run_blocks(
    blocks: Block,
    x: Float[Array, "seq dim"],
    *,
    config: BlockConfig,
    key: PRNGKeyArray | None,
    keep_traces: bool,
) -> BlocksOutput:
    """Scan the stacked blocks over the tokens ``x`` of one example.

    Args:
        blocks: blocks whose leaves have a leading axis of ``config.depth``.
        x: tokens after positions are added.
        config: sizes and rates of the blocks.
        key: randomness of dropout and stochastic depth; None turns both off.
        keep_traces: also return every block's intermediate values, stacked over depth; this costs their memory.
    """
    rates = np.linspace(0.0, config.drop_path, config.depth, dtype=np.float32) if config.drop_path else None
    keys = None if key is None else jr.split(key, config.depth)

    def body(
        x: Float[Array, "seq dim"], layer: tuple[Block, Float[Array, ""] | None, PRNGKeyArray | None]
    ) -> tuple[Float[Array, "seq dim"], BlockTrace | None]:
        block, rate, key = layer
        trace = block(pin_batch(x), dropout_rate=config.dropout, drop_path_rate=rate, key=key)
        return trace.after_mlp, trace if keep_traces else None

    policy = _REMAT_POLICIES[config.remat]
    if policy is not None:
        body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    stream, traces = jax.lax.scan(body, x, (blocks, None if rates is None else jnp.asarray(rates), keys))
    return BlocksOutput(stream, traces)
