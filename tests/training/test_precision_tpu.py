"""The step compiled by the TPU's compiler, which runs on a CPU; needs the extra ``plan`` (libtpu)."""

import os
import re
import subprocess
import sys

import pytest
from support.paths import ROOT

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
import jax
from jax.experimental import topologies
from support.step_text import compiled_text
from clipa_eqx.precision import Precision

devices = topologies.get_topology_desc(topology_name="v3:2x2", platform="tpu").devices
precision = Precision(compute="bfloat16", gradients=sys.argv[1])
sys.stdout.write(compiled_text(precision, 1, 8, devices=devices))
"""


def tpu_text(gradients):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, gradients], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def collectives(text, kinds):
    lines = [line for line in text.splitlines() if re.search(rf"= .* ({kinds})(-start)?\(", line)]
    return [line.split(" = ")[1].split(" all-")[0].split(" reduce-")[0] for line in lines]


def test_a_tpu_reduces_gradients_in_float32_and_gathers_weights_in_bfloat16():
    text = tpu_text("float32")
    reduced, gathered = collectives(text, "all-reduce|reduce-scatter"), collectives(text, "all-gather")
    assert any("f32[" in one for one in reduced)
    assert [one for one in reduced if "bf16[" in one] == []
    assert any("bf16[" in one for one in gathered)
    # 8 examples per device: no gradient of a weight per example, [8, out, in], is ever stored.
    assert re.findall(r"\w+\[8,(?:64,32|32,64|32,32)\]", text) == []
    # With the other setting, the same lines show bfloat16.
    assert any("bf16[" in one for one in collectives(tpu_text("bfloat16"), "all-reduce|reduce-scatter"))
