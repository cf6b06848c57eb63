"""The scores of a metric log: which suite, which record folder, which score, and how each is shown."""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipa_eqx.reports.short_text import short_number

Line = Mapping[str, Any]
"""A line of ``metrics.jsonl``."""

SUITES: Mapping[str, str] = {
    "zero_shot": "zero-shot",
    "retrieval": "retrieval",
    "contrastive": "contrastive",
    "few_shot": "few-shot",
    "linear_probe": "linear probe",
}
"""Each suite by its field of the config, which begins the names of its scores, and its name in text."""

_NAME = re.compile(rf"({'|'.join(SUITES)})/([^/]+)/(.+)")
_SHOTS = re.compile(r"(\d+)_shot(?:/seed_(\d+))?")
_RECALL = re.compile(r"(image_to_text|text_to_image)_(recall@\d+)")


@dataclass(frozen=True, kw_only=True)
class ScoreName:
    """A score in a metric log, such as ``retrieval/coco/image_to_text_recall@5``.

    Attributes:
        key: its name in the log.
        evaluation: suite and record folder, in words.
        score: its name within the evaluation, in words.
        group: the part of the evaluation that is drawn in one chart; empty if there is one part.
        curve: its name in that chart.
        is_percent: whether it is a fraction, which is shown in percent.
        is_repeat: whether it is one of several repetitions whose mean is a score of its own.
    """

    key: str
    evaluation: str
    score: str
    group: str = ""
    curve: str
    is_percent: bool = True
    is_repeat: bool = False

    @property
    def factor(self) -> float:
        """Number that the logged value is multiplied with before it is shown."""
        return 100.0 if self.is_percent else 1.0

    @property
    def title(self) -> str:
        """Title of the chart, with the unit."""
        part = f", {self.group}" if self.group else ""
        return f"{self.evaluation}{part}, {'%' if self.is_percent else 'nats'}"

    def text(self, value: float) -> str:
        """A value of the log with its unit.

        >>> score_name("zero_shot/a/top1").text(0.25), score_name("contrastive/a/loss").text(1.5)
        ('25.00 %', '1.5')
        """
        return f"{100 * value:.2f} %" if self.is_percent else short_number(value)


@functools.lru_cache(maxsize=4096)
def score_name(key: str) -> ScoreName | None:
    """The score that a name in the log is; None for everything else.

    >>> score_name("retrieval/coco/text_to_image_recall@5").title
    'retrieval on coco, text to image, %'
    >>> score_name("few_shot/cifar/10_shot/seed_1").score
    '10 shots, seed 1'
    """
    match = _NAME.fullmatch(key)
    if match is None:
        return None
    suite, folder, score = match.groups()
    evaluation = f"{SUITES[suite]} on {folder}"
    if shots := _SHOTS.fullmatch(score):
        words = f"{shots[1]} shot{'' if shots[1] == '1' else 's'}"
        seed = f", seed {shots[2]}" if shots[2] else ""
        return ScoreName(
            key=key, evaluation=evaluation, score=f"{words}{seed}", curve=f"{words}{seed}", is_repeat=bool(seed)
        )
    if recall := _RECALL.fullmatch(score):
        way = recall[1].replace("_", " ")
        return ScoreName(key=key, evaluation=evaluation, score=f"{way}, {recall[2]}", group=way, curve=recall[2])
    is_percent = score != "loss"
    group = score if suite == "contrastive" else ""
    return ScoreName(
        key=key,
        evaluation=evaluation,
        score=score.replace("top", "top-") if re.fullmatch(r"top\d+", score) else score,
        group=group,
        curve=score,
        is_percent=is_percent,
    )


def score_names(lines: Iterable[Line]) -> list[ScoreName]:
    """All scores of a log, suite by suite, in the order of their first line."""
    keys = dict.fromkeys(key for line in lines for key in line)
    found = [name for key in keys if (name := score_name(key)) is not None]
    order = list(SUITES)
    return sorted(found, key=lambda name: order.index(name.key.partition("/")[0]))


@dataclass(frozen=True, kw_only=True)
class Latest:
    """The last value of a score, with the step that it is of."""

    name: ScoreName
    value: float
    step: int


def latest_scores(lines: Sequence[Line]) -> list[Latest]:
    """The last value of each score, without repetitions."""
    return [Latest(name=name, value=value, step=step) for name in score_names(lines) if not name.is_repeat
            for step, value in _last(lines, name.key)]  # fmt: skip


def _last(lines: Sequence[Line], key: str) -> Iterator[tuple[int, float]]:
    found = next((line for line in reversed(lines) if key in line), None)
    if found is not None:
        yield int(found["step"]), float(found[key])
