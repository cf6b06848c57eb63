"""Known mistakes of converters: their names, and the types with which ``explain`` tries them on one step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from conversion.compare.replay import Float64Array, State, Step
from conversion.weights.tower_options import TowerOptions

EPS = "layer norm epsilon"
GELU = "GELU kind"
NORM_PLACE = "norm before or after pooling"
CLASS_IN_MEAN = "class token in the mean"
POOL = "pooling kind"
CAUSAL = "causal mask"
HEADS = "number of heads"
DENOMINATOR = "sin-cos denominator q or q-1"
NO_POSITION = "missing positions"
SWAPPED_AXES = "sin-cos axes x and y swapped"
TRANSPOSED = "transposed weight"
PERMUTED = "permuted q, k, v"
INTERLEAVED = "heads interleaved"
NO_BIAS = "missing bias"
PATCH_ORDER = "order of values in a patch"
ROUNDED = "weights rounded to half precision"

HALVES: Mapping[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


class Change(NamedTuple):
    """One mistake, as a change of A's leaves and options.

    Attributes:
        group: at most one mistake of a group is tried at a time.
        cause: name of the mistake.
        detail: what it means for this step.
        make: applies it to the leaves and options of A.
        atol: the largest difference from B that it may leave.
    """

    group: str
    cause: str
    detail: str
    make: Callable[[dict[str, Float64Array], TowerOptions], tuple[dict[str, Float64Array], TowerOptions]]
    atol: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StepOfTwo:
    """A step with the weights and options of both sides.

    Attributes:
        step: the operation.
        state: its inputs, which are A's.
        leaves_a: the leaves of A, by the names that the step uses.
        leaves_b: the same of B.
        options_a: how A computes.
        options_b: how B computes.
        read_a: any leaf of A by path; None if the file lacks it.
        grid: patches down and across; None for the text tower.
    """

    step: Step
    state: State
    leaves_a: dict[str, Float64Array]
    leaves_b: dict[str, Float64Array]
    options_a: TowerOptions
    options_b: TowerOptions
    read_a: Callable[[str], Float64Array | None]
    grid: tuple[int, int] | None = None


def changed_option(group: str, cause: str, detail: str, changed: Callable[[TowerOptions], TowerOptions]) -> Change:
    """A mistake in the options."""
    return Change(group, cause, detail, lambda leaves, options: (leaves, changed(options)))


def changed_leaves(
    group: str, cause: str, detail: str, changed: Mapping[str, Float64Array], atol: float = 0.0
) -> Change:
    """A mistake in the leaves that ``changed`` holds."""

    def make(leaves: dict[str, Float64Array], options: TowerOptions) -> tuple[dict[str, Float64Array], TowerOptions]:
        return {**leaves, **changed}, options

    return Change(group, cause, detail, make, atol)


def round_to(values: Float64Array, dtype: str) -> Float64Array:
    """Values as the half-precision ``dtype`` stores them; too large ones become infinite."""
    with np.errstate(over="ignore"):
        return values.astype(HALVES[dtype]).astype(np.float64)
