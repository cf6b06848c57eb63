"""Stop requests: signals and preemption notices, answered alike by all processes."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; the state of the last finished step is saved."""


_log = logging.getLogger(__name__)


@contextmanager
def stop_requests() -> Generator[Callable[[int], bool]]:
    """Turn SIGINT and SIGTERM into a question asked after each step, which all processes answer alike.

    On one process a second signal ends at once. Of several processes, one that gets SIGTERM tells the others through
    JAX's preemption service, which names the step that all of them stop after: no step waits for the answer.
    """
    requested = threading.Event()
    is_alone = jax.process_count() == 1

    def handle(number: int, _: object) -> None:
        _log.warning("%s: finishing this step and saving; repeat the signal to stop at once", signal.strsignal(number))
        signal.signal(number, signal.SIG_DFL)
        if is_alone:
            requested.set()
        else:  # Ctrl-C becomes the signal that the service listens to
            os.kill(os.getpid(), signal.SIGTERM)

    def is_stop(step: int) -> bool:
        return requested.is_set() if is_alone else multihost_utils.reached_preemption_sync_point(step)

    # The service catches SIGTERM itself, so on several processes that one is left alone.
    numbers = (signal.SIGINT, signal.SIGTERM) if is_alone else (signal.SIGINT,)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()  # only the main thread may set handlers
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield is_stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
