"""Work of conversions that runs in worker processes of a cluster: it notes each attempt, and may be made to fail."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

from clipa_eqx.cluster.attempts import node_of_process
from clipa_eqx.errors import DataError
from conversion.records.part import convert_part


def noted(folder: Path, job, seen):
    """Convert a part, and note the attempt."""
    note(folder, job.number)
    return convert_part(job, seen)


def killed_once(folder: Path, number: int, job, seen):
    """Convert a part; the first attempt at one part kills its own process in the middle."""
    note(folder, job.number)
    report = convert_part(job, seen)
    if job.number == number and is_first(folder, "killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    return report


def node_killed_once(folder: Path, node: str, lives_on: bool, job, seen):
    """Convert a part; the first attempt on one node kills the node, and other nodes wait until the cluster knows.

    The worker process ends with its node, or both live on, as they do after losing their connection.
    """
    note(folder, job.number)
    if node_of_process() == node and is_first(folder, "killed"):
        (folder / "lost").write_text(str(job.number))
        os.kill(os.getppid(), signal.SIGSTOP if lives_on else signal.SIGKILL)
        time.sleep(60)
    wait_for(folder / "lost")
    while is_alive(node):
        time.sleep(0.05)
    time.sleep(0.3)  # the next look at the nodes comes while there are more attempts than places
    return convert_part(job, seen)


def on_full_disk(folder: Path, node: str, job, seen):
    """Convert a part, which fails at once on one node, and takes longer on others."""
    note(folder, job.number)
    if node_of_process() == node:
        raise OSError(28, "No space left on device")
    time.sleep(0.1)
    return convert_part(job, seen)


def failing(folder: Path, error: Exception, times: int, job, seen):
    """Convert a part; the first attempts at each fail."""
    note(folder, job.number)
    if attempts(folder)[job.number] <= times:
        raise error
    return convert_part(job, seen)


def refused(job, seen):
    """Fail as a part does whose options are wrong."""
    raise DataError(f"part {job.number} has no such column")


def broken(job, seen):
    """Fail as a part does that meets a bug."""
    return {}["a bug of ours"]


def slow(job, seen):
    """Convert a part, but not at once."""
    time.sleep(0.5)
    return convert_part(job, seen)


def other_facts():
    """Facts that the process of the tests and the workers of a cluster never share."""
    return {"pillow": "1.0" if "RAY_RAYLET_PID" in os.environ else "2.0", "numpy": "3.0"}


def is_alive(node: str) -> bool:
    import ray

    return any(entry["NodeID"] == node and entry["Alive"] for entry in ray.nodes())


def note(folder: Path, number: int) -> None:
    with (folder / "attempts").open("a") as file:
        file.write(f"{number}\n")


def attempts(folder: Path) -> Counter[int]:
    """Attempts at each part."""
    return Counter(map(int, (folder / "attempts").read_text().split()))


def is_first(folder: Path, name: str) -> bool:
    try:
        (folder / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"waited in vain for {path}"
        time.sleep(0.02)
