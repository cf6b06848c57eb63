"""Both towers of a comparison, step by step: every step of both sides on the same inputs, and the final difference."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from conversion.compare.causes import StepOfTwo
from conversion.compare.explain import Explanation, explain, leaves_of
from conversion.compare.replay import Float64Array, State, Step, replay, run_step
from conversion.compare.side import Side, Tower

STEP_TOLERANCE = 1e-8
"""A step differs if its error exceeds this share of the largest value; the replay itself is exact to 1e-12."""

POSITION_ATOL = 1e-5
"""Tolerance for tables that one side computes and the other stores: float32 sums in another order."""

_UNEXPLAINED_TRIED = 4


class StepDivergence(NamedTuple):
    """A step whose values differ although its inputs are the same.

    Attributes:
        step: its name.
        error: the largest difference.
        scale: the largest value of A.
        explanation: the known mistakes that explain it, if any do.
    """

    step: str
    error: float
    scale: float
    explanation: Explanation | None


class TowerWalk(NamedTuple):
    """All divergences of a tower, in order.

    Attributes:
        steps: number of steps.
        divergences: the steps that differ.
        embedding_error: the largest difference of the unit embeddings when each side runs alone.
    """

    steps: int
    divergences: tuple[StepDivergence, ...]
    embedding_error: float


def steps_of_both(a: Side, b: Side, tower: Tower) -> list[Step]:
    """The steps of a tower of equal sizes in both models, with a patch bias if one of the two may have it."""
    is_linear = "linear" in (a.config.image.patch, b.config.image.patch)
    image = replace(a.config.image, patch="linear" if is_linear else "conv")
    steps, _ = replay(replace(a.config, image=image), tower)
    return steps


def walk_tower(
    a: Side, b: Side, tower: Tower, inputs: Float64Array, *, advance: Callable[[str], object] | None = None
) -> TowerWalk:
    """Run a tower of both models.

    Three evaluations run together: A; each step of B on A's inputs, to separate the steps; and B alone.

    Args:
        a: the first model.
        b: the second model, of the same sizes.
        tower: which tower.
        inputs: patches (batch, patches, pixels) or token ids (batch, length).
        advance: called with the name of each step when it is done.
    """
    steps = steps_of_both(a, b, tower)
    options_a, options_b = a.options(tower), b.options(tower)
    grid = a.config.image.grid if tower == "image" else None
    state_a: State = {"input": inputs}
    state_b: State = {"input": inputs}
    found: list[StepDivergence] = []
    for step in steps:
        leaves_a, leaves_b = leaves_of(step, a.read), leaves_of(step, b.read)
        value_a = run_step(step, leaves_a, options_a, state_a)
        value_b = run_step(step, leaves_b, options_b, state_a)
        pair = StepOfTwo(
            step=step,
            state=dict(state_a),
            leaves_a=leaves_a,
            leaves_b=leaves_b,
            options_a=options_a,
            options_b=options_b,
            read_a=a.read,
            grid=grid,
        )
        divergence = _compare(pair, value_a, value_b, found)
        if divergence is not None:
            found.append(divergence)
        state_b[step.writes] = run_step(step, leaves_b, options_b, state_b)
        state_a[step.writes] = value_a
        if advance is not None:
            advance(step.name)
    return TowerWalk(len(steps), tuple(found), float(np.abs(state_a["x"] - state_b["x"]).max(initial=0.0)))


def causes_of(divergences: tuple[StepDivergence, ...]) -> Iterator[tuple[tuple[str, ...], list[StepDivergence]]]:
    """Group divergences by their causes, in order of the first; ``()`` for those without an explanation."""
    groups: dict[tuple[str, ...], list[StepDivergence]] = {}
    for one in divergences:
        causes = () if one.explanation is None else tuple(cause for cause, _ in one.explanation.causes)
        groups.setdefault(causes, []).append(one)
    yield from groups.items()


def _compare(
    pair: StepOfTwo, value_a: Float64Array, value_b: Float64Array, before: list[StepDivergence]
) -> StepDivergence | None:
    scale = float(np.abs(value_a).max(initial=0.0))
    error = float(np.abs(value_a - value_b).max(initial=0.0))
    allowed = STEP_TOLERANCE * scale
    if pair.step.kind == "position":
        allowed = max(allowed, POSITION_ATOL)
    if error <= allowed:
        return None
    # Two unrelated models differ in every step; a few failed explanations are enough.
    is_hopeless = sum(one.explanation is None for one in before) >= _UNEXPLAINED_TRIED
    known = tuple(cause for one in before if one.explanation is not None for cause, _ in one.explanation.causes)
    explanation = None if is_hopeless else explain(pair, value_a, value_b, first=known)
    return StepDivergence(pair.step.name, error, scale, explanation)
