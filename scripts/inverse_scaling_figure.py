"""Draw the figure of the study and write its tables, from the results recorded in docs/inverse_scaling.json.

Run `python scripts/inverse_scaling_figure.py` after a change of that file; a test compares figure and tables with it.
"""

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import run
from clipa_eqx.replacing import write_text

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "docs" / "inverse_scaling.json"
FIGURE = ROOT / "docs" / "figures" / "inverse_scaling.svg"
README, PAGE = ROOT / "README.md", ROOT / "docs" / "inverse_scaling.md"
MARKER = "<!-- inverse-scaling-result -->"

Row = Mapping[str, Any]
"""The result of a run, as ``results.json`` has it."""

_STAGES = {"pretrain": "before fine-tuning", "tune": "after fine-tuning"}

_WIDTH, _HEIGHT, _TOP, _BOTTOM = 760, 430, 82, 352  # pixels; the last two are the ends of the vertical axis
_PANELS = ((52, 368), (432, 748))  # left and right end of each
_STYLE = """
text{font:13px sans-serif;fill:#24292f}.title{font-weight:bold}.faint{fill:#59636e}
.page{fill:#fefefe}.rule{stroke:#d0d7de;fill:none}.chance{stroke:#59636e;stroke-dasharray:2 3;fill:none}
.any{stroke:#59636e}
.curve{fill:none;stroke-width:2}.pretrain{stroke-dasharray:6 4;opacity:.75}.seed{fill:none;stroke-width:1.5}
.s0{stroke:#1f6fb2}.s1{stroke:#c2570c}.s2{stroke:#1a7f37}.d0{fill:#1f6fb2}.d1{fill:#c2570c}.d2{fill:#1a7f37}
@media(prefers-color-scheme:dark){
text{fill:#e6edf3}.faint{fill:#9198a1}.page{fill:#0d1117}.rule{stroke:#3d444d}.chance,.any{stroke:#9198a1}
.s0{stroke:#58a6ff}.s1{stroke:#f0883e}.s2{stroke:#3fb950}.d0{fill:#58a6ff}.d1{fill:#f0883e}.d2{fill:#3fb950}}
"""


def score(row: Row, stage: str) -> float:
    """Top-5 in percent over the icons of both scored sets, each of them ranked against the names of its own set."""
    sets = row[stage]["scores"].values()
    return 100 * sum(one["top5"] * one["count"] for one in sets) / sum(one["count"] for one in sets)


def chance(row: Row) -> float:
    """The score of a guess, in percent."""
    sets = row["tune"]["scores"].values()
    return 100 * sum(5 * one["count"] / one["classes"] for one in sets) / sum(one["count"] for one in sets)


def draw(rows: Sequence[Row], *, planned: int) -> str:
    """The figure as SVG: score over image tokens and over text tokens, a curve per model size and stage.

    A curve joins the runs of the first row's seed; a ring is a run of another seed. Colors follow the browser's scheme.

    Args:
        planned: runs of the study; if there are fewer rows, the figure says so.
    """
    sizes = _sizes(rows)
    top = 5 * math.ceil(max(score(row, stage) for row in rows for stage in _STAGES) / 5 + 0.2)
    shapes = [
        _text(8, 20, "Zero-shot top-5 on icon families never trained on, %; equal compute per model size", "title")
    ]
    shapes += _legend(sizes)
    note = "ring: another seed at full size; dotted: chance; token axes are logarithmic"
    shapes.append(_text(52, _HEIGHT - 10, note, "faint"))
    if len(rows) < planned:
        shapes.append(_text(_WIDTH - 12, _HEIGHT - 10, f"{len(rows)} of {planned} runs so far", anchor="end"))
    full = {name: max(row[name] for row in rows) for name in ("image_tokens", "text_tokens")}
    for span, varied, fixed, words in (
        (_PANELS[0], "image_tokens", "text_tokens", "image tokens in pre-training"),
        (_PANELS[1], "text_tokens", "image_tokens", "text tokens in pre-training"),
    ):
        shown = [row for row in rows if row[fixed] == full[fixed]]
        axis = _Axes(span, [row[varied] for row in shown], top)
        shapes += axis.frame(words, chance=chance(rows[0]))
        for number, size in enumerate(sizes):
            of_size = [row for row in shown if row["size"]["name"] == size]
            for stage in _STAGES:
                shapes += _curve(axis, of_size, varied, stage, number, first_seed=rows[0]["seed"])
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}">',
            f"<style>{_STYLE}</style>",
            f'<rect class="page" width="{_WIDTH}" height="{_HEIGHT}"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def table(rows: Sequence[Row]) -> str:
    """The table of the README: a row per token counts and seed, a column per model size; a missing run has a dash."""
    sizes = _sizes(rows)
    lines = [f"| image tokens | text tokens | seed | {' | '.join(sizes)} |", "|---" * (3 + len(sizes)) + "|"]
    for place in sorted({_place(row) for row in rows}):
        found = {row["size"]["name"]: row for row in rows if _place(row) == place}
        cells = [
            f"{score(found[size], 'pretrain'):.1f} → {score(found[size], 'tune'):.1f}" if size in found else "-"
            for size in sizes
        ]
        lines.append(f"| {' | '.join([*map(str, place), *cells])} |")
    return "\n".join(lines)


def costs(rows: Sequence[Row]) -> str:
    """The table of the documentation: steps, pairs, operations and seconds of each run."""
    sizes = _sizes(rows)
    lines = [
        "| model | image tokens | text tokens | seed | steps | pairs | TFLOP | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (sizes.index(row["size"]["name"]), _place(row))):
        stages = [row[stage] for stage in _STAGES]
        words = [
            row["size"]["name"],
            *map(str, _place(row)),
            " + ".join(str(stage["steps"]) for stage in stages),
            f"{row['pairs']:,}",
            f"{row['flops'] / 1e12:.3f}",
            f"{sum(stage['seconds'] for stage in stages):.0f}",
        ]
        lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines)


def filled(page: str, content: str) -> str:
    """A page with the table after its marker replaced, or inserted there."""
    return re.sub(rf"{MARKER}\n\n(?:\|.*\n)*\n*", lambda _: f"{MARKER}\n\n{content}\n\n", page).rstrip() + "\n"


def _sizes(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["size"]["name"] for row in rows))


def _place(row: Row) -> tuple[int, int, int]:
    return row["image_tokens"], row["text_tokens"], row["seed"]


def _curve(axis: "_Axes", rows: Sequence[Row], varied: str, stage: str, number: int, *, first_seed: int) -> list[str]:
    places = sorted((axis.x(row[varied]), axis.y(score(row, stage)), row["seed"]) for row in rows)
    joined = [(x, y) for x, y, seed in places if seed == first_seed]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in joined)
    return [
        f'<polyline class="curve {stage} s{number}" points="{line}"/>',
        *(f'<circle class="d{number}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in joined),
        *(
            f'<circle class="seed s{number}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
            for x, y, seed in places
            if seed != first_seed
        ),
    ]


class _Axes:
    """A panel: tokens on a logarithmic axis, percent on a linear one from 0 to ``top``."""

    def __init__(self, span: tuple[int, int], tokens: Sequence[int], top: int) -> None:
        self._left, self._right = span
        self._tokens = sorted(set(tokens))
        self._top = top

    def x(self, tokens: int) -> float:
        low, high = (math.log(self._tokens[end]) for end in (0, -1))
        share = (math.log(tokens) - low) / (high - low) if high > low else 0.5
        return self._left + 24 + share * (self._right - self._left - 48)

    def y(self, percent: float) -> float:
        return _BOTTOM - percent / self._top * (_BOTTOM - _TOP)

    def frame(self, words: str, *, chance: float) -> list[str]:
        """Grid, labels, and a line at the score of a guess."""
        step = 5 if self._top <= 30 else 10
        shapes: list[str] = []
        for percent in range(0, self._top + 1, step):
            y = self.y(percent)
            shapes.append(f'<path class="rule" d="M{self._left} {y:.1f}H{self._right}"/>')
            shapes.append(_text(self._left - 8, y + 4, str(percent), "faint", anchor="end"))
        shapes += [_text(self.x(one), _BOTTOM + 18, str(one), "faint", anchor="middle") for one in self._tokens]
        shapes.append(_text((self._left + self._right) / 2, _BOTTOM + 40, words, anchor="middle"))
        shapes.append(f'<path class="chance" d="M{self._left} {self.y(chance):.1f}H{self._right}"/>')
        return shapes


def _legend(sizes: Sequence[str]) -> list[str]:
    shapes: list[str] = []
    x = 52
    for number, size in enumerate(sizes):
        shapes.append(f'<path class="curve s{number}" d="M{x} 45h26"/>')
        shapes.append(_text(x + 32, 49, size))
        x += 100
    for stage, words in reversed(_STAGES.items()):
        shapes.append(f'<path class="curve any {stage}" d="M{x} 45h26"/>')
        shapes.append(_text(x + 32, 49, words))
        x += 170
    return shapes


def _text(x: float, y: float, words: str, kind: str = "", *, anchor: str = "start") -> str:
    shown = f' class="{kind}"' if kind else ""
    return f'<text{shown} x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(words)}</text>'


def main(argv: Sequence[str] | None = None) -> None:
    ArgumentParser(description=__doc__).parse_args(argv)
    results = json.loads(RECORDED.read_text(encoding="utf-8"))
    rows: list[Row] = results["runs"]
    write_text(FIGURE, draw(rows, planned=results["planned_runs"]))
    for page, content in ((README, table(rows)), (PAGE, costs(rows))):
        write_text(page, filled(page.read_text(encoding="utf-8"), content))


if __name__ == "__main__":
    sys.exit(run(main))
