"""`make quickstart` in a few steps: all of its parts run and write the files that its documentation names."""

import html
import json
import os
import re
import subprocess
import sys

import pytest
from support.paths import ROOT


@pytest.mark.parametrize(("kind", "stages"), [((), ["pretrain", "tune"]), (("--baseline",), ["baseline"])])
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
    check_report((folder / "report.html").read_text(encoding="utf-8"), result)


def check_report(page, result):
    """Scores, a row of costs per stage, one chart with both curves, and icons with five names each."""
    assert f"top-1 {100 * result['top1']:.1f} %, top-5 {100 * result['top5']:.1f} %" in page
    assert re.findall(r"<tr><td>(\w+)<td>6<", page) == [stage["name"] for stage in result["stages"]]
    (chart,) = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    # matplotlib draws text as outlines and keeps the words in comments.
    words = {html.unescape(text) for text in re.findall(r"<!-- (.*?) -->", chart)}
    assert {"Loss on the stage's own batches", "Zero-shot on validation families"} <= words
    assert {stage["name"] for stage in result["stages"]} <= words
    assert "full size only top1 (recorded)" in words
    cards = re.findall(r"<div class=card><img src='data:image/png;base64,([\w+/=]+)'.*?<ol>(.*?)</ol>", page)
    assert len(cards) == len(range(0, result["count"], result["count"] // 60))
    assert {names.count("<li") for _, names in cards} == {5}
    assert len({image for image, _ in cards}) > len(cards) // 2
