"""Requests to a bucket that does not answer end after the patience, once, and the ones after that soon."""

import socket
import time

import numpy as np
import pytest

from clipa_eqx.buckets import bucket as bucket_module
from clipa_eqx.buckets.array_store import array_store, failed
from clipa_eqx.buckets.bucket import PATIENCE_VARIABLE, Bucket, BucketError, bucket_at
from clipa_eqx.training.stored_arrays import Shards, write_shards

PATIENCE = 1.0
SOON = 15.0
"""Seconds: the drivers alone would repeat a request for 30 s or more, and wait 60 s or more for an answer."""


class Driver:
    """A driver whose requests fail while it has an error."""

    def __init__(self):
        self.error, self.limits = ConnectionError("no route"), []

    def cat_file(self, path, timeout):
        self.limits.append(timeout)
        if self.error is not None:
            raise self.error
        return b"1"


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.setenv(PATIENCE_VARIABLE, str(PATIENCE))
    monkeypatch.setattr(bucket_module, "_silent_since", {})


@pytest.fixture
def driver(monkeypatch):
    one = Driver()
    monkeypatch.setattr(Bucket, "_driver", lambda self: one)
    return one


def tries(driver, bucket):
    """The number of tries of a request that fails."""
    before = len(driver.limits)
    with pytest.raises(BucketError, match=r"a cannot be read: ConnectionError: no route\. It was tried for"):
        bucket.read("a")
    return len(driver.limits) - before


def test_the_patience_is_spent_once_and_granted_again_after_an_answer(driver):
    bucket = bucket_at("gs://quiet/run")
    assert tries(driver, bucket) > 2
    assert tries(driver, bucket) == 1
    assert tries(driver, bucket_at("gs://quiet/other")) == 1
    assert tries(driver, bucket_at("gs://else/run")) > 2
    error, driver.error = driver.error, None
    assert bucket.read("a") == b"1"
    driver.error = error
    assert tries(driver, bucket) > 2
    assert all(0 < limit <= PATIENCE for limit in driver.limits)


def test_an_error_that_repeating_does_not_help_is_an_answer(driver):
    bucket = bucket_at("gs://quiet/run")
    tries(driver, bucket)
    error, driver.error = driver.error, PermissionError("no")
    with pytest.raises(BucketError, match="Check the credentials"):
        bucket.read("a")
    driver.error = error
    assert tries(driver, bucket) > 2


@pytest.mark.parametrize(
    ("scheme", "mode"),
    [
        ("gs", "closed"),
        ("s3", "mute"),
        pytest.param("gs", "mute", marks=pytest.mark.slow),
        pytest.param("s3", "closed", marks=pytest.mark.slow),
    ],
)
def test_the_drivers_are_not_waited_for_longer_than_the_patience(scheme, mode, variables_of):
    bucket = variables_of(scheme, mode)
    since = time.monotonic()
    for request in (lambda: bucket.read("a"), lambda: bucket.create("b", b"1")):
        with pytest.raises(BucketError, match="check the connection, and run the same command again"):
            request()
    part = ((slice(0, 2),), np.ones(2, np.float32))
    shards = {"leaf": Shards((2,), np.dtype("float32"), (2,), [part])}
    with pytest.raises(Exception, match=r"retry attempts failed|^$") as caught:
        write_shards(array_store(bucket, "checkpoints/1/arrays"), shards, is_first=True)
    text = str(failed(bucket, "checkpoint 1 cannot be written", caught.value))
    assert text.startswith(f"{scheme}://bucket/run: checkpoint 1 cannot be written: ")
    assert "run the same command again" in text
    assert time.monotonic() - since < SOON


@pytest.fixture
def variables_of(monkeypatch):
    """A function that gives a bucket at a port that is closed, or that accepts connections and never answers."""
    from support.bucket_servers import variables

    listeners = []

    def bucket(scheme, mode):
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        for name, value in variables(scheme, listener.getsockname()[1], patience=PATIENCE).items():
            monkeypatch.setenv(name, value)
        if mode == "closed":
            listener.close()
        return bucket_at(f"{scheme}://bucket/run")

    yield bucket
    for one in listeners:
        one.close()
