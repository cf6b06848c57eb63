"""Exit codes of the scripts, also after the terminal of standard error has closed."""

import os
import signal
import subprocess
import sys

import pytest
from support.paths import ROOT

WORK = '''"""Work that handles an OSError as the end of its input, and then reports a mistake of the user."""
import select
import sys

from clipa_eqx.cli import exit_on_sigterm, run
from clipa_eqx.errors import ClipaError


def main():
    exit_on_sigterm("terminated")
    try:
        print("ready", flush=True)
        # Short waits: a signal that arrives just before a wait is handled after it.
        while not select.select([sys.stdin], [], [], 0.05)[0]:
            pass
    except OSError:
        return 0
    raise KeyboardInterrupt if sys.argv[1:] == ["interrupt"] else ClipaError("a mistake")


sys.exit(run(main))
'''


def start_without_terminal(*argv):
    """Start the work, and close the terminal of its standard error once it runs."""
    outer, inner = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=inner,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert process.stdout.readline() == b"ready\n"
    os.close(inner)
    os.close(outer)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 129), (signal.SIGTERM, 143)])
def test_a_signal_ends_work_with_its_code_after_the_terminal_has_closed(number, code):
    with start_without_terminal() as process:
        process.send_signal(number)
        assert process.wait(timeout=20) == code


@pytest.mark.parametrize(("end", "code"), [("mistake", 2), ("interrupt", 130)])
def test_mistakes_and_ctrl_c_keep_their_codes_after_the_terminal_has_closed(end, code):
    with start_without_terminal(end) as process:
        process.stdin.close()
        assert process.wait(timeout=20) == code
