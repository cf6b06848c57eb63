"""Exit codes and messages of programs, also if the reader of standard error is gone."""

import os
import signal
import subprocess
import sys

import pytest
from support.paths import ROOT

from clipa_eqx.cli import exit_code_of, run

WORK = '''"""A program that takes an OSError for an error of its input, and ends in the way that its argument names."""
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
    end = {"interrupt": KeyboardInterrupt(), "bug": ZeroDivisionError("a bug"), "mistake": ClipaError("a mistake")}
    raise end[sys.argv[1]]


sys.exit(run(main))
'''


def start_without_terminal(end="mistake"):
    """Start the program; once it runs, close the terminal that it writes errors to."""
    outer, inner = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, end],
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


@pytest.mark.parametrize(
    ("end", "code", "has_traceback"), [("mistake", 2, False), ("interrupt", 130, False), ("bug", 1, True)]
)
def test_only_a_bug_shows_a_traceback(end, code, has_traceback):
    done = subprocess.run(
        [sys.executable, "-c", WORK, end],
        input="",
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert done.returncode == code
    assert ("Traceback" in done.stderr) == has_traceback
    message = {"mistake": "error: a mistake\n", "interrupt": "interrupted\n", "bug": "a bug\n"}[end]
    assert done.stderr.endswith(message)
    assert has_traceback or done.stderr == message


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (1, 1), (0, 0), ("text", 0)])
def test_the_code_is_what_main_returns_if_it_is_an_int(monkeypatch, returned, code):
    monkeypatch.setattr("clipa_eqx.cli.set_up_logging", lambda: None)  # it would change the logging of all tests
    assert run(lambda: returned) == code


@pytest.mark.parametrize("platform", ["cuda", "bogus"])
def test_a_device_that_is_not_there_is_one_message_in_any_program(platform):
    code = (
        "import sys; from clipa_eqx.cli import run\n"
        "def main():\n    import jax.numpy as jnp\n    jnp.zeros(3)\n"
        "sys.exit(run(main))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": platform},
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: JAX cannot use the devices that JAX_PLATFORMS={platform} asks for (")
    assert done.stderr.count("\n") == 1


def test_an_assertion_of_ours_is_a_bug(capsys, logging_as_before):
    def main():
        raise AssertionError

    assert run(main) == 1
    assert "please report it" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "expected"), [(3, 3), (None, 0), ("a message", 1)])
def test_an_exit_has_its_own_code(code, expected):
    assert exit_code_of(SystemExit(code)) == expected
