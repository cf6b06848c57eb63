"""benchmarks/gpu.py runs where little more than JAX is installed, and keeps its time."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKER = """
import sys

class Absent:
    names = {"grain", "orbax", "array_record", "tensorstore", "tensorflow", "tqdm", "tyro", "tokenizers", "msgpack"}
    names |= {"safetensors", "PIL", "simplejpeg", "cykooz", "fsspec", "google", "rich"}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Absent())
"""


def run(tmp_path, *flags):
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--tiny", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)


@pytest.mark.slow
def test_it_runs_on_a_cpu_with_jax_numpy_equinox_optax_and_jaxtyping_only(tmp_path):
    done = run(tmp_path, "--seconds", "200", "--ours-only")
    assert (done.returncode, done.stderr) == (0, "")
    header, row, device, peak = done.stdout.splitlines()
    assert header.split() == ["model", "side", "batch", "pairs/s", "TFLOP/s", "of", "peak", "peak", "GiB", "settings"]
    numbers = r"4 +[\d,.]+ +[\d.]+ +[\d.]+ % +[\d.]+  attention xla/xla, recomputed image"
    assert re.fullmatch(f"Ti/16, 32 px, 5 tokens +clipa_eqx +{numbers}", row)
    assert device.startswith("cpu, jax ")
    assert re.fullmatch(r"matrix product: [\d.]+ TFLOP/s", peak)


def test_it_ends_with_its_time_and_says_what_is_not_measured(tmp_path):
    done = run(tmp_path, "--seconds", "1", "--ours-only")
    assert (done.returncode, done.stderr) == (1, "")
    row = done.stdout.splitlines()[1]
    assert re.fullmatch(r"Ti/16, 32 px, 5 tokens +clipa_eqx +- +- +- +- +-  it did not compile in its time", row)
