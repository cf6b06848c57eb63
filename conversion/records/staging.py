"""Staging of a part: its files are written aside and moved in one by one, while its conversion has the destination."""

import secrets
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from clipa_eqx.locks.fence import Fence
from conversion.records.locking import check_current, staged_in, staged_prefix
from conversion.records.part_report import UNFINISHED
from conversion.records.places import Place


@dataclass(frozen=True, kw_only=True)
class Staging:
    """The folder to which the files of a part are written first.

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
        if self.target.is_local and self.fence is not None:
            staged_in(self.target).move_in(file, Path(self.target.child(name)), self.fence)
            return
        self._upload(file, name)
        file.unlink()

    def _upload(self, file: Path, name: str) -> None:
        fs, staged = self.target.fs, self.target.child(f"{self.uploads}/{file.name}")
        if self.fence is None:
            fs.put_file(str(file), self.target.child(name))
            return
        fs.put_file(str(file), staged)
        try:
            check_current(self.target, self.fence)
            fs.cp_file(staged, self.target.child(name))
        except FileNotFoundError:
            check_current(self.target, self.fence)  # the next owner or stage removed the object, or somebody else
            raise
        finally:
            with suppress(FileNotFoundError):
                fs.rm_file(staged)


@contextmanager
def staging(target: Place, fence: Fence | None) -> Generator[Staging]:
    """Yield a new staging folder, which is removed at the end.

    Args:
        fence: state of the lock in which the part was given out; None only for a destination without a lock.

    Raises:
        LateError: as ``Staging.move_in``.
        OSError: the folder cannot be created.
    """
    uploads = "" if fence is None else f"{UNFINISHED}/{staged_prefix(fence)}{secrets.token_hex(4)}"
    with _new_folder(target, fence) as folder:
        yield Staging(target=target, fence=fence, folder=Path(folder), uploads=uploads)


def _new_folder(target: Place, fence: Fence | None) -> tempfile.TemporaryDirectory[str]:
    if target.is_local and fence is not None:  # inside the destination, so that a rename moves a file to its place
        return staged_in(target).new_folder(fence)
    check_current(target, fence)
    return tempfile.TemporaryDirectory(prefix="clipa_eqx-")
