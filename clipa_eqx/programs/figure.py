"""Charts as an image file or as part of a web page, in one style. Needs matplotlib."""

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter

from clipa_eqx.programs.curves import Chart
from clipa_eqx.replacing import new_file

COLORS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "ink": ("#24292f", "#e6edf3"),
        "faint": ("#6e7781", "#9198a1"),
        "rule": ("#d0d7de", "#3d444d"),
        "page": ("#fefefe", "#0d1117"),
        "curve-1": ("#1f6fb2", "#58a6ff"),
        "curve-2": ("#c2570c", "#f0883e"),
        "curve-3": ("#1a7f37", "#3fb950"),
        "curve-4": ("#8250df", "#bc8cff"),
        "curve-5": ("#bf3989", "#f778ba"),
    }
)
"""Name of each color, its value on light and on dark pages. Image files are light."""

_CURVES = [light for name, (light, _) in COLORS.items() if name.startswith("curve")]
_INK, _FAINT, _RULE, _PAGE = (COLORS[name][0] for name in ("ink", "faint", "rule", "page"))
_WIDTH, _HEIGHT = 5.2, 3.2
"""Inches of a chart in an image file."""

_PAGE_WIDTH, _PAGE_HEIGHT = 4.3, 2.9
"""Inches of a chart on a page: smaller, so that its text is large enough where the page is as narrow as a phone."""

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


def chart_svg(chart: Chart) -> str:
    """A chart as an ``<svg>`` element of a page: with the page's font, and colors that ``css_colors`` sets."""
    out = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_PAGE_WIDTH, _PAGE_HEIGHT), layout="constrained")
        draw_chart(figure, chart)
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()[out.getvalue().index("<svg") :]
    for name, (light, _) in COLORS.items():
        svg = svg.replace(light, f"var(--{name})")
    svg = re.sub(r"<metadata>.*?</metadata>|font-family: [^;\"]*; ", "", svg, flags=re.DOTALL)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(chart.title)}" ', 1)


def css_colors() -> str:
    """Style sheet that sets the colors of charts for light and dark pages."""
    light, dark = ("".join(f"--{name}:{pair[side]};" for name, pair in COLORS.items()) for side in (0, 1))
    return f":root{{color-scheme:light dark;{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"


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
