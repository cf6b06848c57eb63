"""Lines of libraries in programs: errors only. Importing our library alone changes nothing of them."""

import os
import subprocess
import sys

from support.paths import ROOT

NOISE = """
import logging, sys, warnings
from multiprocessing import shared_memory
{before}
logging.getLogger("clipa_eqx.data").info("ours")
logging.getLogger("scripts.quickstart").warning("ours too")
logging.getLogger("absl").error("an error that is raised too")
logging.getLogger("gcsfs").error("another one")
logging.getLogger("jax._src.xla_bridge").warning("An NVIDIA GPU may be present on this machine")
logging.getLogger("orbax.checkpoint").info("read_only")
logging.getLogger("httpx").warning("a request")
logging.getLogger("wandb").error("no network")
warnings.warn("a warning of a library")
shared_memory.SharedMemory(create=True, size=8)
"""


def printed(before, **environment):
    done = subprocess.run(
        [sys.executable, "-c", NOISE.format(before=before)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stderr


def test_a_program_prints_its_own_lines_and_errors_of_libraries():
    lines = printed("from clipa_eqx.cli import set_up_logging; set_up_logging()").splitlines()
    assert [line[9:] for line in lines] == [
        "I clipa_eqx.data: ours",
        "W scripts.quickstart: ours too",
        "E wandb: no network",
    ]


def test_warnings_that_the_user_asked_for_are_printed():
    setup = "from clipa_eqx.cli import set_up_logging; set_up_logging()"
    assert "a warning of a library" in printed(setup, PYTHONWARNINGS="default")


def test_importing_the_library_changes_nothing():
    shown = printed("import clipa_eqx, clipa_eqx.foreign_output")
    assert "a warning of a library" in shown
    assert "leaked shared_memory" in shown
    assert "an error that is raised too" in shown
