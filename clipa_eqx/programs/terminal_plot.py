"""Charts as text: lines of braille dots, or of asterisks for terminals that have no braille."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clipa_eqx.reports.curves import Chart, Curve
from clipa_eqx.reports.short_text import short_number

_ACROSS, _DOWN = 2, 4
"""Dots of a braille character."""

_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of each dot by row and column, as Unicode assigns them."""

_COLORS = (34, 33, 32, 35, 36)
"""ANSI codes of the first, second, ... curve."""

_TWO_COLUMNS = 72
"""Narrowest terminal that gets two charts next to each other."""


@dataclass(frozen=True, kw_only=True)
class Paper:
    """The terminal that text is made for.

    Attributes:
        width: characters per line.
        has_braille: whether it shows braille and box characters; otherwise all text is ASCII.
        has_colors: whether it understands ANSI colors.
        height: lines of the field of a chart, without its title and its axis.
    """

    width: int = 80
    has_braille: bool = True
    has_colors: bool = False
    height: int = 8


def plot_charts(charts: Sequence[Chart], paper: Paper) -> Iterator[str]:
    """Lines that show all charts, two next to each other if the terminal is wide enough."""
    across = 2 if paper.width >= _TWO_COLUMNS else 1
    width = (paper.width - 2 * (across - 1)) // across
    for first in range(0, len(charts), across):
        shown = charts[first : first + across]
        has_names = any(len(chart.curves) > 1 for chart in shown)
        row = [plot_chart(chart, paper, width=width, has_names=has_names) for chart in shown]
        for parts in zip(*row, strict=True):
            yield "  ".join(parts).rstrip()
        yield ""


def plot_chart(chart: Chart, paper: Paper, *, width: int, has_names: bool) -> list[str]:
    """Lines of exactly ``width`` visible characters: the title, the field, and the horizontal axis.

    Args:
        has_names: add a line with the name and last value of each curve; otherwise the title line has the last value.
    """
    low, high = _span([y for curve in chart.curves for _, y in curve.points])
    labels = {0: short_number(high), paper.height - 1: short_number(low)}
    margin = max(map(len, labels.values()))
    field = max(width - margin - 2, 4)
    cells = _cells(chart.curves, x=_span(chart.x_span), y=(low, high), columns=field, rows=paper.height)
    corner, down, along, tick = ("└", "│", "─", "┤") if paper.has_braille else ("+", "|", "-", "|")
    lines = _heading(chart, paper, width, has_names=has_names)
    for row in range(paper.height):
        text = "".join(_cell(cells.get((column, row)), paper) for column in range(field))
        lines.append(f"{labels.get(row, ''):>{margin}} {tick if row in labels else down}{text}")
    lines.append(f"{'':{margin}} {corner}{along * field}")
    first, last = map(short_number, chart.x_span)
    lines.append(f"{'':{margin}}  {first}{f'{chart.x_name} {last}':>{field - len(first)}}")
    return lines


def _heading(chart: Chart, paper: Paper, width: int, *, has_names: bool) -> list[str]:
    """The title with the last value; or the title, and a line of names with last values, as many as there is room."""
    last = [short_number(curve.points[-1][1]) for curve in chart.curves]
    if not has_names:
        return [f"{chart.title}{_colored(f'{last[0]:>{width - len(chart.title)}}', 0, paper)}"]
    free, names = width, ""
    for number, (curve, value) in enumerate(zip(chart.curves, last, strict=True)):
        text = f"{curve.name} {value}  " if len(chart.curves) > 1 else f"{value}  "
        if len(text) > free:
            break
        free -= len(text)
        names += _colored(text, number, paper)
    return [f"{chart.title:{width}.{width}}", f"{names}{'':{free}}"]


def _cells(
    curves: Sequence[Curve], *, x: tuple[float, float], y: tuple[float, float], columns: int, rows: int
) -> dict[tuple[int, int], tuple[int, int]]:
    """Dots (as bits) and number of the curve by column and row of the characters that are not empty."""
    cells: dict[tuple[int, int], tuple[int, int]] = {}
    for number, curve in enumerate(curves):
        dots = [
            (_place(px, x, columns * _ACROSS), rows * _DOWN - 1 - _place(py, y, rows * _DOWN))
            for px, py in curve.points
        ]
        for dot_x, dot_y in _joined(dots):
            key = (dot_x // _ACROSS, dot_y // _DOWN)
            bits = cells.get(key, (0, number))[0]
            cells[key] = (bits | _BITS[dot_y % _DOWN][dot_x % _ACROSS], number)
    return cells


def _joined(dots: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The dots, and those on the straight lines between neighbors."""
    yield from dots[:1]
    for (x0, y0), (x1, y1) in itertools.pairwise(dots):
        steps = max(abs(x1 - x0), abs(y1 - y0))
        yield from ((x0 + round((x1 - x0) * i / steps), y0 + round((y1 - y0) * i / steps)) for i in range(1, steps + 1))


def _cell(found: tuple[int, int] | None, paper: Paper) -> str:
    if found is None:
        return " "
    bits, number = found
    return _colored(chr(0x2800 + bits) if paper.has_braille else "*", number, paper)


def _colored(text: str, number: int, paper: Paper) -> str:
    return f"\x1b[{_COLORS[number % len(_COLORS)]}m{text}\x1b[0m" if paper.has_colors else text


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest value; a single value is in the middle."""
    low, high = min(values), max(values)
    half = (abs(low) or 1.0) / 2 if low == high else 0.0
    return low - half, high + half


def _place(value: float, span: tuple[float, float], dots: int) -> int:
    return round((value - span[0]) / (span[1] - span[0]) * (dots - 1))
