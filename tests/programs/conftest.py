"""Fixtures of the tests of programs."""

import pytest
from support.recorded_tpu import Pod


@pytest.fixture(autouse=True)
def restored_logging(logging_as_before):
    """Restore logging after each test: every program sets it up."""


@pytest.fixture
def pod(tmp_path):
    """Call a TPU script with settings and flags; gives the finished process. ``pod.calls()`` are gcloud's so far."""
    pod = Pod(tmp_path)
    yield pod
    pod.end()
