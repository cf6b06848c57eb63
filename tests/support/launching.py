"""A Slurm of two nodes that are this machine: programs ``srun`` and ``scontrol`` that a batch script calls."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from support.paths import ROOT

LAUNCH = ROOT / "scripts" / "launch"
FIRST_PORT, PORTS = 61440, 4096

# One task per node, each with the variables that Slurm gives it; returns the highest code of its tasks, as srun does.
_SRUN = f"""#!{sys.executable}
import json, os, subprocess, sys
with open(os.environ["CALLS"] + "/srun", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
counts = dict.fromkeys(["SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"], "2")
step = {{"SLURM_STEP_NODELIST": "localhost", **counts}}
try:
    tasks = [
        subprocess.Popen(command, env={{**os.environ, **step, "SLURM_PROCID": str(i), "SLURM_LOCALID": "0"}})
        for i in range(2)
    ]
except FileNotFoundError:
    sys.exit(127)
with open(os.environ["CALLS"] + "/tasks", "w") as file:
    file.write(json.dumps([task.pid for task in tasks]))
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
_SCONTROL = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["CALLS"] + "/scontrol", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "show":
    print("JobId=" + sys.argv[3], os.environ.get("STATE", "JobState=RUNNING Requeue=1"))
"""


class SlurmJob:
    """``scripts/launch/slurm.sh`` as a job, started at once.

    Attributes:
        number: number of the job; the port of process 0 follows from it, and is free.
        script: the process of the batch script.
    """

    def __init__(self, folder: Path, *arguments: object, clone: Path = ROOT, **variables: str):
        programs, self._calls = folder / "programs", folder / "calls"
        for one in (programs, self._calls):
            one.mkdir(exist_ok=True)
        for name, text in (("srun", _SRUN), ("scontrol", _SCONTROL)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self.number = str(PORTS * 5 + _free_port() - FIRST_PORT)
        self._log = folder / f"slurm-{self.number}.out"
        environment = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(self._calls),
            "SLURM_JOB_ID": self.number,
            **variables,
        }
        with self._log.open("w") as log:
            command = ["bash", LAUNCH / "slurm.sh", *map(str, arguments)]
            self.script = subprocess.Popen(command, cwd=clone, env=environment, stdout=log, stderr=log)

    def wait(self, *, timeout: float = 30) -> int:
        """The exit code of the script."""
        try:
            return self.script.wait(timeout)
        finally:
            self.script.kill()

    def wait_for(self, is_reached: Callable[[], bool], *, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not is_reached():
            assert self.script.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.01)

    def signal_step(self, number: signal.Signals) -> None:
        """Send a signal to all tasks of the step, as Slurm does for ``--signal`` without ``B:``."""
        for pid in json.loads((self._calls / "tasks").read_text()):
            os.kill(pid, number)

    def calls(self, program: str) -> list[list[str]]:
        path = self._calls / program
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def said(self) -> str:
        return self._log.read_text()


def _free_port() -> int:
    """A free port among those that a job may choose."""
    while True:
        port = random.randrange(FIRST_PORT, FIRST_PORT + PORTS)
        with socket.socket() as one:
            try:
                one.bind(("", port))
            except OSError:
                continue
            return port
