"""The lock of a run folder in a bucket: one process trains there at a time, on any host.

Buckets have no links and no files to write in place. All that is needed is that an object can be created exclusively.
Objects are numbered, and the owner of the highest number holds the lock. A sign of life is the next number, created
exclusively; so is a takeover. A process that finds a higher number than its own, or misses its own, has lost it.
"""

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, cast

from clipa_eqx.buckets.bucket import Bucket, BucketError
from clipa_eqx.buckets.mirror import LOCK_FOLDER
from clipa_eqx.errors import CheckpointError
from clipa_eqx.training.lock_owner import described, is_gone, is_here, this_process

_log = logging.getLogger(__name__)


class _Found(NamedTuple):
    """The highest object of a lock: its number and its owner, empty if its content is damaged."""

    number: int
    owner: Mapping[str, Any]


class BucketLock:
    """A held lock, which ``bucket_lock`` gives. A thread renews it; ``check`` is called after each step."""

    def __init__(self, bucket: Bucket, *, lease: float, renew_seconds: float, clock: Callable[[], float]) -> None:
        self._bucket = bucket
        self._lease, self._renew_seconds, self._clock = lease, renew_seconds, clock
        self._token = secrets.token_hex(8)
        self._number = -1
        self._renewed_at = clock()
        self._lost: str | None = None
        self._is_answering = True
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_ended, name="lock of the bucket", daemon=True)

    def check(self) -> None:
        """Raise CheckpointError if another process has taken the lock, or may have: no sign of life was possible.

        Raises:
            BucketError: the bucket did not answer for longer than the patience.
        """
        if self._clock() - self._renewed_at > 3 * self._renew_seconds:  # the thread was suspended too
            self._renew()
        if self._lost is not None:
            raise CheckpointError(
                f"run folder {self._bucket.url} {self._lost}, because this process gave no sign of life for too long "
                "(it was suspended, or had no connection). This run ends now; let the other one finish, or stop it and "
                "run this command again"
            )

    def acquire(self, *, poll_seconds: float, ending_seconds: float) -> None:
        """Take the lock, waiting for the lease of another machine, and keep renewing it. Errors as ``bucket_lock``."""
        judged: _Found | None = None
        since = self._clock()
        while True:
            found = _highest(self._bucket)
            if found is None:
                if self._take(0):
                    break
            elif is_here(found.owner) and is_gone(found.owner):
                if self._take(found.number + 1):
                    _log.info("%s: %s was killed; its lock is taken over", self._bucket.url, described(found.owner))
                    break
            elif judged is None or found.owner.get("token") != judged.owner.get("token"):
                judged, since = found, self._clock()
                if not is_here(found.owner):
                    what = f"waiting up to {self._lease:g} s for a sign of life"
                    _log.info("%s is locked by %s; %s", self._bucket.url, described(found.owner), what)
            elif found.number != judged.number or (is_here(found.owner) and self._clock() - since >= ending_seconds):
                raise CheckpointError(_refusal(self._bucket, found))
            elif self._clock() - since >= self._lease and self._take(found.number + 1):
                silent = f"gave no sign of life for {self._lease:g} s"
                _log.warning("%s: %s %s; its lock is taken over", self._bucket.url, described(found.owner), silent)
                break
            time.sleep(0.05 if found is None or is_here(found.owner) else poll_seconds)
        self._renewed_at = self._clock()
        self._thread.start()

    def release(self) -> None:
        """Stop renewing, and remove the lock if it is still ours and the bucket answers."""
        self._ended.set()
        with self._guard, suppress(BucketError):
            if self._lost is None and self._number >= 0 and self._is_answering:
                self._bucket.delete([_name(self._number)])

    def _take(self, number: int) -> bool:
        """Become the owner by creating an object, if no higher one appeared meanwhile."""
        if not self._bucket.create(_name(number), self._content(number)):
            return False
        if self._bucket.create(_name(number), self._content(number, probe=True)):
            self._bucket.delete([_name(number)])
            raise CheckpointError(
                f"run folder {self._bucket.url} cannot be locked: this store lets two processes create the same object "
                "(it ignores If-None-Match); use a store that does not, or a local run folder"
            )
        others = _numbers(self._bucket)
        if not others or others[-1] != number:
            self._bucket.delete([_name(number)])
            return False
        self._number = number
        self._bucket.delete(_name(old) for old in others[:-1])
        return True

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(self._renew_seconds) and self._lost is None:
            try:
                self._renew()
                self._is_answering = True
            except BucketError as error:  # the next renewal may succeed
                self._is_answering = False
                _log.warning("the lock of %s cannot be renewed: %s", self._bucket.url, error)

    def _renew(self) -> None:
        with self._guard:
            if self._ended.is_set() or self._lost is not None:
                return
            started, number = self._clock(), self._number + 1
            is_created = self._bucket.create(_name(number), self._content(number))
            numbers = _numbers(self._bucket)
            if not is_created or self._number not in numbers or numbers[-1] != number:
                if is_created:
                    self._bucket.delete([_name(number)])
                found = _highest(self._bucket)
                self._lost = f"was taken over by {described(found.owner)}" if found else "lost its lock to another one"
                return
            former, self._number = self._number, number
            self._renewed_at = started
            self._bucket.delete([_name(former)])

    def _content(self, number: int, *, probe: bool = False) -> bytes:
        owner = {"token": self._token, **this_process(), "number": number, **({"probe": True} if probe else {})}
        return json.dumps(owner).encode() + b"\n"


@contextmanager
def bucket_lock(
    bucket: Bucket,
    *,
    lease: float,
    renew_seconds: float,
    poll_seconds: float,
    clock: Callable[[], float],
    ending_seconds: float,
) -> Generator[BucketLock]:
    """Hold the lock of a run folder in a bucket until the block ends; arguments as ``run_lock``.

    Args:
        ending_seconds: time in which a process of this machine that was killed may still end.

    Raises:
        CheckpointError: another process trains in the folder, or the store cannot create objects exclusively.
        BucketError: the bucket cannot be written.
    """
    lock = BucketLock(bucket, lease=lease, renew_seconds=renew_seconds, clock=clock)
    try:
        lock.acquire(poll_seconds=poll_seconds, ending_seconds=ending_seconds)
        yield lock
    finally:
        lock.release()


def is_training_in(bucket: Bucket) -> bool | None:
    """Whether a process trains in a run folder in a bucket; None if it cannot be looked up on this machine."""
    found = _highest(bucket)
    if found is None:
        return False
    return not is_gone(found.owner) if is_here(found.owner) else None


def _name(number: int) -> str:
    return f"{LOCK_FOLDER}/{number:012d}"


def _numbers(bucket: Bucket) -> list[int]:
    names = (name.rpartition("/")[2] for name in bucket.names(LOCK_FOLDER))
    return sorted(int(name) for name in names if name.isdecimal())


def _highest(bucket: Bucket) -> _Found | None:
    while numbers := _numbers(bucket):
        content = bucket.read(_name(numbers[-1]))
        if content is None:  # renewed or released meanwhile
            continue
        try:
            owner: object = json.loads(content)
        except ValueError:
            owner = None
        return _Found(numbers[-1], cast("dict[str, Any]", owner) if isinstance(owner, dict) else {})
    return None


def _refusal(bucket: Bucket, found: _Found) -> str:
    here = f"`kill {found.owner['pid']}` lets it save and end"
    how = here if is_here(found.owner) else "there, or in the scheduler that started it"
    return (
        f"run folder {bucket.url} is in use by {described(found.owner)}; wait until that run ends, stop it ({how}), or "
        "give another --workdir"
    )
