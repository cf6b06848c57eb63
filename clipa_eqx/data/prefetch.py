"""Work ahead on batches in threads and processes, and end all of them when the batches are no longer wanted."""

import logging
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grain
import numpy as np
from absl import flags

from clipa_eqx.errors import DataError

Batch = dict[str, np.ndarray]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How batches are prepared ahead; it never changes what is in them.

    `workers` processes (0: this process) each prepare whole batches on `threads` threads (0: on demand), and keep up
    to `prefetch_batches` ready. Processes get round Python's lock, so use them once decoding is the bottleneck.
    """

    workers: int = 0
    threads: int = 2
    prefetch_batches: int = 2

    def __post_init__(self) -> None:
        if min(self.workers, self.threads, self.prefetch_batches) < 0:
            raise DataError(f"stream: workers, threads and prefetch_batches must not be negative, got {self}")


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
            # Workers send batches in shared memory. It is given back at once: arrays that live until the program ends
            # are never unlinked, and whoever keeps a batch would keep its files open.
            return {name: _own(value) for name, value in next(self._batches).items()}
        except BaseException:  # the end, a damaged record, a dead worker or Ctrl-C: nothing can follow
            self.close()
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
    """Iterate over a Grain `MapDataset` of whole batches, with threads and processes working ahead from now on."""
    is_ahead = config.threads > 0 and config.prefetch_batches > 0
    read_options = grain.ReadOptions(
        num_threads=config.threads if is_ahead else 0,
        prefetch_buffer_size=max(config.prefetch_batches, config.threads) if is_ahead else 0,
    )
    batches = steps.to_iter_dataset(read_options)
    if config.workers:
        # Grain reads absl flags, which only absl programs parse; the defaults are what we want.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=config.workers, per_worker_buffer_size=max(1, config.prefetch_batches)
        )
        batches = batches.mp_prefetch(options, worker_init_fn=_start_worker)
        _log.info("reading with %d worker processes of %d threads", config.workers, config.threads)
    iterator = iter(batches)
    # Threads and processes inherit what is blocked here, so that a signal to the whole group, as Ctrl-C and Slurm send
    # it, is the main thread's alone, also while workers are still starting.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        iterator.start_prefetch()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return BatchIterator(iterator)


def _own(value: np.ndarray) -> np.ndarray:
    return value if type(value) is np.ndarray else np.array(value, subok=False)


def _start_worker(worker: int, workers: int) -> None:
    """Tie a worker's life to its parent: signals are the parent's to handle, and no worker outlives it."""
    del worker, workers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), name="parent-watch", daemon=True).start()


def _exit_after(parent: Any) -> None:
    parent.join()
    os._exit(1)
