"""The page docs/first_hour.md: a new user's commands run in order, on a small folder of synthetic photos."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from support.paths import ROOT
from support.synthetic_photos import SHAPES, write_photos

from clipa_eqx.saved.model import load_model
from clipa_eqx.training.metrics import read_metrics

PAGE = (ROOT / "docs" / "first_hour.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
[SNIPPET] = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
SHORT = ["--batch-size", "32", "--duration.samples", "128"]


def start(command, folder):
    """Run a command of the page as a user does, in a folder that looks like a clone; training is made short."""
    words = [sys.executable, *shlex.split(command)[1:]]
    if "scripts/train.py" in words:
        words += SHORT
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "CLIPA_"))}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)


def test_the_page_has_each_step():
    programs = [shlex.split(command)[1] for command in COMMANDS]
    assert programs.count("scripts/train.py") == 3
    assert programs.count("scripts/evaluate.py") == 2
    assert programs.count("scripts/show.py") == 3
    assert programs.count("-m") == 2


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_order(tmp_path):
    write_photos(tmp_path, count=96, by_class=3)
    for name in ("scripts", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    for command in COMMANDS:
        done = start(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        if "train.py" in command or "evaluate.py" in command or "conversion" in command:
            assert "next:\n" in done.stdout
    assert (tmp_path / "mine-sheet.png").is_file()
    for run in ("try", "first", "tuned"):
        assert [line["step"] for line in read_metrics(tmp_path / "runs" / run / "metrics.jsonl")][-1] == 4
    clip = load_model(tmp_path / "runs" / "tuned" / "model")
    assert (clip.model.config.image.image_size, clip.model.config.text.length) == ((128, 128), 32)
    for name in ("first", "tuned"):
        result = json.loads((tmp_path / f"{name}.json").read_text())
        assert (result["count"], result["class_count"]) == (3 * len(SHAPES), len(SHAPES))
    snippet = subprocess.run(
        [sys.executable, "-c", SNIPPET],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert snippet.returncode == 0, snippet.stderr
    assert snippet.stdout.count("photos/") == 2
