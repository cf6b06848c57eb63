"""The lock of a destination: one conversion writes there at a time, on any host, and late tasks of others do not."""

import contextlib
import logging
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from clipa_eqx.buckets.bucket import Bucket, BucketError
from clipa_eqx.data.manifest import MANIFEST_NAME
from clipa_eqx.errors import DataError
from clipa_eqx.locks.bucket_lock import NoExclusiveCreation
from clipa_eqx.locks.fence import Fence, LateError, check_fence
from clipa_eqx.locks.folder_lock import is_lock_file
from clipa_eqx.locks.held import Lock, held
from clipa_eqx.locks.kind import LockKind
from clipa_eqx.locks.staging import Staged, staged_name
from clipa_eqx.replacing import is_temporary
from conversion.records.listing import list_names
from conversion.records.part_report import UNFINISHED
from conversion.records.places import Place, protocols

LOCK = LockKind(
    name="conversion.lock",
    folder="record folder",
    work="conversion",
    when_killed="ends it, and the same command resumes it",
    otherwise="choose another folder",
    error=DataError,
)
"""The lock of a process that converts into a folder."""

STAGED = "tmp-"  # how the names of staging folders in `_unfinished` begin
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Hold:
    """The hold of this conversion on its destination, which ``locked`` gives.

    Attributes:
        target: the destination.
        lock: its lock; None where there is none.
    """

    target: Place
    lock: Lock | None

    @property
    def fence(self) -> Fence | None:
        """The fence for tasks that start now; None if there is no lock."""
        return None if self.lock is None else self.lock.fence

    def check(self) -> None:
        """Check that no other conversion has taken over. Call it before each change of the destination.

        Raises:
            DataError: one has, because this process was suspended for too long.
        """
        if self.lock is not None:
            with _as_data_error():
                self.lock.check()

    def next_stage(self) -> None:
        """Shut out tasks that started before, such as those of a node that lost its connection. Errors as ``check``."""
        if self.lock is not None:
            with _as_data_error():
                self.lock.next_stage()
            self.remove_staged()

    def remove_left(self) -> None:
        """Remove what processes of earlier conversions were about to rename or move to its place.

        Call it before the first change of the destination, and after the last refusal.
        """
        if self.lock is not None:
            self.remove_staged()
            _remove_half_written(self.target)

    def remove_staged(self) -> None:
        """Remove what tasks of earlier stages and conversions were about to move in.

        A task that checked its fence just before can then not move it any more.
        """
        if self.target.is_local:
            staged_in(self.target).remove(self.fence)
            return
        own = None if self.fence is None else staged_prefix(self.fence)
        for name in list_names(self.target, UNFINISHED):
            if name.startswith(STAGED) and not (own and name.startswith(own)):
                with contextlib.suppress(FileNotFoundError):
                    self.target.fs.rm(self.target.child(f"{UNFINISHED}/{name}"), recursive=True)


def staged_in(target: Place) -> Staged:
    """The files that tasks stage in a local destination."""
    folder = Path(target.path)
    return Staged(folder=folder, lock=LOCK.name, inside=folder / UNFINISHED, start=STAGED)


def staged_prefix(fence: Fence) -> str:
    """The beginning of the names of staging folders of tasks with this fence."""
    return f"{STAGED}{staged_name(fence)}"


def check_current(target: Place, fence: Fence | None) -> None:
    """Check that a task of a conversion may still change the destination.

    Args:
        fence: what the task carries; None if there is no lock.

    Raises:
        LateError: its conversion, or the stage of it, is over.
    """
    where = _lockable(target)
    if fence is not None and where is not None:
        with _as_data_error():
            check_fence(where, fence, name=LOCK.name)


def is_lock(name: str) -> bool:
    """Check whether an entry of a destination is the lock, or was made while a process took it."""
    return is_lock_file(name, LOCK.name)


@contextlib.contextmanager
def locked(target: Place) -> Generator[Hold]:
    """Create a local folder, and keep other conversions on any host out of the destination.

    The lock of a process that was killed on this machine is taken over at once; that of another machine after a
    minute without a sign of life. Only local folders, ``gs://`` and ``s3://`` have locks; for other URLs the log has a
    warning.

    Raises:
        DataError: another conversion is working there, or took over from this one; or the folder cannot be created.
    """
    where = _lockable(target)
    if where is None:
        if target.crosses_processes:
            _warn(target, "URLs of this kind have no locks")
        yield Hold(target=target, lock=None)
        return
    with contextlib.ExitStack() as stack:
        try:
            with _as_data_error():
                lock = stack.enter_context(held(where, LOCK))
        except NoExclusiveCreation:
            _warn(target, "its store lets two processes create the same object")
            yield Hold(target=target, lock=None)
            return
        except FileExistsError as error:
            raise DataError(f"{target.url} is a file; give a folder") from error
        except OSError as error:
            raise DataError(f"{target.url} cannot be created: {error}") from error
        hold = Hold(target=target, lock=lock)
        try:
            yield hold
        except LateError as error:
            hold.next_stage()  # this looks at the lock: the conversion that has it is the reason
            raise DataError(
                f"{target.url}: the lock of this conversion was removed, or a process saw an older content of it, as "
                f"caches of a network file system may show; repeat the command to resume ({error})"
            ) from error
        except OSError:
            hold.check()  # another conversion is the better reason
            raise


def _warn(target: Place, why: str) -> None:
    _log.warning("%s is not locked, because %s; start no second conversion that writes to it", target.url, why)


def _lockable(target: Place) -> Path | Bucket | None:
    """The folder with the lock of a destination; ``gcs://`` and ``s3a://`` are other names for the same buckets."""
    if target.is_local:
        return Path(target.path)
    scheme = next((name for name in ("gs", "s3") if name in protocols(target.fs)), None)
    bucket, _, folder = target.path.strip("/").partition("/")
    return None if scheme is None else Bucket(scheme, bucket, folder)


def _remove_half_written(target: Place) -> None:
    # A process that was suspended before it renamed these to their places finds them gone.
    if target.is_local:
        for folder, name in (("", MANIFEST_NAME), (UNFINISHED, "command.json")):
            for entry in list_names(target, folder):
                if is_temporary(entry, name):
                    Path(target.child(f"{folder}/{entry}")).unlink(missing_ok=True)


@contextlib.contextmanager
def _as_data_error() -> Generator[None]:
    try:
        yield
    except NoExclusiveCreation:
        raise
    except BucketError as error:
        raise DataError(str(error)) from error.__cause__ or error  # a cluster tries again after errors of storage
