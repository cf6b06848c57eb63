"""The exponential moving average of parameters: its settings, its state next to the model, and its recurrence.

Source: Polyak and Juditsky 1992, doi:10.1137/0330046. The decay that grows at the beginning is that of
``tf.train.ExponentialMovingAverage`` with ``num_updates``, which timm and diffusers have taken over.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clipa_eqx.errors import ConfigError
from clipa_eqx.trees import from_leaves, leaves_by_path, map_with_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """An average of the parameters over the last steps: ``average = decay * average + (1 - decay) * parameter``.

    It starts as the parameters before the first step. Only leaves that are trained have one. It is float32, needs as
    much memory as these parameters, and is split over the devices like them. A step that skips its update leaves it.

    Attributes:
        decay: share of the average that a step keeps, at least 0 and below 1; 0.9999 averages over about the last
            1 / (1 - decay) = 10,000 steps.
        warm_up: keep at most (1 + n) / (10 + n) at the update after n updates, so that the first parameters, which may
            be random, lose their weight at once: they have 0.1 of it after the first update, 0.02 after the second.
        evaluate: evaluations during the run score the average; False scores the parameters themselves. The model folder
            at the end has the average in both cases.

    Raises:
        ConfigError: a decay outside [0, 1).
    """

    decay: float = 0.9999
    warm_up: bool = True
    evaluate: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"ema.decay is {self.decay}; it must be at least 0 and below 1, such as 0.9999")


class Average(eqx.Module):
    """The average of parameters after a number of updates.

    Attributes:
        model: the tree of the parameters; None in place of leaves without an average.
        count: updates that are in the average.
    """

    model: Any
    count: Int[Array, ""]


def new_average(model: Any, averaged: Any) -> Average:
    """The average before the first update: a float32 copy of the leaves for which the tree ``averaged`` has True."""
    # A copy also under jit: the step that consumes the state may not find one buffer in it twice.
    kept = jax.tree.map(lambda leaf, has: jnp.array(leaf, jnp.float32, copy=True) if has else None, model, averaged)
    return Average(model=kept, count=jnp.zeros((), jnp.int32))


@jax.named_scope("ema")
def update_average(average: Average, model: Any, config: EmaConfig, *, is_skipped: Bool[Array, ""] | bool) -> Average:
    """The average after an update of the parameters, or the same average if the update was skipped.

    Computed as ``average + (1 - decay) * (parameter - average)``: a parameter that stays keeps its average bit by bit.

    Args:
        average: the average before.
        model: the parameters after the update.
        config: decay and warm-up.
        is_skipped: whether the update was skipped.
    """
    share = share_at(config, average.count)
    params = leaves_by_path(model)
    after = map_with_path(
        lambda path, old: jnp.where(is_skipped, old, old + share * (params[path].astype(jnp.float32) - old)),
        average.model,
    )
    return Average(model=after, count=jnp.where(is_skipped, average.count, average.count + 1))


def share_at(config: EmaConfig, updates: Int[Array, ""] | int) -> Float[Array, ""]:
    """The share that the parameters have in the average at the update after so many updates: 1 minus the decay.

    Examples:
        >>> [round(float(share_at(EmaConfig(decay=0.5), n)), 3) for n in (0, 1, 100)]
        [0.9, 0.818, 0.5]
    """
    share = jnp.asarray(1 - config.decay, jnp.float32)
    return jnp.maximum(share, 9 / (10 + jnp.asarray(updates, jnp.float32))) if config.warm_up else share


def with_average(model: Any, average: Average | None) -> Any:
    """The model with the leaves of the average, in the dtype of the model; the same model if there is no average."""
    if average is None:
        return model
    leaves, averaged = leaves_by_path(model), leaves_by_path(average.model)
    return from_leaves(model, leaves | {path: one.astype(leaves[path].dtype) for path, one in averaged.items()})
