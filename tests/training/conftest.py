"""A server of training processes, which each test module of this room may ask for."""

import pytest
from support.fork_server import ForkServer


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Starts training processes on CPUs; what one of them compiles, the next ones read."""
    cache = tmp_path_factory.mktemp("compiled")
    with ForkServer(
        JAX_PLATFORMS="cpu",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        JAX_COMPILATION_CACHE_DIR=str(cache),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    ) as server:
        yield server
