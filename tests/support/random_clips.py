"""Tiny models with random weights and their outputs: nothing is initialized, and equal models are compiled once."""

import functools

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from clipa_eqx.models.clip import CLIP
from clipa_eqx.models.layers import l2_normalize
from support.random_models import random_model
from support.tiny_models import tiny_clip_config

IMAGE = jnp.asarray(np.random.default_rng(1).normal(size=(16, 16, 3)), jnp.float32)
TOKENS = jnp.arange(8)


def random_clip(seed: int = 0, **fields) -> CLIP:
    """The model of ``tiny_models.tiny_clip``, with other weights."""
    return _random(tiny_clip_config(**fields), seed)


@functools.cache
def _random(config, seed) -> CLIP:
    return random_model(config, seed)


@eqx.filter_jit
def outputs(model):
    """Embeddings of an image and a text."""
    return model.encode_image(IMAGE), model.encode_text(TOKENS)


@eqx.filter_jit
def text_output(model, tokens):
    return model.encode_text(tokens)


@eqx.filter_jit
def image_features(tower):
    """Pooled features of an image in front of the head, and its embedding, which is of unit length."""
    trace = tower.trace(IMAGE)
    return trace.head_input, l2_normalize(tower(IMAGE))


gradient = eqx.filter_jit(eqx.filter_grad(lambda model: model.encode_image(IMAGE) @ model.encode_text(TOKENS)))
"""Gradient of the similarity of an image and a text."""
