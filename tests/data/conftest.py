"""Fixtures of the data tests."""

import pytest
from support.streams import write_numbered


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A record folder of 200 numbered records; Grain's shuffle is slow below a few dozen. Nothing changes it."""
    return write_numbered(tmp_path_factory.mktemp("data") / "set", 200)
