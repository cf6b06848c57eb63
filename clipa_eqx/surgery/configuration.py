"""Configuration and leaves of a model: what fits, what differs, and the model that both describe."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.random as jr

from clipa_eqx.errors import ConfigError
from clipa_eqx.models.clip import CLIP, CLIPConfig, abstract_clip
from clipa_eqx.models.text import TextTower
from clipa_eqx.models.vision import VisionTower
from clipa_eqx.surgery.report import Move, Operated, SurgeryReport, leaf_changes
from clipa_eqx.trees import from_leaves, layer_path, leaves_by_path, stacked_depth

_HOW_TO_MAKE = {
    "image/position": "keep_initial starts it at random; surgery.learn_image_position makes it",
    "bias": "keep_initial starts it at model.bias; add log_temperature to start at model.temperature too",
}

NUMERIC_FIELDS = ("heads", "norm_eps", "gelu", "pool")
"""Fields that change the function which the same leaves compute.

Other fields change the leaves, matter only to training or to new models (rates, masking, remat, initializers), or
belong to computed positions.
"""


def with_config(model: CLIP, config: CLIPConfig) -> Operated:
    """Replace the configuration and keep the leaves: rates, masking and remat, but also heads or pooling.

    Heads, pooling, ``norm_eps`` and ``gelu`` change the outputs of the same weights; nothing here prevents that.

    Raises:
        ConfigError: the configuration describes other leaves; the message lists all that differ.
    """
    problems = differing(leaves_by_path(model), leaves_by_path(abstract_clip(config)))
    if problems:
        raise ConfigError("with_config: the configuration describes other leaves:\n  " + "\n  ".join(problems))
    changes = tuple(f"{name}: {a!r} -> {b!r}" for name, a, b in config_changes(model.config, config))
    return operated(model, rebuild(config, leaves_by_path(model)), changes)


def operated(
    before: CLIP,
    after: CLIP,
    changes: Sequence[str],
    *,
    moves: Mapping[str, Move] | None = None,
    plain: CLIP | None = None,
) -> Operated:
    """The result of an operation, validated; its report lists each leaf that is not the same array as before.

    Args:
        before: model that was given.
        after: model that was made.
        changes: the changes in words.
        moves: maps of moments by path; a changed leaf without one starts with moments of zero.
        plain: ``after`` without LoRA factors, if it has some.

    Raises:
        ConfigError: the new model is not what its config describes.
    """
    if after is not before:
        validate(after if plain is None else plain)
    return Operated(after, SurgeryReport(changes=tuple(changes), leaves=leaf_changes(before, after, moves)))


def validate(model: CLIP | VisionTower | TextTower) -> None:
    """Check that leaves and static fields are those that ``model.config`` describes; use it after changes by hand.

    Every operation ends with it. LoRA factors are not part of a config: ``detach`` gives the model without them.

    Raises:
        ConfigError: leaves differ (the message lists all of them), or static fields disagree with the configuration.
    """
    expected = _expected(type(model), model.config)
    problems = differing(leaves_by_path(model), leaves_by_path(expected))
    if problems:
        raise ConfigError("the model differs from what its config describes:\n  " + "\n  ".join(problems))
    if jax.tree.structure(model) != jax.tree.structure(expected):
        raise ConfigError(
            "static fields of the model's towers or layers disagree with model.config; change it with with_config"
        )


def unstack_blocks(tree: Any) -> dict[str, Any]:
    """Return all leaves by path; stacked leaves are split into layers such as ``image/blocks/{i}/attn/q/weight``."""
    out: dict[str, Any] = {}
    for path, leaf in leaves_by_path(tree).items():
        depth = stacked_depth(path, leaf)
        out |= {path: leaf} if depth is None else {layer_path(path, i): leaf[i] for i in range(depth)}
    return out


def rebuild(config: CLIPConfig, leaves: Mapping[str, Any]) -> CLIP:
    """Make the model of a configuration, with all its static fields, from these leaves.

    Raises:
        ConfigError: the configuration describes other leaves; the message lists all that differ.
    """
    expected: CLIP = _expected(CLIP, config)
    problems = differing(leaves, leaves_by_path(expected))
    if problems:
        raise ConfigError("the leaves differ from what the configuration describes:\n  " + "\n  ".join(problems))
    return from_leaves(expected, leaves)


@functools.lru_cache(maxsize=16)
def _expected(module: Any, config: Any) -> Any:
    # Cached: an operation asks twice, and tracing the initialization takes tens of milliseconds.
    return eqx.filter_eval_shape(module.init, config, key=jax.eval_shape(lambda: jr.key(0)))


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """A line for each leaf that is missing, not wanted or of another shape."""
    problems = [
        f"{path} {tuple(leaf.shape)}: missing ({_HOW_TO_MAKE.get(path, 'keep_initial starts it at random')})"
        for path, leaf in wanted.items()
        if path not in found
    ]
    problems += [
        f"{path} {tuple(leaf.shape)}: present, not wanted" for path, leaf in found.items() if path not in wanted
    ]
    surgeries = {"text/position": " (resize_text resamples it)", "image/position": " (resize_image resamples it)"}
    return problems + [
        f"{path}: {tuple(found[path].shape)} found, {tuple(leaf.shape)} wanted{surgeries.get(path, '')}"
        for path, leaf in wanted.items()
        if path in found and tuple(found[path].shape) != tuple(leaf.shape)
    ]


def reshaping_changes(found: CLIPConfig, wanted: CLIPConfig) -> list[tuple[str, Any, Any]]:
    """The ``config_changes`` that add, remove or reshape leaves; a field that does not fit alone counts too."""

    def shapes(config: CLIPConfig) -> dict[str, tuple[int, ...]]:
        return {path: tuple(leaf.shape) for path, leaf in leaves_by_path(abstract_clip(config)).items()}

    def reshapes(name: str, value: Any) -> bool:
        try:
            return shapes(_with_field(wanted, name.split("."), value)) != shapes(wanted)
        except ConfigError:
            return True

    return [change for change in config_changes(found, wanted) if reshapes(change[0], change[1])]


def _with_field(config: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    return dataclasses.replace(config, **{name: _with_field(getattr(config, name), rest, value) if rest else value})


def config_changes(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Name, old and new value of each field that differs, also inside of nested configurations."""
    for field in dataclasses.fields(before):
        a, b, name = getattr(before, field.name), getattr(after, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(a):
            yield from config_changes(a, b, f"{name}.")
        elif a != b:
            yield name, a, b
