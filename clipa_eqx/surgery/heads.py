"""Other heads: another width of the joint space of both towers."""

import dataclasses

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PRNGKeyArray

from clipa_eqx.errors import ConfigError
from clipa_eqx.models.clip import CLIP
from clipa_eqx.surgery.configuration import operated, rebuild
from clipa_eqx.surgery.report import Operated
from clipa_eqx.trees import leaves_by_path


def swap_head(model: CLIP, *, embed: int, key: PRNGKeyArray) -> Operated:
    """Replace the heads of both towers by random ones of width ``embed``, as at initialization; train them next.

    A tower without a head gets one. The temperature and everything before the heads stay the same.

    Args:
        model: model to change.
        embed: width of the new joint space; it may be the old one.
        key: randomness of the new heads.

    Raises:
        ConfigError: a width below 1.
    """
    if embed < 1:
        raise ConfigError(f"swap_head: embed is {embed}; it must be at least 1")
    leaves, changes = leaves_by_path(model), list[str]()
    towers = ("image", model.config.image), ("text", model.config.text)
    for (name, tower), one in zip(towers, jr.split(key), strict=True):
        width, dtype = tower.blocks.width, leaves[f"{name}/blocks/attn/q/weight"].dtype
        leaves[f"{name}/head/weight"] = (width**-0.5 * jr.normal(one, (embed, width), jnp.float32)).astype(dtype)
        changes.append(f"{name}/head/weight: random, width {tower.embed} -> {embed}")
    config = dataclasses.replace(
        model.config,
        image=dataclasses.replace(model.config.image, embed=embed),
        text=dataclasses.replace(model.config.text, embed=embed),
    )
    return operated(model, rebuild(config, leaves), changes)
