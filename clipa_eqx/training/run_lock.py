"""The lock of a run folder: one process trains in it at a time, on any file system and however the last one ended."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from clipa_eqx.buckets.mirror import LOCK_FOLDER, SOURCE_FILE, bucket_of
from clipa_eqx.errors import CheckpointError
from clipa_eqx.locks.folder_lock import is_lock_file
from clipa_eqx.locks.held import LEASE_SECONDS, RENEW_SECONDS, Lock, held, is_held
from clipa_eqx.locks.kind import LockKind
from clipa_eqx.locks.owner import seconds_with_sleep

RUN_LOCK = LockKind(
    name=LOCK_FOLDER,
    folder="run folder",
    work="run",
    when_killed="lets it save and end",
    otherwise="give another --workdir",
    error=CheckpointError,
)
"""The lock of a process that trains in a folder."""


@contextmanager
def run_lock(
    folder: Path,
    *,
    lease: float = LEASE_SECONDS,
    renew_seconds: float = RENEW_SECONDS,
    poll_seconds: float = 1.0,
    clock: Callable[[], float] | None = None,
) -> Generator[Lock]:
    """Hold the lock of a run folder until the block ends; arguments as ``held``.

    For the copy of a folder in a bucket, the lock is in the bucket.

    Raises:
        CheckpointError: another process trains in the folder.
        OSError: the folder cannot be written.
    """
    bucket = bucket_of(folder)
    with held(
        folder if bucket is None else bucket,
        RUN_LOCK,
        lease=lease,
        renew_seconds=renew_seconds,
        poll_seconds=poll_seconds,
        clock=clock or seconds_with_sleep,
    ) as lock:
        yield lock


def is_training(folder: Path) -> bool | None:
    """Whether a process trains in a run folder; None if that cannot be looked up, as for a lock of another machine."""
    bucket = bucket_of(folder)
    return is_held(folder if bucket is None else bucket, RUN_LOCK.name)


def is_starting(folder: Path) -> bool:
    """Whether a run holds the lock of a folder that has nothing else yet: it checks and compiles first."""
    return (
        folder.is_dir()
        and is_training(folder) is not False
        and all(is_run_lock(entry.name) or entry.name == SOURCE_FILE for entry in folder.iterdir())
    )


def is_run_lock(name: str) -> bool:
    """Whether an entry of a run folder is its lock, or was made while a process took it."""
    return is_lock_file(name, RUN_LOCK.name)
