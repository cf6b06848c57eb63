"""The TPU scripts against a recorded ``gcloud``: the calls they make, what runs on a worker, and what they refuse.

The recorded ``gcloud`` is a worker too: it runs the command of ``ssh`` in a folder of the test, where
``.venv/bin/python`` waits instead of training.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from support.paths import ROOT

from clipa_eqx.config_files import apply_overrides, load_config

SCRIPTS = ("set_up_env", "pre_training", "fine_tuning")
ENV = {
    "PROJECT": "project",
    "ZONE": "zone-a",
    "TPU_NAME": "pod",
    "RECORDS": "gs://bucket/my pairs",
    "IMAGENET_VAL": "gs://bucket/val",
    "PRE_TRAINING_CONFIG": "configs/h14_84px_t8.py",
    "PRE_TRAINING_RUN": "runs/first",
    "PRE_TRAINING_FLAGS": "--optim.peak-lr 1e-3",
    "FINE_TUNING_CONFIG": "configs/h14_224px_t32.py",
    "FINE_TUNING_RUN": "runs/second",
}
WHERE = ["--project", "project", "--zone", "zone-a", "--worker", "all"]
GCLOUD = f"""#!{sys.executable}
import json, os, subprocess, sys
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if "--command" in sys.argv:
    command = sys.argv[sys.argv.index("--command") + 1]
    sys.exit(subprocess.run(["bash", "-c", command], cwd=os.environ["WORKER"]).returncode)
"""
# Records its arguments and waits, as training does; SIGTERM ends it.
TRAINER = '#!/bin/bash\nprintf "%s\\n" "$@" >arguments\nfor i in $(seq 600); do sleep 0.1; done\n'


@pytest.fixture
def pod(tmp_path, monkeypatch):
    """Call a script with settings and flags; gives the finished process. ``pod.calls()`` are those of gcloud so far."""
    return Pod(tmp_path)


class Pod:
    """An env file, the recorded gcloud and the only worker of a TPU."""

    def __init__(self, folder):
        self.folder, self.worker = folder, folder / "home"
        self.clone = self.worker / "clipa_eqx"
        (self.clone / ".venv" / "bin").mkdir(parents=True)
        (folder / "bin").mkdir()
        for path, text in ((folder / "bin" / "gcloud", GCLOUD), (self.clone / ".venv" / "bin" / "python", TRAINER)):
            path.write_text(text)
            path.chmod(0o755)

    def __call__(self, script, *flags, **changes):
        env = self.folder / "tpu.env"
        env.write_text("# a comment\n\n" + "".join(f"{name}={value}\n" for name, value in (ENV | changes).items()))
        return self.run(script, env, *flags)

    def run(self, script, *arguments):
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        variables = {"PATH": path, "CALLS": str(self.folder / "calls"), "WORKER": str(self.worker)}
        command = ["bash", str(ROOT / "scripts" / f"{script}.sh"), *map(str, arguments)]
        return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=60)

    def calls(self):
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def process(self, stage):
        return int((self.clone / "logs" / f"{stage}.pid").read_text())

    def arguments(self):
        """The arguments that the trainer on the worker was started with."""
        return wait_for((self.clone / "arguments").read_text).splitlines()


@pytest.fixture(autouse=True)
def ended(pod):
    """End the trainers that a test leaves."""
    yield
    for file in (pod.clone / "logs").glob("*.pid"):
        pid = int(file.read_text())
        if pid != os.getpid() and is_running(pid):
            os.kill(pid, signal.SIGKILL)


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except OSError:
        return False
    return state != "Z"


def wait_for(read, seconds=20):
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = read()
        except OSError:
            found = None
        if found:
            return found
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_ended(pid):
    return wait_for(lambda: not is_running(pid))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_prints_the_calls_and_makes_none(script, pod):
    done = pod(script, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert pod.calls() == []
    printed = subprocess.run(
        ["bash", "-c", f"gcloud() {{ printf '%s\\0' \"$@\" END; }}\n{done.stdout}"], capture_output=True, text=True
    ).stdout.split("\0")
    calls = [call.split("\0") for call in re.findall(r"(.*?)\0END\0?", "\0".join(printed), re.DOTALL)]
    assert len(calls) == (2 if script == "set_up_env" else 1)
    for call in calls:
        assert call[-len(WHERE) :] == WHERE
    if script != "set_up_env":  # its archive is a temporary file
        pod(script)
        assert pod.calls() == calls


def test_the_clone_is_copied_and_installed(pod):
    done = pod("set_up_env", FOLDER="my clone")
    [copy, install] = pod.calls()
    assert copy[:4] == ["compute", "tpus", "tpu-vm", "scp"]
    assert copy[5:] == ["pod:clipa_eqx.tar.gz", *WHERE]
    assert install[:6] == ["compute", "tpus", "tpu-vm", "ssh", "pod", "--command"]
    assert "cd my\\ clone\n" in install[6]
    assert "pip install --quiet -c constraints.txt -e '.[tpu,gcs]'" in install[6]
    assert not os.path.exists(copy[4])  # the temporary archive is gone
    assert done.returncode != 0  # there was no archive on the worker: a failure there is a failure here


def test_the_archive_has_the_last_commit(pod):
    gcloud = pod.folder / "bin" / "gcloud"
    gcloud.write_text(GCLOUD + f'elif "scp" in sys.argv:\n    os.link(sys.argv[5], {str(pod.folder / "kept")!r})\n')
    pod("set_up_env")
    with tarfile.open(pod.folder / "kept") as archive:
        assert {"scripts/train.py", "constraints.txt", "configs/h14_84px_t8.py"} <= set(archive.getnames())


def test_the_first_stage_runs_on_the_worker_with_the_settings(pod):
    done = pod("pre_training")
    assert done.returncode == 0, done.stderr
    pid = pod.process("pre_training")
    assert f"process {pid}, log clipa_eqx/logs/pre_training.log" in done.stdout
    assert pod.arguments() == [
        *("scripts/train.py", "configs/h14_84px_t8.py", "--workdir", "runs/first", "--distributed"),
        *("--optim.peak-lr", "1e-3", "--data.sources.0.folder", "gs://bucket/my pairs"),
        *("--zero-shot.0.data", "gs://bucket/val"),
    ]


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
    assert f"pre_training runs already, as process {pid}" in again.stderr
    assert pod.process("pre_training") == pid
    assert pod("fine_tuning", "--stop").returncode == 0
    assert is_running(pid)
    stopped = pod("pre_training", "--stop")
    assert f"process {pid} saves and ends" in stopped.stdout
    assert has_ended(pid)
    assert "pre_training does not run" in pod("pre_training", "--stop").stdout
    assert pod("pre_training").returncode == 0
    assert pod.process("pre_training") != pid


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
        assert ends == (['kill -TERM \\"\\$pid\\"'] if path.stem == "tpu_common" else [])


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({"ZONE": ""}, (), "tpu.env: ZONE has no value"),
        ({"WANDB_API_KEY": "secret"}, (), "WANDB_API_KEY is no setting; the settings are: PROJECT ZONE"),
        ({"PRE_TRAINING_RUN": ""}, (), "PRE_TRAINING_RUN has no value in the env file"),
        ({}, ("--dryrun",), "unknown flag --dryrun; --help lists the flags"),
        ({}, ("other.env",), "two env files: "),
    ],
)
def test_a_mistake_is_one_message_before_any_call(changes, flags, message, pod):
    done = pod("pre_training", *flags, **changes)
    assert (done.returncode, pod.calls()) == (2, [])
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_env_file_and_a_line_that_sets_nothing_are_mistakes(pod):
    assert "the env file is missing" in pod.run("pre_training").stderr
    assert "does not exist; copy scripts/tpu.env.example" in pod.run("pre_training", pod.folder / "no.env").stderr
    wrong = pod.folder / "wrong.env"
    wrong.write_text("PROJECT=p\nexport ZONE=z\n")
    done = pod.run("pre_training", wrong)
    assert (done.returncode, pod.calls()) == (2, [])
    assert "wrong.env:2: expected NAME=value, got: export ZONE=z" in done.stderr


def test_an_env_file_is_read_and_never_run(pod):
    done = pod("pre_training", "--dry-run", TPU_NAME=f"$(touch {pod.folder}/ran)")
    assert done.returncode == 0
    assert not (pod.folder / "ran").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_the_flags_of_a_script(script, pod):
    done = pod.run(script, "--help")
    assert done.returncode == 0
    assert f"scripts/{script}.sh tpu.env [--dry-run]" in done.stdout
    assert ("--stop" in done.stdout) == (script != "set_up_env")
    if script == "set_up_env":
        assert pod(script, "--stop").returncode == 2


def test_the_example_has_the_settings_and_works(pod):
    example = ROOT / "scripts" / "tpu.env.example"
    names = re.findall(r"^([A-Z_]+)=", example.read_text(encoding="utf-8"), re.MULTILINE)
    common = (ROOT / "scripts" / "tpu_common.sh").read_text(encoding="utf-8")
    [required] = re.findall(r'^required="(.*)"$', common, re.MULTILINE)
    [others] = re.findall(r'^settings="\$required (.*?)"$', common, re.MULTILINE | re.DOTALL)
    assert names == [*shlex.split(required), *others.split()]
    for script in SCRIPTS:
        assert pod.run(script, example, "--dry-run").returncode == 0
