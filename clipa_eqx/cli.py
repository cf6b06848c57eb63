"""Exit codes, messages and logging of all programs."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from clipa_eqx.errors import ClipaError, GuardError, PeerError, is_out_of_memory
from clipa_eqx.foreign_output import is_shown, quiet_libraries
from clipa_eqx.progress import LogHandler

OK, FAILED, USAGE, GUARDED, INTERRUPTED, STALLED = 0, 1, 2, 3, os.EX_TEMPFAIL, os.EX_IOERR
"""Exit codes: done; any other failure; a mistake of the user or no space on the disk, reported in one message; training
that its guard ended, because a score fell too far; training that was interrupted by a signal and is saved (75, by
convention "try again"); training without progress, which its watchdog ended (74). The same command resumes after the
last two."""

_log = logging.getLogger(__name__)


def program_name(module: str) -> str:
    """The name of this program in its help: the installed command that was called, or ``python -m module``."""
    name = Path(sys.argv[0]).name
    return name if name.startswith("clipa-") else f"python -m {module}"


def run(main: Callable[[], object]) -> int:
    """Call a program's ``main`` and return its exit code, for ``sys.exit(run(main))``.

    A ``ClipaError`` becomes one message on standard error and 2 (3 for a ``GuardError``, or the code of a
    ``PeerError``), Ctrl-C becomes 130, and a bug becomes its traceback and 1. Otherwise the code is what ``main``
    returns, or 0 if that is not an int.
    """
    set_up_logging()
    sys.unraisablehook = _report_unraisable
    try:
        code = main()
    except ClipaError as error:
        _log.debug("traceback of the user's error", exc_info=True)
        print_error(f"error: {error}")
        return exit_code_of(error)
    except KeyboardInterrupt as error:
        print_error(str(error) or "interrupted")
        return 130
    except BrokenPipeError:
        # The reader of standard output is gone, as in `show.py ... | head`.
        sys.stderr.close()
        return FAILED
    except Exception as error:
        if (message := _machine_problem(error)) is not None:
            _log.debug("traceback of the machine's problem", exc_info=True)
            print_error(f"error: {message}")
            return USAGE
        _log.exception("unexpected error; please report it")
        return FAILED
    return code if isinstance(code, int) else OK


def exit_code_of(error: BaseException) -> int:
    """The exit code that ``run`` gives an error."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, PeerError):
        return error.code
    if isinstance(error, GuardError):
        return GUARDED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED if error.code else OK
    is_usage = isinstance(error, ClipaError) or (isinstance(error, Exception) and _machine_problem(error) is not None)
    return USAGE if is_usage else FAILED


def end_now(code: int) -> None:
    """End the process with an exit code, without the work that libraries do at the end of a program."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _machine_problem(error: Exception) -> str | None:
    """The message for an error of JAX that the machine causes: too little memory, or a device that is not there."""
    reason = (str(error).strip().splitlines() or ["no reason is known"])[0]
    if is_out_of_memory(error):
        return f"memory ran out ({reason}); use smaller batches, or a machine with more memory"
    asked = os.environ.get("JAX_PLATFORMS")
    # Depending on the platform, JAX raises a RuntimeError, or an AssertionError without a text or a frame of its own.
    if asked and isinstance(error, RuntimeError | AssertionError) and not _has_devices():
        return (
            f"JAX cannot use the devices that JAX_PLATFORMS={asked} asks for ({reason}); unset it to use what there "
            "is, or set it to cpu"
        )
    return None


def _has_devices() -> bool:
    """Whether JAX can open devices; also if the program does not use JAX."""
    try:
        return "jax" not in sys.modules or bool(sys.modules["jax"].devices())
    except (RuntimeError, AssertionError):
        return False


def _report_unraisable(problem: "sys.UnraisableHookArgs") -> None:
    """Print an exception that no caller can catch, except for one that only repeats another.

    When writing an array fails, the library that writes it reports that once per array to an event loop. Orbax has
    closed the loop by then, because it raises the first report.
    """
    if str(problem.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(problem)


def exit_on_sigterm(message: str) -> None:
    """Make SIGTERM raise SystemExit(143) after printing ``message``, so that the program cleans up before it ends.

    SIGHUP, sent when a terminal is closed, does the same with 129. Under ``nohup``, which ignores it, it stays ignored.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the cleaning up
        # Not through sys.stderr, which may be in the middle of a write. If the terminal is closed, writing fails; an
        # OSError instead of SystemExit would look like an error of the interrupted work.
        with contextlib.suppress(OSError):
            os.write(2, f"{message}\n".encode())
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, stop)


def print_error(text: str) -> None:
    """Print on standard error, or nowhere if its reader is gone: the exit code reports the error too."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


def set_up_logging(*, process_index: int = 0) -> None:
    """Log to standard error: INFO from process 0, WARNING with their number from others.

    Call it again once the number of the process is known.
    """
    prefix = "" if process_index == 0 else f"[process {process_index}] "
    handler = LogHandler(sys.stderr)
    handler.addFilter(is_shown)
    logging.basicConfig(
        level=logging.INFO if process_index == 0 else logging.WARNING,
        format=f"%(asctime)s {prefix}%(levelname).1s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        handlers=[handler],
        force=True,
    )
    quiet_libraries()
