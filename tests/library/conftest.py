"""Fixtures of the library tests."""

import subprocess
import sys

import pytest


@pytest.fixture
def dead():
    """The id of a process that has ended."""
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    return int(done.stdout)
