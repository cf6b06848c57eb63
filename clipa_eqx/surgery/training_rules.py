"""Rules of an ``OptimConfig`` for fine-tuning: frozen parts, and slower learning in early layers."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from clipa_eqx.errors import ConfigError
from clipa_eqx.models.clip import CLIPConfig, abstract_clip
from clipa_eqx.optim import OptimConfig, layer_decay_rules
from clipa_eqx.trees import match_by_path

T = TypeVar("T")


def freeze(optim: OptimConfig, model: Any, *patterns: str) -> OptimConfig:
    """Freeze leaves by patterns of their paths: they keep their bits, and have no moments and no decay.

    ``freeze(optim, model, "image/.*")`` locks the image tower while the texts are trained (LiT). The patterns come
    before the schedules of ``optim``, whose rules that then decide no leaf are removed.

    Args:
        optim: optimizer to start from.
        model: the model that will be trained, its ``CLIPConfig``, or a part of a model, such as a classifier.
        patterns: regular expressions that match complete paths, also those of single layers, such as
            ``image/blocks/[0-3]/.*``.

    Examples:
        >>> from clipa_eqx.models.presets import preset
        >>> locked = freeze(OptimConfig(peak_lr=1e-3), preset("B/16"), "image/.*")
        >>> locked.schedules[0]
        ('image/.*', None)

    Raises:
        ConfigError: no patterns, one that matches no leaf of the model, or nothing is left to train.

    Source: Zhai et al., "LiT: Zero-Shot Transfer with Locked-image text Tuning", arXiv:2111.07991.
    """
    if not patterns:
        raise ConfigError("freeze: there are no patterns; name leaves, such as 'image/.*'")
    rules = [(pattern, None) for pattern in patterns]
    schedules = _in_front(rules, optim.schedules, model, what="freeze")
    if not any(schedule is not None for _, schedule in schedules):
        raise ConfigError(f"freeze: {', '.join(map(repr, patterns))} freezes every leaf; nothing is left to train")
    return dataclasses.replace(optim, schedules=schedules)


def layer_decay(
    optim: OptimConfig,
    model: Any,
    *,
    factor: float,
    towers: Sequence[Literal["image", "text"]] = ("image", "text"),
) -> OptimConfig:
    """Slow down early layers: the learning rate of a block is ``factor`` times that of the next block.

    The rules are those of ``layer_decay_rules``, with the depths of the model. They come before the ``lr_factors`` of
    ``optim``, which decide the other leaves; factors are not multiplied. Rules that then decide no leaf are removed.

    Args:
        optim: optimizer to start from.
        model: the model that will be trained, or its ``CLIPConfig``.
        factor: at most 1, such as 0.75.
        towers: towers whose layers are slowed down.

    Raises:
        ConfigError: a factor that is not in (0, 1], or no towers.
    """
    if not towers:
        raise ConfigError("layer_decay: there are no towers; name 'image', 'text' or both")
    config = model if isinstance(model, CLIPConfig) else model.config
    rules: list[tuple[str, float]] = []
    for tower in towers:
        depth = (config.image if tower == "image" else config.text).blocks.depth
        rules += layer_decay_rules(factor, depth=depth, tower=tower)
    return dataclasses.replace(optim, lr_factors=_in_front(rules, optim.lr_factors, model, what="layer_decay"))


def _in_front(
    rules: Sequence[tuple[str, T]], others: Sequence[tuple[str, T]], model: Any, *, what: str
) -> tuple[tuple[str, T], ...]:
    """All rules in order, without those of ``others`` that decide no leaf."""
    tree = abstract_clip(model) if isinstance(model, CLIPConfig) else model
    every = [*rules, *others]
    numbered = [(pattern, number) for number, (pattern, _) in enumerate(every)]
    decided = match_by_path(numbered, tree, what=what, unused="allow").values()
    deciding = {number for one in decided for number in (one if isinstance(one, tuple) else (one,))}
    useless = [repr(pattern) for number, (pattern, _) in enumerate(rules) if number not in deciding]
    if useless:
        raise ConfigError(
            f"{what}: {', '.join(useless)} matches no leaf that an earlier pattern leaves; see leaf_paths"
        )
    return tuple(rule for number, rule in enumerate(every) if number in deciding)
