"""Surgery: named changes of a model, as pure functions that return another model and a report of the changes.

Loading is strict, so every difference between two stages of training is one of these functions. A change of the
configuration sets the static fields of the model, its towers and their layers at once.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from clipa_eqx.data.images.host_pixels import IMAGENET_MEAN, IMAGENET_STD
from clipa_eqx.errors import CheckpointError, ConfigError
from clipa_eqx.models.clip import CLIP, CLIPConfig, abstract_clip
from clipa_eqx.models.embed import sincos_2d
from clipa_eqx.trees import from_leaves, layer_path, leaf_paths, leaves_by_path, match_by_path, stacked_depth

TextRows = Literal["resample", "first"]
"""Ways to make the rows of learned text positions for another length; ``resize_text`` describes them."""

_HOW_TO_MAKE = {
    "image/position": "keep_initial starts it at random; surgery.learn_image_position makes it",
    "bias": "keep_initial starts it at model.bias; add log_temperature to start at model.temperature too",
}

# Fields that change the function which the same leaves compute. Other fields change the leaves, matter only to training
# or to new models (rates, masking, remat, initializers), or belong to computed positions.
_NUMERIC_FIELDS = ("heads", "norm_eps", "gelu", "pool")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurgeryReport:
    """Changes of a surgery; ``str(report)`` is all of them in one line.

    Attributes:
        changes: a line for each changed leaf or field; empty if nothing changed.
    """

    changes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join(self.changes) or "nothing changed"


class Operated(NamedTuple):
    """Result of a surgery.

    Attributes:
        model: the new model.
        report: how it differs from the old one.
    """

    model: CLIP
    report: SurgeryReport


def resize_text(model: CLIP, *, length: int, rows: TextRows = "resample") -> Operated:
    """Change the text length to ``length`` tokens.

    Sin-cos positions are computed for the new size. Learned ones follow ``rows``. "resample" is linear between token
    centers, antialiased when shrinking, as in ``merge_params`` of the reference (``jax.image.resize``;
    docs/reference.md F3.1). "first" keeps the rows in front, so that each word of a text keeps its position; rows
    beyond the old length are copies of the last one. Optimizer moments are not resized; training starts with new ones.

    Raises:
        ConfigError: a length that the tower cannot have.
    """
    before = model.config.text.length
    config = dataclasses.replace(model.config, text=dataclasses.replace(model.config.text, length=length))
    if length == before:
        return Operated(model, SurgeryReport())
    leaves, changes = leaves_by_path(model), [f"text.length: {before} -> {length}"]
    position = model.text.position
    if position is not None:
        if rows == "first":
            leaves["text/position"] = position[np.minimum(np.arange(length), before - 1)]
            changes.append(f"text/position: first {min(before, length)} of {before} rows kept, {length} in all")
        else:
            leaves["text/position"] = jax.image.resize(position, (length, position.shape[1]), method="bilinear")
            changes.append(f"text/position: {before} rows resampled to {length}")
    return Operated(_rebuild(config, leaves), SurgeryReport(changes=tuple(changes)))


def resize_image(model: CLIP, *, image_size: tuple[int, int]) -> Operated:
    """Change the image size to (height, width) in pixels.

    Sin-cos positions are computed for the new size; learned ones are resampled. The class token's row is kept. The
    other rows are resampled as a 2-D grid, bilinear, and antialiased when shrinking. The reference resamples all rows
    as one line, the class token included (docs/reference.md D8).

    Raises:
        ConfigError: the patches do not divide the size.
    """
    old = model.config.image
    image = dataclasses.replace(old, image_size=image_size)
    if image_size == old.image_size:
        return Operated(model, SurgeryReport())
    leaves, changes = leaves_by_path(model), [f"image.image_size: {old.image_size} -> {image_size}"]
    if model.image.position is not None and image.grid != old.grid:
        leaves["image/position"] = _resample_grid(model.image.position, old.grid, image.grid)
        changes.append(f"image/position: class token's row kept, grid {old.grid} resampled to {image.grid}")
    config = dataclasses.replace(model.config, image=image)
    return Operated(_rebuild(config, leaves), SurgeryReport(changes=tuple(changes)))


def learn_image_position(model: CLIP) -> Operated:
    """Turn computed image positions into a leaf that training can change; the model's outputs stay the same."""
    image = model.config.image
    if image.position == "learned":
        return Operated(model, SurgeryReport())
    table = sincos_2d(*image.grid, image.blocks.width)
    leaves = leaves_by_path(model) | {"image/position": jnp.asarray(np.concatenate([np.zeros_like(table[:1]), table]))}
    config = dataclasses.replace(model.config, image=dataclasses.replace(image, position="learned"))
    change = "image/position: the computed sincos2d table became a leaf"
    return Operated(_rebuild(config, leaves), SurgeryReport(changes=(change,)))


def with_config(model: CLIP, config: CLIPConfig) -> Operated:
    """Replace the configuration and keep the leaves: rates, masking and remat, but also heads or pooling.

    Heads, pooling, ``norm_eps`` and ``gelu`` change the outputs of the same weights; nothing here prevents that.

    Raises:
        ConfigError: the configuration describes other leaves; the message lists all that differ.
    """
    problems = _differing(leaves_by_path(model), leaves_by_path(abstract_clip(config)))
    if problems:
        raise ConfigError("with_config: the configuration describes other leaves:\n  " + "\n  ".join(problems))
    changes = tuple(f"{name}: {a!r} -> {b!r}" for name, a, b in _config_changes(model.config, config))
    return Operated(_rebuild(config, leaves_by_path(model)), SurgeryReport(changes=changes))


def with_pixel_statistics(model: CLIP, *, mean: Sequence[float], std: Sequence[float]) -> Operated:
    """Change the patch projection so that pixels normalized with ImageNet's statistics act as with others.

    This is exact in real numbers, also at the border: images are not padded. A projection without a bias gets one.

    Args:
        mean: mean of each channel that the weights expect, of values from 0 to 1.
        std: standard deviation of each channel, likewise.

    Raises:
        ConfigError: not three numbers each, or a ``std`` that is not positive.
    """
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(f"pixel statistics need three means and three positive stds, got {mean} and {std}")
    old, patch = (np.asarray(IMAGENET_MEAN), np.asarray(IMAGENET_STD)), model.image.patch
    kernel = patch.weight.reshape(*patch.weight.shape[:1], -1, 3)
    factor = jnp.asarray(old[1] / np.asarray(std), kernel.dtype)
    shift = jnp.asarray((old[0] - np.asarray(mean)) / np.asarray(std), kernel.dtype)
    bias = jnp.einsum("dpc,c->d", kernel, shift, precision="highest")
    changed = dataclasses.replace(
        patch,
        weight=(kernel * factor[None, None]).reshape(patch.weight.shape),
        bias=bias if patch.bias is None else patch.bias + bias,
    )
    image = dataclasses.replace(model.image, patch=changed)
    line = f"image/patch: pixels of mean {tuple(mean)} and std {tuple(std)}"
    return Operated(dataclasses.replace(model, image=image), SurgeryReport(changes=(line,)))


def adopt(
    model: CLIP,
    target_config: CLIPConfig,
    *,
    fresh: CLIP,
    resize_text: bool = False,
    text_rows: TextRows = "resample",
    resize_image: bool = False,
    keep_initial: Sequence[str] = (),
) -> Operated:
    """Make a model of ``target_config`` with the weights of ``model``, as one stage of training starts from another.

    Rates, masking, remat and initializers may differ, and so may lengths and sizes if positions are computed. Every
    other difference must be requested.

    Args:
        model: model with the weights to start from.
        target_config: configuration of the result.
        fresh: randomly initialized model of ``target_config``.
        resize_text: resize learned text positions with the function of this name.
        text_rows: its ``rows``.
        resize_image: resample learned image positions with the function of this name.
        keep_initial: patterns of leaves that come from ``fresh``. A pattern matches complete paths, also those of
            single layers (see ``trees.match_by_path``).

    Raises:
        CheckpointError: there are other differences; the message lists all of them.
        ConfigError: a pattern of ``keep_initial`` decides no leaf.
    """
    changes: list[str] = []
    lengths = model.config.text.length, target_config.text.length
    sizes = model.config.image.image_size, target_config.image.image_size
    if lengths[0] != lengths[1] and (resize_text or model.text.position is None):
        model, report = _resize_text(model, length=lengths[1], rows=text_rows)
        changes += report.changes
    can_resize = target_config.image.patch_size == model.config.image.patch_size
    if sizes[0] != sizes[1] and can_resize and (resize_image or model.image.position is None):
        model, report = _resize_image(model, image_size=sizes[1])
        changes += report.changes
    found, wanted = leaves_by_path(model), leaves_by_path(fresh)
    kept = _initial_by_path(keep_initial, fresh)
    # A leaf that stays initial may be missing in the source, or have another shape there.
    problems = _differing(
        {path: leaf for path, leaf in found.items() if kept.get(path) is not True},
        {path: leaf for path, leaf in wanted.items() if kept[path] is not True},
    )
    for name, before, after in _config_changes(model.config, target_config):
        if name.rsplit(".", 1)[-1] in _NUMERIC_FIELDS:
            problems.append(
                f"{name}: {before!r} found, {after!r} wanted, which changes the outputs of the weights; use the same "
                "value, or change it with surgery.with_config and save the result"
            )
        elif name != "temperature":
            changes.append(f"{name}: {before!r} -> {after!r}")
    if problems:
        raise CheckpointError(
            "the weights to start from do not fit this model, and no surgery for it was requested:\n  "
            + "\n  ".join(problems)
        )
    leaves = {path: _mixed(kept[path], found.get(path), leaf) for path, leaf in wanted.items()}
    changes += [
        f"{path}: {'' if path in ('bias', 'log_temperature') else 'random, '}kept as initialized"
        for path, keep in kept.items()
        if keep is True
    ]
    changes += [
        f"{layer_path(path, i)}: random, kept as initialized"
        for path, keep in kept.items()
        if isinstance(keep, tuple)
        for i, layer in enumerate(keep)
        if layer
    ]
    return Operated(_rebuild(target_config, leaves), SurgeryReport(changes=tuple(changes)))


def unstack_blocks(tree: Any) -> dict[str, Any]:
    """Return all leaves by path; stacked leaves are split into layers such as ``image/blocks/{i}/attn/q/weight``."""
    out: dict[str, Any] = {}
    for path, leaf in leaves_by_path(tree).items():
        depth = stacked_depth(path, leaf)
        out |= {path: leaf} if depth is None else {layer_path(path, i): leaf[i] for i in range(depth)}
    return out


def validate(model: CLIP) -> None:
    """Check that leaves and static fields are those that ``model.config`` describes; use it after changes by hand.

    Raises:
        ConfigError: leaves differ (the message lists all of them), or static fields disagree with the configuration.
    """
    expected = abstract_clip(model.config)
    problems = _differing(leaves_by_path(model), leaves_by_path(expected))
    if problems:
        raise ConfigError("the model differs from what its config describes:\n  " + "\n  ".join(problems))
    if jax.tree.structure(model) != jax.tree.structure(expected):
        raise ConfigError(
            "static fields of the model's towers or layers disagree with model.config; change it with with_config"
        )


# ``adopt`` has arguments of these names.
_resize_text: Callable[..., Operated] = resize_text
_resize_image: Callable[..., Operated] = resize_image


def _resample_grid(
    position: Float[Array, "seq dim"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Array, "_ dim"]:
    dim = position.shape[1]
    grid = jax.image.resize(position[1:].reshape(*old, dim), (*new, dim), method="bilinear")
    return jnp.concatenate([position[:1], grid.reshape(-1, dim)])


def _rebuild(config: CLIPConfig, leaves: Mapping[str, Any]) -> CLIP:
    """Make the model of a configuration, with all its static fields, from these leaves."""
    return from_leaves(abstract_clip(config), leaves)


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
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


def _initial_by_path(patterns: Sequence[str], fresh: CLIP) -> dict[str, bool | tuple[bool, ...]]:
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
