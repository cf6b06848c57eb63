"""The optimizer state of a model follows an operation on the model: moments move with their leaves."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from clipa_eqx.errors import ConfigError, listed
from clipa_eqx.models.clip import CLIP
from clipa_eqx.surgery.parts import Classified, TakenTower
from clipa_eqx.surgery.report import LeafChange, Move, Operated, keep
from clipa_eqx.trees import from_leaves, leaves_by_path


class MovedState(NamedTuple):
    """The optimizer state of a changed model.

    Attributes:
        state: state for the optimizer of the new model.
        changes: one line per leaf whose moments were moved, start at zero or were removed; empty if all were kept.
    """

    state: Any
    changes: tuple[str, ...]


def with_optimizer(
    before: CLIP, result: Operated | TakenTower | Classified, state: Any, optimizer: optax.GradientTransformation
) -> MovedState:
    """Change the optimizer state of a model as an operation changed the model. Several operations take one call each.

    Moments of an unchanged leaf are the same arrays. Rows that were kept, copied or reordered take their moments along;
    those of resampled positions are resampled by the same linear map, and those of a resized patch by the bilinear map
    of its pixels. These maps are averages with weights that are not negative, so second moments are not negative, and
    no step of Adam (first moment over the root of the second) is longer than the longest that it is made of. Moments of
    leaves that are new, random or trained for the first time start at zero, and counts stay, so Adam no longer corrects
    their bias: under a constant gradient the first step of such a leaf is 0.45 of the learning rate and none is above
    1.1, with the defaults of ``OptimConfig``. With ``b2`` of 0.999 some are 6.6 times the learning rate: warm up again.

    Args:
        before: the model that was given to the operation.
        result: what the operation returned.
        state: the optimizer state of ``before``, of any optimizer that keeps moments in the shapes of the leaves.
        optimizer: optimizer of the new model, such as that of ``make_optimizer``; it decides which leaves have moments.

    Raises:
        ConfigError: ``result`` or ``state`` is not of ``before``, or ``optimizer`` is of another kind than the one of
            ``state``; the message lists every leaf.
    """
    model: Any = result[0]
    old, new, stored = leaves_by_path(before), leaves_by_path(model), leaves_by_path(state)
    sources = _sources(old, new, result.report.leaves)
    abstract = jax.eval_shape(optimizer.init, model)
    values, lines, problems, used = dict[str, Any](), dict[str, str](), list[str](), set[str]()
    for name, leaf in leaves_by_path(abstract).items():
        path = _leaf_in(name, new)
        if path is None:  # a count, which all leaves share
            source, move = name, keep
            problems += [f"missing: {name}"] if name not in stored else []
        else:
            of, move = sources.get(path, ("", keep))
            source = name.removesuffix(path) + of
        if source not in stored:
            values[name] = jnp.zeros(leaf.shape, leaf.dtype)
            lines[path or name] = f"{path}: moments start at zero"
            continue
        used.add(source)
        values[name] = _moved(stored[source], move, leaf.dtype)
        if values[name].shape != leaf.shape:
            problems.append(f"shape: {name} would be {values[name].shape}, expected {leaf.shape}")
        if move is not keep:
            lines[path or name] = f"{path}: moments moved"
    for name in stored.keys() - used:
        path = _leaf_in(name, old)
        if path is None:
            problems.append(f"unused: {name}")
        else:
            lines.setdefault(path, f"{path}: moments removed")
    if problems:
        raise ConfigError(
            "with_optimizer: the state is not of the model before the operation, or the optimizer is of another kind, "
            + listed(sorted(problems))
        )
    return MovedState(from_leaves(abstract, values), tuple(lines[path] for path in sorted(lines)))


def _sources(
    old: Mapping[str, Any], new: Mapping[str, Any], changes: Sequence[LeafChange]
) -> dict[str, tuple[str, Move]]:
    """The path before and the map of moments of each leaf that takes moments along."""
    changed = {change.path: change for change in changes if change.after is not None}
    paths = {id(leaf): path for path, leaf in old.items()}
    sources: dict[str, tuple[str, Move]] = {}
    unknown: list[str] = []
    for path, leaf in new.items():
        if path in changed:
            move = changed[path].move
            sources |= {} if move is None else {path: (path, move)}
        elif old.get(path) is leaf:
            sources[path] = path, keep
        elif id(leaf) in paths:  # a tower alone has shorter paths
            sources[path] = paths[id(leaf)], keep
        else:
            unknown.append(f"{path}: not the array of the model before, and not in the report")
    if unknown:
        raise ConfigError(
            "with_optimizer: the result is not of the model before; give the model that the operation was given, and "
            f"one operation at a time, {listed(unknown)}"
        )
    return sources


def _leaf_in(name: str, leaves: Mapping[str, Any]) -> str | None:
    """The path of a leaf at the end of a path in an optimizer state, such as of ``0/mu/image/norm/bias``."""
    parts = name.split("/")
    return next((path for i in range(len(parts)) if (path := "/".join(parts[i:])) in leaves), None)


def _moved(moment: Array, move: Move, dtype: Any) -> Array:
    if move is keep:
        return moment if moment.dtype == dtype else moment.astype(dtype)
    # Averages of bfloat16 moments are computed in float32.
    return move(moment.astype(jnp.promote_types(dtype, jnp.float32))).astype(dtype)
