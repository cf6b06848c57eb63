"""Models with random weights that no initializer made."""

import jax
import jax.numpy as jnp
import numpy as np

from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.trees import leaf_paths


def random_model(config, seed=0):
    """Nothing is exactly zero or one, so that every leaf matters; nothing is compiled."""
    skeleton = abstract_clip(config)
    rng = np.random.default_rng(seed)
    leaves = [
        jnp.asarray("norm" in path and path.endswith("weight")) + jnp.asarray(0.2 * rng.normal(size=leaf.shape), "f4")
        for path, leaf in zip(leaf_paths(skeleton), jax.tree.leaves(skeleton), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(skeleton), leaves)
