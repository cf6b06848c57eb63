"""Models with random weights that no initializer made."""

import jax.numpy as jnp
import numpy as np

from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.trees import map_with_path


def random_model(config, seed=0):
    """Nothing is exactly zero or one, so that every leaf matters; nothing is compiled."""
    rng = np.random.default_rng(seed)

    def sampled(path, leaf):
        mean = jnp.asarray("norm" in path and path.endswith("weight"))
        return mean + jnp.asarray(0.2 * rng.normal(size=leaf.shape), "f4")

    return map_with_path(sampled, abstract_clip(config))
