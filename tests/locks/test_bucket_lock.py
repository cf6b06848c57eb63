"""The lock of a folder in a bucket: leases of other machines, stages, and stores that cannot have one."""

import contextlib
import threading
import time

import pytest
from support.bucket_locks import elsewhere, name_of, reached_server

from clipa_eqx.buckets.bucket import Bucket, BucketError, bucket_at
from clipa_eqx.errors import CheckpointError
from clipa_eqx.locks.fence import LateError, check_fence
from clipa_eqx.locks.held import held
from clipa_eqx.training.run_lock import RUN_LOCK


@pytest.fixture(scope="module", params=["gs", pytest.param("s3", marks=pytest.mark.slow)])
def server(request):
    with reached_server(request.param) as running:
        yield running


def test_the_lock_of_another_machine_is_taken_over_after_its_lease(server):
    bucket = bucket_at(server.url("silent"))
    assert bucket.create(name_of(5), elsewhere(5))
    since = time.monotonic()
    with held(bucket, RUN_LOCK, lease=0.6, poll_seconds=0.05) as lock:
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
        held(bucket, RUN_LOCK, lease=20.0, poll_seconds=0.05),
    ):
        pass
    timer.join()
    assert list(bucket.names("run.lock")) == [name_of(6)]


def test_renewals_move_the_lock(server):
    bucket = bucket_at(server.url("moving"))
    with held(bucket, RUN_LOCK, renew_seconds=0.1) as lock:
        deadline = time.monotonic() + 20
        while name_of(0) in bucket.names("run.lock"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        lock.check()
        assert len(bucket.names("run.lock")) in (1, 2)
    assert bucket.names("run.lock") == {}


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
        held(bucket, RUN_LOCK),
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


def test_work_of_an_earlier_stage_or_owner_is_late(server, monkeypatch):
    monkeypatch.setattr("clipa_eqx.locks.fence.PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("clipa_eqx.locks.fence.MISSING_SECONDS", 0.0)
    bucket = bucket_at(server.url("stages"))

    def is_late(fence):
        try:
            check_fence(bucket, fence, name="run.lock")
        except LateError:
            return True
        return False

    with held(bucket, RUN_LOCK) as lock:
        first = lock.fence
        assert not is_late(first)
        lock.next_stage()
        assert [is_late(first), is_late(lock.fence)] == [True, False]
        assert bucket.create(name_of(7), elsewhere(7))
        assert is_late(lock.fence)
        with pytest.raises(CheckpointError, match="was taken over by process 7 on elsewhere"):
            lock.next_stage()
    bucket.delete([name_of(7)])
    assert is_late(first)


def test_a_renewal_whose_answer_was_lost_is_not_taken_for_another_process(server, monkeypatch):
    bucket = bucket_at(server.url("unanswered"))
    names = Bucket.names
    with held(bucket, RUN_LOCK) as lock:
        with monkeypatch.context() as patch, contextlib.suppress(BucketError):
            patch.setattr(Bucket, "names", lambda *_: (_ for _ in ()).throw(BucketError("no answer")))
            lock.next_stage()
        assert Bucket.names is names
        assert len(bucket.names("run.lock")) == 2
        lock.next_stage()
        assert lock.fence.stage == 2
        check_fence(bucket, lock.fence, name="run.lock")
    assert bucket.names("run.lock") == {}
