"""The process that owns a lock: what is recorded about it, whether it is on this machine, and whether it has ended."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """The record of this process: its machine since the machine's last start, its id there, and the time.

    ``process_start`` is in ticks since the start of the machine. Fields that the system does not have are empty.
    """
    return {
        "host": socket.gethostname(),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": _link("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "process_start": _process_start(os.getpid()),
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def is_here(owner: Mapping[str, Any]) -> bool:
    """Whether an owner ran on this machine since its last start, where its process id can be looked up."""
    here = this_process()
    return all(owner.get(name) == here[name] for name in ("host", "boot", "pid_namespace"))


def is_gone(owner: Mapping[str, Any]) -> bool:
    """Whether the process of an owner on this machine has ended. Ids are reused, so the start time counts too."""
    pid = owner.get("pid")
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # another user's
    start = _process_start(pid)
    return start is not None and owner.get("process_start") is not None and start != owner["process_start"]


def described(owner: Mapping[str, Any]) -> str:
    """An owner in words, as part of a message."""
    if not owner:
        return "a process that has not finished writing its lock"
    machine = "this machine" if is_here(owner) else "another machine or container"
    return f"process {owner.get('pid')} on {owner.get('host')} ({machine}), which started at {owner.get('started')}"


def seconds_with_sleep() -> float:
    """Seconds including those in which the machine is suspended, where the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _process_start(pid: int) -> str | None:
    """The start of a process, "ended" for one that its parent has not collected; None where ``/proc`` is missing."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) < 20:
        return None
    return "ended" if fields[0] in "ZX" else fields[19]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
