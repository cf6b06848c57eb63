"""The rows of a rule table: which foreign tensor holds one of our leaves, and how its values are arranged there."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class LeafRule:
    """The place of one of our leaves in a foreign file.

    Attributes:
        path: path of our leaf.
        name: name of the foreign tensor; contains ``{i}`` if our leaf is stacked over depth.
        shape: shape of the complete foreign tensor, per layer.
        axes: our leaf is ``tensor.transpose(axes)``, reshaped; None if the order of values is the same.
        part: (index, count) if the foreign tensor holds several of our leaves one after the other along its axis 0, as
            fused q, k and v do: our leaf is part ``index`` of ``count`` equal parts.
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
        """Our leaf, or one layer of it, of the given shape, from the complete foreign tensor."""
        index, count = self.part
        if count > 1:
            rows = self.shape[0] // count
            tensor = tensor[index * rows : (index + 1) * rows]
        return permuted(tensor, self.axes).reshape(shape)

    def to_theirs(self, leaf: np.ndarray) -> np.ndarray:
        """Our part of the foreign tensor from our leaf, or from one layer of it."""
        if self.axes is None:
            return leaf.reshape(self.part_shape)
        split = tuple(self.part_shape[axis] for axis in self.axes)
        return permuted(leaf.reshape(split), tuple(np.argsort(self.axes).tolist())).reshape(self.part_shape)


@dataclass(frozen=True, kw_only=True)
class ComputedRule:
    """A foreign tensor that our model computes and does not store, for example a table of sin-cos positions.

    An export writes it. An import requires it, with values within ``atol`` of the computed ones.
    """

    name: str
    value: Callable[[], np.ndarray]
    shape: tuple[int, ...]
    atol: float


Rule = LeafRule | ComputedRule


def permuted(array: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    """``array.transpose(axes)`` in C order; matrices are copied in strips, three times as fast as numpy copies them."""
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
