"""The training state: model, optimizer state, number of steps done, and on request an average of the parameters."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, PRNGKeyArray

from clipa_eqx.ema import Average, new_average, with_average
from clipa_eqx.models.clip import CLIP, CLIPConfig
from clipa_eqx.sharding import shardings_for


class TrainState(eqx.Module):
    """The state of a run after a step. Random keys and data positions are not in it: they follow from (seed, step).

    Attributes:
        model: the parameters.
        opt_state: state of the optimizer.
        step: number of steps done.
        ema: average of the parameters that are trained; None without ``ExperimentConfig.ema``.
    """

    model: CLIP
    opt_state: Any
    step: Int[Array, ""]
    ema: Average | None = None

    @property
    def averaged(self) -> CLIP:
        """The model with its average in place of its parameters, where there is one."""
        return with_average(self.model, self.ema)


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


def replace_average(state: TrainState, average: Average | None) -> TrainState:
    """The state with another average; it may be abstract."""
    return eqx.tree_at(lambda state: state.ema, state, average, is_leaf=lambda node: node is None)


def abstract_average(state: TrainState, averaged: Any) -> TrainState:
    """The abstract state with the average of ``start_average``."""
    if averaged is None:
        return state
    return replace_average(state, jax.eval_shape(lambda model: new_average(model, averaged), state.model))


def start_average(state: TrainState, averaged: Any, mesh: Mesh) -> TrainState:
    """The state with an average that starts as its parameters; the same state if ``averaged`` is None.

    Args:
        state: a state on ``mesh``, without an average.
        averaged: leaves that get an average, as ``averaged_leaves`` gives them.
        mesh: where the average is placed, like the parameters.
    """
    if averaged is None:
        return state
    wanted = shardings_for(jax.eval_shape(lambda model: new_average(model, averaged), state.model), mesh)
    make = jax.jit(lambda model: new_average(model, averaged), out_shardings=wanted)
    return replace_average(state, make(state.model))
