"""The result of a surgery: the new model, and a report of every leaf and field that changed."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from clipa_eqx.models.clip import CLIP
from clipa_eqx.trees import leaves_by_path

Move = Callable[[Array], Array]
"""A map of the moments of a leaf: rows are selected, copied or averaged with weights that are not negative, so second
moments stay not negative too. It takes and gives one moment, in the shapes of the leaf before and after."""


def keep(moment: Array) -> Array:
    """The ``Move`` of a leaf that has other values in the same place."""
    return moment


class LeafShape(NamedTuple):
    """Shape and type of a leaf; ``str(one)`` is such as ``float32[12,768]``.

    Attributes:
        shape: its shape.
        dtype: name of its dtype, such as ``float32``.
    """

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeafChange:
    """A leaf that a surgery added, removed or gave other values; ``str(change)`` has its path, types and shapes.

    Attributes:
        path: path of the leaf, such as ``text/position``.
        before: shape and dtype before; None for a leaf that was added.
        after: shape and dtype after; None for a leaf that was removed.
        move: the map of its moments in ``with_optimizer``; None if they start at zero or are removed.
    """

    path: str
    before: LeafShape | None
    after: LeafShape | None
    move: Move | None = dataclasses.field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.path}: added, {self.after}"
        if self.after is None:
            return f"{self.path}: removed, {self.before}"
        if self.before == self.after:
            return f"{self.path}: other values, {self.after}"
        return f"{self.path}: {self.before} -> {self.after}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurgeryReport:
    """Changes of a surgery; ``str(report)`` is all of them in one line.

    Attributes:
        changes: the changes in words, of leaves and of fields; empty if nothing changed.
        leaves: every leaf that was changed, added or removed, with its shapes; all other leaves are the same arrays.
    """

    changes: tuple[str, ...] = ()
    leaves: tuple[LeafChange, ...] = ()

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


def leaf_changes(before: Any, after: Any, moves: Mapping[str, Move] | None = None) -> tuple[LeafChange, ...]:
    """Leaves of ``after`` that are not the same array in ``before``, then leaves that ``after`` lacks."""
    old, new, moves = leaves_by_path(before), leaves_by_path(after), moves or {}
    changed = [
        LeafChange(path=path, before=_shape(old.get(path)), after=_shape(leaf), move=moves.get(path))
        for path, leaf in new.items()
        if leaf is not old.get(path)
    ]
    removed = [LeafChange(path=path, before=_shape(leaf), after=None) for path, leaf in old.items() if path not in new]
    return (*changed, *removed)


def _shape(leaf: Any) -> LeafShape | None:
    return None if leaf is None else LeafShape(tuple(leaf.shape), np.dtype(leaf.dtype).name)
