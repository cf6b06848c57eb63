"""Preparation of batches ahead of their use, in threads and processes that end with the iterator."""

import logging
import re
import signal
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import grain
import numpy as np
from absl import flags

from clipa_eqx.data.progress import BatchProgress
from clipa_eqx.data.stalls import StallWatch
from clipa_eqx.data.worker_processes import follow_parent, signals_blocked
from clipa_eqx.errors import DataError

Batch = dict[str, np.ndarray]
"""Arrays by name; the first axis of each is the row."""

BATCHES_SENT = 4
"""Batches per worker in transit to this process, in shared memory: one in use and one queued at each end."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Settings of the preparation of batches; they never change the content of a batch.

    Processes avoid Python's global lock, so use them once decoding is the bottleneck.

    Attributes:
        workers: processes that each prepare complete batches; 0 prepares them in this process.
        threads: threads per process.
        prefetch_batches: batches per process that are ready or in preparation, or ``threads`` if that is larger. If
            this or ``threads`` is 0, each batch is prepared when it is asked for.

    Raises:
        DataError: a negative number.
    """

    workers: int = 0
    threads: int = 2
    prefetch_batches: int = 2

    def __post_init__(self) -> None:
        if min(self.workers, self.threads, self.prefetch_batches) < 0:
            raise DataError(f"stream: workers, threads and prefetch_batches must not be negative, got {self}")

    @property
    def batches_ahead(self) -> int:
        """Largest number of batches that exist before they are asked for; it bounds their memory."""
        made = max(self.threads, self.prefetch_batches) if self.threads and self.prefetch_batches else 0
        return self.workers * (made + BATCHES_SENT) if self.workers else made


class BatchIterator(Iterator[Batch]):
    """Batches in order. Close the iterator, or use it in ``with``, to end its threads and processes.

    An iterator that is not closed is closed when it is collected, or at the end of the program.
    """

    def __init__(self, batches: Any, *, watch: StallWatch | None = None) -> None:
        """Iterate over ``batches``, which have a method ``close``; ``watch`` warns while a batch does not come."""
        self._batches: Any = batches
        self._watch = watch
        self._end = weakref.finalize(self, _end, batches, watch)

    def __next__(self) -> Batch:
        """Return the next batch; after the last one, or after an error, the iterator is closed.

        Raises:
            StopIteration: there is no further batch, or the iterator is closed.
            DataError: a record is damaged, or a worker process died.
        """
        if not self._end.alive:
            raise StopIteration
        try:
            with nullcontext() if self._watch is None else self._watch.waiting():
                found = next(self._batches)
            batch = {name: _own(value) for name, value in found.items()}
            if not batch:
                raise StopIteration
            return batch
        except BaseException as error:  # the end, a damaged record, a dead worker or Ctrl-C: nothing can follow
            self.close()
            if isinstance(error, RuntimeError) and (code := re.search(r"exit code (-?\d+)", str(error))):
                raise DataError(_death(int(code[1]))) from error
            raise

    def close(self) -> None:
        """Stop prefetching and end the worker processes; safe to call again."""
        self._end()
        self._batches = None

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def prefetch(steps: Any, *, config: StreamConfig, progress: BatchProgress, watch: StallWatch) -> BatchIterator:
    """Iterate over a Grain ``MapDataset`` of complete batches; threads and processes start at once.

    Worker processes write their ids into ``progress``. ``watch`` warns while a batch does not come; it ends with the
    iterator.

    The data set must be endless; a batch without arrays marks its end. If Grain itself ended the stream, its exception
    would keep the last batch of each worker in shared memory.
    """
    is_ahead = config.threads > 0 and config.prefetch_batches > 0
    read_options = grain.ReadOptions(
        num_threads=config.threads if is_ahead else 0,
        # Grain's buffer contains the batches that are ready and those in preparation.
        prefetch_buffer_size=max(config.prefetch_batches, config.threads) if is_ahead else 0,
    )
    batches = steps.to_iter_dataset(read_options)
    if config.workers:
        # Grain reads absl flags, which only absl programs parse; the defaults are what we want.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # Grain keeps this many at each end of the transfer in addition to the worker's own buffer: one is enough.
        options = grain.MultiprocessingOptions(num_workers=config.workers, per_worker_buffer_size=1)
        batches = batches.mp_prefetch(options, worker_init_fn=partial(_start_worker, progress))
        _log.info(
            "reading with %d worker processes of %d threads, at most %d batches ahead",
            config.workers,
            config.threads,
            config.batches_ahead,
        )
    iterator = iter(batches)
    with signals_blocked():  # also while workers are still starting
        iterator.start_prefetch()
        watch.start()
    return BatchIterator(iterator, watch=watch)


def _own(value: Any) -> np.ndarray:
    """Copy an array that a worker sent in shared memory, and free the shared memory at once.

    Grain frees it when the array is collected, which never happens if an exception or the end of the program comes
    first.
    """
    if type(value) is np.ndarray:
        return value
    own = np.array(value, subok=False)
    value.shm.unlink()
    value._unlink_on_del = False
    return own


def _end(batches: Any, watch: StallWatch | None) -> None:
    if watch is not None:
        watch.end()
    batches.close()


def _death(exit_code: int) -> str:
    advice = "or set fewer data.stream.workers, threads or prefetch_batches"
    if exit_code > 0:
        return (
            f"a worker process of the input ended with exit code {exit_code}: the log above says why. If it says "
            f"nothing, run with data.stream.workers 0 to see the error, {advice}"
        )
    number = -exit_code
    reasons = {
        signal.SIGBUS: "shared memory is full, as in containers that have 64 MB of it. Give it more (docker run "
        "--shm-size=16g, or a larger /dev/shm)",
        signal.SIGKILL: "killed, most likely because memory ran out. Give the machine more memory",
    }
    what = reasons.get(
        signal.Signals(number), "the log above may say why. If it happens again, change the input settings"
    )
    return f"a worker process of the input died by {signal.Signals(number).name}: {what}, {advice}"


def _start_worker(progress: BatchProgress, worker: int, workers: int) -> None:
    del workers
    follow_parent()
    progress.set_process(worker)
