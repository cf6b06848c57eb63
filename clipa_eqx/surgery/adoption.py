"""The surgery of ``init`` in a config: a stage of training starts from the weights of another."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from clipa_eqx.errors import CheckpointError
from clipa_eqx.models.clip import CLIP, CLIPConfig
from clipa_eqx.surgery import sizes as resizing
from clipa_eqx.surgery.configuration import NUMERIC_FIELDS, config_changes, differing, operated, rebuild
from clipa_eqx.surgery.report import Move, Operated, SurgeryReport
from clipa_eqx.surgery.sizes import TextRows
from clipa_eqx.trees import layer_path, leaves_by_path, match_any


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
            single layers (see ``trees.match_any``).

    Raises:
        CheckpointError: there are other differences; the message lists all of them.
        ConfigError: a pattern of ``keep_initial`` decides no leaf.
    """
    before, changes, moves = model, list[str](), dict[str, Move]()
    lengths = model.config.text.length, target_config.text.length
    sizes = model.config.image.image_size, target_config.image.image_size
    if lengths[0] != lengths[1] and (resize_text or model.text.position is None):
        model, report = resizing.resize_text(model, length=lengths[1], rows=text_rows)
        changes += report.changes
        moves |= _moves(report)
    can_resize = target_config.image.patch_size == model.config.image.patch_size
    if sizes[0] != sizes[1] and can_resize and (resize_image or model.image.position is None):
        model, report = resizing.resize_image(model, image_size=sizes[1])
        changes += report.changes
        moves |= _moves(report)
    found, wanted = leaves_by_path(model), leaves_by_path(fresh)
    kept = _initial_by_path(keep_initial, fresh)
    # A leaf that stays initial may be missing in the source, or have another shape there.
    problems = differing(
        {path: leaf for path, leaf in found.items() if kept.get(path) is not True},
        {path: leaf for path, leaf in wanted.items() if kept[path] is not True},
    )
    for name, has, wants in config_changes(model.config, target_config):
        if name.rsplit(".", 1)[-1] in NUMERIC_FIELDS:
            problems.append(
                f"{name}: {has!r} found, {wants!r} wanted, which changes the outputs of the weights; use "
                "the same value, or change it with surgery.with_config and save the result"
            )
        elif name != "temperature":
            changes.append(f"{name}: {has!r} -> {wants!r}")
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
    for path, keep in kept.items():
        if keep is True:
            moves.pop(path, None)
        elif isinstance(keep, tuple):
            moves[path] = partial(_mixed, keep, fresh=0.0)
    return operated(before, rebuild(target_config, leaves), changes, moves=moves)


def _moves(report: SurgeryReport) -> dict[str, Move]:
    return {change.path: change.move for change in report.leaves if change.move is not None}


def _initial_by_path(patterns: Sequence[str], fresh: CLIP) -> dict[str, bool | tuple[bool, ...]]:
    return match_any(patterns, fresh, what="init.keep_initial")


def _mixed(keep: bool | tuple[bool, ...], found: Any, fresh: Any) -> Any:
    if isinstance(keep, tuple):
        mask = np.array(keep).reshape(-1, *(1,) * (found.ndim - 1))
        return jnp.where(mask, fresh, found)
    return fresh if keep else found
