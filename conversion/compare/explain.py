"""Search for the cause of a differing step: each known mistake is tested by computing the step with it."""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from conversion.compare.causes import Change, StepOfTwo
from conversion.compare.position_changes import position_changes
from conversion.compare.replay import Float64Array, Step, run_step
from conversion.compare.report import Cause
from conversion.compare.setting_changes import attention_changes, eps_changes, gelu_changes, pool_changes
from conversion.compare.weight_changes import bias_changes, linear_changes, matrix_changes, rounding_changes

_REMAINDER = 1e-9
"""Largest error that an explained step may have left, as a share of the largest value: everything is float64."""


class Explanation(NamedTuple):
    """The smallest set of mistakes that explains a difference, and the error that is left with them."""

    causes: tuple[Cause, ...]
    left: float


def explain(
    pair: StepOfTwo, value_a: Float64Array, value_b: Float64Array, *, first: tuple[str, ...] = ()
) -> Explanation | None:
    """Find the smallest set of at most two mistakes that turns A's value into B's; None if there is none.

    Args:
        pair: the step.
        value_a: its value with A's leaves and options.
        value_b: its value with B's, on the same inputs.
        first: causes to try before the others.
    """
    changes = sorted(_changes(pair), key=lambda change: change.cause not in first)
    scale = float(np.abs(value_b).max(initial=0.0))
    error = float(np.abs(value_a - value_b).max(initial=0.0))
    for count in (1, 2):
        for chosen in itertools.combinations(changes, count):
            if len({change.group for change in chosen}) < count:
                continue
            leaves, options = dict(pair.leaves_a), pair.options_a
            for change in chosen:
                leaves, options = change.make(leaves, options)
            made = run_step(pair.step, leaves, options, pair.state)
            if made.shape != value_b.shape:
                continue
            left = float(np.abs(made - value_b).max(initial=0.0))
            if left <= max(_REMAINDER * scale, *(change.atol for change in chosen)) and left < error / 10:
                return Explanation(tuple((change.cause, change.detail) for change in chosen), left)
    return None


def _changes(pair: StepOfTwo) -> Iterator[Change]:
    yield from rounding_changes(pair)
    match pair.step.kind:
        case "norm":
            yield from eps_changes(pair)
        case "gelu":
            yield from gelu_changes(pair)
        case "attention":
            yield from attention_changes(pair)
        case "pool":
            yield from pool_changes(pair)
        case "position":
            yield from position_changes(pair)
        case "linear":
            yield from linear_changes(pair)
        case "head" | "stem":
            yield from matrix_changes(pair)
        case "none":
            pass
    yield from bias_changes(pair)


def leaves_of(step: Step, read: Callable[[str], Float64Array | None]) -> dict[str, Float64Array]:
    """A side's leaves for a step. Leaves that the side lacks are left out; a missing bias of a norm is zero."""
    found = {kind: read(path) for kind, path in step.leaves.items()}
    made = {kind: value for kind, value in found.items() if value is not None}
    if step.kind in ("norm", "pool"):
        for kind, value in found.items():
            if value is None and kind.endswith("bias") and (weight := made.get(kind[:-4] + "weight")) is not None:
                made[kind] = np.zeros(weight.shape[:1])
    return made
