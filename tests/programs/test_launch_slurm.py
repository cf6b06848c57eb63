"""A run under the Slurm script: two processes that meet by Slurm's variables, a notice, a requeue, and the end."""

import signal

import pytest
from support import tiny_runs
from support.launching import SlurmJob
from support.paths import ROOT

from clipa_eqx.training.metrics import read_metrics

CONFIG = '''"""A run of 12 steps; in its first start a file appears at the fourth step, and steps then take 1 s."""
import time
from pathlib import Path

from support import tiny_runs
from clipa_eqx.training import loop

DATA, MARK = Path({data!r}), Path({mark!r})
tiny_runs.folder = lambda: DATA
steps, compile_step = [], loop.compile_step


def compile_slow(*args):
    step, is_first_start = compile_step(*args), not MARK.exists()

    def slowly(state, batch):
        steps.append(1)
        if is_first_start and len(steps) >= 4:
            MARK.touch()
            time.sleep(1.0)
        return step(state, batch)

    return slowly


loop.train.__kwdefaults__["compiler"] = compile_slow


def config():
    return tiny_runs.run_config()
'''
VARIABLES = {
    "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}",
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "2",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
}


@pytest.mark.slow
def test_a_job_is_requeued_after_a_notice_and_completes_the_run(tmp_path):
    run, config, mark = tmp_path / "run", tmp_path / "config.py", tmp_path / "mark"
    config.write_text(CONFIG.format(data=str(tiny_runs.folder()), mark=str(mark)))

    def start(**variables):
        return SlurmJob(tmp_path, config, "--workdir", run, **VARIABLES, **variables)

    first = start()
    first.wait_for(mark.exists, timeout=200)
    first.signal_step(signal.SIGTERM)
    assert first.wait(timeout=200) == 75, first.said()
    assert ["requeue", first.number] in first.calls("scontrol")
    assert "4 x cpu on 2 hosts" in first.said()
    saved = [line["step"] for line in read_metrics(run / "metrics.jsonl")]
    assert saved == list(range(1, len(saved) + 1))
    assert 4 <= len(saved) < 12
    second = start(SLURM_RESTART_COUNT="1")
    assert second.wait(timeout=200) == 0, second.said()
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == list(range(1, 13))
    assert (run / "model" / "config.json").is_file()
    assert ["requeue", second.number] not in second.calls("scontrol")


@pytest.mark.slow
def test_nodes_with_other_configs_end_together_and_are_not_requeued(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "import os\nfrom pathlib import Path\nfrom support import tiny_runs\n\n"
        f"tiny_runs.folder = lambda: Path({str(tiny_runs.folder())!r})\n\n\n"
        "def config():\n    return tiny_runs.run_config(seed=int(os.environ['SLURM_PROCID']))\n"
    )
    job = SlurmJob(tmp_path, config, "--workdir", tmp_path / "run", **VARIABLES)
    assert job.wait(timeout=200) == 2, job.said()
    assert job.said().count("seed: 1 on process 1, 0 on process 0") == 2
    assert "Traceback" not in job.said()
    assert not any(words[0] == "requeue" for words in job.calls("scontrol"))
    assert not (tmp_path / "run").exists()
