"""Two processes agree which checkpoint is valid, also if only one of them can see the damage."""

import os
import socket
import subprocess
import sys

import pytest
from support import tiny_runs
from support.paths import ROOT

PROCESS = '''"""One of two processes, which save two checkpoints together or resume from the newest valid one."""
import sys
from pathlib import Path

import jax

process, port, folder, workdir, task = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, int(process))

from support import tiny_runs
from clipa_eqx.sharding import MeshConfig
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.preparation import prepare
from clipa_eqx.training.restoring import resume
from clipa_eqx.training.start import first_state

tiny_runs.folder = lambda: Path(folder)
# Each process has one half of the large leaves, and reads the file of that half only.
config = tiny_runs.run_config(mesh=MeshConfig(fsdp=2))
ready = prepare(config, Path(workdir), devices=None)
with Checkpoints(Path(workdir) / "checkpoints", keep=3) as checkpoints:
    if task == "save":
        state = first_state(
            config,
            ready.optimizer,
            abstract=ready.abstract,
            mesh=ready.mesh,
            vocab_sha256=ready.tokenizer.vocab_sha256,
        )
        for step in (1, 2):
            checkpoints.save(state, step=step, about=ready.record)
    else:
        print("resumed from", resume(checkpoints, ready.abstract, ready.mesh, ready.record).step)
'''


@pytest.mark.slow
def test_damage_that_one_process_sees_makes_both_resume_from_the_checkpoint_before(tmp_path):
    script, run = tmp_path / "process.py", tmp_path / "run"
    script.write_text(PROCESS)

    def start(task):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        started = [
            subprocess.Popen(
                [sys.executable, script, *map(str, (number, port, tiny_runs.folder(), run, task))],
                env={**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(2)
        ]
        try:
            said = [process.communicate(timeout=200)[0] for process in started]
        finally:
            for process in started:
                process.kill()
        assert [process.returncode for process in started] == [0, 0], "\n\n".join(said)
        return said

    start("save")
    files = (run / "checkpoints/2/model/ocdbt.process_1").rglob("d/*")
    max(files, key=lambda file: file.stat().st_size).unlink()
    first, second = start("resume")
    assert "resumed from 1" in first
    assert "resumed from 1" in second
    assert "another process cannot read its files" in first
    assert "its files cannot be read" in second
    assert [entry.name for entry in (run / "checkpoints").iterdir()] == ["1"]
    assert [entry.name for entry in (run / "damaged_checkpoints").iterdir()] == ["2"]
