"""Stop requests: signals and preemption notices. All processes of a run stop at the same place."""

import logging
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived, and the state of the last finished step is saved.

    Like KeyboardInterrupt it is no ``Exception``: during start-up it may arrive anywhere, such as in the read of a
    checkpoint, which is not damaged because of that.
    """


_log = logging.getLogger(__name__)


class StopRequests:
    """Requests to stop. All processes call its methods equally often and in the same order."""

    def __init__(self, *, is_alone: bool) -> None:
        self.is_alone: bool = is_alone
        self.has_begun: bool = False
        """Whether a step may have been done since the last checkpoint."""
        self._requested = threading.Event()
        self._polls = 0

    def request(self) -> None:
        """Request the end of the run, as the only process.

        Raises:
            Interrupted: at once, if there is nothing to save.
        """
        self._requested.set()
        if not self.has_begun:
            raise before_the_first_step()

    def poll(self) -> bool:
        """Whether to stop here. Call it after each step and each batch of an evaluation; it waits for nothing.

        With several processes, JAX's preemption service chooses the call in which all of them get True. It goes by a
        number, which therefore counts calls and not steps.
        """
        self._polls += 1
        if self.is_alone:
            return self._requested.is_set()
        return multihost_utils.reached_preemption_sync_point(self._polls)

    def check_start(self) -> None:
        """Raise Interrupted if the run is to stop; call it between the phases before the first step."""
        if self.poll():
            raise before_the_first_step()


@contextmanager
def stop_requests() -> Generator[StopRequests]:
    """Collect SIGINT and SIGTERM, and preemption notices of several processes.

    With one process, a signal during start-up raises Interrupted at once, in code that runs in Python: compiling ends
    first. A second signal ends the program at once. With several processes, the one that gets SIGTERM notifies the
    others through JAX's preemption service.
    """
    stops = StopRequests(is_alone=jax.process_count() == 1)

    def handle(number: int, _: object) -> None:
        doing = "finishing this step and saving" if stops.has_begun else "ending the start"
        _log.warning("%s: %s; repeat the signal to stop at once", signal.strsignal(number), doing)
        signal.signal(number, signal.SIG_DFL)
        if stops.is_alone:
            stops.request()
        else:  # turn Ctrl-C into the signal that the service handles
            os.kill(os.getpid(), signal.SIGTERM)

    # With several processes the service handles SIGTERM itself.
    numbers = (signal.SIGINT, signal.SIGTERM) if stops.is_alone else (signal.SIGINT,)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()  # only the main thread may set handlers
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def before_the_first_step() -> Interrupted:
    """The end of a run that did no step since it was started."""
    return Interrupted("stopped before this start did a step, so nothing had to be saved; run the same command again")
