"""The optimizer: AdamW with decay, freezing and learning rates by rules over leaf paths.

Source: ``optim/build_optax.py`` of the reference (docs/reference.md F6.1). Order of the chain: clip by the global norm
of what is trained, Adam, add decay, times peak learning rate, times factor, times schedule, negate. Frozen leaves have
no moments and no decay, and their update is zero.

Three rule lists of ``OptimConfig`` decide for each leaf: ``decay`` (weight decay), ``lr_factors`` (learning rate) and
``schedules`` (schedule, or ``None`` to freeze). Rules may name single layers of stacked leaves (``image/blocks/3/.*``);
their values are then vectors over depth, see ``layerwise``.

Position tables are the leaves ``image/position`` and ``text/position``; computed positions (``sincos2d``, ``sincos1d``)
have no leaf. By default position tables are not decayed, their learning rate is that of all leaves, and they are
trained. To change that, put a rule for ``.*/position`` first in the list of the three that decides it.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from clipa_eqx.durations import RunLength
from clipa_eqx.errors import ConfigError
from clipa_eqx.layerwise import add_decay, keep_trained, per_layer, scale_and_negate
from clipa_eqx.schedules import Cosine, Scalar, Schedule, make_multiplier
from clipa_eqx.trees import leaf_paths, map_with_path, match_any, match_by_path

DEFAULT_DECAY: tuple[tuple[str, float], ...] = (
    (r"(.*/)?(q|k|v|out|fc_in|fc_out|patch|head)/weight", 1.0),
    (r".*", 0.0),
)
"""Rules for ``OptimConfig.decay``, and its default: decay the matrices of layers, as the reference's ``.*/kernel$``.

Token and position tables, class tokens, probes, norms, biases and the temperature are not decayed.
"""

T5X_DECAY: tuple[tuple[str, float], ...] = (
    (r"(.*/)?(bias|position|norm\d*/weight)|log_temperature", 0.0),
    (r".*", 1.0),
)
"""Rules for ``OptimConfig.decay`` to resume a run of the reference's t5x trainer, such as bigG/14.

In addition to ``DEFAULT_DECAY`` they decay the token table, the class token and the probe (docs/reference.md F6.2).
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer of a run. Rules are ordered ``(pattern, value)``, see ``trees.match_by_path``.

    Examples:
        This one trains the image tower at a tenth of the learning rate and freezes the position table of the texts:

        >>> config = OptimConfig(
        ...     peak_lr=1e-3,
        ...     lr_factors=(("image/.*", 0.1), (".*", 1.0)),
        ...     schedules=(("text/position", None), (".*", Cosine())),
        ... )

    Attributes:
        peak_lr: learning rate where the schedule and the factor are 1.
        weight_decay: strength of decoupled decay; the update contains lr * weight_decay * decay * parameter.
        decay: rules for multiples of ``weight_decay``, at least 0.
        lr_factors: rules for multiples of the learning rate, above 0; see ``layer_decay_rules``.
        schedules: rules for the schedule; ``None`` freezes.
        b1: decay rate of the first moment.
        b2: decay rate of the second moment.
        eps: added to the root of the second moment.
        mu_dtype: dtype in which the first moment is stored, "float32" or "bfloat16"; all arithmetic of a compiled
            update is float32, as in the reference's runs.
        clip_norm: largest global norm of the gradient; ``None`` for no limit.
        max_temperature: ceiling for exp(log_temperature), such as 100; ``None`` for no ceiling, as in the reference.

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


def make_optimizer(
    config: OptimConfig,
    params: Any,
    run: RunLength,
    *,
    trainable: Sequence[str] | None = None,
    scale_by: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """The transformation whose updates are added to the parameters; ``update`` needs ``params``.

    Args:
        params: the tree to train; its leaves may be abstract.
        run: length of the run, where schedules end.
        trainable: patterns of leaves, see ``schedules_by_path``.
        scale_by: replaces Adam; then ``b1``, ``b2``, ``eps`` and ``mu_dtype`` have no effect.

    Raises:
        ConfigError: rules that do not cover the tree or decide no leaf, a schedule that does not fit the run, or
            nothing left to train.
    """
    decay = match_by_path(config.decay, params, what="optim.decay")
    factors = match_by_path(config.lr_factors, params, what="optim.lr_factors")
    schedules = schedules_by_path(config, params, trainable=trainable)
    trained = {path: per_layer(s, lambda one: float(one is not None)) for path, s in schedules.items()}
    live = map_with_path(lambda path, _: bool(np.any(trained[path])), params)
    multipliers = {schedule: make_multiplier(schedule, run) for _, schedule in config.schedules if schedule is not None}
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=jnp.dtype(config.mu_dtype))
    chain = optax.chain(
        keep_trained(trained),
        optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm),
        adam if scale_by is None else scale_by,
        add_decay({path: per_layer(value, lambda one: config.weight_decay * one) for path, value in decay.items()}),
        scale_and_negate(
            config.peak_lr, {path: per_layer(v, float) for path, v in factors.items()}, schedules, multipliers
        ),
    )
    # The masks are functions, because optax would call a tree that is itself callable, as a model is.
    return optax.chain(
        optax.masked(chain, lambda _: live),
        optax.masked(optax.set_to_zero(), lambda _: jax.tree.map(lambda is_live: not is_live, live)),
    )


def schedules_by_path(
    config: OptimConfig, params: Any, *, trainable: Sequence[str] | None = None
) -> dict[str, Schedule | tuple[Schedule | None, ...] | None]:
    """The schedule of each leaf; None if it is frozen, a tuple over depth where the layers of a stack differ.

    Args:
        params: the tree to train; its leaves may be abstract.
        trainable: patterns of leaves, as those of a rule; all other leaves are frozen, and of these, those that
            ``config.schedules`` freezes. None trains what ``config.schedules`` does not freeze.

    Raises:
        ConfigError: schedules that do not cover the tree, a rule or a pattern that decides no leaf, or nothing left to
            train.
    """
    schedules = match_by_path(config.schedules, params, what="optim.schedules")
    if trainable is not None:
        chosen = match_any(trainable, params, what="trainable")
        schedules = {path: _where(chosen[path], schedule) for path, schedule in schedules.items()}
    if all(schedule is None for schedule in schedules.values()):
        name = "optim.schedules" if trainable is None else "trainable and optim.schedules"
        raise ConfigError(f"{name}: every leaf is frozen; give a pattern of one that is trained")
    return schedules


def trained_leaves(config: OptimConfig, params: Any, *, trainable: Sequence[str] | None = None) -> Any:
    """A tree like ``params`` with True for each leaf of which a layer is trained; arguments as there."""
    schedules = schedules_by_path(config, params, trainable=trainable)
    return map_with_path(lambda path, _: schedules[path] is not None, params)


def _where(chosen: bool | tuple[bool, ...], schedule: Any) -> Any:
    """The schedule of a leaf, or of its layers, where it is chosen; else None."""
    if isinstance(chosen, bool):
        return schedule if chosen else None
    layers = schedule if isinstance(schedule, tuple) else (schedule,) * len(chosen)
    kept = tuple(one if is_chosen else None for one, is_chosen in zip(layers, chosen, strict=True))
    return kept if any(one is not None for one in kept) else None


def learning_rates(config: OptimConfig, count: Int[Array, ""] | int, run: RunLength) -> dict[str, Scalar]:
    """Learning rate of the update after ``count`` updates, by pattern of ``config.schedules``, without ``lr_factors``.

    Frozen patterns are left out. Unlike the reference's ``global_schedule``, the rate includes the peak.
    """
    return {
        pattern: config.peak_lr * make_multiplier(schedule, run)(count)
        for pattern, schedule in config.schedules
        if schedule is not None
    }


def layer_decay_rules(factor: float, *, depth: int, tower: Literal["image", "text"]) -> tuple[tuple[str, float], ...]:
    """Rules for ``lr_factors`` that slow down early layers: factor ** (depth - i) for block i, counted from 0.

    Embeddings (patches or tokens, class token, position table) get factor ** (depth + 1). The rules name nothing after
    the blocks: end the list with ``(".*", 1.0)``. The reference meant this too, but its patterns for embeddings never
    matched (docs/reference.md D18).

    Args:
        factor: learning rate of a block divided by that of the next block; 1 changes nothing.
        depth: number of blocks of the tower.
        tower: "image" or "text".

    Examples:
        A rule of your own, put first, takes the position table out of the decay:

        >>> rules = layer_decay_rules(0.5, depth=2, tower="image")
        >>> rules[1:]
        (('image/blocks/0/.*', 0.25), ('image/blocks/1/.*', 0.5))
        >>> config = OptimConfig(peak_lr=1e-4, lr_factors=(("image/position", 1.0), *rules, (".*", 1.0)))

    Raises:
        ConfigError: ``factor`` is not in (0, 1], or ``depth`` is not positive.
    """
    if not 0 < factor <= 1 or depth < 1:
        raise ConfigError(f"layer decay needs a factor in (0, 1] and a positive depth, got {factor} and {depth}")
    stem = {"image": r"image/(patch/.*|class_token|position)", "text": r"text/(token/.*|position)"}[tower]
    return (
        (stem, factor ** (depth + 1)),
        *((f"{tower}/blocks/{layer}/.*", factor ** (depth - layer)) for layer in range(depth)),
    )


def cap_temperature(params: Any, max_temperature: float | None) -> Any:
    """The same tree with exp(log_temperature) at most ``max_temperature``; apply it after an update.

    Raises:
        ConfigError: the tree has no leaf ``log_temperature``.
    """
    if max_temperature is None:
        return params
    if "log_temperature" not in leaf_paths(params):
        raise ConfigError("max_temperature is set, but the parameters have no leaf 'log_temperature'")
    ceiling = math.log(max_temperature)
    return map_with_path(lambda path, leaf: jnp.minimum(leaf, ceiling) if path == "log_temperature" else leaf, params)
