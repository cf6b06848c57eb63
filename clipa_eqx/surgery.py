"""Named changes of a model: pure functions from a model to another and a report of what was done.

Loading is strict, so whatever must differ between two stages of training is one of these. A change of configuration is
made in the model's, its towers' and their layers' static fields at once.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from clipa_eqx.errors import CheckpointError, ConfigError
from clipa_eqx.models.clip import CLIP, CLIPConfig, abstract_clip
from clipa_eqx.models.embed import sincos_2d
from clipa_eqx.trees import layer_path, leaf_paths, leaves_by_path, match_by_path, stacked_depth

# These change what the same leaves compute. Of the other fields, some show in the leaves, the rest only matter to
# training or to fresh models (rates, masking, remat, initializers), or come with computed positions.
_NUMERIC_FIELDS = ("heads", "norm_eps", "gelu", "pool")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurgeryReport:
    """What a surgery did, a line for each changed leaf or field; empty if nothing had to be done."""

    changes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join(self.changes) or "nothing changed"


class Operated(NamedTuple):
    """A changed model and how it differs from the one before."""

    model: CLIP
    report: SurgeryReport


def resize_text(model: CLIP, *, length: int) -> Operated:
    """A model of texts of ``length`` tokens. Computed positions need no change; learned ones are resampled.

    Resampling is linear between token centers, antialiased when shrinking, as ``merge_params`` of the reference
    (``jax.image.resize``; docs/reference.md F3.1). The optimizer's moments do not follow: training starts afresh.

    Raises:
        ConfigError: a length the tower cannot have.
    """
    before = model.config.text.length
    config = dataclasses.replace(model.config, text=dataclasses.replace(model.config.text, length=length))
    if length == before:
        return Operated(model, SurgeryReport())
    leaves, changes = _leaves(model), [f"text.length: {before} -> {length}"]
    position = model.text.position
    if position is not None:
        leaves["text/position"] = jax.image.resize(position, (length, position.shape[1]), method="bilinear")
        changes.append(f"text/position: {before} rows resampled to {length}")
    return Operated(_rebuild(config, leaves), SurgeryReport(changes=tuple(changes)))


def resize_image(model: CLIP, *, image_size: tuple[int, int]) -> Operated:
    """A model of images of ``image_size`` (height, width). Computed positions need no change; learned ones resampled.

    The class token's row is kept, the others are resampled as the 2-D grid they are, bilinear and antialiased when
    shrinking. (The reference resampled all rows as one line, class token included: docs/reference.md D8.)

    Raises:
        ConfigError: the patches do not divide the size.
    """
    old = model.config.image
    image = dataclasses.replace(old, image_size=image_size)
    if image_size == old.image_size:
        return Operated(model, SurgeryReport())
    leaves, changes = _leaves(model), [f"image.image_size: {old.image_size} -> {image_size}"]
    if model.image.position is not None and image.grid != old.grid:
        leaves["image/position"] = _resample_grid(model.image.position, old.grid, image.grid)
        changes.append(f"image/position: class token's row kept, grid {old.grid} resampled to {image.grid}")
    config = dataclasses.replace(model.config, image=image)
    return Operated(_rebuild(config, leaves), SurgeryReport(changes=tuple(changes)))


def learn_image_position(model: CLIP) -> Operated:
    """The same function with its computed image positions as a leaf that training can change."""
    image = model.config.image
    if image.position == "learned":
        return Operated(model, SurgeryReport())
    table = sincos_2d(*image.grid, image.blocks.width)
    leaves = _leaves(model) | {"image/position": jnp.asarray(np.concatenate([np.zeros_like(table[:1]), table]))}
    config = dataclasses.replace(model.config, image=dataclasses.replace(image, position="learned"))
    change = "image/position: the computed sincos2d table became a leaf"
    return Operated(_rebuild(config, leaves), SurgeryReport(changes=(change,)))


def with_config(model: CLIP, config: CLIPConfig) -> Operated:
    """The same leaves under another configuration: rates, masking, remat, but also heads or pooling if you say so.

    Raises:
        ConfigError: the configuration describes other leaves; the message lists all that differ.
    """
    problems = _differing(_leaves(model), _leaves(abstract_clip(config)))
    if problems:
        raise ConfigError("with_config: the configuration describes other leaves:\n  " + "\n  ".join(problems))
    changes = tuple(f"{name}: {a!r} -> {b!r}" for name, a, b in _config_changes(model.config, config))
    return Operated(_rebuild(config, _leaves(model)), SurgeryReport(changes=changes))


def adopt(
    model: CLIP,
    target_config: CLIPConfig,
    *,
    fresh: CLIP,
    resize_text: bool = False,
    resize_image: bool = False,
    keep_initial: Sequence[str] = (),
) -> Operated:
    """A model of ``target_config`` with the weights of ``model``: how a stage of training starts from another.

    Rates, masking, remat and initializers may differ, and lengths and sizes whose positions are computed. All else
    must be asked for: ``resize_text`` and ``resize_image`` as the functions of these names; leaves that match a pattern
    of ``keep_initial`` (whole paths, single layers too, see ``trees.match_by_path``) come from ``fresh``, a randomly
    initialized model of ``target_config``.

    Raises:
        CheckpointError: lists everything else that differs, at once.
        ConfigError: a pattern of ``keep_initial`` decides no leaf.
    """
    changes: list[str] = []
    lengths = model.config.text.length, target_config.text.length
    sizes = model.config.image.image_size, target_config.image.image_size
    if lengths[0] != lengths[1] and (resize_text or model.text.position is None):
        model, report = _resize_text(model, length=lengths[1])
        changes += report.changes
    can_resize = target_config.image.patch_size == model.config.image.patch_size
    if sizes[0] != sizes[1] and can_resize and (resize_image or model.image.position is None):
        model, report = _resize_image(model, image_size=sizes[1])
        changes += report.changes
    found, wanted = _leaves(model), _leaves(fresh)
    kept = _kept(keep_initial, fresh)
    # A leaf that stays initial need not be in the source, nor have its shape there.
    problems = _differing(
        {path: leaf for path, leaf in found.items() if kept.get(path) is not True},
        {path: leaf for path, leaf in wanted.items() if kept[path] is not True},
    )
    for name, before, after in _config_changes(model.config, target_config):
        if name.rsplit(".", 1)[-1] in _NUMERIC_FIELDS:
            problems.append(
                f"{name}: {before!r} there, {after!r} wanted, which changes what the weights compute; use the same, or "
                "change it with surgery.with_config and save the result"
            )
        elif name != "temperature":
            changes.append(f"{name}: {before!r} -> {after!r}")
    if problems:
        raise CheckpointError(
            "the weights to start from do not fit this model, and no surgery for it was asked for:\n  "
            + "\n  ".join(problems)
        )
    leaves = {path: _mixed(kept[path], found.get(path), leaf) for path, leaf in wanted.items()}
    changes += [f"{path}: random, kept as initialized" for path, keep in kept.items() if keep is True]
    changes += [
        f"{layer_path(path, i)}: random, kept as initialized"
        for path, keep in kept.items()
        if isinstance(keep, tuple)
        for i, layer in enumerate(keep)
        if layer
    ]
    return Operated(_rebuild(target_config, leaves), SurgeryReport(changes=tuple(changes)))


def unstack_blocks(tree: Any) -> dict[str, Any]:
    """All leaves by path, those stacked over depth layer by layer as ``image/blocks/{i}/attn/q/weight``."""
    out: dict[str, Any] = {}
    for path, leaf in _leaves(tree).items():
        depth = stacked_depth(path, leaf)
        out |= {path: leaf} if depth is None else {layer_path(path, i): leaf[i] for i in range(depth)}
    return out


def validate(model: CLIP) -> None:
    """Check that leaves and static fields are what ``model.config`` describes, as after changes by hand.

    Raises:
        ConfigError: lists the differing leaves, or says that static fields disagree with the configuration.
    """
    expected = abstract_clip(model.config)
    problems = _differing(_leaves(model), _leaves(expected))
    if problems:
        raise ConfigError("the model is not what its config describes:\n  " + "\n  ".join(problems))
    if jax.tree.structure(model) != jax.tree.structure(expected):
        raise ConfigError(
            "static fields of the model's towers or layers disagree with model.config; change it with with_config"
        )


# `adopt` has arguments of these names.
_resize_text: Callable[..., Operated] = resize_text
_resize_image: Callable[..., Operated] = resize_image


def _resample_grid(
    position: Float[Array, "seq dim"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Array, "_ dim"]:
    dim = position.shape[1]
    grid = jax.image.resize(position[1:].reshape(*old, dim), (*new, dim), method="bilinear")
    return jnp.concatenate([position[:1], grid.reshape(-1, dim)])


def _leaves(tree: Any) -> dict[str, Any]:
    return leaves_by_path(tree)


def _rebuild(config: CLIPConfig, leaves: Mapping[str, Any]) -> CLIP:
    """The model of a configuration, all static fields included, with these leaves."""
    skeleton = abstract_clip(config)
    return jax.tree.unflatten(jax.tree.structure(skeleton), [leaves[path] for path in leaf_paths(skeleton)])


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{path} {tuple(leaf.shape)}: not there (keep_initial starts it at random"
        + ("; surgery.learn_image_position makes it)" if path == "image/position" else ")")
        for path, leaf in wanted.items()
        if path not in found
    ]
    problems += [f"{path} {tuple(leaf.shape)}: there, not wanted" for path, leaf in found.items() if path not in wanted]
    asked = {"text/position": " (resize_text resamples it)", "image/position": " (resize_image resamples it)"}
    return problems + [
        f"{path}: {tuple(found[path].shape)} there, {tuple(leaf.shape)} wanted{asked.get(path, '')}"
        for path, leaf in wanted.items()
        if path in found and tuple(found[path].shape) != tuple(leaf.shape)
    ]


def _kept(patterns: Sequence[str], fresh: CLIP) -> dict[str, bool | tuple[bool, ...]]:
    if not patterns:
        return dict.fromkeys(leaf_paths(fresh), False)
    return match_by_path([*((pattern, True) for pattern in patterns), (".*", False)], fresh, what="init.keep_initial")


def _mixed(keep: bool | tuple[bool, ...], found: Any, fresh: Any) -> Any:
    if isinstance(keep, tuple):
        mask = np.array(keep).reshape(-1, *(1,) * (fresh.ndim - 1))
        return jnp.where(mask, fresh, found)
    return fresh if keep else found


def _config_changes(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    for field in dataclasses.fields(before):
        a, b, name = getattr(before, field.name), getattr(after, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(a):
            yield from _config_changes(a, b, f"{name}.")
        elif a != b:
            yield name, a, b
