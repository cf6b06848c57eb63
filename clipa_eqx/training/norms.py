"""Norms of gradients, parameters and updates: total, per tower, and per block."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from clipa_eqx.trees import leaves_by_path, stacked_depth


@jax.named_scope("norms")
def norms(name: str, tree: Any) -> dict[str, Array]:
    """L2 norms: ``name``, ``name/image``, ``name/text``, and ``name/image/blocks`` as a vector over depth."""
    totals: dict[str, Array] = {}
    for path, leaf in leaves_by_path(tree).items():
        squares = jnp.square(leaf.astype(jnp.float32))
        tower = path.split("/", 1)[0]
        depth = stacked_depth(path, leaf)
        if depth is not None:
            per_block = jnp.sum(squares.reshape(depth, -1), axis=1)
            group = f"{name}/{path.split('blocks/', 1)[0]}blocks"
            totals[group] = totals.get(group, jnp.zeros(depth)) + per_block
            whole = jnp.sum(per_block)
        else:
            whole = jnp.sum(squares)
        for group in (name, *((f"{name}/{tower}",) if "/" in path else ())):
            totals[group] = totals.get(group, jnp.zeros(())) + whole
    return {group: jnp.sqrt(total) for group, total in totals.items()}
