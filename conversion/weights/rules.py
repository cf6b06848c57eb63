"""One table per weight format: our leaf path <-> the foreign name, one-to-one, both directions from the same rows."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from clipa_eqx.errors import ConversionError, listed
from clipa_eqx.models.clip import CLIP, CLIPConfig, abstract_clip
from clipa_eqx.saved.leaf_shapes import leaf_shapes
from clipa_eqx.trees import from_leaves, leaf_paths, leaves_by_path
from conversion.weights.tensors import FLOATS, Arrays, TensorFile, TensorInfo


@dataclass(frozen=True, kw_only=True)
class LeafRule:
    """Where one of our leaves lies in a foreign file.

    Attributes:
        path: our leaf.
        name: the foreign tensor; it holds ``{i}`` where our leaf is stacked over depth.
        shape: shape of the whole foreign tensor, per layer.
        axes: our leaf is ``tensor.transpose(axes)``, reshaped; None where the order of values is the same.
        part: (index, count) where the foreign tensor holds several of our leaves one after the other along its axis 0,
            as fused q, k and v: ours is the part ``index`` of ``count`` equal ones.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None = None
    part: tuple[int, int] = (0, 1)

    @property
    def is_stacked(self) -> bool:
        return "{i}" in self.name

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of our part of the foreign tensor."""
        return (self.shape[0] // self.part[1], *self.shape[1:]) if self.part[1] > 1 else self.shape

    def to_ours(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Our leaf, or one layer of it, of the given shape, from the whole foreign tensor."""
        index, count = self.part
        if count > 1:
            rows = self.shape[0] // count
            tensor = tensor[index * rows : (index + 1) * rows]
        return permuted(tensor, self.axes).reshape(shape)

    def to_theirs(self, leaf: np.ndarray) -> np.ndarray:
        """Our part of the foreign tensor from our leaf, or one layer of it."""
        if self.axes is None:
            return leaf.reshape(self.part_shape)
        split = tuple(self.part_shape[axis] for axis in self.axes)
        return permuted(leaf.reshape(split), tuple(np.argsort(self.axes).tolist())).reshape(self.part_shape)


@dataclass(frozen=True, kw_only=True)
class ComputedRule:
    """A foreign tensor that we compute and do not store, as a table of sin-cos positions.

    It is written on export; on import it must be there and agree within ``atol``.
    """

    name: str
    value: Callable[[], np.ndarray]
    shape: tuple[int, ...]
    atol: float


Rule = LeafRule | ComputedRule


class LeafSlice(NamedTuple):
    """One of our leaves, or a layer of a stacked one (``layer`` is None for a whole leaf), in float32 or as stored."""

    path: str
    layer: int | None
    values: np.ndarray


class Placed(NamedTuple):
    """A foreign tensor and what it holds of ours."""

    name: str
    shape: tuple[int, ...]
    layer: int | None
    rules: tuple[LeafRule, ...]
    computed: ComputedRule | None


class Tensor(NamedTuple):
    """A foreign tensor as it was read, and what it holds of ours."""

    placed: Placed
    values: np.ndarray
    slices: tuple[LeafSlice, ...]


def foreign_tensors(rules: Sequence[Rule], config: CLIPConfig) -> dict[str, Placed]:
    """Every tensor of the foreign file of a model, those of a block together, layers rising.

    Raises:
        ConversionError: a leaf without a rule, a rule without a leaf, or parts that do not make a whole.
    """
    leaves = leaf_shapes(config)
    _check_one_to_one([rule for rule in rules if isinstance(rule, LeafRule)], leaves)
    plain = [rule for rule in rules if isinstance(rule, ComputedRule) or not rule.is_stacked]
    stacked = [rule for rule in rules if isinstance(rule, LeafRule) and rule.is_stacked]
    rows: list[tuple[str, int | None, Rule]] = [(rule.name, None, rule) for rule in plain]
    for tower in dict.fromkeys(rule.path.split("/")[0] for rule in stacked):
        own = [rule for rule in stacked if rule.path.split("/")[0] == tower]
        for i in range(max(leaves[rule.path][0] for rule in own)):
            rows += [(rule.name.format(i=i), i, rule) for rule in own if i < leaves[rule.path][0]]
    placed: dict[str, Placed] = {}
    for name, layer, rule in rows:
        if isinstance(rule, ComputedRule):
            placed[name] = Placed(name, rule.shape, layer, (), rule)
        else:
            before = placed[name].rules if name in placed else ()
            placed[name] = Placed(name, rule.shape, layer, (*before, rule), None)
    for one in placed.values():
        parts = sorted(rule.part for rule in one.rules)
        if one.rules and parts != [(i, len(parts)) for i in range(len(parts))]:
            raise ConversionError(f"rule table: the parts {parts} do not make up {one.name}")
    return placed


def check_tensors(
    rules: Sequence[Rule], config: CLIPConfig, tensors: Mapping[str, TensorInfo], *, absent: Sequence[str] = ()
) -> list[str]:
    """What of a file's names, shapes and dtypes does not fit, one line each; nothing is read.

    Args:
        absent: names that need not be there, as the moments of frozen layers.
    """
    placed = foreign_tensors(rules, config)
    optional = set(absent)
    problems = [
        f"missing: {name} {one.shape} for {_ours(one)}"
        for name, one in placed.items()
        if name not in tensors and name not in optional
    ]
    problems += [f"unused: {name} {info.shape}" for name, info in sorted(tensors.items()) if name not in placed]
    for name, one in placed.items():
        info = tensors.get(name)
        if info is None:
            continue
        if info.shape != one.shape:
            problems.append(f"shape: {name} is {info.shape}, expected {one.shape} for {_ours(one)}")
        if info.dtype not in FLOATS:
            problems.append(f"dtype: {name} is {info.dtype}, expected {', '.join(map(str, FLOATS))}")
    return problems


def import_slices(
    rules: Sequence[Rule],
    config: CLIPConfig,
    file: TensorFile,
    *,
    absent: Sequence[str] = (),
    keep_dtype: bool = False,
    are_squares: bool = False,
) -> Iterator[LeafSlice]:
    """Our leaves layer by layer, layers rising; as ``import_tensors``, whose slices they are."""
    tensors = import_tensors(rules, config, file, absent=absent, keep_dtype=keep_dtype, are_squares=are_squares)
    for tensor in tensors:
        yield from tensor.slices


def import_tensors(
    rules: Sequence[Rule],
    config: CLIPConfig,
    file: TensorFile,
    *,
    absent: Sequence[str] = (),
    keep_dtype: bool = False,
    are_squares: bool = False,
) -> Iterator[Tensor]:
    """Foreign tensors one at a time, each with what it holds of ours, in float32; layers of a leaf rise.

    Args:
        absent: names that need not be there; their layers come as zeros.
        keep_dtype: leave bfloat16 and float16 as they are.
        are_squares: no value may be below zero, as in second moments.

    Raises:
        ConversionError: before anything is read, with all that is missing, unused, mis-shaped or of another kind; after
            the last tensor, with all that is damaged, not finite, negative or not what we compute.
    """
    raise_problems(check_tensors(rules, config, file.tensors, absent=absent), where=str(file.path))
    leaves, problems = leaf_shapes(config), list[str]()
    for name, one in foreign_tensors(rules, config).items():
        try:
            tensor = file.read(name) if name in file.tensors else np.zeros(one.shape, np.float32)
        except ConversionError as error:
            problems.append(str(error))
            continue
        if not np.isfinite(tensor).all():
            problems.append(f"not finite: {name} for {_ours(one)}")
            continue
        if are_squares and (tensor < 0).any():
            problems.append(f"negative: {name} for {_ours(one)} has values below zero, its root will be taken")
        if one.computed is not None:
            off = float(np.abs(tensor.astype(np.float32) - one.computed.value()).max(initial=0.0))
            if off > one.computed.atol:
                problems.append(f"value: {name} is up to {off:.2g} off what this model computes")
        if problems:
            continue  # nothing will come of this file; only look for what else is wrong with it
        shapes = [leaves[rule.path] if one.layer is None else leaves[rule.path][1:] for rule in one.rules]
        ours = [rule.to_ours(tensor, shape) for rule, shape in zip(one.rules, shapes, strict=True)]
        slices = [
            LeafSlice(rule.path, one.layer, values if keep_dtype else values.astype(np.float32, copy=False))
            for rule, values in zip(one.rules, ours, strict=True)
        ]
        yield Tensor(one, tensor, tuple(slices))
    raise_problems(problems, where=str(file.path))


def export_tensors(
    rules: Sequence[Rule], config: CLIPConfig, read: Callable[[str, int | None], np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Foreign tensors one at a time; ``read(path, layer)`` gives our leaf, or its layer if it is stacked."""
    for name, one in foreign_tensors(rules, config).items():
        yield name, export_tensor(one, read)


def export_tensor(one: Placed, read: Callable[[str, int | None], np.ndarray]) -> np.ndarray:
    """The foreign tensor from our leaves."""
    if one.computed is not None:
        return one.computed.value()
    parts = sorted(one.rules, key=lambda rule: rule.part)
    arrays = [rule.to_theirs(read(rule.path, one.layer)) for rule in parts]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def export_leaves(rules: Sequence[Rule], tree: CLIP) -> dict[str, np.ndarray]:
    """Foreign names and arrays of a model, or of any tree of its shape (gradients, moments).

    Raises:
        ConversionError: a leaf without a rule, or a rule without a leaf.
    """
    leaves = {path: np.asarray(leaf) for path, leaf in leaves_by_path(tree).items()}

    def read(path: str, layer: int | None) -> np.ndarray:
        return leaves[path] if layer is None else leaves[path][layer]

    return dict(export_tensors(rules, tree.config, read))


def import_leaves(rules: Sequence[Rule], arrays: Mapping[str, np.ndarray], config: CLIPConfig) -> CLIP:
    """A model with the foreign arrays as its leaves.

    Raises:
        ConversionError: lists every missing, unused, mis-shaped and non-finite array at once.
    """
    skeleton = abstract_clip(config)
    file = Arrays(arrays, path="the arrays")
    problems = check_tensors(rules, config, file.tensors)
    problems += [
        f"not finite: {name}" for name, array in arrays.items() if np.size(array) and not np.isfinite(array).all()
    ]
    raise_problems(problems, where="the arrays")
    found: dict[str, list[np.ndarray]] = {path: [] for path in leaf_paths(skeleton)}
    for path, _, values in import_slices(rules, config, file):
        found[path].append(values)
    leaves = {
        path: jnp.asarray(np.stack(found[path]).reshape(leaf.shape)) for path, leaf in leaves_by_path(skeleton).items()
    }
    return from_leaves(skeleton, leaves)


def permuted(array: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    """``array.transpose(axes)`` in C order; matrices are moved in strips, three times as fast as numpy's own copy."""
    if axes is None:
        return array
    first = axes[0]
    if axes != (*range(first, array.ndim), *range(first)):
        return np.ascontiguousarray(array.transpose(axes))
    flat = array.reshape(math.prod(array.shape[:first]), -1)
    out = np.empty(flat.shape[::-1], flat.dtype)
    for row in range(0, flat.shape[0], 128):
        out[:, row : row + 128] = flat[row : row + 128].T
    return out.reshape([array.shape[axis] for axis in axes])


def raise_problems(problems: Sequence[str], *, where: str) -> None:
    """One ConversionError with all of them, if there are any."""
    if problems:
        raise ConversionError(f"{where} does not fit the model, {listed(problems)}")


def _ours(one: Placed) -> str:
    return ", ".join(rule.path for rule in one.rules) or "what the model computes"


def _check_one_to_one(rules: Sequence[LeafRule], leaves: Mapping[str, object]) -> None:
    paths = [rule.path for rule in rules]
    if sorted(paths) != sorted(leaves):
        missing, extra = sorted(set(leaves) - set(paths)), sorted(set(paths) - set(leaves))
        raise ConversionError(
            f"rule table and model differ: leaves without a rule {missing}, rules without a leaf {extra}"
        )
