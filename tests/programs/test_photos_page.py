"""The page docs/photos.md: its commands run in order on a folder of photos that the test draws."""

import json
import os
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
from support.paths import ROOT
from support.synthetic_photos import write_photos
from support.tiny_models import tiny_clip_config

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.saved.model import load_model, save_model
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from clipa_eqx.training.metrics import read_metrics

PAGE = (ROOT / "docs" / "photos.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
[CONFIG] = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
MODEL = "runs/quickstart/tune/model"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder that looks like a clone with 96 photos, and a small model in the place of the quickstart's."""
    folder = tmp_path_factory.mktemp("clone")
    write_photos(folder, count=96, by_class=1)
    for name in ("scripts", "configs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "photos.py").write_text(CONFIG, encoding="utf-8")
    tokenizer = Tokenizer.bert()
    rng = np.random.default_rng(0)
    abstract = abstract_clip(tiny_clip_config(text={"vocab": tokenizer.vocab_size}))
    model = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), abstract)
    preprocess = EvalImageConfig(size=model.config.image.image_size, resize="squash")
    (folder / MODEL).parent.mkdir(parents=True)
    save_model(folder / MODEL, model, tokenizer=tokenizer, preprocess=preprocess, provenance={})
    return folder


def test_the_config_of_the_page_fits_the_model_it_names(clone, monkeypatch):
    monkeypatch.chdir(clone)
    names = {}
    exec(compile(CONFIG, "photos.py", "exec"), names)
    config = names["config"]()
    assert isinstance(config, ExperimentConfig)
    assert names["MODEL"] == MODEL
    assert config.guard.score.split("/")[1] == config.retrieval[0].data.split("/")[1]


def test_the_page_has_each_step():
    programs = [shlex.split(command)[1] for command in COMMANDS if command.startswith("python ")]
    wanted = ["-m", "-m", "show.py", "evaluate.py", "train.py", "show.py", "evaluate.py", "search.py"]
    assert [program.removeprefix("scripts/") for program in programs] == wanted


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_order(clone):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "CLIPA_"))}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "CLIPA_EQX_CACHE": str(clone / "cache")}
    said = ""
    for command in COMMANDS:
        # A fall on so few photos is chance.
        words = f"{command} --guard.largest-fall 1" if "train.py" in command else command
        words = re.sub(r"^python ", f"{shlex.quote(sys.executable)} ", words)
        done = subprocess.run(
            words, shell=True, cwd=clone, env=environment, capture_output=True, text=True, timeout=1200
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        said += done.stdout + done.stderr
    assert (clone / "photos-sheet.png").is_file()
    score = "retrieval/photos_held_out/image_to_text_recall@10"
    before, after = (json.loads((clone / f"{name}.json").read_text()) for name in ("before", "after"))
    assert before["count"] == after["count"] == 19
    name = "image_to_text_recall@10"
    assert f"guard: {score} was {before[name]:.4f} before the first step and is {after[name]:.4f} after step" in said
    assert read_metrics(clone / "runs" / "photos" / "metrics.jsonl")[-1][score] == after[name]
    assert load_model(clone / "runs" / "photos" / "model").provenance.average["decay"] == 0.99
    page = (clone / "photos.html").read_text(encoding="utf-8")
    assert page.count("<img") == 10
    assert "a red circle" in page
