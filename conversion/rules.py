"""One table per weight format: our leaf path <-> the foreign name, one-to-one, both directions from the same rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from clipa_eqx.errors import ConversionError
from clipa_eqx.models.clip import CLIP, CLIPConfig, abstract_clip
from clipa_eqx.trees import leaf_paths


@dataclass(frozen=True, kw_only=True)
class LeafRule:
    """Where one of our leaves lies in a foreign file.

    A foreign matrix is (in, out) when ``transpose`` is set and may have its axes split or padded with ones:
    ``shape`` is the foreign shape, per layer. ``name`` holds ``{i}`` where our leaf is stacked over depth.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    transpose: bool = False

    @property
    def is_stacked(self) -> bool:
        return "{i}" in self.name


def export_leaves(rules: Sequence[LeafRule], tree: CLIP) -> dict[str, np.ndarray]:
    """Foreign names and arrays of a model, or of any tree of its shape (gradients, moments).

    Raises:
        ConversionError: a leaf without a rule, or a rule without a leaf.
    """
    leaves = dict(zip(leaf_paths(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))
    _check_one_to_one(rules, leaves)
    exported: dict[str, np.ndarray] = {}
    for rule in rules:
        leaf = leaves[rule.path]
        layers = enumerate(leaf) if rule.is_stacked else [(0, leaf)]
        for i, layer in layers:
            exported[rule.name.format(i=i)] = (layer.T if rule.transpose else layer).reshape(rule.shape)
    return exported


def import_leaves(rules: Sequence[LeafRule], arrays: Mapping[str, np.ndarray], config: CLIPConfig) -> CLIP:
    """A model with the foreign arrays as its leaves.

    Raises:
        ConversionError: lists every missing, unused, mis-shaped and non-finite array at once.
    """
    skeleton = abstract_clip(config)
    targets = dict(zip(leaf_paths(skeleton), jax.tree.leaves(skeleton), strict=True))
    _check_one_to_one(rules, targets)
    problems: list[str] = []
    used: set[str] = set()
    found: dict[str, np.ndarray] = {}
    for rule in rules:
        target = targets[rule.path]
        layer_shape = target.shape[1:] if rule.is_stacked else target.shape
        names = [rule.name.format(i=i) for i in range(target.shape[0] if rule.is_stacked else 1)]
        used.update(names)
        layers = [_read(arrays, name, rule, layer_shape, problems) for name in names]
        if not any(layer is None for layer in layers):
            found[rule.path] = np.stack([x for x in layers if x is not None]).reshape(target.shape)
    problems += [f"unused: {name} {np.shape(arrays[name])}" for name in sorted(set(arrays) - used)]
    if problems:
        raise ConversionError(
            f"the arrays do not fit the model, {len(problems)} problem(s):\n  " + "\n  ".join(problems)
        )
    return jax.tree.unflatten(jax.tree.structure(skeleton), [jnp.asarray(found[p]) for p in leaf_paths(skeleton)])


def _read(
    arrays: Mapping[str, np.ndarray], name: str, rule: LeafRule, target: tuple[int, ...], problems: list[str]
) -> np.ndarray | None:
    if name not in arrays:
        problems.append(f"missing: {name} {rule.shape} for {rule.path}")
        return None
    array = np.asarray(arrays[name])
    if array.shape != rule.shape:
        problems.append(f"shape: {name} is {array.shape}, expected {rule.shape} for {rule.path}")
        return None
    if not np.isfinite(array).all():
        problems.append(f"not finite: {name} for {rule.path}")
        return None
    return array.reshape(target[::-1]).T if rule.transpose else array.reshape(target)


def _check_one_to_one(rules: Sequence[LeafRule], leaves: Mapping[str, object]) -> None:
    paths = [rule.path for rule in rules]
    if sorted(paths) != sorted(leaves):
        missing, extra = sorted(set(leaves) - set(paths)), sorted(set(paths) - set(leaves))
        raise ConversionError(
            f"rule table and model differ: leaves without a rule {missing}, rules without a leaf {extra}"
        )
