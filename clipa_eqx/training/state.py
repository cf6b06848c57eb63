"""The training state: model, optimizer state and number of steps done."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from clipa_eqx.models.clip import CLIP, CLIPConfig


class TrainState(eqx.Module):
    """The state of a run after a step. Random keys and data positions are not in it: they follow from (seed, step)."""

    model: CLIP
    opt_state: Any
    step: Int[Array, ""]


def init_state(config: CLIPConfig, optimizer: optax.GradientTransformation, *, key: PRNGKeyArray) -> TrainState:
    """A new random state. Run it under ``jax.jit`` with ``out_shardings``, so that each part is made on its device."""
    return start_state(CLIP.init(config, key=key), optimizer)


def start_state(model: CLIP, optimizer: optax.GradientTransformation) -> TrainState:
    """The state of step 0 for a given model."""
    params: Any = model
    return TrainState(model=model, opt_state=optimizer.init(params), step=jnp.zeros((), jnp.int32))


def abstract_start(model: CLIP, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes and dtypes of the state of step 0 for an abstract model."""
    return jax.eval_shape(lambda model: start_state(model, optimizer), model)


def abstract_state(config: CLIPConfig, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes and dtypes of the state, without allocating it."""
    return jax.eval_shape(lambda: init_state(config, optimizer, key=jr.key(0)))
