"""Charts as an image file. Needs matplotlib."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter

from clipa_eqx.replacing import new_file
from clipa_eqx.reports.chart_html import COLORS
from clipa_eqx.reports.curves import Chart

_CURVES = [light for name, (light, _) in COLORS.items() if name.startswith("curve")]
_INK, _FAINT, _RULE, _PAGE = (COLORS[name][0] for name in ("ink", "faint", "rule", "page"))
_WIDTH, _HEIGHT = 5.2, 3.2
"""Inches of a chart in an image file."""

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "clipa_eqx",
    "figure.facecolor": _PAGE,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.08,
    "axes.facecolor": "none",
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _FAINT,
    "axes.titlecolor": _INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}


def write_charts(path: Path, charts: Sequence[Chart], *, title: str) -> None:
    """Write all charts to one file, two next to each other; the format follows the file's ending.

    Raises:
        OSError: the file cannot be written.
    """
    across = min(2, len(charts))
    down = math.ceil(len(charts) / across)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(across * _WIDTH, down * _HEIGHT + 0.4), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", color=_FAINT, size=10)
        for chart, part in zip(charts, figure.subfigures(down, across, squeeze=False).flat, strict=False):
            draw_chart(part, chart)
        with new_file(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150)


def draw_chart(figure: Figure | SubFigure, chart: Chart) -> None:
    """Draw a chart into a figure of its own or a part of one. Several curves get a legend below the axes."""
    axes = figure.subplots()
    axes.set(title=chart.title, xlabel=chart.x_name)
    colors = iter(_CURVES * len(chart.curves))
    for curve in chart.curves:
        axes.plot(
            [x for x, _ in curve.points],
            [y for _, y in curve.points],
            label=curve.name,
            color=_FAINT if curve.is_reference else next(colors),
            linestyle=":" if curve.is_reference else "-",
            # A single point would be invisible without a dot.
            marker="o" if curve.is_marked or len(curve.points) == 1 else "",
        )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    low, high = chart.x_span
    edge = 0.02 * (high - low) or 0.5
    axes.set_xlim(low - edge, high + edge)
    if len(chart.curves) > 1:
        figure.legend(loc="outside lower left", ncols=3)


def _tick(value: float) -> str:
    """A position on the horizontal axis.

    >>> [_tick(v) for v in (0.0, 250.0, 1500.0, 2e6, 12.8e9)]
    ['0', '250', '1,500', '2 M', '12,800 M']
    """
    return f"{value / 1e6:,.10g} M" if abs(value) >= 1e6 else f"{value:,.6g}"
