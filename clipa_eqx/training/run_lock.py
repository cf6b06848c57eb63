"""The lock of a run folder: one process trains in it at a time, on any file system and however the last one ended."""

import errno
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

from clipa_eqx.buckets.mirror import SOURCE_FILE, bucket_of
from clipa_eqx.errors import CheckpointError
from clipa_eqx.training.bucket_lock import BucketLock, bucket_lock, is_training_in
from clipa_eqx.training.lock_owner import described, is_gone, is_here, seconds_with_sleep, this_process

LOCK_NAME = "run.lock"
"""File in a run folder while a process trains there."""

LEASE_SECONDS = 60.0
"""Time without a sign of life after which the lock of another machine is taken over."""

_RENEW_SECONDS = 10.0
# A process may be restarted while the killed one still ends.
_ENDING_SECONDS = 2.0
# Errors of file systems without hard links, such as mounted buckets.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})

_log = logging.getLogger(__name__)


class _Found(NamedTuple):
    """A lock file: its content, its owner (empty if the content is damaged), and a key that is the owner's alone."""

    content: bytes
    owner: Mapping[str, Any]
    key: str


class RunLock:
    """A held lock, which ``run_lock`` gives. A thread renews it; ``check`` is called after each step."""

    def __init__(self, folder: Path, *, renew_seconds: float, clock: Callable[[], float]) -> None:
        self._folder, self._path = folder, folder / LOCK_NAME
        self._renew_seconds, self._clock = renew_seconds, clock
        self._token = secrets.token_hex(8)
        self._own_file = folder / f".{LOCK_NAME}.{self._token}"  # moved or linked to its place once it is complete
        self._owner = {"token": self._token, **this_process()}
        self._renewals = 0
        self._renewed_at = clock()
        self._taken_by: _Found | None = None
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_ended, name="lock of the run folder", daemon=True)

    def check(self) -> None:
        """Raise CheckpointError if another process has taken the lock, as it may after this one was suspended."""
        if self._clock() - self._renewed_at > 3 * self._renew_seconds:  # the thread was suspended too
            self._renew()
        if self._taken_by is not None:
            raise CheckpointError(
                f"run folder {self._folder} was taken over by {described(self._taken_by.owner)}, because this process "
                "gave no sign of life for too long (it was suspended, or its disk did not answer). This run ends "
                "now; let the other one finish, or stop it and run this command again"
            )

    def acquire(self, *, lease: float, poll_seconds: float) -> None:
        """Take the lock, waiting for the lease of another machine, and keep renewing it. Errors as ``run_lock``."""
        try:
            while True:
                with suppress(FileNotFoundError):
                    self._take(lease=lease, poll_seconds=poll_seconds)
                    break
                self._folder.mkdir(parents=True, exist_ok=True)  # a start that failed may have removed it
        finally:
            _remove(self._own_file)
        self._renewed_at = self._clock()
        self._thread.start()

    def release(self) -> None:
        """Stop renewing, and remove the lock if it is still ours."""
        self._ended.set()
        with self._guard, suppress(OSError):
            if self._taken_by is None and self._is_mine(self._path):
                self._path.unlink()

    def _take(self, *, lease: float, poll_seconds: float) -> None:
        """Wait until the lock can be taken, and take it. Raises FileNotFoundError if the folder disappears."""
        judged: _Found | None = None
        since = self._clock()
        while True:
            found = _read(self._path)
            if found is None:
                if self._create(self._path):
                    return
            elif found.key == self._token:  # a network file system reported a failure after a success
                return
            elif is_here(found.owner):
                if not is_gone(found.owner):
                    if self._clock() - since >= _ENDING_SECONDS:
                        raise CheckpointError(self._refusal(found))
                elif self._take_over(found):
                    _log.info("%s: %s was killed; its lock is taken over", self._folder, described(found.owner))
                    return
                time.sleep(0.02)
            elif judged is None or found.key != judged.key:
                judged, since = found, self._clock()
                waiting = f"waiting up to {lease:g} s for a sign of life"
                _log.info("%s is locked by %s; %s", self._folder, described(found.owner), waiting)
            elif found.content != judged.content:
                raise CheckpointError(self._refusal(found))
            elif self._clock() - since >= lease and self._take_over(found):
                silent = f"gave no sign of life for {lease:g} s"
                _log.warning("%s: %s %s; its lock is taken over", self._folder, described(found.owner), silent)
                return
            else:
                time.sleep(poll_seconds)

    def _refusal(self, found: _Found) -> str:
        if is_here(found.owner):
            how = f"`kill {found.owner['pid']}` lets it save and end"
        else:
            how = "there, or in the scheduler that started it"
        return (
            f"run folder {self._folder} is in use by {described(found.owner)}; wait until that run ends, stop it "
            f"({how}), or give another --workdir"
        )

    def _take_over(self, stale: _Found) -> bool:
        """Replace the lock of a process that is gone; of several that try it, one succeeds.

        The right to replace it is a file with the key of the stale lock in its name, which only one process can create.
        If that process is killed too, the right to replace it in turn has its key in the name, and so on.
        """
        passed: list[Path] = []
        key = stale.key
        while True:
            right = self._folder / f".{LOCK_NAME}.after-{key}"
            if self._create(right):
                break
            other = _read(right)
            if other is None or not is_here(other.owner) or not is_gone(other.owner):
                _remove_if_old(right)
                return False
            passed.append(right)
            key = other.key
        try:
            if _read(self._path) != stale:  # it was renewed, or replaced under a right that is used up
                return False
            _write(self._own_file, self._content())
            os.replace(self._own_file, self._path)
            return True
        finally:
            for used in (*passed, right):
                _remove(used)

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(self._renew_seconds) and self._taken_by is None:
            self._renew()

    def _renew(self) -> None:
        with self._guard:
            if self._ended.is_set() or self._taken_by is not None:
                return
            self._renewals += 1
            try:
                self._taken_by = self._renewed()
            except OSError as error:  # an absent server, perhaps; the next renewal may succeed
                _log.debug("%s cannot be renewed: %s", self._path, error)
            else:
                self._renewed_at = self._clock()

    def _renewed(self) -> _Found | None:
        """Give a sign of life; returns the lock of another process if that is found instead."""
        try:
            # Written in place: a file that replaces this one in the meantime is not touched, and no space is needed.
            with self._path.open("r+b", buffering=0) as file:
                found = _parsed(file.read(), changed=0)
                if found.key != self._token:
                    return found
                file.seek(0)
                file.write(self._content())
                os.fsync(file.fileno())
        except FileNotFoundError:  # the user deleted it
            self._create(self._path)
            _remove(self._own_file)
        return None

    def _content(self) -> bytes:
        """The content of the lock; each renewal has the same length."""
        return json.dumps({**self._owner, "renewals": f"{self._renewals:012d}"}).encode() + b"\n"

    def _create(self, path: Path) -> bool:
        """Create a file that names this process, complete in one step; False if there is one.

        A hard link does that on NFS too, where O_EXCL once did not.
        """
        _write(self._own_file, self._content())
        try:
            os.link(self._own_file, path)
        except FileExistsError:
            # A network file system may send the request twice and report the second answer.
            if self._own_file.stat().st_nlink != 2:
                return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                return False
            with os.fdopen(handle, "wb") as file:
                file.write(self._content())
                file.flush()
                os.fsync(file.fileno())
        _remove(self._own_file)
        return True

    def _is_mine(self, path: Path) -> bool:
        found = _read(path)
        return found is not None and found.key == self._token


@contextmanager
def run_lock(
    folder: Path,
    *,
    lease: float = LEASE_SECONDS,
    renew_seconds: float = _RENEW_SECONDS,
    poll_seconds: float = 1.0,
    clock: Callable[[], float] | None = None,
) -> Generator[RunLock | BucketLock]:
    """Hold the lock of a run folder until the block ends. The folder is created, and removed if it is empty at the end.
    For the copy of a folder in a bucket, the lock is in the bucket.

    The lock of a process that was killed on this machine is taken over at once. That of another machine is taken over
    once it was not renewed for ``lease`` seconds, which are waited for. No file system needs to support ``flock``.

    Args:
        lease: seconds without a sign of life after which the lock of another machine is taken over.
        renew_seconds: seconds between two signs of life of this process.
        poll_seconds: seconds between two looks at the lock of another machine.
        clock: seconds of a clock that never goes back and includes the time in which the machine is suspended.

    Raises:
        CheckpointError: another process trains in the folder.
        OSError: the folder cannot be written.
    """
    clock = clock or seconds_with_sleep
    times: Any = {"lease": lease, "renew_seconds": renew_seconds, "poll_seconds": poll_seconds, "clock": clock}
    if (bucket := bucket_of(folder)) is not None:
        with bucket_lock(bucket, ending_seconds=_ENDING_SECONDS, **times) as held:
            yield held
        return
    created = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = RunLock(folder, renew_seconds=renew_seconds, clock=clock)
    try:
        lock.acquire(lease=lease, poll_seconds=poll_seconds)
        _remove_leftovers(folder)
        yield lock
    finally:
        lock.release()
        for one in created:
            with suppress(OSError):  # it is in use
                one.rmdir()


def is_training(folder: Path) -> bool | None:
    """Whether a process trains in a run folder; None if that cannot be looked up, as for a lock of another machine."""
    if (bucket := bucket_of(folder)) is not None:
        return is_training_in(bucket)
    try:
        found = _read(folder / LOCK_NAME)
    except OSError:
        return None
    if found is None:
        return False
    return not is_gone(found.owner) if is_here(found.owner) else None


def is_starting(folder: Path) -> bool:
    """Whether a run holds the lock of a folder that has nothing else yet: it checks and compiles first."""
    return (
        folder.is_dir()
        and is_training(folder) is not False
        and all(is_lock_file(entry.name) or entry.name == SOURCE_FILE for entry in folder.iterdir())
    )


def is_lock_file(name: str) -> bool:
    """Whether an entry of a run folder is the lock, or was made while a process took it.

    >>> is_lock_file("run.lock"), is_lock_file(".run.lock.after-00ff"), is_lock_file("my.run.lock")
    (True, True, False)
    """
    return name == LOCK_NAME or re.fullmatch(rf"\.{re.escape(LOCK_NAME)}\.[a-z0-9-]+", name) is not None


def _remove_leftovers(folder: Path) -> None:
    """Delete what processes of this machine left that were killed while they took the lock."""
    for entry in folder.iterdir():
        if entry.name != LOCK_NAME and is_lock_file(entry.name):
            found = _read(entry)
            if found is not None and is_here(found.owner) and is_gone(found.owner):
                _remove(entry)
            else:
                _remove_if_old(entry)


def _remove_if_old(path: Path) -> None:
    """Delete a file that is used for milliseconds if it is there for minutes: its process is gone."""
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > 10 * LEASE_SECONDS:
            path.unlink()


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> _Found | None:
    try:
        with path.open("rb") as file:
            return _parsed(file.read(), changed=os.fstat(file.fileno()).st_mtime_ns)
    except FileNotFoundError:
        return None


def _parsed(content: bytes, *, changed: int) -> _Found:
    try:
        owner: object = json.loads(content)
    except ValueError:  # a process is writing it, or was killed meanwhile
        owner = None
    if not isinstance(owner, dict) or "token" not in owner:
        return _Found(content, {}, f"damaged-{changed}")
    known = cast("dict[str, Any]", owner)
    return _Found(content, known, str(known["token"]))
