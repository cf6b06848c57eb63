"""Draw the figure of the README, docs/figures/quickstart.svg, from the table of results in the README.

Run `python scripts/quickstart_figure.py` after a change of the table; a test compares the two.
"""

import re
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import run
from clipa_eqx.replacing import write_text

ROOT = Path(__file__).resolve().parent.parent
FIGURE = ROOT / "docs" / "figures" / "quickstart.svg"

_ROW = re.compile(r"^\| (.+?) \| ([\d.]+) % \| ([\d.]+) % \|", re.MULTILINE)
_BARS = (
    ("chance", "chance", "#b8b8b8"),
    ("full size only", "full size only", "#8fb0d0"),
    ("mean of seeds", "CLIPA, mean of 3 seeds", "#2f6ea5"),
)
"""What the label of a row contains, the label in the figure, the color."""

_WIDTH, _LEFT, _STEP, _BAR = 700, 215, 26, 18  # pixels
_PIXELS_PER_PERCENT = 9.0


class Score(NamedTuple):
    """A row of the table: label, top-1 and top-5 in percent."""

    label: str
    top1: float
    top5: float


def read_scores(readme: str) -> list[Score]:
    """The rows of the table that follows the marker ``<!-- quickstart-result -->``."""
    table = readme.split("<!-- quickstart-result -->")[1].split("\n#")[0]
    return [Score(label, float(top1), float(top5)) for label, top1, top5 in _ROW.findall(table)]


def draw(scores: list[Score]) -> str:
    """The figure as SVG: three bars for top-1 and for top-5, and a dot for each seed."""
    seeds = [score for score in scores if score.label.startswith("seed ")]
    bars = [(name, color, next(s for s in scores if part in s.label)) for part, name, color in _BARS]
    shapes: list[str] = []
    y = 34
    for metric in ("top1", "top5"):
        shapes.append(_text(8, y, metric.replace("top", "top-"), weight="bold"))
        for name, color, score in bars:
            value: float = getattr(score, metric)
            end = _LEFT + value * _PIXELS_PER_PERCENT
            shapes.append(_text(_LEFT - 8, y, name, anchor="end"))
            shapes.append(f'<rect x="{_LEFT}" y="{y - 13}" width="{end - _LEFT:.1f}" height="{_BAR}" fill="{color}"/>')
            dots = [getattr(seed, metric) for seed in seeds] if "mean" in score.label else []
            shapes += [
                f'<circle cx="{_LEFT + dot * _PIXELS_PER_PERCENT:.1f}" cy="{y - 4}" r="3.5" fill="#111" stroke="#fff"/>'
                for dot in dots
            ]
            shapes.append(_text(max(end, *(_LEFT + dot * _PIXELS_PER_PERCENT for dot in dots), 0) + 8, y, f"{value} %"))
            y += _STEP
        y += 14
    style = 'font-family="sans-serif" font-size="13" fill="#222"'
    background = f'<rect width="{_WIDTH}" height="{y - 14}" fill="#fff"/>'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y - 14}" {style}>',
            background,
            *shapes,
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, words: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.0f}" y="{y}" text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'


def main(argv: Sequence[str] | None = None) -> None:
    ArgumentParser(description=__doc__).parse_args(argv)
    write_text(FIGURE, draw(read_scores((ROOT / "README.md").read_text(encoding="utf-8"))))


if __name__ == "__main__":
    sys.exit(run(main))
