"""Worker processes: the same batches, no jax backend, and no processes or shared memory after any end of a program."""

import functools
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.paths import ROOT
from support.streams import ON_DEMAND
from support.worker_functions import counted, die, evaluate, random_row

from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.data.stream import eval_stream, train_stream
from clipa_eqx.errors import DataError

PROGRAM = '''"""Take batches with two workers, print their process ids, then end in the requested way."""
import itertools
import os
import signal
import sys

from support import worker_functions as t
from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.data.stream import eval_stream, train_stream

if __name__ == "__main__":
    folder, how = sys.argv[1:]
    stop = []  # as in training: a flag that is checked between batches
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stop.append(number))
    source, config = open_records(folder), StreamConfig(workers=2, threads=1)
    if how.startswith("evaluate"):
        _, transform, *counts = how.split()
        for count in counts:
            with eval_stream(source, getattr(t, transform), batch_size=4, config=config) as stream:
                pids = {int(batch["pid"][0]) for batch in itertools.islice(stream, int(count))}
        print(*pids, flush=True)
        sys.exit(0)
    stream = train_stream(source, t.random_row, batch_size=2, seed=0, config=config)
    batches = [next(stream) for _ in range(4)]
    print(*{int(batch["pid"][0]) for batch in batches}, flush=True)
    if how == "close":
        stream.close()
    elif how == "fail":
        raise ZeroDivisionError
    elif how == "signal":
        while not stop:
            next(stream)
        stream.close()
        sys.exit(stop[0])
    elif how == "wait":
        sys.stdin.read()
'''


@pytest.fixture
def program(source, tmp_path):
    """A function that starts PROGRAM in its own process group and returns (process, ids of its workers)."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    started = []

    def start(how):
        process = subprocess.Popen(
            [sys.executable, str(path), str(source.folder), how],
            env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), str(ROOT)))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process, [int(pid) for pid in process.stdout.readline().split()]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_gone(pids):
    deadline = time.monotonic() + 20
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if is_running(pid)]


def shared_blocks(pids):
    """Blocks of shared memory that these processes have mapped."""
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in pids]
    return {Path(found) for text in maps for found in re.findall(r"/dev/shm/psm_\w+", text)}


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_give_the_same_batches_and_no_jax_backend(source, monkeypatch, workers):
    monkeypatch.setenv("CLIPA_EQX_TEST_PARENT", str(os.getpid()))
    options = {"batch_size": 4, "seed": 3, "start_step": 2}
    with train_stream(source, random_row, **options, config=ON_DEMAND) as stream:
        reference = [next(stream) for _ in range(5)]
    with train_stream(source, random_row, **options, config=StreamConfig(workers=workers, threads=1)) as stream:
        got = [next(stream) for _ in range(5)]
    for a, b in zip(got, reference, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"pid"}:
            assert type(a[name]) is np.ndarray  # own memory, not the shared block of the worker
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    pids = {int(pid) for batch in got for pid in batch["pid"]}
    assert len(pids) == workers
    assert os.getpid() not in pids
    assert_gone(pids)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("close", 0),
        ("forget", 0),
        ("fail", 1),
        # To the end, which is after 50 batches, and almost to the end, where workers have reached it already.
        ("evaluate evaluate 99 48", 0),
        ("evaluate up_to_100 99", 1),  # a damaged record
    ],
)
def test_a_program_that_ends_leaves_neither_workers_nor_shared_memory(program, how, code):
    process, workers = program(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "leaked" not in errors
    assert "resource_tracker" not in errors
    assert len(workers) == (0 if "up_to_100" in how else 2)
    assert_gone(workers)


@pytest.mark.parametrize(
    ("config", "most"),
    [
        (StreamConfig(threads=3, prefetch_batches=2), 3),
        (StreamConfig(threads=1, prefetch_batches=4), 4),
        (StreamConfig(threads=0, prefetch_batches=4), 0),
        (StreamConfig(workers=2, threads=1, prefetch_batches=2), 12),
    ],
    ids=str,
)
def test_as_many_batches_are_made_ahead_as_the_config_says(source, tmp_path, config, most):
    assert config.batches_ahead == most
    path = tmp_path / "made"
    with train_stream(source, functools.partial(counted, path=path), batch_size=1, seed=0, config=config) as stream:
        for taken in (1, 2):
            next(stream)
            deadline = time.monotonic() + 20
            while path.stat().st_size < taken + most and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.2)  # time for one too many
            assert path.stat().st_size == taken + most


def test_an_evaluation_that_ends_leaves_no_shared_memory(source):
    before = shared_blocks([os.getpid()])
    with eval_stream(source, evaluate, batch_size=4, config=StreamConfig(workers=2, threads=1)) as stream:
        seen = [batch["sample_id"] for batch in itertools.islice(stream, 48)]
    np.testing.assert_array_equal(np.concatenate(seen), range(4 * 48))
    deadline = time.monotonic() + 20
    while shared_blocks([os.getpid()]) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not shared_blocks([os.getpid()]) - before


@pytest.mark.parametrize(
    ("number", "message"),
    [(signal.SIGBUS, "SIGBUS: shared memory is full.*--shm-size"), (signal.SIGKILL, "SIGKILL: killed.*memory")],
)
def test_the_cause_of_death_of_a_worker_is_named(source, number, message):
    stream = train_stream(
        source, functools.partial(die, number=number), batch_size=2, seed=0, config=StreamConfig(workers=1, threads=1)
    )
    with pytest.raises(DataError, match=message), stream:
        next(stream)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_process_group_is_handled_by_the_program_only(program, number):
    process, workers = program("signal")
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == number, errors
    assert "leaked" not in errors
    assert "terminated unexpectedly" not in errors
    assert_gone(workers)


def test_workers_and_shared_memory_are_gone_after_their_parent_is_killed(program):
    process, workers = program("wait")
    assert all(map(is_running, workers))
    blocks = shared_blocks([process.pid, *workers])
    assert blocks
    process.send_signal(signal.SIGKILL)
    assert_gone(workers)
    deadline = time.monotonic() + 20
    while any(block.exists() for block in blocks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [block for block in blocks if block.exists()]
