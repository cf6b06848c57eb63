"""The curves of a run: which numbers of its metric log are drawn together, and under which names."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clipa_eqx.reports.scores import Line, score_names


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


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number of the log that is drawn.

    Attributes:
        key: its name in the log.
        title: title of its chart; numbers of one title share a chart.
        curve: its name there.
        factor: number that values are multiplied with.
        is_marked: whether each value gets a dot.
    """

    key: str
    title: str
    curve: str
    factor: float = 1.0
    is_marked: bool = False


def quantities(lines: Sequence[Line]) -> list[Quantity]:
    """The numbers of a log that are drawn: loss, accuracy, scores of all suites, learning rates and speed.

    Repetitions of a score, such as the seeds of few-shot, are left out: their mean is drawn.
    """
    rates = dict.fromkeys(name for line in lines for name in line if name == "lr" or name.startswith("lr/"))
    return [
        Quantity(key="loss", title="loss, nats", curve="loss"),
        Quantity(key="accuracy", title="accuracy in the batch, %", curve="accuracy", factor=100.0),
        *(
            Quantity(key=one.key, title=one.title, curve=one.curve, factor=one.factor, is_marked=True)
            for one in score_names(lines)
            if not one.is_repeat
        ),
        *(Quantity(key=name, title="learning rate", curve=name.removeprefix("lr/")) for name in rates),
        Quantity(key="images_per_second", title="images/s", curve="images_per_second"),
        Quantity(key="input_bound_percent", title="waiting for input, % of the time", curve="input_bound_percent"),
    ]


def run_charts(lines: Sequence[Line]) -> list[Chart]:
    """The charts of a run over its steps: the ``quantities`` of its log.

    Numbers that are not finite are left out. A chart without any point is left out too.
    """
    titled: dict[str, list[Curve]] = {}
    for one in quantities(lines):
        points = curve_points(lines, one, x=lambda line: float(line["step"]))
        if points:
            titled.setdefault(one.title, []).append(Curve(name=one.curve, points=points, is_marked=one.is_marked))
    span = (float(lines[0]["step"]), float(lines[-1]["step"])) if lines else (0.0, 0.0)
    return [Chart(title=title, x_name="step", x_span=span, curves=tuple(curves)) for title, curves in titled.items()]


def curve_points(lines: Sequence[Line], quantity: Quantity, *, x: Callable[[Line], float]) -> list[tuple[float, float]]:
    """The finite values of a quantity, each at the place that ``x`` gives its line."""
    found = [(x(line), quantity.factor * float(line[quantity.key])) for line in lines if quantity.key in line]
    return [point for point in found if math.isfinite(point[1])]
