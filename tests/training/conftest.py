"""A server of training processes, which each test module of this room may ask for."""

import pytest
from support.fork_server import cpu_server


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Starts training processes on CPUs; what one of them compiles, the next ones read."""
    with cpu_server(tmp_path_factory.mktemp("compiled")) as server:
        yield server
