"""A TPU of recorded calls: a ``gcloud`` that notes them, and workers that are folders of a test.

It runs the command of ``ssh`` in these folders, where ``.venv/bin/python`` waits instead of training.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from support.paths import ROOT

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
# ``scp`` copies to each worker, ``ssh`` runs the command on each; as the real one it names the workers that fail.
GCLOUD = f"""#!{sys.executable}
import json, os, shutil, subprocess, sys
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
kind, name = sys.argv[4], sys.argv[5 if sys.argv[4] == "ssh" else 6]
if not name.startswith("pod"):
    sys.exit("ERROR: (gcloud.compute.tpus.tpu-vm." + kind + ") NOT_FOUND: " + name + " was not found")
ended = 0
for i, worker in enumerate(os.environ["WORKERS"].split(":")):
    if kind == "scp":
        shutil.copy(sys.argv[5], os.path.join(worker, name.split(":")[1]))
        continue
    command = ["bash", "-c", sys.argv[sys.argv.index("--command") + 1]]
    code = subprocess.run(command, cwd=worker).returncode
    if code:
        print("##### Command execution on worker", i, "failed with exit status", code, file=sys.stderr)
        ended = code
sys.exit(ended)
"""
# The Python of a worker: records the arguments of a training and waits, as training does, until SIGTERM ends it with
# exit code 75; ends at once with the code in the file ``code``. It makes a .venv with itself, and records calls of pip.
TRAINER = """#!/bin/bash
case $* in
  "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python; exit ;;
  -m*) echo "$*" >>pip_calls; exit ;;
  -) echo "worker 0 of 1: 8 of 8 tpu devices"; exit ;;
esac
printf "%s\\n" "$@" >arguments
trap 'echo saved; exit 75' TERM
if [ -f code ]; then echo "error: no such records"; exit "$(cat code)"; fi
for i in $(seq 600); do sleep 0.1; done
"""


class Pod:
    """An env file, the recorded gcloud, and the workers of a TPU: one that is installed, until ``add_worker``."""

    def __init__(self, folder):
        self.folder, self.workers = folder, []
        self.clone = self.add_worker()
        (folder / "bin").mkdir()
        for name, text in (("gcloud", GCLOUD), ("python3.11", TRAINER)):
            self.program(folder / "bin" / name, text)
        self.program(self.clone / ".venv" / "bin" / "python", TRAINER)
        (self.clone / "scripts").mkdir()
        shutil.copy(ROOT / "scripts" / "tpu_worker.sh", self.clone / "scripts")
        (self.clone / "configs").symlink_to(ROOT / "configs")

    def program(self, path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def add_worker(self):
        """A worker with nothing on it; gives the path at which its clone will be."""
        self.workers.append(self.folder / f"home {len(self.workers)}")
        self.workers[-1].mkdir()
        return self.workers[-1] / "clipa_eqx"

    def __call__(self, script, *flags, variables=None, **changes):
        env = self.folder / "tpu.env"
        env.write_text("# a comment\n\n" + "".join(f"{name}={value}\n" for name, value in (ENV | changes).items()))
        return self.run(script, env, *flags, **(variables or {}))

    def run(self, script, *arguments, **variables):
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        own = {"PATH": path, "CALLS": str(self.folder / "calls"), "WORKERS": ":".join(map(str, self.workers))}
        command = ["bash", str(ROOT / "scripts" / f"{script}.sh"), *map(str, arguments)]
        environment = os.environ | own | variables
        return subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )

    def calls(self):
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def process(self, stage):
        return int((self.clone / "logs" / f"{stage}.pid").read_text())

    def arguments(self):
        """The arguments that the trainer on the worker was started with."""
        return wait_for((self.clone / "arguments").read_text).splitlines()

    def exit_code(self, stage):
        """The recorded exit code of a stage, once it has ended."""
        return wait_for((self.clone / "logs" / f"{stage}.exit").read_text).strip()

    def end(self):
        """End the trainers that a test leaves."""
        for file in self.folder.glob("home */*/logs/*.pid"):
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
