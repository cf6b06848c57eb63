"""A Ray cluster of two nodes on this machine, and its processes."""

import contextlib
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.paths import ROOT

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
# Seconds until a node that died is noticed.
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


@contextlib.contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster of two nodes with one processor each, whose processes find the package and these helpers."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    left = ray_processes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from ray.cluster_utils import Cluster

            cluster = Cluster(
                initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "_system_config": QUICK}
            )
        try:
            cluster.add_node(**NODE)
            yield cluster
        finally:
            cluster.shutdown()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    end = time.monotonic() + 30
    while more := ray_processes() - left:
        assert time.monotonic() < end, f"processes of Ray remain: {sorted(more)}"
        time.sleep(0.1)


def ray_processes() -> set[int]:
    """The processes of Ray that were started by this process, or by none that lives."""
    found: set[int] = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            is_rays = words.startswith(b"ray::") or b"/ray/core/src/ray/" in words or b"default_worker.py" in words
            if is_rays and state != "Z" and int(parent) in (1, os.getpid()):
                found.add(int(entry.name))
    return found
