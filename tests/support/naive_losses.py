"""The contrastive losses as their papers write them: all logits at once, no masks, no splitting. The oracle of tests."""

import jax
import jax.numpy as jnp


def naive_softmax(image, text, log_temperature):
    """Radford et al. 2021 (arXiv:2103.00020), figure 3: losses per pair."""
    logits = jnp.exp(log_temperature) * image @ text.T
    to_text = -jnp.diag(jax.nn.log_softmax(logits, axis=1))
    to_image = -jnp.diag(jax.nn.log_softmax(logits, axis=0))
    return (to_text + to_image) / 2


def naive_sigmoid(image, text, log_temperature, bias):
    """Zhai et al. 2023 (arXiv:2303.15343), algorithm 1: losses per image."""
    logits = jnp.exp(log_temperature) * image @ text.T + bias
    is_pair = 2 * jnp.eye(len(image), dtype=logits.dtype) - 1
    return -jnp.sum(jax.nn.log_sigmoid(is_pair * logits), axis=1)


def naive_correct(image, text):
    """True if the own text has the largest similarity to an image, or is the first of those that have."""
    return jnp.argmax(image @ text.T, axis=1) == jnp.arange(len(image))
