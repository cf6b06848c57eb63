"""Chains of recipes run end to end from the commands of docs/recipes.md: tiny towers and data, all other settings kept.

Each stage has the pixels, text tokens, masking, optimizer, precision and scoring of its recipe.
"""

import io
import re
import shlex
from functools import partial

import numpy as np
import pytest
from PIL import Image
from support import tiny_runs
from support.paths import ROOT

from clipa_eqx import load_model
from clipa_eqx.cli import OK, run
from clipa_eqx.config_files import apply_overrides
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.records import Record
from clipa_eqx.programs import train
from clipa_eqx.surgery import resize_text
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.trees import leaves_by_path
from scripts.recipes_page import CONFIGS, longest_chains, recipe, recipe_names

pytestmark = pytest.mark.usefixtures("quick_compile")

CAPTIONS = ("a photo of a dog that runs after a ball in the park", "two cats", "an old red bicycle next to a wall")
CLASSES = ("dog", "cat", "bicycle")
STEPS = 3
# The smallest towers; everything that is said of a recipe's size and hardware.
TINY = [
    *(f"--model.{tower}.blocks.{name} {value}" for tower in ("image", "text") for name, value in
      (("width", 16), ("depth", 2), ("mlp-dim", 32), ("heads", 2))),
    *("--model.image.embed 8", "--model.text.embed 8", "--batch-size 8", f"--duration.steps {STEPS}"),
    *("--mesh.fsdp 1", "--data.stream.workers 0", "--log-every-steps 1", "--zero-shot.0.class-names manifest"),
    *("--zero-shot.0.templates class_name_only", "--zero-shot.0.batch-size 8"),
]  # fmt: skip
CHAINS = longest_chains()
OTHER_SECOND_STAGES = [
    name for name in recipe_names() if recipe(name).init and not any(name in chain.stages for chain in CHAINS)
]


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder that looks like a clone with converted data, on a machine with one device."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(24):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(file, "png")
        images.append(file.getvalue())
    pairs = [Record(key=str(i), image=one, captions=(CAPTIONS[i % 3],)) for i, one in enumerate(images)]
    for name in ("laion2b", "datacomp1b", "laion400m"):
        write_records(pairs, tmp_path / "data" / name)
    labeled = [Record(key=str(i), image=one, label=i % 3) for i, one in enumerate(images[:9])]
    write_records(labeled, tmp_path / "data" / "imagenet_val", class_names=CLASSES)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clipa_eqx.programs.training_run.train", tiny_runs.train_on_one_device)
    return tmp_path


def start(command: str) -> tuple[str, str]:
    """Run a command of the page with tiny towers; gives the names of its recipe and its run folder."""
    words = shlex.split(command)
    tiny = [word for flag in TINY for word in flag.split()]
    assert run(partial(train.main, [*words[2:], *tiny])) == OK
    return words[2].removeprefix("configs/").removesuffix(".py"), words[words.index("--workdir") + 1]


def command_of(name: str) -> str:
    """The command in the docstring of a recipe."""
    return re.findall(r"^Command: +(.*)$", (CONFIGS / f"{name}.py").read_text(), re.MULTILINE)[0]


def check_stage(folder, name: str, workdir: str, before: str | None) -> None:
    """A finished stage has the sizes of its recipe, was scored, and is near the weights that it started from."""
    lines = read_metrics(folder / workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert "zero_shot/imagenet_val/top1" in lines[-1]
    trained = load_model(folder / workdir / "model").model
    config = recipe(name)
    assert trained.config.image.image_size == config.model.image.image_size
    assert trained.config.text.length == config.model.text.length
    if before is None:
        return
    source = load_model(folder / before / "model").model
    if source.config.text.length != trained.config.text.length:
        source, _ = resize_text(source, length=trained.config.text.length)
    # Adam moves no weight by more than a few rates per step; two random models are apart by far more.
    moved = {
        path: np.abs(np.asarray(leaf) - np.asarray(leaves_by_path(source)[path])).max()
        for path, leaf in leaves_by_path(trained).items()
    }
    assert max(moved.values()) <= 5 * STEPS * config.optim.peak_lr
    assert max(moved.values()) > 0


def run_chain(folder, commands) -> None:
    before = None
    for command in commands:
        name, workdir = start(command)
        check_stage(folder, name, workdir, before)
        before = workdir


@pytest.mark.slow
def test_a_pre_training_and_a_fine_tuning_of_bigg_14_run_from_the_page(clone):
    """84 to 224 px, 8 to 32 text tokens, with masking, the decay of the t5x branch and bfloat16 moments."""
    [chain] = [chain for chain in CHAINS if chain.preset == "bigG/14"]
    run_chain(clone, chain.commands[:2])


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain.title)
def test_every_chain_of_the_page_runs_to_its_end(chain, clone):
    run_chain(clone, chain.commands)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_SECOND_STAGES)
def test_a_second_stage_of_no_published_row_runs_after_its_first(name, clone):
    run_chain(clone, [command_of(recipe(name).init.source.removeprefix("runs/")), command_of(name)])


@pytest.mark.slow
def test_the_fine_tuning_of_h14_starts_from_112_px_with_the_flags_of_its_docstring(clone):
    """The class token is pooled in both stages, and the text positions stay as they are."""
    [flags] = re.findall(r"`(--init-from [^`]*)`", (CONFIGS / "h14_112px_t32.py").read_text())
    run_chain(clone, [command_of("h14_112px_t32"), f"{command_of('h14_224px_t32')} {flags}"])
    assert load_model(clone / "runs" / "h14_224px_t32" / "model").model.config.image.pool == "tok"


def test_a_tiny_stage_differs_from_its_recipe_in_sizes_only():
    """No flag of these tests replaces a setting that the recipes are about."""
    tiny = [word for flag in TINY for word in flag.split()]
    for name in recipe_names():
        config = recipe(name)
        short = apply_overrides(config, tiny)
        for part in ("optim", "precision", "eval_image", "loss", "init", "seed"):
            assert getattr(short, part) == getattr(config, part)
        assert (short.data.image, short.data.text_reduction) == (config.data.image, config.data.text_reduction)
        assert short.model.image.visible == config.model.image.visible
        assert short.model.text.length == config.model.text.length
