"""The quickstart's report.html: one file with curves, costs, and held-out drawings with their likeliest names."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.replacing import write_text

SHOWN_DRAWINGS = 60
_METRIC = "zero_shot/validation"

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.3rem .8rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(10rem,1fr));gap:.8rem}
.card{border:1px solid #ddd;border-radius:.4rem;padding:.6rem;font-size:13px}.card img{width:64px;height:64px}
.card ol{margin:.3rem 0 0 1.2rem;padding:0}.hit{font-weight:600;color:#176c2c}.big{font-size:1.6rem}"""


def write_report(
    path: Path,
    result: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    scored: Mapping[str, Any],
    data: Path,
    baseline: Path,
) -> None:
    """Write the page; ``baseline`` is the recorded curve of the same training time spent at full size, if there."""
    recorded = json.loads(baseline.read_text(encoding="utf-8")) if baseline.exists() else None
    body = [
        "<h1>CLIPA quickstart</h1>",
        f"<p class=big>Zero-shot on a family of drawings never seen in training: top-1 {100 * result['top1']:.1f} %, "
        f"top-5 {100 * result['top5']:.1f} %</p>",
        f"<p>{result['count']} drawings, {result['class_count']} names, chance {100 / result['class_count']:.2f} %; "
        f"{result['seconds']:.0f} s in all, seed {result['seed']}.</p>",
        "<h2>What was spent</h2>",
        _cost_table(stages),
        "<h2>Curves</h2>",
        _curves(stages, recorded),
        _baseline_text(recorded),
        "<h2>Held-out drawings and their five likeliest names</h2>",
        _drawings(scored, data / "test"),
    ]
    page = f"<!doctype html><meta charset=utf-8><title>CLIPA quickstart</title><style>{_STYLE}</style>{''.join(body)}\n"
    write_text(path, page)


def _cost_table(stages: Sequence[Mapping[str, Any]]) -> str:
    head = "<tr><th>stage<th>steps<th>batch<th>image tokens<th>text tokens<th>tokens seen<th>seconds</tr>"
    rows = "".join(
        f"<tr><td>{s['name']}<td>{s['steps']}<td>{s['batch_size']}<td>{s['image_tokens']}<td>{s['text_tokens']}"
        f"<td>{s['steps'] * s['batch_size'] * (s['image_tokens'] + s['text_tokens']) / 1e6:.1f} M"
        f"<td>{s['seconds']:.0f}</tr>"
        for s in stages
    )
    return f"<table>{head}{rows}</table>"


def _curves(stages: Sequence[Mapping[str, Any]], recorded: Mapping[str, Any] | None) -> str:
    """Loss and validation score over training seconds."""
    figure, (loss, score) = plt.subplots(1, 2, figsize=(11, 4))
    start = 0.0
    for stage in stages:
        seconds = training_seconds(stage["curve"])
        loss.plot([start + s for s in seconds], [row["loss"] for row in stage["curve"]], label=stage["name"])
        points = [(start + s, row) for s, row in zip(seconds, stage["curve"], strict=True) if f"{_METRIC}/top1" in row]
        for name, style in (("top1", "o-"), ("top5", "s--")):
            values = [100 * row[f"{_METRIC}/{name}"] for _, row in points]
            score.plot([s for s, _ in points], values, style, label=f"{stage['name']} {name}")
        start += seconds[-1] if seconds else 0.0
    if recorded:
        for name, column, style in (("top1", 1, ":"), ("top5", 2, ":")):
            xs = [row[0] * recorded["seconds_per_example"] for row in recorded["curve"]]
            values = [100 * row[column] for row in recorded["curve"]]
            score.plot(xs, values, style, color="gray", label=f"full size only {name} (recorded)")
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
    """Seconds of training up to each logged step, compilation and scoring left out."""
    seconds, before, total = [], 0, 0.0
    for row in curve:
        total += (row["step"] - before) * row["seconds_per_step"]
        before = row["step"]
        seconds.append(total)
    return seconds


def _baseline_text(recorded: Mapping[str, Any] | None) -> str:
    if recorded is None:
        return "<p>No recorded run at full size only; <code>make quickstart-baseline</code> makes one.</p>"
    return (
        f"<p>Recorded with <code>make quickstart-baseline</code> ({html.escape(recorded['machine'])}): "
        f"{recorded['stages'][0]['steps']:,} steps at full size only, which take as long as both stages on an idle "
        f"machine, reach top-1 {100 * recorded['top1']:.1f} %, top-5 "
        f"{100 * recorded['top5']:.1f} % on the held-out family.</p>"
    )


def _drawings(scored: Mapping[str, Any], folder: Path) -> str:
    source = open_records(folder)
    names = scored["class_names"]
    every = max(1, len(scored["sample_id"]) // SHOWN_DRAWINGS)
    cards: list[str] = []
    for sample, ranked in list(zip(scored["sample_id"], scored["predictions"], strict=True))[::every]:
        record = source[sample]
        picture = base64.b64encode(record.image).decode()
        entries = "".join(
            f"<li{' class=hit' if label == record.label else ''}>{html.escape(names[label])}</li>" for label in ranked
        )
        title = html.escape(names[record.label] if record.label is not None else record.key)
        cards.append(
            f"<div class=card><img src='data:image/png;base64,{picture}' alt='{title}'><br><b>{title}</b>"
            f"<ol>{entries}</ol></div>"
        )
    return f"<div class=grid>{''.join(cards)}</div>"
