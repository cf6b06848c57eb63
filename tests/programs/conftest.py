"""Fixtures of the tests of programs."""

import logging

import pytest


@pytest.fixture(autouse=True)
def logging_as_before():
    """Undo what a program did to the logging of its process, which here is that of all tests."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
