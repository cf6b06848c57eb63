"""Options of a tower that its weights do not record."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from clipa_eqx.models.pool import ImagePool
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig

Pool = Literal["gap", "tok", "first", "map", "last"]
PoolNorm = Literal["before", "after", "none"]
ReplayGelu = Literal["tanh", "exact", "quick"]

_POOL_NORMS: Mapping[ImagePool, PoolNorm] = {"gap": "after", "tok": "before", "first": "none", "map": "none"}
"""Position of the final norm in image towers of ours."""


@dataclass(frozen=True, kw_only=True)
class TowerOptions:
    """Options of a tower that its weights do not record, including some that our models do not have.

    Attributes:
        heads: number of heads of every attention.
        eps: epsilon of every norm.
        gelu: "tanh", "exact" or "quick" (x sigmoid(1.702 x)).
        pool: kind of pooling, as in ``models.pool``.
        pool_norm: position of the final norm relative to pooling.
        has_class_in_mean: the mean of "gap" includes token 0.
        is_causal: a token attends to itself and to those before it.
    """

    heads: int
    eps: float
    gelu: ReplayGelu
    pool: Pool
    pool_norm: PoolNorm
    has_class_in_mean: bool = False
    is_causal: bool = False


def image_options(config: VisionConfig) -> TowerOptions:
    """The options of an image tower of ours."""
    blocks = config.blocks
    return TowerOptions(
        heads=blocks.heads,
        eps=blocks.norm_eps,
        gelu=blocks.gelu,
        pool=config.pool,
        pool_norm=_POOL_NORMS[config.pool],
    )


def text_options(config: TextConfig) -> TowerOptions:
    """The options of a text tower of ours."""
    blocks = config.blocks
    return TowerOptions(heads=blocks.heads, eps=blocks.norm_eps, gelu=blocks.gelu, pool=config.pool, pool_norm="before")
