"""The optimizer: AdamW with decay, freezing and learning rates by rules over leaf paths.

Source: ``optim/build_optax.py`` of the reference. Order of the chain: clip by the global norm of what is trained, Adam,
add decay, times peak learning rate, times factor, times schedule, negate. Frozen leaves have no moments, no decay and
update zero. Rules may name single layers of stacked leaves; their values then are vectors over depth.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from clipa_eqx.durations import RunLength
from clipa_eqx.errors import ConfigError
from clipa_eqx.schedules import Cosine, Multiplier, Schedule, make_multiplier
from clipa_eqx.trees import leaf_paths, map_with_path, match_by_path

DEFAULT_DECAY: tuple[tuple[str, float], ...] = (
    # All matrices of layers, the reference's `.*/kernel$`; no tables, class tokens, probes, norms and biases.
    (r"(.*/)?(q|k|v|out|fc_in|fc_out|patch|head)/weight", 1.0),
    (r".*", 0.0),
)

T5X_DECAY: tuple[tuple[str, float], ...] = (
    # As the reference's t5x trainer: the token table, class token and probe decay too (docs/reference.md F6.2).
    (r"(.*/)?(bias|position|norm\d*/weight)|log_temperature", 0.0),
    (r".*", 1.0),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer of a run. Rules are ordered ``(pattern, value)``, see ``trees.match_by_path``.

    Args:
        peak_lr: learning rate where the schedule and the factor are 1.
        weight_decay: strength of decoupled decay; the update contains lr * weight_decay * decay * parameter.
        decay: multiples of ``weight_decay``.
        lr_factors: multiples of the learning rate, positive.
        schedules: schedule per leaf; ``None`` freezes.
        mu_dtype: how the first moment is stored; compiled, all arithmetic is float32, as in the reference's runs.
        clip_norm: largest global norm of the gradient, ``None`` for no limit.
        max_temperature: ceiling for exp(log_temperature), for example 100; ``None`` for none, as in the reference.

    Raises:
        ConfigError: a number outside its range.
    """

    peak_lr: float
    weight_decay: float = 0.2
    decay: tuple[tuple[str, float], ...] = DEFAULT_DECAY
    lr_factors: tuple[tuple[str, float], ...] = ((".*", 1.0),)
    schedules: tuple[tuple[str, Schedule | None], ...] = ((".*", Cosine()),)
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    clip_norm: float | None = None
    max_temperature: float | None = None

    def __post_init__(self) -> None:
        problems = [
            f"{name}={value} must be {must}"
            for name, value, is_fine, must in (
                ("peak_lr", self.peak_lr, self.peak_lr >= 0, "at least 0"),
                ("weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0"),
                ("b1", self.b1, 0 <= self.b1 < 1, "in [0, 1)"),
                ("b2", self.b2, 0 <= self.b2 < 1, "in [0, 1)"),
                ("eps", self.eps, self.eps > 0, "above 0"),
                ("clip_norm", self.clip_norm, self.clip_norm is None or self.clip_norm > 0, "above 0, or None"),
                (
                    "max_temperature",
                    self.max_temperature,
                    self.max_temperature is None or self.max_temperature > 0,
                    "above 0, or None",
                ),
            )
            if not is_fine
        ]
        problems += [f"decay {pattern!r}: {value} must be at least 0" for pattern, value in self.decay if value < 0]
        problems += [
            f"lr_factors {pattern!r}: {value} must be above 0 (to freeze, give the pattern None in schedules)"
            for pattern, value in self.lr_factors
            if value <= 0
        ]
        if problems:
            raise ConfigError("optim: " + "; ".join(problems))


class UpdateCount(NamedTuple):
    """Number of updates done; the next update takes the schedules' value at it."""

    updates_done: Int[Array, ""]


def make_optimizer(
    config: OptimConfig,
    params: Any,
    run: RunLength,
    *,
    scale_by: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """The transformation whose updates are added to the parameters; ``update`` needs ``params``.

    Args:
        params: the tree that will be trained; its leaves may be abstract.
        run: length of the run, where schedules end.
        scale_by: takes the place of Adam; then ``b1``, ``b2``, ``eps`` and ``mu_dtype`` have no effect.

    Raises:
        ConfigError: rules that do not cover the tree or are of no use, a schedule that does not fit the run, or
            nothing left to train.
    """
    decay = match_by_path(config.decay, params, what="optim.decay")
    factors = match_by_path(config.lr_factors, params, what="optim.lr_factors")
    schedules = match_by_path(config.schedules, params, what="optim.schedules")
    trained = {path: _per_layer(s, lambda one: float(one is not None)) for path, s in schedules.items()}
    live = map_with_path(lambda path, _: bool(np.any(trained[path])), params)
    if not any(jax.tree.leaves(live)):
        raise ConfigError("optim.schedules: every leaf is frozen; give one pattern a schedule")
    multipliers = {schedule: make_multiplier(schedule, run) for _, schedule in config.schedules if schedule is not None}
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=jnp.dtype(config.mu_dtype))
    chain = optax.chain(
        optax.stateless(lambda updates, _: map_with_path(lambda path, u: _where(trained[path], u), updates)),
        optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm),
        adam if scale_by is None else scale_by,
        _add_decay({path: _per_layer(value, lambda one: config.weight_decay * one) for path, value in decay.items()}),
        _scale_and_negate(
            config.peak_lr, {path: _per_layer(v, float) for path, v in factors.items()}, schedules, multipliers
        ),
    )
    # Masks are given as functions: a tree that is itself callable, as a model is, would be called by optax.
    return optax.chain(
        optax.masked(chain, lambda _: live),
        optax.masked(optax.set_to_zero(), lambda _: jax.tree.map(lambda is_live: not is_live, live)),
    )


def learning_rates(config: OptimConfig, count: Int[Array, ""] | int, run: RunLength) -> dict[str, Float[Array, ""]]:
    """Learning rate of the update after ``count`` updates, by pattern of ``config.schedules``, before ``lr_factors``.

    Frozen patterns are left out. Unlike the reference's ``global_schedule``, the peak learning rate is in it.
    """
    return {
        pattern: config.peak_lr * make_multiplier(schedule, run)(count)
        for pattern, schedule in config.schedules
        if schedule is not None
    }


def layer_decay_rules(factor: float, *, depth: int, tower: Literal["image", "text"]) -> tuple[tuple[str, float], ...]:
    """Rules for ``lr_factors`` that slow down early layers: factor ** (depth - i) for block i, counted from 0.

    Embeddings get factor ** (depth + 1); what follows the blocks is not named: end the list with ``(".*", 1.0)``.
    The reference meant this too, but its patterns for embeddings never matched.

    >>> layer_decay_rules(0.5, depth=2, tower="image")[1:]
    (('image/blocks/0/.*', 0.25), ('image/blocks/1/.*', 0.5))

    Raises:
        ConfigError: factor outside (0, 1] or depth not positive.
    """
    if not 0 < factor <= 1 or depth < 1:
        raise ConfigError(f"layer decay needs a factor in (0, 1] and a positive depth, got {factor} and {depth}")
    stem = {"image": r"image/(patch/.*|class_token|position)", "text": r"text/(token/.*|position)"}[tower]
    return (
        (stem, factor ** (depth + 1)),
        *((f"{tower}/blocks/{layer}/.*", factor ** (depth - layer)) for layer in range(depth)),
    )


def cap_temperature(params: Any, max_temperature: float | None) -> Any:
    """The same tree with exp(log_temperature) at most ``max_temperature``; applied after an update.

    Raises:
        ConfigError: the tree has no leaf ``log_temperature``.
    """
    if max_temperature is None:
        return params
    if "log_temperature" not in leaf_paths(params):
        raise ConfigError("max_temperature is set, but the parameters have no leaf 'log_temperature'")
    ceiling = math.log(max_temperature)
    return map_with_path(lambda path, leaf: jnp.minimum(leaf, ceiling) if path == "log_temperature" else leaf, params)


def _add_decay(strengths: dict[str, float | np.ndarray]) -> optax.GradientTransformation:
    def add(path: str, update: Array, param: Array) -> Array:
        strength = _over_depth(strengths[path], update)
        return update + strength * param if np.any(strength) else update

    def update_fn(updates: Any, params: Any) -> Any:
        if params is None:
            raise ConfigError("weight decay needs the parameters: optimizer.update(grads, state, params)")
        return map_with_path(add, updates, params)

    return optax.stateless(update_fn)


def _scale_and_negate(
    peak_lr: float,
    factors: dict[str, float | np.ndarray],
    schedules: dict[str, Schedule | tuple[Schedule | None, ...] | None],
    multipliers: dict[Schedule, Multiplier],
) -> optax.GradientTransformation:
    def init_fn(params: Any) -> UpdateCount:
        del params
        return UpdateCount(updates_done=jnp.zeros((), jnp.int32))

    def update_fn(updates: Any, state: Any, params: Any = None) -> tuple[Any, UpdateCount]:
        del params
        now = {schedule: multiplier(state.updates_done) for schedule, multiplier in multipliers.items()}

        def scale(path: str, update: Array) -> Array:
            chosen = schedules[path]
            if isinstance(chosen, tuple):
                per_layer = jnp.stack([jnp.zeros(()) if one is None else now[one] for one in chosen])
                value = per_layer.reshape(-1, *(1,) * (update.ndim - 1))
            else:
                value = jnp.zeros(()) if chosen is None else now[chosen]
            return -(update * peak_lr * _over_depth(factors[path], update) * value)

        return map_with_path(scale, updates), UpdateCount(updates_done=state.updates_done + 1)

    return optax.GradientTransformation(init_fn, update_fn)


def _per_layer(value: Any, number: Any) -> float | np.ndarray:
    """``number`` of a plain value, or of each value of a tuple over depth."""
    return np.array([number(one) for one in value], np.float32) if isinstance(value, tuple) else number(value)


def _over_depth(value: float | np.ndarray, leaf: Array) -> float | np.ndarray:
    """A vector over depth in a shape that multiplies a stacked leaf."""
    return value.reshape(-1, *(1,) * (leaf.ndim - 1)) if isinstance(value, np.ndarray) else value


def _where(trained: float | np.ndarray, update: Array) -> Array:
    # A choice, not a product: the gradient of a frozen layer may be infinite.
    return jnp.where(_over_depth(trained, update) > 0, update, 0.0) if isinstance(trained, np.ndarray) else update
