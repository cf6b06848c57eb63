"""The converter as a process: killed at random moments or stopped by signals, it leaves no orphans and resumes."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import dumps
from support.dumps import Sample
from support.paths import ROOT

PARTS = 12


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Enough work for a kill to interrupt; the last parts repeat keys, so they are written again at the end."""
    folder = tmp_path_factory.mktemp("dump")
    images = [dumps.jpeg(i, width=320, height=240) for i in range(4)]
    shards = [
        [Sample(f"{part % (PARTS - 2)}-{i}", images[i % 4], (b"text",), 0) for i in range(12)] for part in range(PARTS)
    ]
    dumps.write_tars(folder / "source", shards)
    return folder / "source"


def command(source, target, *options):
    return [
        sys.executable,
        "-m",
        "conversion.records",
        "webdataset",
        str(source),
        str(target),
        "--max-side",
        "96",
        *options,
    ]


def start(source, target, *options):
    return subprocess.Popen(
        command(source, target, *options),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(target.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(source, target, *options):
    process = start(source, target, *options)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    return {path.name: path.read_bytes() for path in target.iterdir()}


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    return finish(source, tmp_path_factory.mktemp("whole") / "out", "--workers", "1")


def descendants(pid):
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found += [int(name), *descendants(int(name))]
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(reached, *, seconds=60.0):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def finished_parts(target):
    return len(list(target.glob("_unfinished/part-*.json")))


def stop_somewhere(process, target, *, number, seed):
    """Send a signal after a random number of parts and a random delay; return the process ids of its workers."""
    draw = random.Random(seed)
    parts = draw.randint(finished_parts(target), PARTS)
    wait_until(lambda: process.poll() is not None or finished_parts(target) >= parts)
    time.sleep(draw.uniform(0, 0.05))
    workers = descendants(process.pid)
    process.send_signal(number)
    return workers


def kill_somewhere(source, target, *options, seed):
    """Kill a conversion, check that it leaves no orphan, and return whether it was killed before its end."""
    process = start(source, target, "--workers", "2", *options)
    workers = stop_somewhere(process, target, number=signal.SIGKILL, seed=seed)
    process.communicate(timeout=60)
    wait_until(lambda: not any(map(is_alive, workers)), seconds=20)
    return process.returncode == -signal.SIGKILL


def test_a_conversion_killed_at_three_moments_resumes_to_the_same_bytes(source, whole, tmp_path):
    for kills, folder in kill_times(source, tmp_path, wanted=1, moments=3):
        assert finish(source, folder, "--workers", "1") == whole, kills


@pytest.mark.slow
def test_a_conversion_killed_at_each_of_twenty_moments_resumes_to_the_same_bytes(source, whole, tmp_path):
    for kills, folder in kill_times(source, tmp_path, wanted=20, moments=1):
        assert finish(source, folder, "--workers", "2") == whole, kills


@pytest.mark.slow
def test_a_conversion_of_a_subset_killed_at_each_of_ten_moments_resumes_to_the_same_bytes(source, tmp_path):
    keys = [f"{part}-{i}" for part in range(PARTS) for i in range(0, 12, 2)]  # those of the last parts are absent
    np.save(tmp_path / "keys.npy", np.array(keys))
    options = ("--subset", str(tmp_path / "keys.npy"))
    whole = finish(source, tmp_path / "whole", "--workers", "1", *options)
    assert b'"met": 60, "never_met": 12' in re.sub(rb"\s+", b" ", whole["manifest.json"])
    for kills, folder in kill_times(source, tmp_path, *options, wanted=10, moments=1):
        assert finish(source, folder, "--workers", "2", *options) == whole, kills


def kill_times(source, folder, *options, wanted, moments):
    """Yield ``wanted`` destinations of a conversion that was killed up to ``moments`` times, and their number.

    A conversion that was over before its first kill does not count: a starved test comes too late for many.
    """
    found = 0
    for attempt in range(10 + 3 * wanted):
        target = folder / str(attempt)
        seeds = [100 * attempt + moment for moment in range(moments)]
        kills = [kill_somewhere(source, target, *options, seed=seed) for seed in seeds]
        if any(kills):
            found += 1
            yield sum(kills), target
        if found == wanted:
            return
    raise AssertionError(f"only {found} of {wanted} conversions were killed before their end")


def start_and_hold(source, folder):
    """Start a conversion and stop its workers while some parts are done and some are not.

    A starved test may come too late and tries again. Returns (process, workers, target).
    """
    for attempt in range(10):
        target = folder / str(attempt) / "out"
        process = start(source, target, "--workers", "2")
        wait_until(lambda at=target, of=process: finished_parts(at) >= 1 or of.poll() is not None)
        workers = descendants(process.pid)
        send_all(workers, signal.SIGSTOP)
        if len(workers) >= 2 and process.poll() is None and 1 <= finished_parts(target) < PARTS:
            return process, workers, target
        send_all(workers, signal.SIGCONT)
        process.communicate(timeout=60)
    raise AssertionError("each conversion was over before it could be held")


def send_all(pids, number):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.parametrize(
    ("number", "send", "code"),
    [
        (signal.SIGINT, os.killpg, 130),
        (signal.SIGTERM, os.kill, 143),
        (signal.SIGTERM, os.killpg, 143),
        (signal.SIGHUP, os.killpg, 129),
    ],
    ids=["terminal", "supervisor", "scheduler", "closed terminal"],
)
def test_a_signal_stops_at_once_with_a_word_and_without_orphans(number, send, code, source, whole, tmp_path):
    process, workers, target = start_and_hold(source, tmp_path)
    send(process.pid, number)
    send_all(workers, signal.SIGCONT)
    shown, _ = process.communicate(timeout=30)
    assert process.returncode == code, shown
    assert re.search("interrupted|terminated", shown)
    assert "Traceback" not in shown
    wait_until(lambda: not any(map(is_alive, workers)), seconds=20)
    assert not (target / "manifest.json").exists()
    assert not list(target.parent.glob("clipa_eqx-*"))
    assert finish(source, target, "--workers", "2") == whole


def test_workers_import_no_jax_and_a_dead_one_ends_the_conversion(source, whole, tmp_path):
    process, workers, target = start_and_hold(source, tmp_path)
    maps = {pid: Path(f"/proc/{pid}/maps").read_text() for pid in workers}
    assert any("simplejpeg" in libraries for libraries in maps.values())
    assert not any("jaxlib" in libraries for libraries in maps.values())
    os.kill(next(pid for pid, libraries in maps.items() if "simplejpeg" in libraries), signal.SIGKILL)
    send_all(workers, signal.SIGCONT)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "a worker process died" in shown
    assert "Traceback" not in shown
    assert finish(source, target, "--workers", "2") == whole
