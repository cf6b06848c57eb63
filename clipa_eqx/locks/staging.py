"""Staging in a locked local folder: files are written aside and moved to their places while their owner has the lock.

Once another process has the lock, or the owner is in a later stage, it removes what is staged. So even a task that is
suspended after its last look at the lock has nothing to move in any more.
"""

import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clipa_eqx.locks.fence import Fence, check_fence


@dataclass(frozen=True, kw_only=True)
class Staged:
    """The files that tasks write first: where they are, and under which lock.

    Attributes:
        folder: the locked folder.
        lock: the name of its lock (see ``LockKind``).
        inside: the folder for staging folders, on the file system of ``folder``.
        start: the beginning of their names.
    """

    folder: Path
    lock: str
    inside: Path
    start: str

    def new_folder(self, fence: Fence) -> tempfile.TemporaryDirectory[str]:
        """A new staging folder.

        Raises:
            LateError: the lock is not as ``fence`` says any more.
            OSError: it cannot be created.
        """
        check_fence(self.folder, fence, name=self.lock)
        try:
            return tempfile.TemporaryDirectory(dir=self.inside, prefix=self._prefix(fence), ignore_cleanup_errors=True)
        except FileNotFoundError:
            self._check_again(fence)
            raise

    def move_in(self, file: Path, place: Path, fence: Fence) -> None:
        """Move a finished file to its place, also durable after a power cut. Errors as ``new_folder``."""
        try:
            _sync(file)  # otherwise a power cut may leave the new name without its content
            check_fence(self.folder, fence, name=self.lock)
            file.replace(place)
        except FileNotFoundError:
            self._check_again(fence)
            raise
        with suppress(OSError):  # some network file systems cannot sync a folder
            _sync(place.parent)

    def remove(self, fence: Fence | None) -> None:
        """Remove all staging folders but those of tasks with a fence."""
        own = None if fence is None else self._prefix(fence)
        with suppress(FileNotFoundError):
            for entry in self.inside.iterdir():
                if entry.name.startswith(self.start) and not (own and entry.name.startswith(own)):
                    shutil.rmtree(entry, ignore_errors=True)

    def _prefix(self, fence: Fence) -> str:
        return f"{self.start}{staged_name(fence)}"

    def _check_again(self, fence: Fence) -> None:
        # A folder that is gone was removed by the next owner or stage, in which case this says so.
        check_fence(self.folder, fence, name=self.lock)


def staged_name(fence: Fence) -> str:
    """The part of the names of staging folders that tasks with a fence have in common.

    >>> staged_name(Fence("00ff", 3))
    '00ff-000003-'
    """
    return f"{fence.token}-{fence.stage:06d}-"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
