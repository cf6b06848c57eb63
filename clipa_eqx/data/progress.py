"""The record that each batch in preparation has reached, readable in the process that waits for the batch."""

import mmap
import os
import weakref
from typing import Any, NamedTuple

import numpy as np

READING, PREPARING, COMPLETE = 1, 2, 3
"""Stages of a batch: its records are read from a shard, a row is made of a record, all rows are made."""

_FIELDS = 4


class BatchPosition(NamedTuple):
    """Position of the preparation of a batch.

    Attributes:
        stage: READING, PREPARING or COMPLETE.
        row: number of the row; for READING the first one of those that are read together.
        record: id of the record; for READING the first one of those that are read together.
    """

    stage: int
    row: int
    record: int


class BatchProgress:
    """Table of the batches in preparation, in memory that worker processes share with the process that waits.

    Pickling it for a worker process sends a reference. Where the system has no such memory, the worker gets a table of
    its own, and this process learns nothing of it.
    """

    def __init__(self, *, workers: int, batches: int) -> None:
        """Make a table for so many worker processes and at most so many batches in preparation at the same time."""
        self._workers = workers
        self._shape = (workers + batches, _FIELDS)
        self._process, self._file = os.getpid(), -1
        self._table: np.ndarray = np.zeros(self._shape, np.int64)
        if workers and hasattr(os, "memfd_create"):
            self._file = os.memfd_create("clipa_eqx-batches")
            os.ftruncate(self._file, self._table.nbytes)
            self._table = _map(self._file, self._shape)
            weakref.finalize(self, os.close, self._file)

    def set_process(self, worker: int) -> None:
        """Record that this process is the worker of that number."""
        self._table[worker, 0] = os.getpid()

    def process(self, worker: int) -> int | None:
        """Process id of a worker; None if it has not started, or cannot share its table."""
        return int(self._table[worker, 0]) or None

    def set_position(self, batch: int, *, stage: int, row: int = 0, record: int = 0) -> None:
        """Record the position of a batch. It takes about a microsecond."""
        self._table[self._slot(batch)] = (batch + 1, stage, row, record)

    def position(self, batch: int) -> BatchPosition | None:
        """Position of a batch; None if its preparation has not begun."""
        found, stage, row, record = self._table[self._slot(batch)].tolist()
        return BatchPosition(stage, row, record) if found == batch + 1 else None

    def _slot(self, batch: int) -> int:
        return self._workers + batch % (self._shape[0] - self._workers)

    def __getstate__(self) -> dict[str, Any]:
        return {"workers": self._workers, "shape": self._shape, "process": self._process, "file": self._file}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._workers, self._shape = state["workers"], state["shape"]
        self._process, self._file = state["process"], -1
        self._table = np.zeros(self._shape, np.int64)
        try:
            file = os.open(f"/proc/{state['process']}/fd/{state['file']}", os.O_RDWR)
        except OSError:
            return
        try:
            self._table = _map(file, self._shape)
        finally:
            os.close(file)


def _map(file: int, shape: tuple[int, int]) -> np.ndarray:
    return np.frombuffer(mmap.mmap(file, 8 * shape[0] * shape[1]), np.int64).reshape(shape)
