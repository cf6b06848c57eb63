"""Progress of long work on standard error: a bar on a terminal, and whole lines at intervals in a log."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

FIRST_LINE = 10.0
"""Seconds after which a log that is no terminal gets the first line of a bar; shorter work gets none."""

LINE_EVERY = 30.0
"""Seconds between two lines."""

FIRST_NOTICE = 2.0
"""Seconds after which work of unknown length is reported."""

_log = logging.getLogger(__name__)


if TYPE_CHECKING:
    _Bar = tqdm[Any]  # a type with an argument for type checkers only
else:
    _Bar = tqdm


def is_terminal() -> bool:
    """Whether standard error is a terminal or a notebook, which can redraw a line."""
    if "ipykernel" in sys.modules:
        return True
    # Standard error is None in programs that have no console.
    return sys.stderr is not None and sys.stderr.isatty()


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    what: str = "",
    total: int | None,
    unit: str,
    initial: int = 0,
    delay: float = 2.0,
    disable: bool = False,
) -> Any:
    """A ``tqdm`` bar with count, rate and time left; where standard error is no terminal, lines in the log instead.

    Use it in ``with`` and call ``update``, or iterate over it.

    Args:
        items: what to iterate over.
        what: label.
        total: number of units; None if it is not known.
        unit: name of the unit; "B" counts bytes with their prefixes.
        initial: units that an earlier run has done.
        delay: seconds until a terminal shows the bar.
        disable: show nothing.
    """
    shared: dict[str, Any] = {
        "desc": what or None,
        "total": total,
        "unit": unit,
        "unit_scale": unit == "B",
        "initial": initial,
        "disable": disable,
    }
    if is_terminal():
        return tqdm(items, **shared, delay=delay, mininterval=0.5, dynamic_ncols=True)
    label, plural = f"{what}: " if what else "", "" if unit == "B" else f" {_plural(unit)}"
    counts = f"{{n_fmt}}/{{total_fmt}}{plural} ({{percentage:.0f}} %)" if total else f"{{n_fmt}}{plural}"
    left = ", {remaining} left" if total else ""
    return _Lines(
        items,
        **shared,
        file=_LogFile(),
        delay=FIRST_LINE,
        mininterval=FIRST_LINE,
        miniters=1,  # look at the clock at each update: rates of long work vary
        bar_format=f"{label}{counts}, {{rate_fmt}}{left}{{postfix}}",
    )


@contextlib.contextmanager
def waiting(what: str, *, first: float = FIRST_NOTICE, every: float = LINE_EVERY) -> Generator[None]:
    """Log at intervals how long work of unknown length has taken; short work is not logged.

    Args:
        what: the work, such as "compiling the step".
        first: seconds until the first line.
        every: seconds between the lines that follow.
    """
    over = threading.Event()
    since = time.perf_counter()

    def report() -> None:
        pause = first
        while not over.wait(pause):
            _log.info("%s: %.0f s so far", what, time.perf_counter() - since)
            pause = every

    thread = threading.Thread(target=report, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _plural(unit: str) -> str:
    return f"{unit}es" if unit.endswith("ch") else f"{unit}s"


class LogHandler(logging.StreamHandler[Any]):
    """Writes log lines to standard error; bars on a terminal move below them."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class _Lines(_Bar):
    """A bar whose first line comes after ``FIRST_LINE`` seconds, and the next ones every ``LINE_EVERY``."""

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        shown = super().display(msg, pos)
        self.mininterval = LINE_EVERY
        return shown


class _LogFile:
    """A file for ``tqdm`` that logs what would be drawn, without moves of the cursor and empty lines."""

    def write(self, text: str) -> None:
        # A bar within another one moves the cursor down, and up again.
        line = " ".join(text.replace("\x1b[A", "").split())
        if line:
            _log.info("%s", line)

    def flush(self) -> None:
        """Do nothing: every line is complete."""
