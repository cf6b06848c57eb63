"""The quickstart's report: one HTML page with curves, costs, and held-out icons with their five likeliest names."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.evals.counting import ZeroShotResult
from clipa_eqx.replacing import write_text

SHOWN_ICONS = 60
_METRIC = "zero_shot/validation"

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.3rem .8rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(10rem,1fr));gap:.8rem}
.card{border:1px solid #ddd;border-radius:.4rem;padding:.6rem;font-size:13px}.card img{width:64px;height:64px}
.card ol{margin:.3rem 0 0 1.2rem;padding:0}.hit{font-weight:600;color:#176c2c}.big{font-size:1.6rem}"""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training.

    Attributes:
        image_tokens: tokens of one image, the class token included.
        seconds: wall time of the stage, compilation included.
        curve: the lines of its metric log.
    """

    name: str
    steps: int
    batch_size: int
    image_tokens: int
    text_tokens: int
    seconds: float
    curve: Sequence[Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The row without its curve."""
        return {name: value for name, value in vars(self).items() if name != "curve"}


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished quickstart.

    Attributes:
        scored: counts and predictions of the held-out family.
        parts: seconds per part, which still grow while the report is written.
        is_short: whether each stage did a few steps only.
    """

    scored: ZeroShotResult
    stages: Sequence[Stage]
    parts: Mapping[str, float]
    seed: int
    is_short: bool

    @property
    def seconds(self) -> float:
        """Seconds of all parts."""
        return sum(self.parts.values())

    def to_json(self) -> dict[str, Any]:
        """The content of ``result.json``."""
        return {
            "top1": self.scored.top1,
            "top5": self.scored.top5,
            "seconds": self.seconds,
            "parts": dict(self.parts),
            "seed": self.seed,
            "class_count": len(self.scored.per_class_count),
            "count": self.scored.count,
            "is_short": self.is_short,
            "stages": [stage.to_json() for stage in self.stages],
        }


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A recorded run that spent the same training time at full size only.

    Attributes:
        curve: training seconds, top-1 and top-5 (fractions) on the validation families.
    """

    machine: str
    steps: int
    top1: float
    top5: float
    curve: Sequence[tuple[float, float, float]]


def read_baseline(path: Path) -> Baseline | None:
    """The recorded run in a ``baseline.json``, or None if there is no such file."""
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return Baseline(
        machine=found["machine"],
        steps=found["stages"][0]["steps"],
        top1=found["top1"],
        top5=found["top5"],
        curve=[(seen * found["seconds_per_example"], top1, top5) for seen, top1, top5 in found["curve"]],
    )


def write_report(path: Path, result: Result, icons: RecordSource, baseline: Baseline | None) -> None:
    """Write the page.

    Args:
        icons: the held-out records that were scored.
        baseline: drawn next to the curve of this run.
    """
    scored = result.scored
    classes = len(scored.per_class_count)
    body = [
        "<h1>CLIPA quickstart</h1>",
        f"<p class=big>Zero-shot on a family of icons never seen in training: top-1 {100 * scored.top1:.1f} %, "
        f"top-5 {100 * scored.top5:.1f} %</p>",
        f"<p>{scored.count} icons, {classes} names, chance {100 / classes:.2f} %; "
        f"{result.seconds:.0f} s in all, seed {result.seed}.</p>",
        "<h2>Cost</h2>",
        _cost_table(result.stages),
        "<h2>Curves</h2>",
        _curves(result.stages, baseline),
        _baseline_text(baseline),
        "<h2>Held-out icons and their five likeliest names</h2>",
        _cards(scored, icons),
    ]
    page = f"<!doctype html><meta charset=utf-8><title>CLIPA quickstart</title><style>{_STYLE}</style>{''.join(body)}\n"
    write_text(path, page)


def _cost_table(stages: Sequence[Stage]) -> str:
    head = "<tr><th>stage<th>steps<th>batch<th>image tokens<th>text tokens<th>tokens seen<th>seconds</tr>"
    rows = "".join(
        f"<tr><td>{s.name}<td>{s.steps}<td>{s.batch_size}<td>{s.image_tokens}<td>{s.text_tokens}"
        f"<td>{s.steps * s.batch_size * (s.image_tokens + s.text_tokens) / 1e6:.1f} M"
        f"<td>{s.seconds:.0f}</tr>"
        for s in stages
    )
    return f"<table>{head}{rows}</table>"


def _curves(stages: Sequence[Stage], baseline: Baseline | None) -> str:
    """Loss and validation score over training seconds, as SVG."""
    figure, (loss, score) = plt.subplots(1, 2, figsize=(11, 4))
    start = 0.0
    for stage in stages:
        seconds = training_seconds(stage.curve)
        loss.plot([start + s for s in seconds], [row["loss"] for row in stage.curve], label=stage.name)
        points = [(start + s, row) for s, row in zip(seconds, stage.curve, strict=True) if f"{_METRIC}/top1" in row]
        for name, style in (("top1", "o-"), ("top5", "s--")):
            values = [100 * row[f"{_METRIC}/{name}"] for _, row in points]
            score.plot([s for s, _ in points], values, style, label=f"{stage.name} {name}")
        start += seconds[-1] if seconds else 0.0
    if baseline:
        for name, column in (("top1", 1), ("top5", 2)):
            values = [100 * point[column] for point in baseline.curve]
            label = f"full size only {name} (recorded)"
            score.plot([point[0] for point in baseline.curve], values, ":", color="gray", label=label)
    loss.set(xlabel="training seconds", ylabel="contrastive loss (nats)", title="Loss on the stage's own batches")
    score.set(xlabel="training seconds", ylabel="%", title="Zero-shot on validation families")
    for axes in (loss, score):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    out = io.StringIO()
    figure.tight_layout()
    figure.savefig(out, format="svg")
    plt.close(figure)
    return out.getvalue()[out.getvalue().index("<svg") :]


def training_seconds(curve: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds of training up to each logged step, without compilation and scoring."""
    seconds, before, total = [], 0, 0.0
    for row in curve:
        total += (row["step"] - before) * row["seconds_per_step"]
        before = row["step"]
        seconds.append(total)
    return seconds


def _baseline_text(baseline: Baseline | None) -> str:
    if baseline is None:
        return "<p>No run at full size only is recorded; <code>make quickstart-baseline</code> makes one.</p>"
    return (
        f"<p>Recorded with <code>make quickstart-baseline</code> ({html.escape(baseline.machine)}): "
        f"{baseline.steps:,} steps at full size only, which take as long as both stages on an idle machine, reach "
        f"top-1 {100 * baseline.top1:.1f} %, top-5 {100 * baseline.top5:.1f} % on the held-out family.</p>"
    )


def _cards(scored: ZeroShotResult, icons: RecordSource) -> str:
    """About ``SHOWN_ICONS`` icons, evenly chosen, each with its five likeliest names."""
    names = list(icons.manifest.class_names or ())
    every = max(1, len(scored.sample_id) // SHOWN_ICONS)
    cards: list[str] = []
    for sample, ranked in list(zip(scored.sample_id.tolist(), scored.predictions.tolist(), strict=True))[::every]:
        record = icons[sample]
        content = base64.b64encode(record.image).decode()
        entries = "".join(
            f"<li{' class=hit' if label == record.label else ''}>{html.escape(names[label])}</li>" for label in ranked
        )
        title = html.escape(names[record.label] if record.label is not None else record.key)
        cards.append(
            f"<div class=card><img src='data:image/png;base64,{content}' alt='{title}'><br><b>{title}</b>"
            f"<ol>{entries}</ol></div>"
        )
    return f"<div class=grid>{''.join(cards)}</div>"
