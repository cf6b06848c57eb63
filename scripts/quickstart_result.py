"""The result of a quickstart: its stages with their curves, its scores, and the recorded run to compare it with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from clipa_eqx.evals.counting import ZeroShotResult

METRIC = "zero_shot/validation"
"""Scores of the validation families in the metric log, without ``/top1`` and ``/top5``."""


class Scores(NamedTuple):
    """Top-1 and top-5, fractions."""

    top1: float
    top5: float


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training.

    Attributes:
        image_tokens: tokens of one image, the class token included.
        seconds: wall time of the stage, compilation included.
        curve: the lines of its metric log.
    """

    name: str
    steps: int
    batch_size: int
    image_tokens: int
    text_tokens: int
    seconds: float
    curve: Sequence[Mapping[str, Any]]

    @property
    def tokens_per_step(self) -> int:
        """Tokens of images and texts in a step."""
        return self.batch_size * (self.image_tokens + self.text_tokens)

    @property
    def tokens(self) -> int:
        """Tokens of images and texts in all steps."""
        return self.steps * self.tokens_per_step

    @property
    def last_scores(self) -> Scores | None:
        """The last scores on the validation families, if there are any."""
        found = [row for row in self.curve if f"{METRIC}/top1" in row]
        return Scores(found[-1][f"{METRIC}/top1"], found[-1][f"{METRIC}/top5"]) if found else None

    def to_json(self) -> dict[str, Any]:
        """The stage without its curve."""
        return {name: value for name, value in vars(self).items() if name != "curve"}


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished quickstart.

    Attributes:
        scored: counts and predictions of the held-out family.
        parts: seconds per part, which still grow while the report is written.
        is_short: whether each stage did a few steps only.
    """

    scored: ZeroShotResult
    stages: Sequence[Stage]
    parts: Mapping[str, float]
    seed: int
    is_short: bool

    @property
    def seconds(self) -> float:
        """Seconds of all parts."""
        return sum(self.parts.values())

    def to_json(self) -> dict[str, Any]:
        """The content of ``result.json``."""
        return {
            "top1": self.scored.top1,
            "top5": self.scored.top5,
            "seconds": self.seconds,
            "parts": dict(self.parts),
            "seed": self.seed,
            "class_count": len(self.scored.per_class_count),
            "count": self.scored.count,
            "is_short": self.is_short,
            "stages": [stage.to_json() for stage in self.stages],
        }


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A recorded run that spent the same training time at full size only.

    Attributes:
        scores: on the held-out family.
        tokens: tokens of images and texts in all steps.
        curve: tokens so far, and the scores on the validation families.
    """

    machine: str
    steps: int
    scores: Scores
    tokens: int
    curve: Sequence[tuple[float, Scores]]


def read_baseline(path: Path) -> Baseline | None:
    """The recorded run in a ``baseline.json``, or None if there is no such file."""
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    (stage,) = found["stages"]
    per_pair = stage["image_tokens"] + stage["text_tokens"]
    return Baseline(
        machine=found["machine"],
        steps=stage["steps"],
        scores=Scores(found["top1"], found["top5"]),
        tokens=stage["steps"] * stage["batch_size"] * per_pair,
        curve=[(float(pairs * per_pair), Scores(top1, top5)) for pairs, top1, top5 in found["curve"]],
    )


def training_seconds(curve: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of training up to the last logged step, without compilation and scoring."""
    before, total = 0, 0.0
    for row in curve:
        total += (row["step"] - before) * row["seconds_per_step"]
        before = row["step"]
    return total
