"""A run whose lock in a bucket was taken over by another machine."""

import time
from unittest import mock

import pytest
from support import tiny_runs
from support.bucket_locks import elsewhere, name_of, reached_server

from clipa_eqx.buckets.bucket import bucket_at
from clipa_eqx.errors import CheckpointError
from clipa_eqx.locks.owner import seconds_with_sleep
from clipa_eqx.training import run_lock as run_lock_module
from clipa_eqx.training.reporting import Reports

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module", params=["gs", pytest.param("s3", marks=pytest.mark.slow)])
def server(request):
    with reached_server(request.param) as running:
        yield running


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
