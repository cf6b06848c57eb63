"""The lock of a local folder, on any file system: a file that names its owner, which renews it.

No file system needs to support ``flock`` or hard links, and the folder may be shared between hosts.
"""

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
from typing import Any, NamedTuple

from clipa_eqx.locks.content import owner_in
from clipa_eqx.locks.fence import Fence
from clipa_eqx.locks.kind import LockKind
from clipa_eqx.locks.owner import described, is_gone, is_here, this_process

# A file that is used for milliseconds and is there for so long was left by a process that is gone.
_OLD_SECONDS = 600.0
# Errors of file systems without hard links, such as mounted buckets.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})

_log = logging.getLogger(__name__)


class _Found(NamedTuple):
    """A lock file: its content, its owner (empty if the content is damaged), and a key that is the owner's alone."""

    content: bytes
    owner: Mapping[str, Any]
    key: str


class FolderLock:
    """A held lock, which ``folder_lock`` gives. A thread renews it; ``check`` is called after each step of the work."""

    def __init__(
        self, folder: Path, kind: LockKind, *, lease: float, renew_seconds: float, clock: Callable[[], float]
    ) -> None:
        self._folder, self._kind, self._path = folder, kind, folder / kind.name
        self._lease, self._renew_seconds, self._clock = lease, renew_seconds, clock
        self._token = secrets.token_hex(8)
        self._own_file = folder / f".{kind.name}.{self._token}"  # moved or linked to its place once it is complete
        self._owner = {"token": self._token, **this_process()}
        self._renewals = self._stage = 0
        self._renewed_at = clock()
        self._lost: str | None = None
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_ended, name=f"lock of the {kind.folder}", daemon=True)

    @property
    def fence(self) -> Fence:
        """The fence for work that is given out now."""
        return Fence(self._token, self._stage)

    def check(self) -> None:
        """Raise the kind's error if another process has taken the lock, as it may after this one was suspended."""
        if self._clock() - self._renewed_at > 3 * self._renew_seconds:  # the thread was suspended too
            self._renew()
        if self._lost is not None:
            raise self._kind.lost(self._folder, self._lost, or_else="its disk did not answer")

    def next_stage(self) -> None:
        """Give a sign of life with the next number of a stage: work with an earlier fence is late from now on.

        Raises:
            ClipaError: the kind's error: the lock is lost, or cannot be written.
        """
        with self._guard:
            self._stage += 1
        since = self._clock()
        while (problem := self._renew()) is not None:
            if self._clock() - since >= self._lease:
                raise self._kind.error(
                    f"the lock of {self._kind.folder} {self._folder} cannot be written ({problem.strerror}); run the "
                    "same command again when its disk answers"
                ) from problem
            time.sleep(0.1)
        self.check()

    def acquire(self, *, poll_seconds: float, ending_seconds: float) -> None:
        """Take the lock, waiting for the lease of another machine, and keep renewing it. Errors as ``folder_lock``."""
        try:
            while True:
                with suppress(FileNotFoundError):
                    self._take(poll_seconds=poll_seconds, ending_seconds=ending_seconds)
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
            if self._lost is None and self._is_mine(self._path):
                self._path.unlink()

    def _take(self, *, poll_seconds: float, ending_seconds: float) -> None:
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
                    if self._clock() - since >= ending_seconds:
                        raise self._kind.in_use(self._folder, found.owner)
                elif self._take_over(found):
                    _log.info("%s: %s was killed; its lock is taken over", self._folder, described(found.owner))
                    return
                time.sleep(0.02)
            elif judged is None or found.key != judged.key:
                judged, since = found, self._clock()
                waiting = f"waiting up to {self._lease:g} s for a sign of life"
                _log.info("%s is locked by %s; %s", self._folder, described(found.owner), waiting)
            elif found.content != judged.content:
                raise self._kind.in_use(self._folder, found.owner)
            elif self._clock() - since >= self._lease and self._take_over(found):
                silent = f"gave no sign of life for {self._lease:g} s"
                _log.warning("%s: %s %s; its lock is taken over", self._folder, described(found.owner), silent)
                return
            else:
                time.sleep(poll_seconds)

    def _take_over(self, stale: _Found) -> bool:
        """Replace the lock of a process that is gone; of several that try it, one succeeds.

        The right to replace it is a file with the key of the stale lock in its name, which only one process can create.
        If that process is killed too, the right to replace it in turn has its key in the name, and so on.
        """
        passed: list[Path] = []
        key = stale.key
        while True:
            right = self._folder / f".{self._kind.name}.after-{key}"
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
        while not self._ended.wait(self._renew_seconds) and self._lost is None:
            if (problem := self._renew()) is not None:  # an absent server, perhaps; the next renewal may succeed
                _log.debug("%s cannot be renewed: %s", self._path, problem)

    def _renew(self) -> OSError | None:
        """Give a sign of life, or find that the lock is lost; returns the problem if neither is possible."""
        with self._guard:
            if self._ended.is_set() or self._lost is not None:
                return None
            started = self._clock()
            self._renewals += 1
            try:
                self._lost = self._renewed(is_late=started - self._renewed_at >= self._lease)
            except OSError as problem:
                return problem
            self._renewed_at = started
            return None

    def _renewed(self, *, is_late: bool) -> str | None:
        """Write a sign of life; returns what became of the lock if it is not ours any more."""
        try:
            # Written in place: a file that replaces this one in the meantime is not touched, and no space is needed.
            with self._path.open("r+b", buffering=0) as file:
                found = _parsed(file.read(), changed=0)
                if found.key != self._token:
                    return f"was taken over by {described(found.owner)}"
                file.seek(0)
                file.write(self._content())
                os.fsync(file.fileno())
        except FileNotFoundError:
            if is_late:
                return "was taken over by another process, which has ended"
            # The user deleted it. Another process may be faster.
            if not self._create(self._path):
                _remove(self._own_file)
                return self._renewed(is_late=is_late)
        return None

    def _content(self) -> bytes:
        """The content of the lock; each renewal has the same length."""
        counts = {"stage": f"{self._stage:06d}", "renewals": f"{self._renewals:012d}"}
        return json.dumps({**self._owner, **counts}).encode() + b"\n"

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
def folder_lock(
    folder: Path,
    kind: LockKind,
    *,
    lease: float,
    renew_seconds: float,
    poll_seconds: float,
    clock: Callable[[], float],
    ending_seconds: float,
) -> Generator[FolderLock]:
    """Hold the lock of a local folder until the block ends; arguments as ``held``.

    The folder is created, and removed if it is empty at the end.

    Args:
        ending_seconds: time in which a process of this machine that was killed may still end.

    Raises:
        ClipaError: the kind's error: another process works in the folder.
        OSError: the folder cannot be written.
    """
    created = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder, kind, lease=lease, renew_seconds=renew_seconds, clock=clock)
    try:
        lock.acquire(poll_seconds=poll_seconds, ending_seconds=ending_seconds)
        _remove_leftovers(folder, kind.name)
        yield lock
    finally:
        lock.release()
        for one in created:
            with suppress(OSError):  # it is in use
                one.rmdir()


def is_lock_file(name: str, lock: str) -> bool:
    """Whether an entry of a folder is the lock, or was made while a process took it.

    Args:
        name: of the entry.
        lock: the name of the lock.

    >>> [is_lock_file(name, "run.lock") for name in ("run.lock", ".run.lock.after-00ff", "my.run.lock")]
    [True, True, False]
    """
    return name == lock or re.fullmatch(rf"\.{re.escape(lock)}\.[a-z0-9-]+", name) is not None


def _remove_leftovers(folder: Path, lock: str) -> None:
    """Delete what processes of this machine left that were killed while they took the lock."""
    for entry in folder.iterdir():
        if entry.name != lock and is_lock_file(entry.name, lock):
            found = _read(entry)
            if found is not None and is_here(found.owner) and is_gone(found.owner):
                _remove(entry)
            else:
                _remove_if_old(entry)


def _remove_if_old(path: Path) -> None:
    """Delete a file that is used for milliseconds if it is there for minutes: its process is gone."""
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > _OLD_SECONDS:
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
    owner = owner_in(content)  # empty while a process is writing it, or if it was killed meanwhile
    return _Found(content, owner, str(owner["token"]) if owner else f"damaged-{changed}")
