"""Staging of a part: its files are written aside and moved in one by one, while its conversion has the destination."""

import os
import secrets
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from clipa_eqx.locks.fence import Fence
from conversion.records.locking import STAGED, check_current, staged_prefix
from conversion.records.part_report import UNFINISHED
from conversion.records.places import Place


@dataclass(frozen=True, kw_only=True)
class Staging:
    """The folder to which the files of a part are written first.

    Once another conversion has the lock, or its own is in a later stage, the staging folder is removed. So even a task
    that is suspended after its last look at the lock has nothing to move in any more.

    Attributes:
        target: the destination.
        fence: state of the lock in which the part was given out; None if there is no lock.
        folder: a local folder to write to; of a local destination, it is inside.
        uploads: the same for a bucket: a folder inside the destination, from which objects are copied to their places.
    """

    target: Place
    fence: Fence | None
    folder: Path
    uploads: str

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the destination; errors as ``move_in``."""
        file = self.folder / name.rpartition("/")[2]
        file.write_bytes(content)
        self.move_in(name)

    def move_in(self, name: str) -> None:
        """Move a finished file of the staging folder to its place in the destination.

        Args:
            name: in the destination; that in the staging folder is its last part.

        Raises:
            LateError: the conversion that gave out the part, or the stage of it, is over.
            OSError: the file cannot be moved.
        """
        file = self.folder / name.rpartition("/")[2]
        try:
            if self.target.is_local:
                self._rename(file, name)
            else:
                self._upload(file, name)
                file.unlink()
        except FileNotFoundError:
            check_current(self.target, self.fence)  # otherwise the staging folder was removed by somebody else
            raise

    def _rename(self, file: Path, name: str) -> None:
        _sync(file)  # otherwise a power cut may leave the new name without its content
        check_current(self.target, self.fence)
        place = Path(self.target.child(name))
        file.replace(place)
        with suppress(OSError):  # some network file systems cannot sync a folder
            _sync(place.parent)

    def _upload(self, file: Path, name: str) -> None:
        fs, staged = self.target.fs, self.target.child(f"{self.uploads}/{file.name}")
        if self.fence is None:
            fs.put_file(str(file), self.target.child(name))
            return
        fs.put_file(str(file), staged)
        try:
            check_current(self.target, self.fence)
            fs.cp_file(staged, self.target.child(name))
        finally:
            with suppress(FileNotFoundError):
                fs.rm_file(staged)


@contextmanager
def staging(target: Place, fence: Fence | None) -> Generator[Staging]:
    """Yield a new staging folder, which is removed at the end.

    Raises:
        LateError: as ``Staging.move_in``.
        OSError: the folder cannot be created.
    """
    check_current(target, fence)
    prefix = STAGED if fence is None else staged_prefix(fence)
    uploads = f"{UNFINISHED}/{prefix}{secrets.token_hex(4)}"
    with _new_folder(target, fence, prefix) as folder:
        yield Staging(target=target, fence=fence, folder=Path(folder), uploads=uploads)


def _new_folder(target: Place, fence: Fence | None, prefix: str) -> tempfile.TemporaryDirectory[str]:
    if not target.is_local:
        return tempfile.TemporaryDirectory(prefix="clipa_eqx-")
    try:
        # Inside the destination, so that a rename moves a file to its place.
        return tempfile.TemporaryDirectory(dir=target.child(UNFINISHED), prefix=prefix, ignore_cleanup_errors=True)
    except FileNotFoundError:
        check_current(target, fence)  # its conversion made that folder, and another one may have removed it
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
