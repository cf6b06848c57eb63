"""Settings of a tower: how it computes, as far as its weights do not say."""

from dataclasses import dataclass
from typing import Literal

from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig

Pool = Literal["gap", "tok", "first", "map", "last"]


ReplayGelu = Literal["tanh", "exact", "quick"]


@dataclass(frozen=True, kw_only=True)
class TowerOptions:
    """How a tower computes, as far as its weights do not say; more than our models can be.

    Attributes:
        heads: of every attention.
        eps: of every norm.
        gelu: "tanh", "exact" or "quick" (x sigmoid(1.702 x)).
        pool: as in ``models.pool``.
        pool_norm: of image towers: the norm stands before the pooling, after it, or nowhere.
        has_class_in_mean: the mean of "gap" takes token 0 too.
        is_causal: a token sees itself and those before it.
    """

    heads: int
    eps: float
    gelu: ReplayGelu
    pool: Pool
    pool_norm: Literal["before", "after", "none"]
    has_class_in_mean: bool = False
    is_causal: bool = False


def image_options(config: VisionConfig) -> TowerOptions:
    blocks = config.blocks
    norm = {"gap": "after", "tok": "before", "first": "none", "map": "none"}[config.pool]
    return TowerOptions(
        heads=blocks.heads,
        eps=blocks.norm_eps,
        gelu=blocks.gelu,
        pool=config.pool,
        pool_norm="after" if norm == "after" else "before" if norm == "before" else "none",
    )


def text_options(config: TextConfig) -> TowerOptions:
    blocks = config.blocks
    return TowerOptions(heads=blocks.heads, eps=blocks.norm_eps, gelu=blocks.gelu, pool=config.pool, pool_norm="before")
