"""The curves of a run: which numbers of its metric log are drawn together, and under which names."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Line = Mapping[str, Any]
"""A line of ``metrics.jsonl``."""

_SCORE = re.compile(r"zero_shot/(.+)/(top\d+)")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points that a line joins.

    Attributes:
        points: pairs of x and y, both finite.
        is_reference: whether it is something to compare with, which is drawn dotted and gray.
        is_marked: whether each point gets a dot, as for scores, which are few.
    """

    name: str
    points: Sequence[tuple[float, float]]
    is_reference: bool = False
    is_marked: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves over one pair of axes.

    Attributes:
        title: the quantity and its unit.
        x_name: name of the horizontal axis.
        x_span: first and last value on it; charts of one run have the same.
    """

    title: str
    x_name: str
    x_span: tuple[float, float]
    curves: tuple[Curve, ...]


def run_charts(lines: Sequence[Line]) -> list[Chart]:
    """The charts of a run over its steps: loss, accuracy, scores, learning rates and speed, as far as they are logged.

    Numbers that are not finite are left out. A chart without any point is left out too.
    """
    names = list(dict.fromkeys(name for line in lines for name in line))
    rates = [name for name in names if name == "lr" or name.startswith("lr/")]
    sets = dict.fromkeys(match[1] for name in names if (match := _SCORE.fullmatch(name)))
    titled: dict[str, list[Curve]] = {
        "loss, nats": [_curve(lines, "loss")],
        "accuracy in the batch, %": [_curve(lines, "accuracy", factor=100.0)],
        **{f"zero-shot on {of_set}, %": score_curves(lines, of_set) for of_set in sets},
        "learning rate": [_curve(lines, name, shown=name.removeprefix("lr/")) for name in rates],
        "images/s": [_curve(lines, "images_per_second")],
    }
    charts: list[Chart] = []
    for title, curves in titled.items():
        found = tuple(curve for curve in curves if curve.points)
        if found:
            span = (float(lines[0]["step"]), float(lines[-1]["step"]))
            charts.append(Chart(title=title, x_name="step", x_span=span, curves=found))
    return charts


def score_curves(lines: Sequence[Line], of_set: str) -> list[Curve]:
    """Top-1 and top-5 of a scored set over the steps, in percent."""
    return [
        _curve(lines, f"zero_shot/{of_set}/{name}", shown=name, factor=100.0, is_marked=True)
        for name in ("top1", "top5")
    ]


def _curve(lines: Sequence[Line], name: str, *, shown: str = "", factor: float = 1.0, is_marked: bool = False) -> Curve:
    points = [(float(line["step"]), factor * float(line[name])) for line in lines if name in line]
    finite = [point for point in points if math.isfinite(point[1])]
    return Curve(name=shown or name, points=finite, is_marked=is_marked)
