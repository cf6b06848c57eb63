"""Warnings about a batch that does not come: which worker owes it, and which record and shard it has reached."""

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from clipa_eqx.data.progress import COMPLETE, READING, BatchProgress

WARN_SECONDS = 60.0
"""Seconds without a batch before the first warning, and between two warnings."""

_log = logging.getLogger(__name__)

# States of a process in /proc, and what to do about them.
_STATES = {
    "D": ", which waits for a device: its storage does not answer",
    "T": ", which a signal stopped: `kill -CONT {0}` lets it continue",
    "Z": ", which has ended",
}


class _Wait(NamedTuple):
    batch: int
    since: float


class StallWatch:
    """A thread, from ``start`` until ``end``, that warns while ``waiting`` takes long.

    Args:
        first: number of the first batch; each use of ``waiting`` is for the next one.
        explain: function from the number of a batch to the reason why it is not there.
        seconds: time without a batch before each warning.
    """

    def __init__(self, explain: Callable[[int], str], *, first: int, seconds: float = WARN_SECONDS) -> None:
        self._explain, self._next, self._seconds = explain, first, seconds
        self._wait: _Wait | None = None
        self._ended = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="stall-watch", daemon=True).start()

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Watch the wait for the next batch."""
        wait = self._wait = _Wait(self._next, time.monotonic())
        try:
            yield
        finally:
            self._wait = None
        self._next += 1
        if (waited := time.monotonic() - wait.since) >= self._seconds:
            _log.info("batch %d came after %.0f s; reading continues", wait.batch, waited)

    def end(self) -> None:
        """End the thread; safe to call again."""
        self._ended.set()

    def _run(self) -> None:
        wait, warnings = None, 0
        while not self._ended.wait(min(1.0, self._seconds / 10)):
            if wait is not self._wait:
                wait, warnings = self._wait, 0
            if wait is not None and (waited := time.monotonic() - wait.since) >= (warnings + 1) * self._seconds:
                warnings = int(waited / self._seconds)
                _log.warning("no batch for %.0f s: %s", waited, self._explain(wait.batch))


def explain_stall(
    batch: int,
    *,
    first: int,
    workers: int,
    progress: BatchProgress,
    describe: Callable[[int], str],
    rows: int,
) -> str:
    """Name the worker that makes a batch, its process, and the record and shard that it has reached.

    Args:
        batch: number of the batch.
        first: number of the first batch of the stream; worker k makes the batches first + k, first + k + workers, ...
        workers: number of worker processes; 0 if this process makes the batches.
        progress: positions of the batches in preparation.
        describe: function from the id of a record to the name of its shard and its position there.
        rows: rows of the batch in this process.
    """
    if workers:
        worker = (batch - first) % workers
        maker = f"worker process {worker} of 0 to {workers - 1}"
        process = progress.process(worker)
        if process is None:
            return f"{maker}, which has not started yet, makes batch {batch}. {_ADVICE}"
        maker = f"{maker} (pid {process}{_state(process)})"
    else:
        maker = "this process"
    at = progress.position(batch)
    if at is None:
        done = "has not begun it"
    elif at.stage == COMPLETE:
        done = "has made all of its rows, but not delivered it"
    else:
        verb = "reads" if at.stage == READING else "has read and now prepares"
        done = f"{verb} record {at.record} ({describe(at.record)}) for row {at.row} of {rows}"
    return f"{maker} makes batch {batch} and {done}. {_ADVICE}"


_ADVICE = "Reading continues when the batch comes. Check that the storage of the records answers"


def _state(process: int) -> str:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ", which has ended" if Path("/proc/self/stat").exists() else ""
    except OSError:
        return ""
    return _STATES.get(state, "").format(process)
