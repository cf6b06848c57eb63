"""Saves of checkpoints to a bucket in the background. A checkpoint exists once its record does, which is written last.

Each process writes the shards that it holds. Those of one attempt are in a folder with a random name, which the record
names, so a process that was suspended cannot change a checkpoint that another one has saved since.
"""

import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from clipa_eqx.buckets.array_store import ArrayStore, array_store, failed
from clipa_eqx.buckets.bucket import Bucket, BucketError
from clipa_eqx.errors import CheckpointError, ClipaError
from clipa_eqx.saved.kinds import RECORD_FILE
from clipa_eqx.training.stored_arrays import host_shards, write_shards

_POLL_SECONDS = 0.2
_LONGEST_WAIT = 3600.0


class BucketSaves:
    """The checkpoints of a run folder in a bucket, and the save that runs; all processes call ``save`` together."""

    def __init__(
        self,
        bucket: Bucket,
        name: str,
        *,
        keep: int | Callable[[Sequence[int]], set[int]] | None,
        before_commit: Callable[[], object],
    ) -> None:
        """Open for writing, which deletes unfinished checkpoints; with ``keep=None`` open for reading only.

        Args:
            bucket: the run folder.
            name: name of the folder of the checkpoints in it.
            keep: the number of checkpoints to keep, or a function from the steps that are there to those that are kept.
            before_commit: called by process 0, in another thread, before a checkpoint is committed.
        """
        self._bucket, self._name, self._keep, self._before_commit = bucket, name, keep, before_commit
        self._is_first = jax.process_index() == 0
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._ended = threading.Event()
        if keep is not None:
            if self._is_first:
                self._remove_unfinished()
            self._attempt = _agreed_name()

    def steps(self) -> list[int]:
        """The committed steps, in order."""
        pattern = rf"{self._name}/(\d+)/{re.escape(RECORD_FILE)}"
        found = (re.fullmatch(pattern, name) for name in self._bucket.names(self._name))
        return sorted(int(match[1]) for match in found if match)

    def record(self, step: int) -> bytes | None:
        """The record of a step as stored; None if the step is not committed."""
        return self._bucket.read(self._record(step))

    def store(self, step: int, arrays: str) -> ArrayStore:
        """The folder of the arrays of a step."""
        return array_store(self._bucket, f"{self._name}/{step}/{arrays}")

    def save(self, step: int, leaves: Mapping[str, jax.Array], record: Callable[[str], Mapping[str, Any]]) -> None:
        """Copy the leaves to the host and start writing. ``record`` makes the record from the name of the arrays."""
        self.wait_until_finished()
        arrays = f"arrays-{self._attempt}"
        shards = host_shards(leaves)
        content = json.dumps(record(arrays)).encode()

        def write() -> None:
            try:
                write_shards(self.store(step, arrays), shards, is_first=self._is_first)
                shards.clear()
                self._commit(step, content)
            except (ValueError, RuntimeError, OSError) as error:  # what TensorStore raises
                what = f"checkpoint {step} cannot be written"
                self._error = error if isinstance(error, ClipaError) else failed(self._bucket, what, error)
            except Exception as error:
                self._error = error

        self._thread = threading.Thread(target=write, name=f"save of checkpoint {step}", daemon=True)
        self._thread.start()

    def is_saving_in_progress(self) -> bool:
        """Whether a save is running."""
        return self._thread is not None and self._thread.is_alive()

    def wait_until_finished(self) -> None:
        """Block until the save is committed; raises its error, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Let a save that waits for other processes end."""
        self._ended.set()

    def set_aside(self, step: int, folder: str) -> str:
        """Move a checkpoint out of the way, to a folder of the run folder, and return the address of its new place.

        Everything is copied before its record is deleted, so that an interruption loses nothing.
        """
        here = f"{self._name}/{step}/"
        place = f"{folder}/{step}-{secrets.token_hex(4)}"
        for name, size in self._bucket.names(here).items():
            self._bucket.copy(name, f"{place}/{name.removeprefix(here)}", size)
        self._delete(step)
        return f"{self._bucket.url}/{place}"

    def _commit(self, step: int, content: bytes) -> None:
        folder = f"{self._name}/{step}/written-{self._attempt}"
        if not self._is_first:
            self._bucket.write(f"{folder}/{jax.process_index()}", b"")
            self._wait_for(
                lambda: self._bucket.read(self._record(step)) is not None, f"process 0 to commit step {step}"
            )
            return
        others = {f"{folder}/{index}" for index in range(1, jax.process_count())}
        if others:
            missing = "other processes to write their part"
            self._wait_for(lambda: others <= set(self._bucket.names(folder)), f"{missing} of step {step}")
        self._before_commit()
        if not self._bucket.create(self._record(step), content):
            raise CheckpointError(f"checkpoint {step} of {self._bucket.url} was saved by another process meanwhile")
        self._bucket.delete(others)
        assert self._keep is not None
        steps = self.steps()
        kept = set(steps[-self._keep :]) if isinstance(self._keep, int) else self._keep(steps)
        for old in steps:
            if old not in kept:
                self._delete(old)

    def _wait_for(self, is_there: Callable[[], bool], what: str) -> None:
        since = time.monotonic()
        while not is_there():
            if self._ended.wait(_POLL_SECONDS):
                raise CheckpointError(f"{self._bucket.url}: the run ended while it waited for {what}")
            if time.monotonic() - since > _LONGEST_WAIT:
                raise BucketError(f"{self._bucket.url}: waited {_LONGEST_WAIT:g} s for {what}; see their messages")

    def _delete(self, step: int) -> None:
        """Delete a checkpoint; its record first, so that no part of it is ever taken for a checkpoint."""
        names = self._bucket.names(f"{self._name}/{step}")
        self._bucket.delete(sorted(names, key=lambda name: name != self._record(step)))

    def _record(self, step: int) -> str:
        return f"{self._name}/{step}/{RECORD_FILE}"

    def _remove_unfinished(self) -> None:
        names = self._bucket.names(self._name)
        steps = {int(found[1]) for name in names if (found := re.match(rf"{self._name}/(\d+)/", name))}
        for step in steps - set(self.steps()):
            self._delete(step)


def _agreed_name() -> str:
    """A random name that all processes have."""
    number = np.frombuffer(secrets.token_bytes(8), np.uint32)
    if jax.process_count() > 1:
        number = np.asarray(multihost_utils.broadcast_one_to_all(number), np.uint32)
    return number.tobytes().hex()
