"""The scripts that start a run on one host and under Slurm: what they call, and when they start or requeue it again."""

import os
import signal
import subprocess
import sys
import time

import pytest
from support.launching import LAUNCH, SlurmJob
from support.paths import ROOT

from clipa_eqx.errors import ConfigError
from clipa_eqx.programs.slurm import first_host, slurm_place

# The interpreter of the nodes: records its arguments and ends with the next code of a list. ``wait`` is a training that
# saves when it gets SIGTERM.
PYTHON = """#!/bin/bash
task=${SLURM_PROCID:-}
printf '%s\\n' "$@" >>"arguments$task"
code=$(head -n 1 "codes$task")
sed -i 1d "codes$task"
if [[ $code == wait ]]; then
  trap 'sleep 0.2; exit 75' TERM
  touch "waits$task"
  while true; do sleep 0.05; done
fi
[[ $code != killed ]] || kill -KILL $$
exit "$code"
"""


@pytest.fixture
def clone(tmp_path):
    """A clone whose trainings end with the codes in a file."""
    (tmp_path / "scripts" / "launch").mkdir(parents=True)
    (tmp_path / "scripts" / "train.py").touch()
    for name in ("one_host.sh", "slurm.sh"):
        (tmp_path / "scripts" / "launch" / name).write_bytes((LAUNCH / name).read_bytes())
    program = tmp_path / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(PYTHON)
    program.chmod(0o755)
    return tmp_path


def one_host(clone, *codes, **variables):
    (clone / "codes").write_text("".join(f"{code}\n" for code in codes))
    command = ["bash", clone / "scripts" / "launch" / "one_host.sh", "run.py", "--workdir", "a run"]
    environment = {**os.environ, "RESTART_SECONDS": "0", **variables}
    return subprocess.Popen(command, cwd="/", env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("codes", "starts"),
    [([0], 1), ([2], 1), ([3], 1), ([75], 1), ([74, 0], 2), (["killed", 1, 74, 2], 4), ([134, 75], 2)],
)
def test_one_host_starts_again_what_another_try_can_help(codes, starts, clone):
    process = one_host(clone, *codes)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == codes[-1]
    words = ["scripts/train.py", "run.py", "--workdir", "a run"]
    assert (clone / "arguments").read_text().splitlines() == words * starts
    assert said.count(": restart ") == starts - 1


def test_one_host_gives_up_after_its_restarts(clone):
    process = one_host(clone, 1, 1, 1, 1, MAX_RESTARTS="2")
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 1
    assert said.splitlines()[-1] == "error: exit code 1 after 2 restarts; not started again"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_host_passes_a_signal_on_once_and_does_not_start_again(number, clone):
    process = one_host(clone, "wait", 0)
    deadline = time.monotonic() + 20
    while not (clone / "waits").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == 75
    assert (clone / "codes").read_text() == "0\n"


def end_with(clone, code):
    """Let both tasks of a step end with a code."""
    for task in (0, 1):
        (clone / f"codes{task}").write_text(f"{code}\n")


@pytest.mark.parametrize(
    ("code", "variables", "is_requeued"),
    [
        (0, {}, False),
        (2, {}, False),
        (3, {}, False),
        (127, {}, False),
        (75, {}, True),
        (75, {"SLURM_RESTART_COUNT": "500"}, True),
        (74, {}, True),
        ("killed", {}, True),
        (74, {"SLURM_RESTART_COUNT": "100"}, False),
        (75, {"STATE": "JobState=CANCELLED Requeue=1"}, False),
        (75, {"STATE": "JobState=RUNNING Requeue=0"}, False),
    ],
)
def test_slurm_requeues_what_another_try_can_help(code, variables, is_requeued, clone):
    end_with(clone, code)
    job = SlurmJob(clone, "run.py", "--workdir", "a run", clone=clone, **variables)
    assert job.wait() == (137 if code == "killed" else code)
    words = ["scripts/train.py", "run.py", "--workdir", "a run", "--distributed"]
    assert [(clone / f"arguments{task}").read_text().splitlines() for task in (0, 1)] == [words, words]
    assert (["requeue", job.number] in job.calls("scontrol")) is is_requeued


def test_slurm_waits_for_the_step_when_the_job_itself_gets_a_signal(clone):
    end_with(clone, "wait")
    job = SlurmJob(clone, "run.py", "--workdir", "run", clone=clone)
    job.wait_for(lambda: all((clone / f"waits{task}").exists() for task in (0, 1)))
    job.script.send_signal(signal.SIGTERM)  # preemption may also signal the script
    job.signal_step(signal.SIGTERM)
    assert job.wait() == 75
    assert ["requeue", job.number] in job.calls("scontrol")


def test_slurm_lets_processes_save_and_gives_each_the_whole_node(clone):
    end_with(clone, 0)
    job = SlurmJob(clone, "run.py", "--workdir", "run", clone=clone)
    job.wait()
    [words] = job.calls("srun")
    assert words[:3] == ["--ntasks-per-node=1", "--kill-on-bad-exit=0", "--cpu-bind=none"]
    text = (LAUNCH / "slurm.sh").read_text()
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]
    # To the step and not to the script (no B:), or the processes would get it twice.
    assert {"--signal=TERM@300", "--requeue", "--open-mode=append", "--ntasks-per-node=1"} <= set(options)
    # sbatch reads options up to the first command.
    before = text[: text.index("\nset -uo")]
    assert before.count("#SBATCH ") == len(options)


@pytest.mark.parametrize("arguments", [(), ("run.py",)])
def test_slurm_names_what_is_missing(arguments, clone, tmp_path):
    if arguments:
        (clone / "scripts" / "train.py").unlink()
    job = SlurmJob(clone, *arguments, clone=clone)
    assert job.wait() == 2
    assert job.said().count("\n") == 1
    assert job.said().startswith("error: ")
    assert job.calls("srun") == []


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("a,b", "a"),
        ("node[007-010,012],login1", "node007"),
        ("n[1,3]", "n1"),
        ("rack-1-[3-4]x,c[1-2]", "rack-1-3x"),
        ("r1,n[2-3]", "r1"),
    ],
)
def test_the_first_host_of_a_list(nodes, first):
    assert first_host(nodes) == first


STEP = {
    "SLURM_JOB_ID": "5001",
    "SLURM_STEP_NODELIST": "gpu[04-07]",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "2",
}


def test_a_process_per_node_uses_all_devices_and_others_are_left_to_jax():
    place = slurm_place(STEP)
    assert place is not None
    assert (place.address, place.processes, place.index) == (f"gpu04:{61440 + 5001 - 4096}", 4, 2)
    assert slurm_place({**STEP, "JAX_COORDINATOR_PORT": "1234"}).address == "gpu04:1234"
    assert slurm_place({**STEP, "SLURM_STEP_NUM_TASKS": "32"}) is None
    assert slurm_place({**STEP, "OMPI_COMM_WORLD_SIZE": "4"}) is None
    assert slurm_place({}) is None


def test_a_job_without_srun_and_a_variable_that_is_no_number_are_mistakes():
    with pytest.raises(ConfigError, match="this program is in Slurm job 5001, but srun did not start it"):
        slurm_place({"SLURM_JOB_ID": "5001"})
    with pytest.raises(ConfigError, match="SLURM_PROCID is 'two', not a number"):
        slurm_place({**STEP, "SLURM_PROCID": "two"})


def test_a_job_without_srun_ends_with_one_message(tmp_path):
    config = tmp_path / "run.py"
    config.write_text("from support import tiny_runs\n\n\ndef config():\n    return tiny_runs.run_config()\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), str(ROOT))), "SLURM_JOB_ID": "1"}
    command = [sys.executable, "scripts/train.py", config, "--workdir", tmp_path / "run", "--distributed"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "srun did not start it" in done.stderr
