"""The watchdog: ends a process that makes no progress, or whose run failed elsewhere, with stacks and a message."""

import faulthandler
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from clipa_eqx.cli import STALLED, exit_code_of, print_error
from clipa_eqx.errors import ClipaError, PeerError
from clipa_eqx.training.peers import Failure, Peers
from clipa_eqx.training.stopping import Interrupted

PATIENCE = 3.0
"""Times the limit that a phase without steps may take: start-up, compiling, scoring, saving, writing the model."""

_TICK = 1.0
# A process that fails too may end by itself, with its own message.
_GRACE = 5.0
# An error of a collective may come before the report of the process that caused it.
_REPORT_SECONDS = 3.0
# Writing what is known must not keep a process whose disk does not answer.
_WRITE_SECONDS = 20.0
# More than the others need to notice a failure and to write.
_LAST_SECONDS = _TICK + _GRACE + _WRITE_SECONDS

_ADVICE = "Run the same command again to resume from the last checkpoint"


class Watchdog:
    """Threads that watch the main thread, which reports progress to it. Use it in a ``with`` block.

    They work while the main thread waits in a device, a collective or a read: JAX, Grain and TensorStore release
    Python's lock there.

    Attributes:
        folder: where stacks are written; None while the run has no folder of its own.
        write: called before the process ends with the reason, to write what else is known.
    """

    def __init__(
        self,
        *,
        seconds: float | None,
        peers: Peers | None = None,
        end: Callable[[int], object] = os._exit,
        tick: float = _TICK,
        grace: float = _GRACE,
    ) -> None:
        """Prepare to watch.

        Args:
            seconds: limit between two signs of progress; None for no limit.
            peers: the other processes of the run.
            end: ends the process with an exit code, whatever its main thread does.
            tick: seconds between two looks.
            grace: seconds that this process has to end by itself after another one failed.
        """
        self.folder: Path | None = None
        self.write: Callable[[str], object] = _nothing
        self._seconds, self._peers, self._end_process = seconds, peers or Peers(), end
        self._tick, self._grace = tick, grace
        self._phase, self._patience, self._since = "starting", PATIENCE, time.monotonic()
        self._over, self._only_once = threading.Event(), threading.Lock()
        self._threads: list[threading.Thread] = []

    def alive(self) -> None:
        """Report progress: a finished step, a scored batch."""
        self._since = time.monotonic()

    def at(self, place: str) -> None:
        """Name the place where this process is, for messages. It is no progress."""
        self._phase = place

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Name work without steps, which may take ``PATIENCE`` times the limit. Its begin and its end are progress."""
        before = self._phase, self._patience
        self._phase, self._patience = name, PATIENCE
        self.alive()
        try:
            yield
        finally:
            self.alive()
            self._phase, self._patience = before

    def stepping(self) -> None:
        """From now on the limit itself counts: start-up is over."""
        self._patience = 1.0
        self.alive()

    def __enter__(self) -> "Watchdog":
        works = [self._watch_progress] if self._seconds is not None else []
        works += [self._watch_peers] if self._peers.count > 1 else []
        self._threads = [threading.Thread(target=work, name="watchdog", daemon=True) for work in works]
        self.alive()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Report an error to the other processes, so that they end too.

        Raises:
            PeerError: the error is that of a collective with a process that failed.
        """
        self._over.set()
        # A caller that wraps the step may end all processes on purpose, by SystemExit.
        if error is None or isinstance(error, Interrupted | SystemExit):
            return
        # A collective fails as soon as one of its processes has ended; that one knows why.
        failure = None if isinstance(error, ClipaError) else self._peers.wait_for_failure(seconds=_REPORT_SECONDS)
        if failure is None:
            self._peers.report(f"{type(error).__name__}: {error}", code=exit_code_of(error))
        elif failure.code == STALLED:
            self._write_all(_failed_elsewhere(failure))
        self._peers.ended()
        if self._peers.process == 0:
            self._peers.wait_for_end(seconds=_LAST_SECONDS)
        if failure is not None:
            raise PeerError(_failed_elsewhere(failure), code=failure.code) from error

    def _watch_progress(self) -> None:
        assert self._seconds is not None
        last = time.monotonic()
        pause = min(self._tick, self._seconds / 4)
        while not self._over.wait(pause):
            now = time.monotonic()
            if now - last > pause + 5 * _TICK:  # the process was suspended; that time does not count
                self._since += now - last
            last = now
            limit = self._seconds * self._patience
            if now - self._since > limit:
                self._end(f"no progress for {limit:g} s while {self._phase}. {_ADVICE}", code=STALLED)
                return

    def _watch_peers(self) -> None:
        while not self._over.wait(self._tick):
            failure = self._peers.failure()
            if failure is not None:
                # If that one makes no progress, this one makes none either.
                if failure.code != STALLED and self._over.wait(self._grace):
                    return
                self._end(_failed_elsewhere(failure), code=failure.code)
                return

    def _end(self, message: str, *, code: int) -> None:
        """Write everything that is known, as far as that is possible in time, and end the process."""
        if not self._only_once.acquire(blocking=False):
            return
        self._peers.report(message, code=code)
        print_error(f"error: {message}")
        writer = threading.Thread(target=self._write_all, args=(message,), name="watchdog writes", daemon=True)
        writer.start()
        writer.join(_WRITE_SECONDS)
        with suppress(Exception):
            for child in multiprocessing.active_children():  # a stopped one would stay
                child.kill()
        self._peers.ended()
        self._peers.wait_for_end(seconds=_LAST_SECONDS)
        self._end_process(code)

    def _write_all(self, message: str) -> None:
        """Write the stacks to standard error and into the run folder, and what ``write`` writes."""
        with suppress(Exception):
            faulthandler.dump_traceback(2, all_threads=True)
        with suppress(Exception):
            self._write_stacks(message)
        with suppress(Exception):
            self.write(message)

    def _write_stacks(self, message: str) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(exist_ok=True)
        moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        with (self.folder / f"stacks-{self._peers.process}.txt").open("w", encoding="utf-8") as file:
            file.write(f"{moment}, process {self._peers.process} of {self._peers.count}: {message}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            file.flush()
            os.fsync(file.fileno())


def _failed_elsewhere(failure: Failure) -> str:
    return f"process {failure.process} failed ({failure.message}); see its message. This process ends too"


def _nothing(_: str) -> None:
    """Write nothing."""
