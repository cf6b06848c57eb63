"""`make quickstart` in a few steps: all of its parts run and write the files that its documentation names."""

import html
import itertools
import json
import os
import re
import subprocess
import sys

import pytest
from support.paths import ROOT


@pytest.mark.parametrize(
    ("kind", "stages"),
    [((), ["pretrain", "tune"]), pytest.param(("--baseline",), ["baseline"], marks=pytest.mark.slow)],
)
def test_a_short_quickstart_trains_scores_and_reports(tmp_path, kind, stages):
    folder = tmp_path / "quickstart"
    run = subprocess.run(
        [sys.executable, "scripts/quickstart.py", "--short", "--folder", str(folder), *kind],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    if kind:
        folder = folder.with_name("quickstart-baseline")
        assert json.loads((folder / "baseline.json").read_text())["curve"]
    result = json.loads((folder / "result.json").read_text())
    assert {"top1", "top5", "seconds"} <= set(result)
    assert result["count"] == result["class_count"] > 400
    assert [stage["name"] for stage in result["stages"]] == stages
    assert (folder / stages[-1] / "model" / "model.safetensors").is_file()
    page = (folder / "report.html").read_text(encoding="utf-8")
    check_report(page, result)
    check_gain(page, [folder / name / "metrics.jsonl" for name in stages])


def check_report(page, result):
    """Scores, a row of costs per stage, charts of all stages and the recorded run, and icons with five names each."""
    assert f"top-1 {100 * result['top1']:.1f}\u00a0%, top-5 {100 * result['top5']:.1f}\u00a0%" in page
    assert re.findall(r"<tr><td>(\w+)<td>6<", page) == [stage["name"] for stage in result["stages"]]
    charts = [chart_words(chart) for chart in re.findall(r"<figure class=chart>.*?</figure>", page)]
    assert [words[0] for words in charts] == [
        "loss on the stage's own batches, nats",
        "zero-shot top-1 on validation families, %",
        "zero-shot top-5 on validation families, %",
    ]
    stages = {stage["name"] for stage in result["stages"]}
    for number, words in enumerate(charts):
        assert [word for word in words if word.startswith("tokens seen")]
        assert number == 0 or stages <= set(words)
        assert ("full size only (recorded)" in words) == (number > 0)
    cards = re.findall(r"<li class=card><img src='data:image/png;base64,([\w+/=]+)'.*?<b>(.*?)</b><ol>(.*?)</ol>", page)
    assert len(cards) == 60
    assert {names.count("<li") for _, _, names in cards} == {5}
    assert len({image for image, _, _ in cards}) == 60
    # Mixed: the records themselves are in the order of their names.
    titles = [title for _, title, _ in cards]
    assert sum(a < b for a, b in itertools.pairwise(titles)) < 45
    hits = sum("class=hit" in names for _, _, names in cards)
    assert f"the right name is among the five of {hits} of them" in page
    check_page(page)


def chart_words(chart):
    """The name of a chart, and all words on it and below it."""
    return [html.unescape(text) for text in re.findall(r">([^<>]+)<", chart)]


def check_page(page):
    """It fits narrow screens and both color schemes, and loads nothing."""
    assert '<meta name=viewport content="width=device-width,initial-scale=1">' in page
    style = re.search(r"<style>(.*?)</style>", page, flags=re.DOTALL)[1]
    light, dark = style.split("@media(prefers-color-scheme:dark)")
    used = set(re.findall(r"var\(--([\w-]+)\)", page))
    assert {"page", "ink", "rule", "faint", "curve-1", "curve-3"} <= used
    assert used <= set(re.findall(r"--([\w-]+):#", light))
    assert used <= set(re.findall(r"--([\w-]+):#", dark.split("}}")[0]))
    assert re.findall(r"(?:src|href)=[\"'](?!data:|#)", page) == []
    # Nothing is wider than a phone: charts shrink, and columns of charts and cards wrap.
    assert "svg{display:block;width:100%" in style
    assert [int(width) for width in re.findall(r"[;{](?:min-)?width:(\d+)px", style)] == [64]
    assert re.findall(r"minmax\(([^,]+(?:,\w+\))?),", style) == ["min(100%,20rem)", "9.5rem"]


def check_gain(page, logs):
    """The scores before and after fine-tuning are those of the logs; a single stage has no such section."""
    if len(logs) == 1:
        assert "What fine-tuning bought" not in page
        return
    before, after = ([json.loads(line) for line in log.read_text().splitlines()][-1] for log in logs)
    shown = re.findall(r"<tr><td>(top-\d)<td>([\d.]+)\xa0%<td>([\d.]+)\xa0%<td>([+-][\d.]+) points", page)
    expected = []
    for name in ("top1", "top5"):
        old, new = (100 * line[f"zero_shot/validation/{name}"] for line in (before, after))
        expected.append((name.replace("top", "top-"), f"{old:.1f}", f"{new:.1f}", f"{new - old:+.1f}"))
    assert shown == expected
    # 9 tokens per pair, then 18.
    assert "It took 6 of 12 steps: 67 % of the tokens" in page
