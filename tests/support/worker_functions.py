"""Transforms of the stream tests that run in worker processes."""

import os
import sys
import time

import numpy as np

from clipa_eqx.errors import DataError


def random_row(record, rng):
    """Row with the process id; fails if the worker process has started a jax backend."""
    jax_backends = sys.modules.get("jax._src.xla_bridge")
    if os.environ.get("CLIPA_EQX_TEST_PARENT", "") not in ("", str(os.getpid())) and jax_backends is not None:
        assert not jax_backends._backends, "a worker process created a jax backend"
    return {
        "value": np.int64(int(record.key)),
        "noise": rng.random((64, 64)),  # large enough for shared memory
        "pid": np.int64(os.getpid()),
    }


def evaluate(record):
    return random_row(record, np.random.default_rng(0))


def up_to_100(record):
    if record.key == "100":
        raise DataError("a damaged image")
    return evaluate(record)


def counted(record, rng, path):
    with open(path, "ab") as file:
        file.write(b".")
    return random_row(record, rng)


def evaluate_at(record, *, key, path):
    """Row of an evaluation, but at the record of that key only once the file ``path`` exists."""
    while record.key == key and not path.exists():
        time.sleep(0.02)
    return evaluate(record)


def leave(record, rng, *, code):
    os._exit(code)


def die(record, rng, number):
    os.kill(os.getpid(), number)
