"""The lock of a run folder in a bucket: leases of other machines, and what happens when it is lost."""

import json
import threading
import time
from unittest import mock

import pytest
from support import tiny_runs
from support.bucket_servers import bucket_server

from clipa_eqx.buckets.bucket import bucket_at
from clipa_eqx.buckets.mirror import local_copy
from clipa_eqx.errors import CheckpointError
from clipa_eqx.training import run_lock as run_lock_module
from clipa_eqx.training.lock_owner import seconds_with_sleep, this_process
from clipa_eqx.training.reporting import Reports
from clipa_eqx.training.run_lock import run_lock

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module", params=["gs", pytest.param("s3", marks=pytest.mark.slow)])
def server(request):
    with bucket_server(request.param) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.variables(patience=5).items():
            patch.setenv(name, value)
        yield running


def name_of(number):
    return f"run.lock/{number:012d}"


def elsewhere(number):
    """The content of a lock of another machine."""
    owner = {**this_process(), "host": "elsewhere", "boot": "other", "pid": 7, "token": "theirs", "number": number}
    return json.dumps(owner).encode()


def test_the_lock_of_another_machine_is_taken_over_after_its_lease(server):
    bucket = bucket_at(server.url("silent"))
    assert bucket.create(name_of(5), elsewhere(5))
    since = time.monotonic()
    with run_lock(local_copy(bucket.url), lease=0.6, poll_seconds=0.05) as lock:
        assert time.monotonic() - since >= 0.6
        assert list(bucket.names("run.lock")) == [name_of(6)]
        lock.check()
    assert bucket.names("run.lock") == {}


def test_the_lock_of_another_machine_that_is_renewed_is_respected(server):
    bucket = bucket_at(server.url("alive"))
    assert bucket.create(name_of(5), elsewhere(5))

    def renew():
        assert bucket.create(name_of(6), elsewhere(6))
        bucket.delete([name_of(5)])

    timer = threading.Timer(0.5, renew)
    timer.start()
    message = "alive is in use by process 7 on elsewhere"
    with (
        pytest.raises(CheckpointError, match=message),
        run_lock(local_copy(bucket.url), lease=20.0, poll_seconds=0.05),
    ):
        pass
    timer.join()
    assert list(bucket.names("run.lock")) == [name_of(6)]


def test_renewals_move_the_lock(server):
    bucket = bucket_at(server.url("moving"))
    with run_lock(local_copy(bucket.url), renew_seconds=0.1) as lock:
        deadline = time.monotonic() + 20
        while name_of(0) in bucket.names("run.lock"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        lock.check()
        assert len(bucket.names("run.lock")) in (1, 2)
    assert bucket.names("run.lock") == {}


@pytest.mark.slow
def test_a_run_whose_lock_was_taken_ends_before_it_writes(server, monkeypatch):
    bucket, asleep, before = bucket_at(server.url("lost")), [0.0], {}
    monkeypatch.setattr(run_lock_module, "seconds_with_sleep", lambda: seconds_with_sleep() + asleep[0])
    finish = Reports.finish

    def taken_over_at_6(self, numbers, **rest):
        finish(self, numbers, **rest)
        if numbers.step == 6:
            deadline = time.monotonic() + 60
            while "checkpoints/4/record/metadata" not in bucket.names("checkpoints"):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            # As after a suspension of the machine, in which another one waited for the lease.
            (own,) = bucket.names("run.lock")
            number = int(own.rpartition("/")[2]) + 1
            assert bucket.create(name_of(number), elsewhere(number))
            bucket.delete([own])
            before["metrics"] = bucket.read("metrics.jsonl")
            before["lock"] = list(bucket.names("run.lock"))
            asleep[0] = 100.0

    with (
        mock.patch.object(Reports, "finish", taken_over_at_6),
        pytest.raises(CheckpointError, match=r"lost was taken over by process 7 on elsewhere .*This run ends now"),
    ):
        tiny_runs.train_on_one_device(tiny_runs.run_config(), bucket.url)
    assert bucket.read("metrics.jsonl") == before["metrics"]
    assert list(bucket.names("run.lock")) == before["lock"]
    assert "checkpoints/8/record/metadata" not in bucket.names("checkpoints")
    assert not bucket.names("model")


def test_a_store_that_creates_an_object_twice_is_refused(server, monkeypatch):
    if server.scheme == "gs":
        from gcp_storage_emulator.handlers import objects

        for name, upload in objects.without_preconditions.items():
            monkeypatch.setattr(objects, name, upload)
    else:
        from moto.s3.responses import S3Response

        monkeypatch.setattr(S3Response, "put_object", without_condition(S3Response.put_object))
    bucket = bucket_at(server.url("careless"))
    with (
        pytest.raises(CheckpointError, match="lets two processes create the same object"),
        run_lock(local_copy(bucket.url)),
    ):
        pass
    assert bucket.names() == {}


def without_condition(put):
    """A handler of PUT that ignores ``If-None-Match``."""
    from werkzeug.datastructures import Headers

    def careless(self):
        self.headers = Headers([one for one in self.headers.items() if one[0].lower() != "if-none-match"])
        return put(self)

    return careless
