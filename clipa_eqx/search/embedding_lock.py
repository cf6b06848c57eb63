"""The lock of a folder of embeddings: one command writes it at a time, on any host, and late work changes nothing."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from clipa_eqx.errors import ConfigError
from clipa_eqx.locks.content import owner_of
from clipa_eqx.locks.fence import Fence, LateError, fence_in
from clipa_eqx.locks.held import Lock, held
from clipa_eqx.locks.kind import LockKind
from clipa_eqx.locks.staging import Staged

LOCK = LockKind(
    name="embed.lock",
    folder="folder of embeddings",
    work="run",
    when_killed="ends it, and the same command resumes it",
    otherwise="give another --out",
    error=ConfigError,
)
"""The lock of a command that embeds into a folder."""

PROBE = ".probe-"
"""The beginning of the names of files with which nodes of a cluster show that they see the folder."""

_VISIBLE_WITHIN = 10.0  # seconds until a network file system shows a new file on all hosts


@contextmanager
def locked(folder: Path) -> Generator[Lock]:
    """Create a folder and keep other commands on any host out of it for the time of the block.

    Raises:
        ConfigError: another command is writing there, or took over from this one; or the folder cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give the name of a folder")
    try:
        with held(folder, LOCK) as lock:
            staged_in(folder).remove(lock.fence)
            for left in folder.glob(f"{PROBE}*"):
                left.unlink(missing_ok=True)
            with refused_if_late(folder, lock):
                yield lock
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror}); give a folder that can be written"
        ) from error


@contextmanager
def refused_if_late(folder: Path, lock: Lock | None) -> Generator[None]:
    """Turn a ``LateError`` of the block into a ConfigError that says who has the lock now.

    Args:
        lock: what this process holds; None if another process of the command holds it.
    """
    try:
        yield
    except LateError as error:
        if lock is not None:
            lock.next_stage()  # this looks at the lock, and names its owner
        raise ConfigError(
            f"{folder} was taken over by another command, or its lock was removed; run this command again"
        ) from error


def end_of_work(folder: Path, lock: Lock) -> None:
    """Shut out what still works under the lock, such as a node that lost its connection.

    Raises:
        ConfigError: the lock is lost.
    """
    lock.next_stage()
    staged_in(folder).remove(lock.fence)


def fence_of(folder: Path) -> Fence | None:
    """The fence of work for the command that has the lock, which another process took a moment ago; None if none has.

    Raises:
        OSError: it cannot be read.
    """
    since = time.monotonic()
    while (fence := fence_in(owner_of(folder, LOCK.name) or {})) is None and time.monotonic() - since < _VISIBLE_WITHIN:
        time.sleep(0.1)
    return fence


def staged_in(folder: Path) -> Staged:
    """The files that are staged in a folder of embeddings."""
    return Staged(folder=folder, lock=LOCK.name, inside=folder, start=".staged-")
