"""Folders that one process at a time may write to; the lock ends with the process, however it ends."""

import errno
import fcntl
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from clipa_eqx.errors import ClipaError

LOCK_FILE = ".lock"
"""File in a locked folder; it stays there, because deleting it would let two processes lock two files."""

_log = logging.getLogger(__name__)


@contextmanager
def locked_folder(folder: Path, *, error: type[ClipaError], waits: bool = False) -> Generator[None]:
    """Create a folder and keep other processes out of it for the time of the block.

    On a file system without locks, the block runs without one, and the log has a warning.

    Args:
        error: class of the errors.
        waits: wait for the other process instead of raising an error.

    Raises:
        error: another process is writing there, or the folder cannot be created or opened.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as cause:
        raise error(f"{folder} is a file; give the name of a folder") from cause
    except OSError as cause:
        raise error(f"{folder} cannot be created ({cause.strerror}); give a folder that can be written") from cause
    try:
        handle = _opened(folder)
    except OSError as cause:
        raise error(f"{folder} cannot be locked ({cause.strerror}); give a folder that can be written") from cause
    try:
        _lock(handle, folder, error=error, waits=waits)
        yield
    finally:
        os.close(handle)


def _opened(folder: Path) -> int:
    # A regular file open for writing, because NFS locks neither folders nor files that are open for reading.
    try:
        return os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as cause:
        if cause.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        # The file of another user, or a folder that can only be read.
        return os.open(folder / LOCK_FILE if (folder / LOCK_FILE).exists() else folder, os.O_RDONLY)


def _lock(handle: int, folder: Path, *, error: type[ClipaError], waits: bool) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError as cause:
        if not waits:
            raise error(f"another process is writing to {folder} right now; wait for it, or end it") from cause
    except OSError as cause:
        _log.warning("%s cannot be locked (%s); start no second process that writes to it", folder, cause.strerror)
        return
    _log.info("waiting for another process that is writing to %s", folder)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as cause:
        raise error(f"waiting for the lock of {folder} failed ({cause.strerror}); run the command again") from cause
