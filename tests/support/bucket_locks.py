"""Locks of run folders in buckets: a server that this process reaches, and the lock of another machine."""

import contextlib
import json
from collections.abc import Iterator

import pytest

from clipa_eqx.locks.owner import this_process
from support.bucket_servers import Server, bucket_server


@contextlib.contextmanager
def reached_server(scheme: str) -> Iterator[Server]:
    """A server of buckets, and the environment variables by which this process uses it."""
    with bucket_server(scheme) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.variables(patience=5).items():
            patch.setenv(name, value)
        yield running


def name_of(number: int) -> str:
    """The object of a lock with this number."""
    return f"run.lock/{number:012d}"


def elsewhere(number: int) -> bytes:
    """The content of a lock of another machine."""
    owner = {**this_process(), "host": "elsewhere", "boot": "other", "pid": 7, "token": "theirs", "number": number}
    return json.dumps(owner).encode()
