"""Two models side by side through their towers: every step on the same inputs, and what comes out at the end."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from clipa_eqx.models.clip import CLIPConfig
from conversion.compare.causes import Explanation, StepOfTwo, explain, leaves_of
from conversion.compare.replay import Array, State, replay, run_step
from conversion.open_clip.pixels import Pictures
from conversion.weights.tower_options import TowerOptions

Tower = Literal["image", "text"]

STEP_TOLERANCE = 1e-8
"""Steps differ where more than this share of the largest value does; the replay itself is exact to 1e-12."""

POSITION_ATOL = 1e-5
"""Of tables that one side computes and the other stores: float32 sums in another order."""

_UNEXPLAINED_TRIED = 4


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two models.

    Attributes:
        name: what the user called it.
        kind: model folder, Flax npz or open_clip.
        config: sizes; of the numerics ``image`` and ``text`` decide.
        read: a leaf in float64 by path, blocks by their layer's path; None where the file lacks it.
        log_temperature: as stored.
        tokenize: texts to ids (texts, length), if this side says how; ``pieces`` are its vocabulary.
        picture: a decoded picture to pixels of the image tower, if this side says how; ``pictures`` as settings.
        notes: what the report should say of this side.
    """

    name: str
    kind: str
    config: CLIPConfig
    image: TowerOptions
    text: TowerOptions
    read: Callable[[str], Array | None]
    log_temperature: float
    tokenize: Callable[[list[str]], np.ndarray] | None = None
    pieces: tuple[str, ...] | None = None
    picture: Callable[[np.ndarray], np.ndarray] | None = None
    pictures: Pictures | None = None
    notes: tuple[str, ...] = ()


class Divergence(NamedTuple):
    """A step whose values differ although its inputs are the same."""

    step: str
    error: float
    scale: float
    explanation: Explanation | None


class TowerWalk(NamedTuple):
    """All divergences in order, and the largest difference of the embeddings when each side runs by itself."""

    steps: int
    divergences: tuple[Divergence, ...]
    embedding_error: float


def walk_tower(
    a: Side, b: Side, tower: Tower, inputs: Array, *, advance: Callable[[str], object] | None = None
) -> TowerWalk:
    """Run both. ``inputs`` are patches or token ids; ``advance`` is told each step's name.

    Three evaluations go along: A; each of B's steps on A's inputs, which is what tells steps apart; and B.
    """
    # With a place for the bias that one of the two may have.
    is_linear = "linear" in (a.config.image.patch, b.config.image.patch)
    image = replace(a.config.image, patch="linear" if is_linear else "conv")
    steps, _ = replay(replace(a.config, image=image), tower)
    options_a, options_b = (side.image if tower == "image" else side.text for side in (a, b))
    grid = a.config.image.grid if tower == "image" else None
    state_a: State = {"input": inputs}
    state_b: State = {"input": inputs}
    found: list[Divergence] = []
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


def causes_of(divergences: tuple[Divergence, ...]) -> Iterator[tuple[tuple[str, ...], list[Divergence]]]:
    """Divergences of the same causes together, in order of the first; those without an explanation as ``()``."""
    groups: dict[tuple[str, ...], list[Divergence]] = {}
    for one in divergences:
        causes = () if one.explanation is None else tuple(cause for cause, _ in one.explanation.causes)
        groups.setdefault(causes, []).append(one)
    yield from groups.items()


def _compare(pair: StepOfTwo, value_a: Array, value_b: Array, before: list[Divergence]) -> Divergence | None:
    scale = float(np.abs(value_a).max(initial=0.0))
    error = float(np.abs(value_a - value_b).max(initial=0.0))
    allowed = STEP_TOLERANCE * scale
    if pair.step.kind == "position":
        allowed = max(allowed, POSITION_ATOL)
    if error <= allowed:
        return None
    # Two models that share nothing differ everywhere; a few failures to explain it are enough.
    is_hopeless = sum(one.explanation is None for one in before) >= _UNEXPLAINED_TRIED
    known = tuple(cause for one in before if one.explanation is not None for cause, _ in one.explanation.causes)
    explanation = None if is_hopeless else explain(pair, value_a, value_b, first=known)
    return Divergence(pair.step.name, error, scale, explanation)
