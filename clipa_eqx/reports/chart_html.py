"""Charts as part of a web page: SVG and a legend, written without any library, in the colors of the page."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from clipa_eqx.reports.curves import Chart, Curve
from clipa_eqx.reports.short_text import short_number

COLORS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "ink": ("#24292f", "#e6edf3"),
        "faint": ("#59636e", "#9198a1"),
        "rule": ("#d0d7de", "#3d444d"),
        "page": ("#fefefe", "#0d1117"),
        "panel": ("#f6f8fa", "#151b23"),
        "curve-1": ("#1f6fb2", "#58a6ff"),
        "curve-2": ("#c2570c", "#f0883e"),
        "curve-3": ("#1a7f37", "#3fb950"),
        "curve-4": ("#8250df", "#bc8cff"),
        "curve-5": ("#bf3989", "#f778ba"),
    }
)
"""Name of each color, its value on light and on dark pages. Image files are light."""

_CURVES = [name for name in COLORS if name.startswith("curve")]
_DASHES = ("", "7 4", "2 3", "9 3 2 3")
"""Curves beyond the number of colors take them again, with another pattern."""

_WIDTH, _HEIGHT = 400, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 10, 38
"""Units of a chart, and of its margins. A page that is 390 pixels wide shows a unit as about 0.9 pixels."""

_MOST_POINTS = 300
"""Points of a curve that are drawn; of more, the lowest and the highest of each part."""

_STYLE = """
.chart{margin:0;min-width:0}
.chart figcaption{font-weight:600;font-size:.95rem;overflow-wrap:anywhere}
.chart svg{display:block;width:100%;max-width:34rem;height:auto;overflow:visible}
.chart text{font:12px system-ui,sans-serif;fill:var(--faint)}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1rem;list-style:none;margin:.2rem 0 0;padding:0;font-size:.85rem}
.legend li{display:flex;align-items:center;gap:.4rem;min-width:0;overflow-wrap:anywhere}
.legend svg{flex:none;width:1.4rem;height:.6rem}.legend b{flex:none;font-variant-numeric:tabular-nums}
"""


def chart_style() -> str:
    """Style sheet of charts, which sets all colors for light and dark pages."""
    light, dark = ("".join(f"--{name}:{pair[side]};" for name, pair in COLORS.items()) for side in (0, 1))
    colors = f":root{{color-scheme:light dark;{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return f"{colors}{_STYLE}"


def chart_figure(chart: Chart) -> str:
    """A chart as a ``<figure>`` of a page: its title, its curves, and the name and last value of each curve.

    Names and titles are escaped. Each marked point shows its value when the mouse is over it.
    """
    x_low, x_high = _widened(chart.x_span)
    y_low, y_high = _y_span(chart.curves)
    y_ticks = ticks(y_low, y_high, count=5)
    x_ticks, x_name = _x_ticks(chart, x_low, x_high)

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _TOP + (1 - up) * (_HEIGHT - _TOP - _BOTTOM)

    parts: list[str] = []
    for value in y_ticks:
        _, y = place(x_low, value)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="var(--rule)" stroke-width=".7"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_plain(value, y_ticks)}</text>')
    base = _HEIGHT - _BOTTOM
    for value, text in x_ticks:
        x, _ = place(value, y_low)
        parts.append(f'<path d="M{x:.1f} {base}v4" stroke="var(--rule)"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 17}" text-anchor="middle">{text}</text>')
    name = html.escape(x_name)
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{name}</text>')
    styles = list(_line_styles(chart.curves))
    for curve, style in zip(chart.curves, styles, strict=True):
        parts += _curve_parts(curve, style, [place(*point) for point in thinned(curve.points)], place)
    title = html.escape(chart.title)
    return (
        f'<figure class=chart><figcaption>{title}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{title}">{"".join(parts)}</svg>{_legend(chart.curves, styles)}</figure>'
    )


def ticks(low: float, high: float, *, count: int) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``.

    >>> ticks(0.0, 10.0, count=5), ticks(2.1, 4.7, count=5)
    ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [2.5, 3.0, 3.5, 4.0, 4.5])
    """
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if size * factor >= 0.8 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def thinned(points: Sequence[tuple[float, float]], *, most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """At most about ``most`` points: the first, the last, and the lowest and highest of equal parts in between.

    >>> thinned([(float(x), float(x == 50)) for x in range(100)], most=4)
    [(0.0, 0.0), (1.0, 0.0), (50.0, 1.0), (99.0, 0.0)]
    """
    if len(points) <= most:
        return list(points)
    inner, parts = points[1:-1], max(most // 2 - 1, 1)
    kept = [points[0]]
    for number in range(parts):
        part = inner[number * len(inner) // parts : (number + 1) * len(inner) // parts]
        extremes = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(extremes)
    return [*kept, points[-1]]


def _line_styles(curves: Sequence[Curve]) -> list[str]:
    """Color and pattern of each curve."""
    styles: list[str] = []
    number = 0
    for curve in curves:
        if curve.is_reference:
            styles.append('stroke="var(--faint)" stroke-dasharray="2 3"')
            continue
        dashes = _DASHES[number // len(_CURVES) % len(_DASHES)]
        pattern = f' stroke-dasharray="{dashes}"' if dashes else ""
        styles.append(f'stroke="var(--{_CURVES[number % len(_CURVES)]})"{pattern}')
        number += 1
    return styles


def _curve_parts(
    curve: Curve, style: str, shown: Sequence[tuple[float, float]], place: Callable[[float, float], tuple[float, float]]
) -> list[str]:
    if not shown:
        return []
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in shown)
    parts = [f'<path d="{path}" fill="none" stroke-width="1.8" stroke-linejoin="round" {style}/>']
    # A single point would be invisible without a dot. Many dots would hide the line.
    if (curve.is_marked and len(curve.points) <= 60) or len(curve.points) == 1:
        color = style.split('"')[1]
        for x, y in curve.points:
            left, top = place(x, y)
            words = html.escape(f"{curve.name}: {short_number(y)} at {x:,.6g}")
            parts.append(f'<circle cx="{left:.1f}" cy="{top:.1f}" r="3" fill="{color}"><title>{words}</title></circle>')
    return parts


def _legend(curves: Sequence[Curve], styles: Sequence[str]) -> str:
    """Name and last value of each curve; of a single one only the value, because the title names it."""
    entries: list[str] = []
    for curve, style in zip(curves, styles, strict=True):
        sample = f'<svg viewBox="0 0 28 10" aria-hidden="true"><path d="M0 5H28" stroke-width="3" {style}/></svg>'
        name = f"{sample}<span>{html.escape(curve.name)}</span>" if len(curves) > 1 else "last "
        value = f"<b>{short_number(curve.points[-1][1])}</b>" if curve.points else ""
        entries.append(f"<li>{name}{value}</li>")
    return f"<ul class=legend>{''.join(entries)}</ul>"


def _y_span(curves: Sequence[Curve]) -> tuple[float, float]:
    """The values of all curves, with some room above and below them."""
    values = [y for curve in curves for _, y in curve.points] or [0.0]
    low, high = _widened((min(values), max(values)))
    room = 0.05 * (high - low)
    # Shares and rates are not negative, and neither is their axis.
    return (low - room if min(values) < 0 else max(low - room, 0.0)), high + room


def _widened(span: tuple[float, float]) -> tuple[float, float]:
    """The span; around a single value, a span with it in the middle."""
    low, high = span
    half = (abs(low) or 1.0) / 2 if low == high else 0.0
    return low - half, high + half


def _x_ticks(chart: Chart, low: float, high: float) -> tuple[list[tuple[float, str]], str]:
    """Positions and their texts, and the name of the axis with its power of ten."""
    found = ticks(max(low, 0.0) if chart.x_span[0] >= 0 else low, high, count=5)
    power = max(math.floor(math.log10(abs(high)) / 3) * 3, 0) if high else 0
    if power < 6:
        return [(value, f"{value:,.10g}") for value in found], chart.x_name
    words = {6: "millions", 9: "billions"}.get(power, f"10^{power}")
    return [(value, f"{value / 10.0**power:,.4g}") for value in found], f"{chart.x_name} ({words})"


def _plain(value: float, others: Sequence[float]) -> str:
    """A position on the vertical axis, with as many digits as its neighbors need."""
    step = others[1] - others[0] if len(others) > 1 else abs(value) or 1.0
    largest = max(map(abs, others))
    if largest and (largest < 1e-3 or largest >= 1e6):
        return "0" if value == 0 else f"{value:.3g}"
    digits = max(-math.floor(math.log10(step) + 1e-9), 0)
    if round(step * 10**digits, 6) % 1:  # such as 2.5
        digits += 1
    return f"{value:,.{digits}f}"
