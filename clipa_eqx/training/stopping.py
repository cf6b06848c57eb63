"""Stop requests: signals and preemption notices. All processes of a run stop after the same step."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived, and the state of the last finished step is saved."""


_log = logging.getLogger(__name__)


@contextmanager
def stop_requests() -> Generator[Callable[[int], bool]]:
    """Collect SIGINT and SIGTERM; the function it gives is called after each step and returns True when to stop.

    With one process, a second signal ends the program at once. With several processes, the one that gets SIGTERM
    notifies the others through JAX's preemption service, which chooses the step after which all of them stop. No step
    waits for that.
    """
    requested = threading.Event()
    is_alone = jax.process_count() == 1

    def handle(number: int, _: object) -> None:
        _log.warning("%s: finishing this step and saving; repeat the signal to stop at once", signal.strsignal(number))
        signal.signal(number, signal.SIG_DFL)
        if is_alone:
            requested.set()
        else:  # turn Ctrl-C into the signal that the service handles
            os.kill(os.getpid(), signal.SIGTERM)

    def is_stop(step: int) -> bool:
        return requested.is_set() if is_alone else multihost_utils.reached_preemption_sync_point(step)

    # With several processes the service handles SIGTERM itself.
    numbers = (signal.SIGINT, signal.SIGTERM) if is_alone else (signal.SIGINT,)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()  # only the main thread may set handlers
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield is_stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
