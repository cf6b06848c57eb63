"""Marks of the phases of a training process, for tests that interrupt it; the config file of the run installs them.

Variables of the environment say where they go and what they do:

- ``PHASES``: a file that gets the name of each phase that begins.
- ``SAMPLES``: a file that gets the step after which a process starts, then each step with its samples.
- ``STEP``: a file with the compiled step; it is written if it is missing, and read instead of compiling.
- ``STOP_AFTER``: the process ends with exit code 3 after so many steps, once the saves that have begun are finished.
- ``OTHER_CODE``: processes other than 0 claim to have other code.
- ``FULL_IN`` and ``ROOM``: from the first mark of that phase on, no file grows beyond so many bytes.
"""

import json
import os
import pickle
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from clipa_eqx.training.compiled_step import compile_step


def record(variable: str, value: object) -> None:
    """Append a line of JSON to the file that a variable names."""
    if variable in os.environ:
        with open(os.environ[variable], "ab", buffering=0) as file:
            file.write(json.dumps(value).encode() + b"\n")


def mark(phase: str) -> None:
    """Record that a phase begins."""
    record("PHASES", phase)
    if os.environ.get("FULL_IN") == phase:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["ROOM"]), limit))


def with_marks(function: Callable[..., Any], before: str, after: str | None = None) -> Callable[..., Any]:
    """A function that marks its begin and its end."""

    def marked(*args: Any, **rest: Any) -> Any:
        mark(before)
        done = function(*args, **rest)
        if after is not None:
            mark(after)
        return done

    return marked


def compile_or_read(config: Any, optimizer: Any, abstract: Any, mesh: Any) -> Any:
    """The compiled step, from the file ``STEP`` if it is there."""
    mark("compile")
    stored = Path(os.environ["STEP"]) if "STEP" in os.environ else None
    if stored is not None and stored.exists():
        step = _read(stored, abstract)
    else:
        step = compile_step(config, optimizer, abstract, mesh)
        if stored is not None:
            _write(stored, step)
    return with_marks(_stopping(step), "step")


def _stopping(step: Any) -> Any:
    """The step, which ends the process instead of taking one more than ``STOP_AFTER``."""
    left = int(os.environ.get("STOP_AFTER", 10**9))

    def counted(*args: Any) -> Any:
        nonlocal left
        if left == 0:
            raise SystemExit(3)
        left -= 1
        return step(*args)

    return counted


def _write(stored: Path, step: Any) -> None:
    """Store a compiled step, without the structure of the state: Equinox modules differ after pickling."""
    payload, in_tree, out_tree = serialize_executable.serialize(step)
    (_, *taken), named = jax.tree.unflatten(in_tree, range(in_tree.num_leaves))
    _, *given = jax.tree.unflatten(out_tree, range(out_tree.num_leaves))
    unfinished = stored.with_name(f"{stored.name}.{os.getpid()}")
    unfinished.write_bytes(pickle.dumps((payload, taken, named, given)))
    unfinished.replace(stored)


def _read(stored: Path, abstract: Any) -> Any:
    payload, taken, named, given = pickle.loads(stored.read_bytes())
    in_tree = jax.tree.structure(((abstract, *taken), named))
    return serialize_executable.deserialize_and_load(payload, in_tree, jax.tree.structure((abstract, *given)))


def install() -> None:
    """Mark the phases of this process. Call it once, before training."""
    from clipa_eqx.locks.bucket_lock import BucketLock
    from clipa_eqx.locks.folder_lock import FolderLock
    from clipa_eqx.programs import training_run
    from clipa_eqx.training import loop, preparation
    from clipa_eqx.training.checkpoint import Checkpoints
    from clipa_eqx.training.flight import FlightRecord
    from clipa_eqx.training.live_report import LiveReport
    from clipa_eqx.training.reporting import Reports

    started, open_reports, open_checkpoints = FlightRecord.started, Reports.__init__, Checkpoints.__init__

    def start_and_record(self: FlightRecord, step: int, sample_id: Any) -> None:
        started(self, step, sample_id)
        record("SAMPLES", [step, sample_id.tolist()])

    def open_and_record(self: Reports, *args: Any, start: int, **rest: Any) -> None:
        open_reports(self, *args, start=start, **rest)
        record("SAMPLES", [start, None])

    def open_and_mark(self: Checkpoints, *args: Any, **rest: Any) -> None:
        open_checkpoints(self, *args, **rest)
        if self._bucket is not None:
            self._bucket._delete = with_marks(self._bucket._delete, "deleting", "deleted")
            return
        deleter = self._manager._checkpoint_deleter
        deleter.delete_steps = with_marks(deleter.delete_steps, "deleting", "deleted")

    Reports.finish = with_marks(Reports.finish, "reporting", "reported")
    FlightRecord.started = start_and_record
    Reports.__init__ = open_and_record
    Checkpoints.__init__ = open_and_mark
    Checkpoints.restore = with_marks(Checkpoints.restore, "restore", "state")
    Checkpoints.save = with_marks(Checkpoints.save, "saving", "save")
    FolderLock.acquire = with_marks(FolderLock.acquire, "lock")
    BucketLock.acquire = with_marks(BucketLock.acquire, "lock")
    LiveReport.close = with_marks(LiveReport.close, "page", "closed")
    loop.prepare = with_marks(loop.prepare, "preparation")
    loop.first_state = with_marks(loop.first_state, "first state", "state")
    loop.claim_on_all = with_marks(loop.claim_on_all, "claim", "claimed")
    loop.train_batches = with_marks(loop.train_batches, "first batch")
    loop.evaluate_model = with_marks(loop.evaluate_model, "evaluation", "evaluated")
    loop.save_model = with_marks(loop.save_model, "final model", "end")
    if "OTHER_CODE" in os.environ:
        digest = preparation.code_digest
        preparation.code_digest = lambda: digest() if jax.process_index() == 0 else "other"
    training_run.train = partial(loop.train, compiler=compile_or_read)
