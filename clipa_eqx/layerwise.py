"""Optax transformations whose strength differs by leaf, and by layer for stacked leaves.

Strengths are given by path. A number holds for a complete leaf. A vector over depth holds for the layers of a stacked
leaf, which are along its first axis.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from clipa_eqx.errors import ConfigError
from clipa_eqx.trees import map_with_path

Strength = float | np.ndarray


class UpdateCount(NamedTuple):
    """Number of updates done; the next update takes the schedules' value at it."""

    updates_done: Int[Array, ""]


def per_layer(value: Any, number: Callable[[Any], float]) -> Strength:
    """``number`` of a value, or the vector of it over a tuple over depth, as ``trees.match_by_path`` gives them."""
    return np.array([number(one) for one in value], np.float32) if isinstance(value, tuple) else number(value)


def keep_trained(trained: Mapping[str, Strength]) -> optax.GradientTransformation:
    """Set the gradients of frozen layers (strength 0) to zero, except in leaves that are frozen completely."""

    def keep(path: str, update: Array) -> Array:
        strength = trained[path]
        # A choice, not a product: the gradient of a frozen layer may be infinite.
        return jnp.where(_over_depth(strength, update) > 0, update, 0.0) if np.ndim(strength) else update

    return optax.stateless(lambda updates, _: map_with_path(keep, updates))


def add_decay(strengths: Mapping[str, Strength]) -> optax.GradientTransformation:
    """Add strength * parameter to each update."""

    def add(path: str, update: Array, param: Array) -> Array:
        strength = _over_depth(strengths[path], update)
        return update + strength * param if np.any(strength) else update

    def update_fn(updates: Any, params: Any) -> Any:
        if params is None:
            raise ConfigError("weight decay needs the parameters: optimizer.update(grads, state, params)")
        return map_with_path(add, updates, params)

    return optax.stateless(update_fn)


def scale_and_negate(
    peak_lr: float,
    factors: Mapping[str, Strength],
    schedules: Mapping[str, Any],
    multipliers: Mapping[Any, Callable[[Int[Array, ""]], Float[Array, ""] | np.float32]],
) -> optax.GradientTransformation:
    """Multiply by -(peak learning rate * factor * multiplier of the leaf's or layer's schedule).

    Args:
        schedules: a key of ``multipliers`` for each leaf, or a tuple with one for each layer; ``None`` freezes.
        multipliers: functions of the number of updates done before.
    """

    def init_fn(params: Any) -> UpdateCount:
        del params
        return UpdateCount(updates_done=jnp.zeros((), jnp.int32))

    def update_fn(updates: Any, state: Any, params: Any = None) -> tuple[Any, UpdateCount]:
        del params
        now = {schedule: multiplier(state.updates_done) for schedule, multiplier in multipliers.items()}

        def scale(path: str, update: Array) -> Array:
            chosen = schedules[path]
            if isinstance(chosen, tuple):
                layers = jnp.stack([jnp.zeros(()) if one is None else now[one] for one in chosen])
                value = layers.reshape(-1, *(1,) * (update.ndim - 1))
            else:
                value = jnp.zeros(()) if chosen is None else now[chosen]
            return -(update * peak_lr * _over_depth(factors[path], update) * value)

        return map_with_path(scale, updates), UpdateCount(updates_done=state.updates_done + 1)

    return optax.GradientTransformation(init_fn, update_fn)


def _over_depth(strength: Strength, leaf: Array) -> Strength:
    """A vector over depth in a shape that multiplies a stacked leaf; a number is unchanged."""
    return strength.reshape(-1, *(1,) * (leaf.ndim - 1)) if isinstance(strength, np.ndarray) else strength
