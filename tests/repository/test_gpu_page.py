"""The flags of XLA in docs/gpu.md exist in the installed jaxlib, which ends a program at one that it does not know."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).resolve().parents[2] / "docs/gpu.md").read_text()
START = "import jax; jax.devices()"


def started_with(flags):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, env=environment)


def test_jax_starts_with_all_flags_of_the_page():
    (command,) = re.findall(r'^export XLA_FLAGS="(.*)"$', PAGE, re.MULTILINE)
    assert sorted(command.split()) == sorted(set(re.findall(r"^\| `(--xla\S+)` \|", PAGE, re.MULTILINE)))
    assert len(command.split()) >= 5
    assert started_with(command).returncode == 0
    unknown = started_with(f"{command} --xla_gpu_no_such_flag=true")
    assert unknown.returncode != 0
    assert "--xla_gpu_no_such_flag=true" in unknown.stderr
