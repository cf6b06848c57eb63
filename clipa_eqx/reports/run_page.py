"""The report of a run: state, progress, speed, curves, latest scores, facts and samples, as one page."""

import html
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clipa_eqx.experiment import ExperimentConfig, operations_per_step
from clipa_eqx.json_config import to_json
from clipa_eqx.reports.chart_html import chart_figure
from clipa_eqx.reports.curves import run_charts
from clipa_eqx.reports.page import Group, Row, page, table, text
from clipa_eqx.reports.run_progress import input_bound_share, seconds_per_step, steps_done, timed, total_steps
from clipa_eqx.reports.sample_cards import CARDS_STYLE, sample_cards
from clipa_eqx.reports.samples import Sample
from clipa_eqx.reports.scores import Line, latest_scores
from clipa_eqx.reports.short_text import short_number, short_time, with_prefix

REPORT_NAME = "report.html"
"""File of the report in a run folder."""

RELOAD_SECONDS = 30
"""A page that was written while the run trains loads itself again after this time."""

_QUIET_SECONDS, _QUIET_PERIODS, _QUIET_PAUSES = 180.0, 6.0, 3.0
"""A page that is older than all is of a run that may have stopped. A period is the time between two lines, a pause that
between two writes of the page."""

_STYLE = """
.state{display:inline-block;padding:.1rem .7rem;border-radius:1rem;border:1px solid;font-weight:600;font-size:.9rem}
.training{color:var(--curve-1)}.finished{color:var(--curve-3)}.interrupted,.quiet{color:var(--curve-2)}
.stopped{color:var(--curve-5)}
.bar{height:.6rem;border-radius:.3rem;background:var(--rule);overflow:hidden;margin:.8rem 0}
.bar div{height:100%;background:var(--curve-1)}
.stats{display:grid;grid-template-columns:repeat(auto-fill,minmax(10.5rem,1fr));gap:.6rem;margin:1rem 0}
.stats div{background:var(--panel);border-radius:.4rem;padding:.5rem .7rem;min-width:0}
.stats dt,.stats span{font-size:.8rem;color:var(--faint)}.stats span{display:block;line-height:1.35}
.stats dd{margin:0;font-size:1.2rem;font-variant-numeric:tabular-nums;overflow-wrap:anywhere;line-height:1.35}
"""

# The age of the page is known where it is read. Without scripts, the time of writing is shown.
_SCRIPT = """<script>
(function(){var w=document.getElementById("written"),b=document.getElementById("state");
var s=Date.now()/1000-w.dataset.at;
function t(s){return s<90?Math.round(s)+" s":s<5400?Math.round(s/60)+" min":s<172800?Math.round(s/3600)+" h":
Math.round(s/86400)+" d"}
if(s>0)w.textContent+=" ("+t(s)+" ago)";
if(w.dataset.quiet&&s>w.dataset.quiet){b.className="state quiet";
b.textContent="no update for "+t(s)+": training may have stopped"}})()
</script>"""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of a run, and a sentence about it.

    Attributes:
        kind: "stopped" is an end without a checkpoint of the last step, by an error or a kill.
    """

    kind: Literal["training", "finished", "interrupted", "stopped"]
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class RunAbout:
    """Everything about a run that its log does not say.

    Attributes:
        name: the run folder, as the title.
        facts: name and value of each fact.
        samples: the first training samples, or the reason for which there are none.
    """

    name: str
    config: ExperimentConfig
    facts: Sequence[tuple[str, str]]
    samples: Sequence[Sample] | str


@dataclass(frozen=True, kw_only=True)
class FixedParts:
    """Parts of the page that stay the same, which are made once."""

    about: RunAbout
    end: str

    @classmethod
    def of(cls, about: RunAbout) -> "FixedParts":
        """The parts of a run."""
        return cls(about=about, end="\n".join(_end(about)))


def run_page(fixed: FixedParts, lines: Sequence[Line], state: RunState, *, now: float, pause: float = 0.0) -> str:
    """The page.

    Args:
        lines: the metric log.
        now: seconds since 1970.
        pause: seconds until the page of a run that trains is written again, about.
    """
    about = fixed.about
    is_training = state.kind == "training"
    charts = run_charts(lines)
    body = [
        f"<h1>{text(about.name)}</h1>",
        f'<p><span id=state class="state {state.kind}">{state.kind}</span> {text(state.words)}</p>',
        *_numbers(about.config, lines, now=now, is_training=is_training),
        _written(about.config, lines, now=now, pause=pause, is_training=is_training),
        "<h2>Curves</h2>",
        f"<div class=charts>{''.join(map(chart_figure, charts))}</div>" if charts else "<p>No step is logged yet.</p>",
        *_scores(lines),
        fixed.end,
        _SCRIPT,
    ]
    reload_seconds = RELOAD_SECONDS if is_training else None
    return page(f"{state.kind}: {about.name}", body, style=_STYLE + CARDS_STYLE, reload_seconds=reload_seconds)


def _numbers(config: ExperimentConfig, lines: Sequence[Line], *, now: float, is_training: bool) -> Iterator[str]:
    """The bar, and a tile for each number."""
    total, last = total_steps(config, lines), lines[-1] if lines else {}
    step = int(last.get("step", 0))
    if total is not None:
        yield f'<div class=bar><div style="width:{100 * min(step / total, 1):.2f}%"></div></div>'
    tiles = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}{f'<span>{text(more)}</span>' if more else ''}</dd></div>"
        for name, value, more in _tiles(config, lines, step, total, now=now, is_training=is_training)
    )
    yield f"<dl class=stats>{tiles}</dl>"


def _tiles(
    config: ExperimentConfig, lines: Sequence[Line], step: int, total: int | None, *, now: float, is_training: bool
) -> Iterator[tuple[str, str, str]]:
    """Name, value and remark of each number."""
    last = lines[-1] if lines else {}
    yield "step", f"{step:,}", f"of {total:,} ({100 * step / total:.1f} %)" if total is not None else ""
    epochs = f"{last['epoch']:.3g} epochs" if "epoch" in last else ""
    yield "samples", f"{int(last.get('examples_seen', step * config.batch_size)):,}", epochs
    per_step = seconds_per_step(lines) if lines else 0.0
    if per_step and total is not None and step < total:
        left = per_step * (total - step)
        yield (
            "time left",
            short_time(left),
            f"until {_moment(now + left)}" if is_training else "of training, if resumed",
        )
    if (training := sum(seconds for _, seconds in timed(lines))) > 0:
        yield "time in steps", short_time(training), "without scoring and saving"
    if _is_number(last, "images_per_second"):
        per_device = last.get("images_per_second_per_device")
        more = f"{per_device:,.4g} per device" if per_device is not None else ""
        yield "images/s", f"{last['images_per_second']:,.4g}", more
    if (share := input_bound_share(lines)) is not None:
        now_share = last.get("input_bound_percent")
        more = f"of the time, at most; {now_share:.1f} % in the last line" if now_share is not None else "of the time"
        yield "waiting for input", f"{share:.1f} %", more
    flops = operations_per_step(config).total
    speed = f"{with_prefix(flops / per_step)}FLOP/s" if per_step else ""
    yield "operations so far", f"{with_prefix(float(flops * steps_done(lines)))}FLOPs", speed
    for name, words, factor, unit in (
        ("loss", "loss", 1.0, " nats"),
        ("accuracy", "accuracy in the batch", 100.0, " %"),
    ):
        if _is_number(last, name):
            yield words, f"{short_number(factor * float(last[name]))}{unit}", ""


def _written(config: ExperimentConfig, lines: Sequence[Line], *, now: float, pause: float, is_training: bool) -> str:
    """The time of writing, and for the script of the page the age at which the run may have stopped."""
    quiet = ""
    if is_training:
        per_step = seconds_per_step(lines) if lines else 0.0
        # Nothing is known about the speed before the first lines.
        if per_step:
            period = per_step * config.log_every_steps
            seconds = max(_QUIET_SECONDS, _QUIET_PERIODS * period, _QUIET_PAUSES * pause)
            quiet = f' data-quiet="{seconds:.0f}"'
    return f'<p class=small>Written <span id=written data-at="{now:.0f}"{quiet}>{_moment(now)}</span></p>'


def _scores(lines: Sequence[Line]) -> Iterator[str]:
    scores = latest_scores(lines)
    if not scores:
        return
    yield "<h2>Latest scores</h2>"
    rows: list[Row] = []
    for evaluation, found in itertools.groupby(scores, key=lambda one: one.name.evaluation):
        rows.append(Group(evaluation))
        rows += [(one.name.score, one.name.text(one.value), f"{one.step:,}") for one in found]
    yield table(("score", "value", "step"), rows)


def _end(about: RunAbout) -> Iterator[str]:
    yield "<h2>The run</h2>"
    yield table((), about.facts, kind="text")
    content: Any = to_json(about.config)
    yield f"<details><summary>Config</summary><pre>{html.escape(json.dumps(content, indent=1))}</pre></details>"
    yield "<h2>First training samples</h2>"
    if isinstance(about.samples, str):
        yield f"<p>{text(about.samples)}</p>"
        return
    yield (
        f"<p>{len(about.samples)} samples, as the model gets them: the image after augmentation, the captions of the "
        "record, and in color the text that the tokenizer keeps. ... is where it is cut.</p>"
    )
    yield sample_cards(about.samples)


def _is_number(line: Line, name: str) -> bool:
    return name in line and math.isfinite(line[name])


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
