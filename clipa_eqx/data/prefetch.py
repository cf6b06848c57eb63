"""Work ahead on batches in threads and processes, and end all of them when the batches are no longer wanted."""

import logging
import re
import signal
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grain
import numpy as np
from absl import flags

from clipa_eqx.data.worker_processes import follow_parent, signals_blocked
from clipa_eqx.errors import DataError

Batch = dict[str, np.ndarray]

BATCHES_SENT = 4
"""Batches per worker on their way to this process, in shared memory: at each end one in hand and one in a queue."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How batches are prepared ahead; it never changes what is in them.

    `workers` processes (0: this process) each prepare whole batches on `threads` threads (0: on demand), and keep
    `prefetch_batches` ready or under way, or as many as there are threads if these are more. Processes get round
    Python's lock, so use them once decoding is the bottleneck.
    """

    workers: int = 0
    threads: int = 2
    prefetch_batches: int = 2

    def __post_init__(self) -> None:
        if min(self.workers, self.threads, self.prefetch_batches) < 0:
            raise DataError(f"stream: workers, threads and prefetch_batches must not be negative, got {self}")

    @property
    def batches_ahead(self) -> int:
        """The most batches that exist before they are asked for, for the memory that they take."""
        made = max(self.threads, self.prefetch_batches) if self.threads and self.prefetch_batches else 0
        return self.workers * (made + BATCHES_SENT) if self.workers else made


class BatchIterator(Iterator[Batch]):
    """Batches in order; close it (or use it in `with`) to end its threads and processes.

    One that is forgotten is closed when it is collected, or at the end of the program.
    """

    def __init__(self, batches: Any) -> None:
        self._batches: Any = batches
        self._end = weakref.finalize(self, batches.close)

    def __next__(self) -> Batch:
        if not self._end.alive:
            raise StopIteration
        try:
            batch = {name: _own(value) for name, value in next(self._batches).items()}
            if not batch:
                raise StopIteration
            return batch
        except BaseException as error:  # the end, a damaged record, a dead worker or Ctrl-C: nothing can follow
            self.close()
            if isinstance(error, RuntimeError) and (found := re.search(r"exit code (-\d+)", str(error))):
                raise DataError(_death(-int(found[1]))) from error
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


def prefetch(steps: Any, *, config: StreamConfig) -> BatchIterator:
    """Iterate over a Grain `MapDataset` of whole batches, with threads and processes working ahead from now on.

    The data set is endless, and a batch without arrays says that no other follows: where Grain itself ends a stream,
    the exception keeps the last batch of each worker in shared memory.
    """
    is_ahead = config.threads > 0 and config.prefetch_batches > 0
    read_options = grain.ReadOptions(
        num_threads=config.threads if is_ahead else 0,
        # Grain's buffer holds what is ready and what is under way.
        prefetch_buffer_size=max(config.prefetch_batches, config.threads) if is_ahead else 0,
    )
    batches = steps.to_iter_dataset(read_options)
    if config.workers:
        # Grain reads absl flags, which only absl programs parse; the defaults are what we want.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # Grain keeps that many on both ends of the way besides what the worker has ready: one is enough.
        options = grain.MultiprocessingOptions(num_workers=config.workers, per_worker_buffer_size=1)
        batches = batches.mp_prefetch(options, worker_init_fn=_start_worker)
        _log.info(
            "reading with %d worker processes of %d threads, at most %d batches ahead",
            config.workers,
            config.threads,
            config.batches_ahead,
        )
    iterator = iter(batches)
    with signals_blocked():  # also while workers are still starting
        iterator.start_prefetch()
    return BatchIterator(iterator)


def _own(value: Any) -> np.ndarray:
    """A copy of an array that a worker sent in shared memory, which is given back at once.

    Grain does so when the array is collected, which may be never if an exception or the end of the program comes first.
    """
    if type(value) is np.ndarray:
        return value
    own = np.array(value, subok=False)
    value.shm.unlink()
    value._unlink_on_del = False
    return own


def _death(number: int) -> str:
    reasons = {
        signal.SIGBUS: "shared memory is full, as in containers that have 64 MB of it. Give it more (docker run "
        "--shm-size=16g, or a larger /dev/shm)",
        signal.SIGKILL: "killed, most likely for want of memory. Give the machine more",
    }
    what = reasons.get(signal.Signals(number), "the log above may say why. If it happens again, take other settings")
    return (
        f"a worker process of the input died by {signal.Signals(number).name}: {what}, or set fewer "
        "data.stream.workers, threads or prefetch_batches"
    )


def _start_worker(worker: int, workers: int) -> None:
    del worker, workers
    follow_parent()
