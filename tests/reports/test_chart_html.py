"""Charts of pages: right places, round ticks, colors of both schemes, escaped names."""

import re

import pytest

from clipa_eqx.reports.chart_html import chart_figure, chart_style, thinned, ticks
from clipa_eqx.reports.curves import Chart, Curve


def figure(*curves, title="score, %", x_span=(0.0, 5e6)):
    return chart_figure(Chart(title=title, x_name="tokens", x_span=x_span, curves=curves))


def path_points(svg, color="curve-1"):
    [path] = re.findall(rf'<path d="M([^"]*)" fill="none"[^>]*stroke="var\(--{color}\)"', svg)
    return [tuple(map(float, pair.split())) for pair in path.split("L")]


def test_a_chart_has_words_and_takes_all_colors_from_the_page():
    """Both color schemes set each variable, and no color is left that only one of them could show."""
    points = [(0.0, 1.0), (5e6, 2.0)]
    html = figure(
        Curve(name="ours", points=points, is_marked=True), Curve(name="theirs", points=points, is_reference=True)
    )
    assert {"score, %", "tokens (millions)", "ours", "theirs", "4"} <= set(re.findall(r">([^<>]+)<", html))
    used = set(re.findall(r"var\(--([\w-]+)\)", html + chart_style()))
    assert {"faint", "rule", "curve-1"} <= used
    light, dark = chart_style().split("@media(prefers-color-scheme:dark)")
    assert used <= set(re.findall(r"--([\w-]+):#", light)) & set(re.findall(r"--([\w-]+):#", dark))
    assert "#" not in html


def test_points_are_at_their_places():
    """The first is at the left, the last at the right; the higher of two values is further up, in proportion."""
    points = path_points(figure(Curve(name="c", points=[(0.0, 1.0), (1.0, 3.0), (4.0, 2.0)]), x_span=(0.0, 4.0)))
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.25, abs=1e-3)
    assert (y0 - y2) / (y0 - y1) == pytest.approx(0.5, abs=2e-3)
    assert y1 < y2 < y0


def test_names_are_escaped_everywhere():
    hostile = "<img src=x onerror=alert(1)>\"'&"
    html = figure(*(Curve(name=hostile, points=[(0.0, 1.0)], is_marked=True) for _ in range(2)), title=hostile)
    assert "<img" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;&quot;&#x27;&amp;") == 6  # caption, label, 2 curves, 2 points


@pytest.mark.parametrize("points", [[(1.0, 5.0)], [(1.0, 0.0), (9.0, 0.0)], [(1.0, -3.0), (2.0, -3.0)], []])
def test_single_constant_and_absent_values_are_drawn(points):
    html = figure(Curve(name="c", points=points), x_span=(1.0, 9.0) if len(points) != 1 else (1.0, 1.0))
    assert "nan" not in html
    assert html.count("<circle") == (len(points) == 1)


def test_curves_beyond_the_colors_have_another_pattern():
    html = figure(*(Curve(name=str(n), points=[(0.0, 1.0), (1.0, 2.0)]) for n in range(11)))
    styles = re.findall(r'fill="none" stroke-width="1.8" stroke-linejoin="round" ([^/]*)/>', html)
    assert len(set(styles)) == len(styles) == 11


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.37, 0.3701), (-5.0, 12.0), (1e6, 12.8e9), (1e-9, 1e-3)])
def test_ticks_are_few_round_and_inside(low, high):
    found = ticks(low, high, count=5)
    assert 2 <= len(found) <= 8
    assert low - 1e-9 * abs(low) <= found[0]
    assert found[-1] <= high * (1 + 1e-9)


def test_a_long_curve_keeps_its_ends_and_its_peaks():
    points = [(float(x), 0.0) for x in range(100_000)]
    points[77_777] = (77_777.0, 9.0)
    points[33_333] = (33_333.0, -9.0)
    kept = thinned(points)
    assert len(kept) <= 300
    assert {points[0], points[-1], points[77_777], points[33_333]} <= set(kept)
    assert kept == sorted(kept)
