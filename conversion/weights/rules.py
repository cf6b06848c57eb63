"""The rule table of a weight format: our leaf paths and the foreign names, one-to-one, read in both directions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from clipa_eqx.errors import ConversionError, listed
from clipa_eqx.models.clip import CLIP, CLIPConfig, abstract_clip
from clipa_eqx.saved.leaf_file import Leaf, LeafSlice
from clipa_eqx.saved.leaf_shapes import leaf_shapes
from clipa_eqx.trees import from_leaves, leaf_paths, leaves_by_path
from conversion.weights.leaf_rule import ComputedRule, LeafRule, Rule
from conversion.weights.tensors import FLOATS, Arrays, TensorFile

ReadLeaf = Callable[[str, int | None], np.ndarray]
"""The values of our leaf by path, or of one layer of it if it is stacked."""


class Placed(NamedTuple):
    """A foreign tensor and which of our leaves it holds."""

    name: str
    shape: tuple[int, ...]
    layer: int | None
    rules: tuple[LeafRule, ...]
    computed: ComputedRule | None

    def export(self, read: ReadLeaf) -> np.ndarray:
        """The foreign tensor, made from our leaves."""
        if self.computed is not None:
            return self.computed.value()
        parts = sorted(self.rules, key=lambda rule: rule.part)
        arrays = [rule.to_theirs(read(rule.path, self.layer)) for rule in parts]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    @property
    def our_paths(self) -> str:
        """Our leaves as messages name them."""
        return ", ".join(rule.path for rule in self.rules) or "what the model computes"


class Tensor(NamedTuple):
    """A foreign tensor as read, and the slices of our leaves that it holds."""

    placed: Placed
    values: np.ndarray
    slices: tuple[LeafSlice, ...]


@dataclass(frozen=True)
class RuleTable:
    """The rules of a weight format for the model of one config."""

    rules: Sequence[Rule]
    config: CLIPConfig

    @cached_property
    def placed(self) -> Mapping[str, Placed]:
        """Every tensor of the foreign file by name: tensors of a block together, layers in rising order.

        Raises:
            ConversionError: a leaf without a rule, a rule without a leaf, or parts that do not make up a tensor.
        """
        return _placed(self.rules, leaf_shapes(self.config))

    def check(self, tensors: Mapping[str, Leaf], *, absent: Sequence[str] = ()) -> list[str]:
        """Problems with the names, shapes and dtypes of a file, one line each; reads no values.

        Args:
            absent: names that may be missing, such as the moments of frozen layers.
        """
        optional = set(absent)
        problems = [
            f"missing: {name} {one.shape} for {one.our_paths}"
            for name, one in self.placed.items()
            if name not in tensors and name not in optional
        ]
        problems += [
            f"unused: {name} {info.shape}" for name, info in sorted(tensors.items()) if name not in self.placed
        ]
        for name, one in self.placed.items():
            info = tensors.get(name)
            if info is None:
                continue
            if info.shape != one.shape:
                problems.append(f"shape: {name} is {info.shape}, expected {one.shape} for {one.our_paths}")
            if info.dtype not in FLOATS:
                problems.append(f"dtype: {name} is {info.dtype}, expected {', '.join(map(str, FLOATS))}")
        return problems

    def read(
        self, file: TensorFile, *, absent: Sequence[str] = (), keep_dtype: bool = False, are_squares: bool = False
    ) -> Iterator[Tensor]:
        """Foreign tensors one at a time, each with its slices of our leaves in float32; layers of a leaf rise.

        Args:
            absent: names that may be missing; their slices are zeros.
            keep_dtype: leave bfloat16 and float16 as they are.
            are_squares: no value may be negative, as in second moments.

        Raises:
            ConversionError: before anything is read, a list of all tensors that are missing, unused, mis-shaped or of
                an unsupported dtype; after the last tensor, a list of all that are damaged, not finite, negative or
                different from what the model computes.
        """
        raise_problems(self.check(file.tensors, absent=absent), where=str(file.path))
        leaves, problems = leaf_shapes(self.config), list[str]()
        for name, one in self.placed.items():
            try:
                values = file.read(name) if name in file.tensors else np.zeros(one.shape, np.float32)
            except ConversionError as error:
                problems.append(str(error))
                continue
            problems += _value_problems(one, values, are_squares=are_squares)
            if problems:
                continue  # the import has failed; look only for further problems
            slices: list[LeafSlice] = []
            for rule in one.rules:
                shape = leaves[rule.path] if one.layer is None else leaves[rule.path][1:]
                ours = rule.to_ours(values, shape)
                kept = ours if keep_dtype else ours.astype(np.float32, copy=False)
                slices.append(LeafSlice(rule.path, one.layer, kept))
            yield Tensor(one, values, tuple(slices))
        raise_problems(problems, where=str(file.path))

    def export(self, read: ReadLeaf) -> Iterator[tuple[str, np.ndarray]]:
        """Foreign names and tensors one at a time, made from our leaves."""
        for name, one in self.placed.items():
            yield name, one.export(read)


def export_leaves(rules: Sequence[Rule], tree: CLIP) -> dict[str, np.ndarray]:
    """Foreign names and arrays of a model, or of any tree of its shape (gradients, moments).

    Raises:
        ConversionError: a leaf without a rule, or a rule without a leaf.
    """
    leaves = {path: np.asarray(leaf) for path, leaf in leaves_by_path(tree).items()}

    def read(path: str, layer: int | None) -> np.ndarray:
        return leaves[path] if layer is None else leaves[path][layer]

    return dict(RuleTable(rules, tree.config).export(read))


def import_leaves(table: RuleTable, arrays: Mapping[str, np.ndarray]) -> CLIP:
    """A model with the foreign arrays as its leaves.

    Raises:
        ConversionError: lists every missing, unused, mis-shaped and non-finite array at once.
    """
    skeleton = abstract_clip(table.config)
    file = Arrays(arrays, path="the arrays")
    problems = table.check(file.tensors)
    problems += [
        f"not finite: {name}" for name, array in arrays.items() if np.size(array) and not np.isfinite(array).all()
    ]
    raise_problems(problems, where="the arrays")
    found: dict[str, list[np.ndarray]] = {path: [] for path in leaf_paths(skeleton)}
    for tensor in table.read(file):
        for path, _, values in tensor.slices:
            found[path].append(values)
    leaves = {
        path: jnp.asarray(np.stack(found[path]).reshape(leaf.shape)) for path, leaf in leaves_by_path(skeleton).items()
    }
    return from_leaves(skeleton, leaves)


def raise_problems(problems: Sequence[str], *, where: str) -> None:
    """Raise one ``ConversionError`` that lists all problems, if there are any."""
    if problems:
        raise ConversionError(f"{where} does not fit the model, {listed(problems)}")


def _value_problems(one: Placed, values: np.ndarray, *, are_squares: bool) -> list[str]:
    """Problems with the values of a tensor, one line each."""
    if not np.isfinite(values).all():
        return [f"not finite: {one.name} for {one.our_paths}"]
    problems: list[str] = []
    if are_squares and (values < 0).any():
        problems.append(f"negative: {one.name} for {one.our_paths} has values below zero; its square root is needed")
    if one.computed is not None:
        off = float(np.abs(values.astype(np.float32) - one.computed.value()).max(initial=0.0))
        if off > one.computed.atol:
            problems.append(f"value: {one.name} differs by up to {off:.2g} from what this model computes")
    return problems


def _placed(rules: Sequence[Rule], leaves: Mapping[str, tuple[int, ...]]) -> dict[str, Placed]:
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


def _check_one_to_one(rules: Sequence[LeafRule], leaves: Mapping[str, object]) -> None:
    paths = [rule.path for rule in rules]
    if sorted(paths) != sorted(leaves):
        missing, extra = sorted(set(leaves) - set(paths)), sorted(set(paths) - set(leaves))
        raise ConversionError(
            f"rule table and model differ: leaves without a rule {missing}, rules without a leaf {extra}"
        )
