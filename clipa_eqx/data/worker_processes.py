"""Worker processes that leave signals to their parent and do not outlive it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

# Signals that terminals and schedulers send to a whole group of processes.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_blocked() -> Generator[None]:
    """Block signals for threads and processes that start inside the block; this thread gets them again at its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent() -> None:
    """Leave signals to the parent process and exit when it ends, also if it is killed. Call it in a worker."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), name="parent-watch", daemon=True).start()


def _exit_after(parent: Any) -> None:
    parent.join()
    os._exit(1)
