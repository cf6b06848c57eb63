"""The command of a conversion in a process of its own, and the tasks that it started on a cluster of this machine."""

import os
import subprocess
import sys
import time

from support.paths import ROOT


def start(source, target, *options, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "conversion.records", "webdataset", str(source), str(target), *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_until(reached, *, seconds=60.0):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def parts_done(target):
    return {path.name: path.stat().st_mtime_ns for path in target.glob("_unfinished/part-*.json")}


def stopped(source, target, number, *, send=os.kill, **environment):
    """Start a conversion on a cluster, stop it after its first part, and return its exit code and what it printed."""
    process = start(source, target, "--engine", "ray", **environment)
    wait_until(lambda: parts_done(target) or process.poll() is not None)
    send(process.pid, number)
    shown, _ = process.communicate(timeout=60)
    return process.returncode, shown


def tasks():
    """The command lines of worker processes that run a part."""
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in shown.splitlines() if line.startswith("ray::part ")]
