"""Stages of a local lock: which work counts, and when a lock that is missing was taken over."""

import json

import pytest

from clipa_eqx.errors import CheckpointError
from clipa_eqx.locks.fence import Fence, LateError, check_fence
from clipa_eqx.locks.held import held
from clipa_eqx.locks.owner import this_process
from clipa_eqx.training.run_lock import RUN_LOCK

LOCK_NAME = RUN_LOCK.name


def write_lock(folder, **fields):
    (folder / LOCK_NAME).write_text(json.dumps({"token": "theirs", **this_process(), **fields}) + "\n")


def test_a_process_that_was_suspended_until_another_had_finished_does_not_take_its_lock_for_a_deleted_one(tmp_path):
    now = [0.0]
    with held(tmp_path / "run", RUN_LOCK, clock=lambda: now[0]) as lock:
        (tmp_path / "run" / LOCK_NAME).unlink()  # as the other process did at its end
        now[0] = 61.0
        with pytest.raises(CheckpointError, match="was taken over by another process, which has ended"):
            lock.check()
        assert list((tmp_path / "run").iterdir()) == []


def test_work_of_an_earlier_stage_or_owner_is_late(tmp_path, monkeypatch):
    monkeypatch.setattr("clipa_eqx.locks.fence.PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("clipa_eqx.locks.fence.MISSING_SECONDS", 0.0)

    def is_late(fence):
        try:
            check_fence(tmp_path, fence, name=LOCK_NAME)
        except LateError:
            return True
        return False

    with held(tmp_path, RUN_LOCK) as lock:
        first = lock.fence
        assert not is_late(first)
        size = (tmp_path / LOCK_NAME).stat().st_size
        lock.next_stage()
        assert (tmp_path / LOCK_NAME).stat().st_size == size
        assert [is_late(first), is_late(lock.fence)] == [True, False]
        write_lock(tmp_path, host="elsewhere", stage="1")
        assert is_late(lock.fence)
        (tmp_path / LOCK_NAME).write_text("{")
        assert is_late(lock.fence)
    (tmp_path / LOCK_NAME).unlink()
    assert is_late(first)


def test_an_earlier_stage_of_the_same_owner_is_an_older_content_and_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("clipa_eqx.locks.fence.PATIENCE_SECONDS", 0.0)
    read = iter([{"token": "theirs", "stage": None}, {"token": "theirs", "stage": 1}, {"token": "theirs", "stage": 2}])
    monkeypatch.setattr("clipa_eqx.locks.fence.owner_of", lambda where, name: next(read))
    check_fence(tmp_path, Fence("theirs", 2), name=LOCK_NAME)
    assert next(read, None) is None


def test_a_stage_is_not_entered_with_a_lost_lock(tmp_path):
    with held(tmp_path, RUN_LOCK) as lock:
        write_lock(tmp_path, host="elsewhere")
        with pytest.raises(CheckpointError, match=r"was taken over by process \d+ on elsewhere"):
            lock.next_stage()
