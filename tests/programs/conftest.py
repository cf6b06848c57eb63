"""Fixtures of the tests of programs."""

import pytest


@pytest.fixture(autouse=True)
def restored_logging(logging_as_before):
    """Restore logging after each test: every program sets it up."""
