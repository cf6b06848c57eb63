"""Locks of local folders and of folders in buckets, by one function."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from clipa_eqx.buckets.bucket import Bucket
from clipa_eqx.locks.bucket_lock import BucketLock, bucket_lock
from clipa_eqx.locks.content import owner_of
from clipa_eqx.locks.folder_lock import FolderLock, folder_lock
from clipa_eqx.locks.kind import LockKind
from clipa_eqx.locks.owner import is_gone, is_here, seconds_with_sleep

Lock: TypeAlias = FolderLock | BucketLock

LEASE_SECONDS = 60.0
"""Time without a sign of life after which the lock of another machine is taken over."""

RENEW_SECONDS = 10.0
"""Time between two signs of life."""

# A process may be restarted while the killed one still ends.
_ENDING_SECONDS = 2.0


@contextmanager
def held(
    where: Path | Bucket,
    kind: LockKind,
    *,
    lease: float = LEASE_SECONDS,
    renew_seconds: float = RENEW_SECONDS,
    poll_seconds: float = 1.0,
    clock: Callable[[], float] = seconds_with_sleep,
) -> Generator[Lock]:
    """Hold the lock of a folder until the block ends. A local folder is created, and removed if it is empty at the end.

    The lock of a process that was killed on this machine is taken over at once. That of another machine is taken over
    once it was not renewed for ``lease`` seconds, which are waited for.

    Args:
        where: the folder.
        kind: what is locked.
        lease: seconds without a sign of life after which the lock of another machine is taken over.
        renew_seconds: seconds between two signs of life of this process.
        poll_seconds: seconds between two looks at the lock of another machine.
        clock: seconds of a clock that never goes back and includes the time in which the machine is suspended.

    Raises:
        ClipaError: the kind's error: another process works in the folder.
        NoExclusiveCreation: the store of the bucket cannot create objects exclusively.
        OSError, BucketError: the folder cannot be written.
    """
    times: Any = {"lease": lease, "renew_seconds": renew_seconds, "poll_seconds": poll_seconds, "clock": clock}
    if isinstance(where, Bucket):
        with bucket_lock(where, kind, ending_seconds=_ENDING_SECONDS, **times) as lock:
            yield lock
    else:
        with folder_lock(where, kind, ending_seconds=_ENDING_SECONDS, **times) as lock:
            yield lock


def is_held(where: Path | Bucket, name: str) -> bool | None:
    """Whether a process has the lock of this name in a folder; None if that is not known, as for another machine.

    Raises:
        BucketError: the bucket cannot be read.
    """
    try:
        owner = owner_of(where, name)
    except OSError:
        return None
    if owner is None:
        return False
    return not is_gone(owner) if is_here(owner) else None
