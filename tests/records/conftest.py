"""Fixtures of conversions: a small dump of tars, and a fresh log for each test."""

import logging

import pytest
from support import dumps
from support.dumps import samples


@pytest.fixture(autouse=True)
def fresh_log():
    """Reset logging: ``run`` logs to the standard error of its test, which the next test does not have."""
    logging.basicConfig(handlers=[logging.NullHandler()], force=True)


@pytest.fixture
def tars(tmp_path):
    """Three tars of two samples each."""
    dumps.write_tars(tmp_path / "tars", [samples(2, first=2 * i) for i in range(3)])
    return tmp_path / "tars"
