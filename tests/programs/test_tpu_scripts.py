"""The TPU scripts against a recorded ``gcloud``: the calls they make, and what runs on a worker."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
from support.paths import ROOT
from support.recorded_tpu import SCRIPTS, TRAINER, WHERE, is_running

from clipa_eqx.config_files import apply_overrides, load_config


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_prints_commands_to_paste_and_runs_none(script, pod):
    done = pod(script, "--dry-run", RECORDS="gs://bucket/it costs $5 & more")
    assert done.returncode == 0, done.stderr
    assert (pod.calls(), sorted(path.name for path in pod.folder.iterdir())) == ([], ["bin", "home 0", "tpu.env"])
    *before, last = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [words[0] for words in before] == (["git", "gcloud"] if script == "set_up_env" else [])
    assert last[-len(WHERE) :] == WHERE
    if script == "set_up_env":
        pasted = subprocess.run(
            ["bash", "-c", f'gcloud() {{ test -f "$5" || test $4 = ssh; }}\nset -e\n{done.stdout}'], check=False
        )
        assert pasted.returncode == 0  # the archive that is copied is the one that was written
    else:
        pod(script, RECORDS="gs://bucket/it costs $5 & more")
        assert pod.calls() == [last[1:]]


def test_a_clone_is_copied_to_a_worker_with_nothing_on_it_and_installed(pod):
    clone = pod.add_worker().with_name("my clone")
    pod.workers.pop(0)
    for _ in range(2):  # again after a change of the code
        done = pod("set_up_env", FOLDER="my clone")
        assert done.returncode == 0, done.stderr
        assert "worker 0 of 1: 8 of 8 tpu devices" in done.stdout
    copy, install = pod.calls()[:2]
    assert copy[3:5] == ["scp", copy[4]]
    assert copy[5:] == ["pod:clipa_eqx.tar.gz", *WHERE]
    assert install[:6] == ["compute", "tpus", "tpu-vm", "ssh", "pod", "--command"]
    assert not os.path.exists(copy[4])  # the temporary archive is gone
    for name in ("scripts/train.py", "constraints.txt", "configs/h14_84px_t8.py", "scripts/tpu_worker.sh"):
        assert (clone / name).is_file()
    assert not (clone / "tests").exists()  # 19 of 20 MB
    calls = (clone / "pip_calls").read_text().splitlines()
    assert calls.count("-m pip install --quiet -c constraints.txt -e .[tpu,bucket]") == 2
    assert pod("pre_training", FOLDER="my clone").returncode == 0


def test_an_interrupted_installation_is_repaired(pod):
    """A .venv whose Python has no pip yet."""
    pod.program(pod.clone / ".venv" / "bin" / "python", "#!/bin/bash\nexit 1\n")
    (pod.clone / "configs").unlink()
    assert pod("set_up_env").returncode == 0
    assert (pod.clone / ".venv" / "bin" / "python").read_text() == TRAINER


def test_a_worker_without_the_python_of_the_settings_says_so(pod):
    (pod.clone / "configs").unlink()
    done = pod("set_up_env", PYTHON="python3.99")
    assert done.returncode == 2
    assert "there is no python3.99; install Python 3.11 or later, and set PYTHON in the env file" in done.stderr


def test_code_is_not_replaced_while_a_stage_runs(pod):
    pod("pre_training")
    done = pod("set_up_env")
    assert done.returncode == 2
    assert f"pre_training runs, as process {pod.process('pre_training')}; --stop ends it" in done.stderr
    assert not (pod.clone / "constraints.txt").exists()


def test_a_worker_that_fails_is_named_and_the_others_go_on(pod):
    pod.add_worker()
    done = pod("pre_training")
    assert done.returncode == 1
    assert "worker 1 failed" in done.stderr
    assert (
        done.stderr.splitlines()[-1]
        == "error: gcloud ended with exit code 1 for TPU pod in zone-a; the reason is above"
    )
    assert is_running(pod.process("pre_training"))


def test_a_tpu_that_does_not_exist_is_an_error(pod):
    for script in SCRIPTS:
        done = pod(script, TPU_NAME="other")
        assert done.returncode == 1
        assert "NOT_FOUND" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: gcloud ended with exit code 1 for TPU other in zone-a")
    assert len(pod.calls()) == 3  # nothing is started after a failed copy


def test_a_worker_refuses_what_is_not_installed_or_not_in_its_clone(pod):
    done = pod("pre_training", PRE_TRAINING_CONFIG="configs/mine.py")
    assert done.returncode == 2
    assert "has no configs/mine.py; commit it, and run scripts/set_up_env.sh" in done.stderr
    shutil.rmtree(pod.clone / ".venv")
    done = pod("pre_training")
    assert done.returncode == 2
    assert "is not installed; run scripts/set_up_env.sh" in done.stderr
    assert not (pod.clone / "logs").exists()


def test_the_first_stage_runs_on_the_worker_with_the_settings(pod):
    done = pod("pre_training")
    assert done.returncode == 0, done.stderr
    pid = pod.process("pre_training")
    assert f"process {pid}, log {pod.clone}/logs/pre_training.log" in done.stdout
    assert pod.arguments() == [
        *("scripts/train.py", "configs/h14_84px_t8.py", "--workdir", "runs/first", "--distributed"),
        *("--optim.peak-lr", "1e-3", "--data.sources.0.folder", "gs://bucket/my pairs"),
        *("--zero-shot.0.data", "gs://bucket/val"),
    ]


def test_any_characters_of_a_value_reach_training_and_nothing_in_them_is_run(pod):
    """Spaces and what shells interpret, in each setting that is a path."""
    odd = r"a  b; $(touch ran) `touch ran` & *(1) \x"
    folder = f"clone {odd}"
    pod.clone.rename(pod.clone.with_name(folder))
    pod.clone = pod.clone.with_name(folder)
    settings = {"FOLDER": folder, "RECORDS": odd, "IMAGENET_VAL": f"/{odd}", "PRE_TRAINING_RUN": f"runs/{odd}"}
    assert pod("pre_training", **settings).returncode == 0
    assert pod.arguments()[2:5] == ["--workdir", f"runs/{odd}", "--distributed"]
    assert pod.arguments()[-4:] == ["--data.sources.0.folder", odd, "--zero-shot.0.data", f"/{odd}"]
    assert "pre_training runs as" in pod("pre_training", "--status", **settings).stdout
    assert "pre_training does not run" in pod("pre_training", "--stop", **(settings | {"PRE_TRAINING_RUN": "x"})).stdout
    assert pod("pre_training", "--stop", **settings).returncode == 0
    assert pod.exit_code("pre_training") == "75"
    assert not list(pod.folder.rglob("ran"))


def test_the_second_stage_starts_from_the_run_of_the_first(pod):
    assert pod("fine_tuning", IMAGENET_VAL="", RECORDS="").returncode == 0
    assert pod.arguments() == [
        *("scripts/train.py", "configs/h14_224px_t32.py", "--workdir", "runs/second", "--distributed"),
        *("--init-from", "runs/first", "--zero-shot", "none"),
    ]


@pytest.mark.parametrize("changes", [{}, {"IMAGENET_VAL": "", "RECORDS": ""}])
@pytest.mark.parametrize("stage", ["pre_training", "fine_tuning"])
def test_the_flags_of_a_stage_fit_its_config(stage, changes, pod):
    pod(stage, **changes)
    _, config, *flags = pod.arguments()
    own = {"--workdir": 2, "--distributed": 1, "--init-from": 2}
    overrides = list(flags)
    for flag, words in own.items():
        if flag in overrides:
            at = overrides.index(flag)
            del overrides[at : at + words]
    apply_overrides(load_config(ROOT / config), overrides)


def test_a_running_stage_is_not_started_again_and_stops_on_request(pod):
    pod("pre_training")
    pid = pod.process("pre_training")
    pod.arguments()
    again = pod("pre_training")
    assert again.returncode == 2
    assert f"pre_training runs already, as process {pid}; --stop ends it" in again.stderr
    assert pod.process("pre_training") == pid
    assert pod("fine_tuning", "--stop").returncode == 0
    assert is_running(pid)
    stopped = pod("pre_training", "--stop")
    assert f"pre_training saves and ends, process {pid}" in stopped.stdout
    assert pod.exit_code("pre_training") == "75"
    assert "pre_training does not run" in pod("pre_training", "--stop").stdout
    assert pod("pre_training").returncode == 0  # the same command resumes it
    assert pod.process("pre_training") != pid


@pytest.mark.parametrize(
    ("code", "said", "returned"),
    [
        ("0", "pre_training is complete", 0),
        ("2", "pre_training failed with exit code 2", 2),
        ("75", "pre_training was interrupted and saved (exit code 75); the same command resumes it", 75),
    ],
)
def test_the_status_is_how_a_stage_ended_and_the_last_line_of_its_log(code, said, returned, pod):
    assert "pre_training was not started" in pod("pre_training", "--status").stdout
    (pod.clone / "code").write_text(code)
    pod("pre_training")
    assert pod.exit_code("pre_training") == code
    done = pod("pre_training", "--status")
    assert done.returncode == returned
    assert said in done.stdout
    assert done.stdout.splitlines()[-1] == "error: no such records"


def test_the_status_of_a_stage_that_runs_and_of_one_that_was_killed(pod):
    pod("pre_training")
    pid = pod.process("pre_training")
    done = pod("pre_training", "--status")
    assert done.returncode == 0
    assert f"pre_training runs as process {pid}" in done.stdout
    os.kill(pid, signal.SIGKILL)
    assert pod.exit_code("pre_training") == "137"
    assert "pre_training failed with exit code 137" in pod("pre_training", "--status").stdout
    (pod.clone / "logs" / "pre_training.exit").unlink()  # the machine itself was restarted
    assert "pre_training was killed; the same command resumes it" in pod("pre_training", "--status").stdout


def test_a_foreign_process_with_the_recorded_number_gets_no_signal(pod):
    """Numbers of processes are reused, also by another run of train.py."""
    command = [sys.executable, "-c", "import time; time.sleep(60)", "scripts/train.py", "configs/h14_84px_t8.py"]
    foreign = subprocess.Popen([*command, "--workdir", "runs/other"])
    try:
        (pod.clone / "logs").mkdir()
        file = pod.clone / "logs" / "pre_training.pid"
        for pid in (foreign.pid, os.getpid()):
            file.write_text(f"{pid}\n")
            assert "pre_training does not run" in pod("pre_training", "--stop").stdout
        file.write_text(f"{foreign.pid}\n")
        assert pod("pre_training").returncode == 0
        assert pod.process("pre_training") != foreign.pid
        assert foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()


def test_no_script_names_a_process_to_end_other_than_the_recorded_one():
    for path in (ROOT / "scripts").glob("*.sh"):
        ends = re.findall(r"^[^#\n]*\b(?:pkill|killall|kill)\b.*$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert ends == (['    kill -TERM "$pid"'] if path.stem == "tpu_worker" else [])


@pytest.mark.parametrize(
    "path", sorted([*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci" / "run"]), ids=lambda path: path.stem
)
def test_a_script_has_no_mistake_of_syntax_and_stops_at_errors(path):
    """`make lint` runs shellcheck over the same files."""
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("\nset -euo pipefail\n" in path.read_text(encoding="utf-8")) == (path.stem != "tpu_common")
