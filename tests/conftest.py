"""Test session: 8 fake CPU devices, strict rank promotion, no accelerators, signals as in a terminal."""

import logging
import signal
import subprocess
import sys

import jax
import jax.random as jr
import jaxtyping
import numpy as np
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# A suite in the background of a shell or under `nohup` ignores some signals, and what it starts would inherit that.
# Handlers are not inherited.
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda number, frame: None)


@pytest.fixture
def getkey():
    """Fresh keys where the value does not matter."""
    key = jr.key(0)

    def next_key():
        nonlocal key
        key, out = jr.split(key)
        return out

    return next_key


@pytest.fixture
def no_type_checks():
    """Turn off the checks of types and shapes that only tests have, to see the errors that users get."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def logging_as_before():
    """Restore the logging that a program set up: it does so for its process, which here is that of the tests."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="module")
def quick_compile():
    """Compile fast instead of well: tiny models are quick either way. A module asks for it with ``pytestmark``."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def no_self_check(monkeypatch):
    """Import weights without the self-check: it compiles the towers, a second per file, and reads no foreign bytes."""
    from conversion.weights import write_model as write_model_module
    from conversion.weights.self_check import Embeddings

    ones = Embeddings(np.ones((1, 16), np.float32), np.ones((2, 16), np.float32))
    monkeypatch.setattr(write_model_module, "embed_fixed_inputs", lambda folder, *, advance: ones)


@pytest.fixture
def dead():
    """The id of a process that has ended."""
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    return int(done.stdout)
