"""The quickstart's report: one HTML page with scores, costs, curves, and held-out icons with their likeliest names."""

import base64
import html
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.evals.counting import ZeroShotResult
from clipa_eqx.replacing import write_text
from clipa_eqx.reports.chart_html import chart_figure, chart_style
from clipa_eqx.reports.curves import Chart, Curve
from scripts.quickstart_result import METRIC, Baseline, Result, Scores, Stage

SHOWN_ICONS = 60
_FULL_SIZE = "full size only (recorded)"

_STYLE = """
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;margin:0;background:var(--page);color:var(--ink)}
main{max-width:72rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem;margin:.5rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem}p{max-width:44rem;margin:.5rem 0}
.big{font-size:1.3rem;line-height:1.35}.small{font-size:.85rem;color:var(--faint)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.3rem 1.5rem .3rem 0;border-bottom:1px solid var(--rule);text-align:right;vertical-align:bottom}
th{font-weight:400;font-size:.85rem;color:var(--faint)}
td:first-child,th:first-child{text-align:left}td:last-child,th:last-child{padding-right:0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1.5rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.75rem;padding:0;list-style:none}
.card{border:1px solid var(--rule);border-radius:.4rem;padding:.6rem;font-size:.8rem;overflow-wrap:anywhere}
.card img{display:block;width:64px;height:64px;background:#fff;border-radius:.3rem;margin-bottom:.3rem}
.card ol{margin:.2rem 0 0;padding-left:1.3rem;color:var(--faint)}.card .hit{font-weight:600;color:var(--curve-3)}
@media(max-width:30rem){td,th{padding-right:.5rem}table{font-size:.85rem}.wide{display:none}}
"""


def write_report(path: Path, result: Result, icons: RecordSource, baseline: Baseline | None) -> None:
    """Write the page. It needs no other file, fits narrow screens, and follows the color scheme of the browser.

    Args:
        icons: the held-out records that were scored.
        baseline: its scores and curves are shown next to those of this run.
    """
    scored = result.scored
    classes = len(scored.per_class_count)
    short = "<p>This was a short run of a few steps per stage: its scores are close to chance.</p>"
    body = [
        "<h1>CLIPA quickstart</h1>",
        f"<p class=big>Zero-shot on a family of icons never seen in training: top-1 {_percent(scored.top1)}, "
        f"top-5 {_percent(scored.top5)}</p>",
        f"<p>{scored.count} icons, {classes} names; {result.seconds:.0f} s in all, seed {result.seed}.</p>",
        short if result.is_short else "",
        _score_table(result, baseline),
        *_gain(result.stages),
        "<h2>Cost</h2>",
        _cost_table(result.stages),
        "<h2>Curves</h2>",
        "<p>Over the tokens of images and texts seen so far, which are the same on every machine.</p>",
        f"<div class=charts>{''.join(map(chart_figure, charts(result.stages, baseline)))}</div>",
        _baseline_text(baseline),
        "<h2>Held-out icons and their five likeliest names</h2>",
        *_cards(scored, icons, seed=result.seed),
    ]
    head = (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>CLIPA quickstart</title><style>{chart_style()}{_STYLE}</style></head>"
    )
    write_text(path, f"{head}<body><main>{''.join(body)}</main></body></html>\n")


def charts(stages: Sequence[Stage], baseline: Baseline | None) -> list[Chart]:
    """Loss, top-1 and top-5 over the tokens of all stages so far; the baseline is drawn next to the scores."""
    starts = [0, *accumulate(stage.tokens for stage in stages)]
    span = (0.0, float(max(starts[-1], baseline.tokens if baseline else 0)))

    def chart(title: str, name: str, *, factor: float = 1.0, others: Sequence[Curve] = ()) -> Chart:
        curves = [
            Curve(
                name=stage.name,
                points=[
                    (float(start + stage.tokens_per_step * row["step"]), factor * row[name])
                    for row in stage.curve
                    if name in row
                ],
                is_marked=name.startswith(METRIC),
            )
            for stage, start in zip(stages, starts, strict=False)
        ]
        return Chart(title=title, x_name="tokens seen", x_span=span, curves=(*curves, *others))

    recorded = (
        {
            name: [Curve(name=_FULL_SIZE, points=points, is_reference=True)]
            for name in Scores._fields
            for points in [[(tokens, 100 * getattr(scores, name)) for tokens, scores in baseline.curve]]
        }
        if baseline
        else {}
    )
    return [
        chart("loss on the stage's own batches, nats", "loss"),
        *(
            chart(
                f"zero-shot {name.replace('top', 'top-')} on validation families, %",
                f"{METRIC}/{name}",
                factor=100.0,
                others=recorded.get(name, ()),
            )
            for name in Scores._fields
        ),
    ]


def _score_table(result: Result, baseline: Baseline | None) -> str:
    """Scores on the held-out family, next to those of the recorded run and of guessing."""
    classes = len(result.scored.per_class_count)
    rows = [
        ("this run", Scores(result.scored.top1, result.scored.top5)),
        *([(_FULL_SIZE, baseline.scores)] if baseline else []),
        ("chance", Scores(1 / classes, min(5 / classes, 1.0))),
    ]
    lines = "".join(f"<tr><td>{name}<td>{_percent(s.top1)}<td>{_percent(s.top5)}</tr>" for name, s in rows)
    return f"<table><tr><th>held-out family<th>top-1<th>top-5</tr>{lines}</table>"


def _gain(stages: Sequence[Stage]) -> Iterator[str]:
    """The change of the validation scores by the last stage, and its share of the cost; nothing for a single stage."""
    if len(stages) < 2:
        return
    before, after = stages[-2].last_scores, stages[-1].last_scores
    if before is None or after is None:
        return
    yield "<h2>What fine-tuning bought</h2>"
    rows = "".join(
        f"<tr><td>{name.replace('top', 'top-')}<td>{_percent(old)}<td>{_percent(new)}"
        f"<td>{100 * (new - old):+.1f} points</tr>"
        for name, old, new in zip(Scores._fields, before, after, strict=True)
    )
    yield f"<table><tr><th>validation families<th>before<th>after<th>change</tr>{rows}</table>"
    last = stages[-1]
    tokens, seconds = last.tokens / sum(s.tokens for s in stages), last.seconds / sum(s.seconds for s in stages)
    yield (
        f"<p>It took {last.steps:,} of {sum(s.steps for s in stages):,} steps: {100 * tokens:.0f} % of the tokens and "
        f"{100 * seconds:.0f} % of the training time. Each stage is scored at its own image size and text length.</p>"
    )


def _cost_table(stages: Sequence[Stage]) -> str:
    head = "<tr><th>stage<th>steps<th class=wide>batch<th>image tokens<th>text tokens<th>tokens seen<th>seconds</tr>"
    rows = "".join(
        f"<tr><td>{s.name}<td>{s.steps:,}<td class=wide>{s.batch_size}<td>{s.image_tokens}<td>{s.text_tokens}"
        f"<td>{_millions(s.tokens)}<td>{s.seconds:.0f}</tr>"
        for s in stages
    )
    return f"<table>{head}{rows}</table>"


def _baseline_text(baseline: Baseline | None) -> str:
    if baseline is None:
        return "<p>No run at full size only is recorded; <code>make quickstart-baseline</code> makes one.</p>"
    return (
        f"<p class=small>Full size only: recorded with <code>make quickstart-baseline</code> "
        f"({html.escape(baseline.machine)}), {baseline.steps:,} steps and {_millions(baseline.tokens)} tokens, which "
        "take as long as both stages on an idle machine.</p>"
    )


def _cards(scored: ZeroShotResult, icons: RecordSource, *, seed: int) -> Iterator[str]:
    """About ``SHOWN_ICONS`` icons in random order, each with its five likeliest names."""
    names = list(icons.manifest.class_names or ())
    order = np.random.default_rng(seed).permutation(len(scored.sample_id))[:SHOWN_ICONS]
    records = [icons[int(scored.sample_id[row])] for row in order]
    hits = sum(record.label in scored.predictions[row].tolist() for row, record in zip(order, records, strict=True))
    yield f"<p>{len(order)} icons sampled at random; the right name is among the five of {hits} of them.</p>"
    yield "<ul class=cards>"
    for row, record in zip(order, records, strict=True):
        content = base64.b64encode(record.image).decode()
        entries = "".join(
            f"<li{' class=hit' if label == record.label else ''}>{html.escape(names[label])}</li>"
            for label in scored.predictions[row].tolist()
        )
        title = html.escape(names[record.label] if record.label is not None else record.key)
        yield (
            f"<li class=card><img src='data:image/png;base64,{content}' alt=''><b>{title}</b><ol>{entries}</ol></li>"
        )
    yield "</ul>"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}\u00a0%"


def _millions(tokens: int) -> str:
    return f"{tokens / 1e6:.1f} M" if tokens >= 1e5 else f"{tokens / 1e3:.1f} k"
