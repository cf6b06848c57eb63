"""The comparison of runs: curves over samples, operations and dollars, last scores, and config fields that differ."""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipa_eqx.experiment import ExperimentConfig, operations_per_step
from clipa_eqx.json_config import flat, to_json
from clipa_eqx.reports.chart_html import chart_figure
from clipa_eqx.reports.curves import Chart, Curve, Quantity, curve_points, quantities
from clipa_eqx.reports.page import Group, Row, Strong, page, table, text
from clipa_eqx.reports.run_progress import timed
from clipa_eqx.reports.scores import Latest, Line, latest_scores
from clipa_eqx.reports.short_text import short_number, with_prefix

_STYLE = """
.tabs{position:relative}.tabs>input{position:absolute;opacity:0;pointer-events:none}
.tabs>label{display:inline-block;padding:.3rem .9rem;margin:0 .3rem .8rem 0;border:1px solid var(--rule);
border-radius:1rem;cursor:pointer;font-size:.95rem}
.tabs>input:checked+label{background:var(--curve-1);border-color:var(--curve-1);color:var(--page);font-weight:600}
.tabs>input:focus-visible+label{outline:2px solid var(--curve-2);outline-offset:2px}
.panel{display:none}.panel>p{margin:0 0 1rem}
"""


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A run with at least one line in its log.

    Attributes:
        name: a name that no other run of the comparison has.
        lines: the metric log.
        price: dollars per device and hour; None if it is not known.
    """

    name: str
    config: ExperimentConfig
    lines: Sequence[Line]
    price: float | None = None

    def samples(self) -> list[float]:
        """Samples seen at each line."""
        return [float(line.get("examples_seen", int(line["step"]) * self.config.batch_size)) for line in self.lines]

    def operations(self) -> list[float]:
        """Operations of the steps of this run at each line."""
        per_step = operations_per_step(self.config).total
        before = int(self.lines[0]["step"]) - 1
        return [float(per_step * (int(line["step"]) - before)) for line in self.lines]

    def device_hours(self) -> list[float] | None:
        """Hours of all devices in steps at each line; None if the log does not say how many devices there were."""
        hours: list[float] = []
        for line, seconds in timed(self.lines):
            devices = _devices(line)
            if devices is None:
                return None
            hours.append((hours[-1] if hours else 0.0) + seconds * devices / 3600)
        return hours

    def dollars(self) -> list[float] | None:
        """Price of the steps at each line; None if it is not known."""
        hours = self.device_hours()
        return None if hours is None or self.price is None else [self.price * one for one in hours]


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """A horizontal axis that the curves are drawn over, with a remark."""

    name: str
    places: Callable[[ComparedRun], list[float] | None]
    remark: str = ""


_SAMPLES = _Axis(name="samples", places=ComparedRun.samples)
_OPERATIONS = _Axis(
    name="FLOPs",
    places=ComparedRun.operations,
    remark="Operations of the matrix products, forward and backward, counted from the config; recomputation by remat "
    "does not count.",
)
_DOLLARS = _Axis(
    name="dollars",
    places=ComparedRun.dollars,
    remark="Seconds per step of the log x devices x price. Compiling, scoring, saving and steps that were repeated "
    "after an interruption do not count.",
)


def comparison_page(runs: Sequence[ComparedRun]) -> str:
    """The page. Dollars are drawn if a run has a price."""
    has_prices = any(run.price is not None for run in runs)
    axes = [_SAMPLES, _OPERATIONS, *([_DOLLARS] if has_prices else [])]
    names = ", ".join(run.name for run in runs)
    body = [
        f"<h1>{len(runs)} runs compared</h1>",
        f"<p>{text(names)}</p>",
        _run_table(runs, has_prices=has_prices),
        "<h2>Curves</h2>",
        *_warnings(runs),
        *_tabs(runs, axes),
        *_scores(runs),
        *_differences(runs),
    ]
    rules = "".join(f"#axis{n}:checked~.axis{n}{{display:block}}" for n in range(len(axes)))
    return page(f"runs: {names}", body, style=_STYLE + rules)


def compared_charts(
    runs: Sequence[ComparedRun], name: str, places: Callable[[ComparedRun], list[float] | None]
) -> list[Chart]:
    """A chart of each quantity that a run logs, with one curve per run.

    Args:
        name: name of the horizontal axis.
        places: the position of each line on it; a run without has no points.
    """
    placed = [(run, places(run) or []) for run in runs]
    ends = [at for _, at in placed if at]
    if not ends:
        return []
    span = (min(at[0] for at in ends), max(at[-1] for at in ends))
    charts: list[Chart] = []
    for quantity, title in _titled([run.lines for run in runs]):
        curves = [
            Curve(name=run.name, points=_points(run, quantity, at), is_marked=quantity.is_marked) for run, at in placed
        ]
        if any(curve.points for curve in curves):
            # Runs without the quantity or the position stay in the list, so that each keeps its color.
            charts.append(Chart(title=title, x_name=name, x_span=span, curves=tuple(curves)))
    return charts


def differing_fields(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """Config fields whose values differ, and the value of each run as text."""
    fields = [{name: _value(value) for name, value in flat(to_json(run.config))} for run in runs]
    names = dict.fromkeys(name for one in fields for name in one)
    found = {name: [one.get(name, "not set") for one in fields] for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def _titled(logs: Sequence[Sequence[Line]]) -> list[tuple[Quantity, str]]:
    """Each quantity of all logs, with a title that no other one has."""
    keys = dict.fromkeys(key for lines in logs for line in lines for key in line)
    found = quantities([dict.fromkeys(keys, 0)])
    titles = [one.title for one in found]
    return [(one, one.title if titles.count(one.title) == 1 else f"{one.curve}, {one.title}") for one in found]


def _points(run: ComparedRun, quantity: Quantity, at: Sequence[float]) -> list[tuple[float, float]]:
    if not at:
        return []
    places = {int(line["step"]): place for line, place in zip(run.lines, at, strict=True)}
    return curve_points(run.lines, quantity, x=lambda line: places[int(line["step"])])


def _devices(line: Line) -> int | None:
    """The number of devices, by the speed of all and of one; None if the line does not say."""
    every, one = line.get("images_per_second"), line.get("images_per_second_per_device")
    if every is None or not one or not math.isfinite(every / one):
        return None
    return max(round(every / one), 1)


def _run_table(runs: Sequence[ComparedRun], *, has_prices: bool) -> str:
    head = ("run", "steps", "samples", "FLOPs", "device-hours", *(["dollars"] if has_prices else []))
    rows: list[Row] = []
    for run in runs:
        hours, dollars = run.device_hours(), run.dollars()
        cost = [f"{dollars[-1]:,.2f}" if dollars else "no price"] if has_prices else []
        rows.append(
            (
                run.name,
                f"{int(run.lines[-1]['step']):,}",
                f"{run.samples()[-1]:,.0f}",
                with_prefix(run.operations()[-1]).strip(),
                short_number(hours[-1]) if hours else "not logged",
                *cost,
            )
        )
    return table(head, rows, kind="runs")


def _warnings(runs: Sequence[ComparedRun]) -> Iterator[str]:
    if len({run.config.batch_size for run in runs}) > 1:
        yield (
            "<p>The runs have different batch sizes. Loss and accuracy in the batch depend on them and are not "
            "comparable; the scores are.</p>"
        )


def _tabs(runs: Sequence[ComparedRun], axes: Sequence[_Axis]) -> Iterator[str]:
    """A group of charts per axis, of which one is shown; chosen without any script."""
    yield "<div class=tabs>"
    for number, axis in enumerate(axes):
        checked = " checked" if number == 0 else ""
        yield f"<input type=radio name=axis id=axis{number}{checked}><label for=axis{number}>over {axis.name}</label>"
    for number, axis in enumerate(axes):
        charts = "".join(map(chart_figure, compared_charts(runs, axis.name, axis.places)))
        remark = f"<p class=small>{text(axis.remark)}</p>" if axis.remark else ""
        yield f'<div class="panel axis{number}">{remark}<div class=charts>{charts}</div></div>'
    yield "</div>"


def _scores(runs: Sequence[ComparedRun]) -> Iterator[str]:
    """The last score of each run; the best of a row is bold, if runs differ in it."""
    found: list[Mapping[str, Latest]] = [{one.name.key: one for one in latest_scores(run.lines)} for run in runs]
    every = {key: one for scores in found for key, one in scores.items()}
    if not every:
        return
    yield "<h2>Last scores</h2>"
    rows: list[Row] = []
    for evaluation, group in itertools.groupby(every.values(), key=lambda one: one.name.evaluation):
        rows.append(Group(evaluation))
        rows += [(one.name.score, *_score_cells([scores.get(one.name.key) for scores in found])) for one in group]
    yield table(("score", *(run.name for run in runs)), rows, kind="runs")


def _score_cells(scores: Sequence[Latest | None]) -> Iterator[str | Strong]:
    values = {one.value for one in scores if one is not None}
    is_loss = any(one is not None and not one.name.is_percent for one in scores)
    best = (min if is_loss else max)(values) if len(values) > 1 else None
    for one in scores:
        shown = "" if one is None else one.name.text(one.value)
        yield Strong(shown) if one is not None and one.value == best else shown


def _differences(runs: Sequence[ComparedRun]) -> Iterator[str]:
    yield "<h2>Differences of the configs</h2>"
    fields = differing_fields(runs)
    if not fields:
        yield "<p>None.</p>"
        return
    rows: list[Row] = [(name, *values) for name, values in fields.items()]
    yield table(("field", *(run.name for run in runs)), rows, kind="runs text")


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
