"""Every shipped config compiled by the TPU's compiler, which runs on a CPU; needs the extra ``plan`` (libtpu)."""

import functools
import json
import math
import os
import subprocess
import sys

import pytest
from support.paths import ROOT

from clipa_eqx.config_files import load_config
from clipa_eqx.device_memory import GIB
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.trees import leaves_by_path

pytestmark = pytest.mark.slow

RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*px_t*.py"))
SMALL = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in RECIPES)

TEXT = """
import sys
from clipa_eqx.planning.slices import open_slice, set_environment
set_environment()
from clipa_eqx.config_files import load_config
from clipa_eqx.planning.compiled import compile_for_slice, prepare
prepared = prepare(load_config(sys.argv[1]), open_slice(sys.argv[2]), records=1)
sys.stdout.write(compile_for_slice(prepared).text)
"""


def run(*words):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@functools.cache
def planned(name, topology, *flags):
    words = ("scripts/plan.py", f"configs/{name}.py", "--topology", topology, "--json", "--as-is", *flags)
    return json.loads(run(*words))


@functools.cache
def h14_text():
    return run("-c", TEXT, "configs/h14_84px_t8.py", "v3:16x16")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits_512_cores_of_v3(name):
    made = planned(name, "v3:16x16")
    assert made["fits"], made["bytes"]
    assert made["devices"] == 512
    assert all(one["is_certain"] for one in made["collectives"])
    assert made["least_seconds"]["compute"] > 0


@pytest.mark.parametrize("name", SMALL)
def test_every_other_config_fits_a_single_host(name):
    made = planned(name, "v5e:2x2")
    assert made["fits"], made["bytes"]


def test_the_step_of_h14_has_the_memory_that_was_the_goal():
    assert planned("h14_84px_t8", "v3:16x16")["bytes"]["total"] <= 4 * GIB


def test_the_step_of_h14_keeps_no_logits_of_all_pairs():
    assert "[65536,65536" not in h14_text()
    # The logits of the rows of a device are there, so the text is that of the loss too.
    assert "f32[128,65536]" in h14_text()


def test_the_step_of_h14_gathers_weights_and_embeddings_but_no_activations():
    leaves = leaves_by_path(abstract_clip(load_config(ROOT / "configs" / "h14_84px_t8.py").model))
    weights = {math.prod(leaf.shape) for leaf in leaves.values()} | {
        math.prod(leaf.shape[1:]) for leaf in leaves.values() if len(leaf.shape) > 1
    }
    embeddings = 65_536 * 1024
    gathered = [one for one in planned("h14_84px_t8", "v3:16x16")["collectives"] if one["kind"] == "all-gather"]
    assert gathered
    for one in gathered:
        for array in one["arrays"]:
            sizes = [int(size) for size in array.split("[")[1].rstrip("]").split(",")]
            assert math.prod(sizes) in weights | {embeddings}, one


def test_a_step_that_does_not_fit_gets_the_change_that_makes_it_fit():
    words = ("scripts/plan.py", "configs/b16_112px_t32.py", "--topology", "v5e:2x2", "--json", "--batch-size", "4096")
    remat = ("--model.image.blocks.remat", "none", "--model.text.blocks.remat", "none")
    made = json.loads(run(*words, *remat))
    assert not made["fits"]
    assert made["change"]
    assert made["tried"][-1]["fits"]
