"""The lock of a folder in a bucket, on any host.

Buckets have no links and no files to write in place. All that is needed is that an object can be created exclusively.
Objects are numbered, and the owner of the highest number holds the lock. A sign of life is the next number, created
exclusively; so is a takeover. A process that finds a higher number than its own, or misses its own, has lost it.
"""

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

from clipa_eqx.buckets.bucket import Bucket, BucketError
from clipa_eqx.locks.content import LockObject, highest_object, object_name, object_numbers, owner_in
from clipa_eqx.locks.fence import Fence
from clipa_eqx.locks.kind import LockKind
from clipa_eqx.locks.owner import described, is_gone, is_here, this_process

_log = logging.getLogger(__name__)


class NoExclusiveCreation(BucketError):
    """A store lets two processes create the same object, so that nothing in it can be locked."""


class BucketLock:
    """A held lock, which ``bucket_lock`` gives. A thread renews it; ``check`` is called after each step of the work."""

    def __init__(
        self, bucket: Bucket, kind: LockKind, *, lease: float, renew_seconds: float, clock: Callable[[], float]
    ) -> None:
        self._bucket, self._kind = bucket, kind
        self._lease, self._renew_seconds, self._clock = lease, renew_seconds, clock
        self._token = secrets.token_hex(8)
        self._owner = {"token": self._token, **this_process()}
        self._number = -1
        self._stage = 0
        self._renewed_at = clock()
        self._lost: str | None = None
        self._is_answering = True
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_ended, name="lock of the bucket", daemon=True)

    @property
    def fence(self) -> Fence:
        """The fence for work that is given out now."""
        return Fence(self._token, self._stage)

    def check(self) -> None:
        """Raise an error if another process has taken the lock, or may have: no sign of life was possible.

        Raises:
            ClipaError: the kind's error: the lock is lost.
            BucketError: the bucket did not answer for longer than the patience.
        """
        if self._clock() - self._renewed_at > 3 * self._renew_seconds:  # the thread was suspended too
            self._renew()
        if self._lost is not None:
            raise self._kind.lost(self._bucket.url, self._lost, or_else="had no connection")

    def next_stage(self) -> None:
        """Give a sign of life with the next number of a stage: work with an earlier fence is late from now on.

        Raises:
            ClipaError, BucketError: as ``check``.
        """
        with self._guard:
            self._stage += 1
        self._renew()
        self.check()

    def acquire(self, *, poll_seconds: float, ending_seconds: float) -> None:
        """Take the lock, waiting for the lease of another machine, and keep renewing it. Errors as ``bucket_lock``."""
        judged: LockObject | None = None
        since = self._clock()
        while True:
            found = highest_object(self._bucket, self._kind.name)
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
                raise self._kind.in_use(self._bucket.url, found.owner)
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
                # Also an older one that could not be deleted when it was due.
                own = [number for number in object_numbers(self._bucket, self._kind.name) if number <= self._number]
                self._bucket.delete(map(self._name, own))

    def _take(self, number: int) -> bool:
        """Become the owner by creating an object, if no higher one appeared meanwhile."""
        if not self._bucket.create(self._name(number), self._content(number)):
            return False
        if self._bucket.create(self._name(number), self._content(number, probe=True)):
            self._bucket.delete([self._name(number)])
            raise NoExclusiveCreation(
                f"{self._kind.folder} {self._bucket.url} cannot be locked: this store lets two processes create the "
                f"same object (it ignores If-None-Match); use a store that does not, or a local {self._kind.folder}"
            )
        others = object_numbers(self._bucket, self._kind.name)
        if not others or others[-1] != number:
            self._bucket.delete([self._name(number)])
            return False
        self._number = number
        self._bucket.delete(self._name(old) for old in others[:-1])
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
            started, is_renewed = self._clock(), False
            while not is_renewed:
                number = self._number + 1
                is_renewed = self._bucket.create(self._name(number), self._content(number))
                # An object of ours may be there already, if the answer to an earlier renewal was lost.
                is_mine = is_renewed or self._is_mine(number)
                numbers = object_numbers(self._bucket, self._kind.name)
                if not is_mine or self._number not in numbers or numbers[-1] != number:
                    if is_mine:
                        self._bucket.delete([self._name(number)])
                    found = highest_object(self._bucket, self._kind.name)
                    who = f"was taken over by {described(found.owner)}" if found else "lost its lock to another one"
                    self._lost = who
                    return
                former, self._number = self._number, number
                self._bucket.delete([self._name(former)])
            self._renewed_at = started

    def _is_mine(self, number: int) -> bool:
        content = self._bucket.read(self._name(number))
        return content is not None and owner_in(content).get("token") == self._token

    def _name(self, number: int) -> str:
        return object_name(self._kind.name, number)

    def _content(self, number: int, *, probe: bool = False) -> bytes:
        owner = {**self._owner, "number": number, "stage": self._stage}
        return json.dumps({**owner, **({"probe": True} if probe else {})}).encode() + b"\n"


@contextmanager
def bucket_lock(
    bucket: Bucket,
    kind: LockKind,
    *,
    lease: float,
    renew_seconds: float,
    poll_seconds: float,
    clock: Callable[[], float],
    ending_seconds: float,
) -> Generator[BucketLock]:
    """Hold the lock of a folder in a bucket until the block ends; arguments as ``held``.

    Args:
        ending_seconds: time in which a process of this machine that was killed may still end.

    Raises:
        ClipaError: the kind's error: another process works in the folder.
        NoExclusiveCreation: the store cannot create objects exclusively.
        BucketError: the bucket cannot be written.
    """
    lock = BucketLock(bucket, kind, lease=lease, renew_seconds=renew_seconds, clock=clock)
    try:
        lock.acquire(poll_seconds=poll_seconds, ending_seconds=ending_seconds)
        yield lock
    finally:
        lock.release()
