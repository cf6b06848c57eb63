"""What all scripts share: exit codes, messages and logging."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from clipa_eqx.errors import ClipaError

OK, FAILED, USAGE = 0, 1, 2
"""Done; anything else went wrong; the user's mistake, said in one message."""

_log = logging.getLogger(__name__)


def run(main: Callable[[], object]) -> int:
    """Call a script's ``main`` and return its exit code, for ``sys.exit(run(main))``.

    A ``ClipaError`` becomes one message on standard error and 2, Ctrl-C 130, a bug its traceback and 1. What ``main``
    returns is the code if it is an int.
    """
    set_up_logging()
    try:
        code = main()
    except ClipaError as error:
        _log.debug("traceback of the user's error", exc_info=True)
        _say(f"error: {error}")
        return USAGE
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as in `show.py ... | head`.
        sys.stderr.close()
        return FAILED
    except Exception:
        _log.exception("unexpected error; please report it")
        return FAILED
    return code if isinstance(code, int) else OK


def exit_on_sigterm(said: str) -> None:
    """From now on SIGTERM ends the program by an exception, with 143 and this message, so that it tidies up.

    So does SIGHUP with 129, as when a terminal is closed; under `nohup`, which ignores it, it stays ignored.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # tidying up is not cut short
        # Not through sys.stderr, which may be in the middle of a write. After a closed terminal nobody listens, and an
        # OSError in place of SystemExit would pass for one of the work that was interrupted.
        with contextlib.suppress(OSError):
            os.write(2, f"{said}\n".encode())
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, stop)


def _say(text: str) -> None:
    """Print on standard error, or nowhere if its reader has gone: the exit code tells it too."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


def set_up_logging(*, process_index: int = 0) -> None:
    """INFO from process 0, WARNING from others with their number; call it again once the number is known."""
    prefix = "" if process_index == 0 else f"[process {process_index}] "
    logging.basicConfig(
        level=logging.INFO if process_index == 0 else logging.WARNING,
        format=f"%(asctime)s {prefix}%(levelname).1s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    for chatty in ("absl", "jax", "orbax"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
