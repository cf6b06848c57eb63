"""`make quickstart` in a few steps: all of its parts run and leave what its documentation promises."""

import json
import os
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
    assert "<svg" in (folder / "report.html").read_text() or "<img" in (folder / "report.html").read_text()
    assert (folder / stages[-1] / "model" / "model.safetensors").is_file()
