"""Uploads of the small files of a run to its bucket: before each checkpoint, now and then, and at the end.

Process 0 uploads everything; each other process its own stacks and flight records, once something went wrong.
"""

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import NamedTuple

import jax

from clipa_eqx.buckets.bucket import Bucket, BucketError
from clipa_eqx.buckets.mirror import SOURCE_FILE, bucket_of
from clipa_eqx.errors import CheckpointError
from clipa_eqx.replacing import is_temporary
from clipa_eqx.saved.kinds import CHECKPOINTS_NAME, CONFIG_FILE, FROZEN_NAME, METRICS_NAME, MODEL_NAME
from clipa_eqx.training.flight import FLIGHT_NAME

EVERY_SECONDS = 30.0
"""Between two uploads while nothing is saved."""

_NOT_OURS = (CHECKPOINTS_NAME, FROZEN_NAME, SOURCE_FILE)
"""What others write: saves of checkpoints and frozen leaves, and the name of the bucket."""

_log = logging.getLogger(__name__)


class Uploads:
    """The files of the local copy of a run folder, and which versions of them are in the bucket."""

    def __init__(
        self, folder: Path, bucket: Bucket, check_lock: Callable[[], None], *, only: str | None = None
    ) -> None:
        """Take the files as they are now for those in the bucket, except for the record of the run.

        Args:
            only: name of the folder in ``folder`` to upload; None for everything.
        """
        self._folder, self._bucket, self._check_lock, self._only = folder, bucket, check_lock, only
        self._guard = threading.Lock()
        self._sent = {name: version for name, version in self._files().items() if name != CONFIG_FILE}

    def __call__(self) -> None:
        """Upload what has changed. The description of a model folder comes last, so nobody reads half of a model.

        Raises:
            BucketError: it failed for longer than the patience.
            CheckpointError: another process has taken the run folder.
        """
        with self._guard:
            self._check_lock()
            files = self._files()
            changed = [name for name, version in files.items() if self._sent.get(name) != version]
            model_config = f"{MODEL_NAME}/{CONFIG_FILE}"
            if any(name.startswith(f"{MODEL_NAME}/") for name in changed):
                self._bucket.delete([model_config])
                changed = [name for name in changed if name != model_config] + [model_config]
            for name in changed:
                if name == METRICS_NAME:
                    # Only complete lines: another thread appends to the file.
                    content = (self._folder / name).read_bytes()
                    self._bucket.write(name, content[: content.rfind(b"\n") + 1])
                else:
                    try:
                        self._bucket.upload(self._folder / name, name)
                    except FileNotFoundError:  # deleted since it was listed
                        continue
                self._sent[name] = files[name]
            gone = [name for name in self._sent if name not in files]
            self._bucket.delete(gone)
            for name in gone:
                del self._sent[name]

    def _files(self) -> dict[str, tuple[int, int]]:
        """Time of change and size of each file that belongs in the bucket, by its name there."""
        found: dict[str, tuple[int, int]] = {}
        for path in sorted(self._folder.rglob("*")):
            name = path.relative_to(self._folder)
            first = name.parts[0]
            is_asked_for = first == self._only if self._only else first not in _NOT_OURS
            is_ours = is_asked_for and not _is_unfinished(name)
            try:
                if is_ours and path.is_file() and not path.is_symlink():
                    about = path.stat()
                    found[name.as_posix()] = (about.st_mtime_ns, about.st_size)
            except FileNotFoundError:  # a temporary file
                continue
        return found


class RunUploads(NamedTuple):
    """Functions that upload files of a run; for a local run folder they do nothing.

    Attributes:
        changed: uploads what has changed, in process 0.
        last_words: the same, and in other processes their stacks and flight records, before the process ends.
    """

    changed: Callable[[], None]
    last_words: Callable[[], None]


@contextmanager
def uploads(folder: Path, *, check_lock: Callable[[], None]) -> Generator[RunUploads]:
    """Yield functions that upload what has changed, which is also done now and then, and when the block ends.

    Args:
        check_lock: raises CheckpointError if another process has taken the run folder; nothing is uploaded then.

    Raises:
        BucketError: an upload failed at the end of a block that itself ended well.
    """
    bucket = bucket_of(folder)
    if bucket is None:
        yield RunUploads(_nothing, _nothing)
        return
    is_first = jax.process_index() == 0
    upload = Uploads(folder, bucket, check_lock, only=None if is_first else FLIGHT_NAME)
    ended = threading.Event()
    if is_first:
        upload()  # the record of the run
        threading.Thread(target=_upload_until, args=(upload, ended), name="uploads", daemon=True).start()
    try:
        yield RunUploads(upload if is_first else _nothing, upload)
    except BaseException as problem:
        ended.set()
        if isinstance(problem, BucketError):  # the bucket does not answer: another wait would help nobody
            raise
        try:
            upload()
        except CheckpointError as error:
            _log.warning("the last lines of the metrics and the report were not uploaded: %s", error)
        raise
    ended.set()
    if is_first:
        upload()


def _upload_until(upload: Callable[[], None], ended: threading.Event) -> None:
    while not ended.wait(EVERY_SECONDS):
        try:
            upload()
        except BucketError as error:  # an error before the next checkpoint, if it still fails
            _log.warning("%s; training continues until the next checkpoint", error)
        except CheckpointError:  # the lock is lost, which the loop reports
            return


def _is_unfinished(name: PurePath) -> bool:
    """Whether a file is being written next to its final place."""
    return any(part.startswith(".") and is_temporary(part, part[1:].rpartition(".")[0]) for part in name.parts)


def _nothing() -> None:
    """Do nothing: the run folder is local, or process 0 uploads."""
