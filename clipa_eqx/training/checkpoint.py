"""Training checkpoints: read only once committed, restored onto any mesh, verified by checksums.

Orbax saves them in local folders, ``bucket_saves`` in buckets."""

import dataclasses
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_manager import StepAlreadyExistsError

from clipa_eqx.buckets.bucket import BucketError
from clipa_eqx.buckets.mirror import bucket_of
from clipa_eqx.checksums import leaf_checksums
from clipa_eqx.ema import new_average, with_average
from clipa_eqx.errors import CheckpointError
from clipa_eqx.models.clip import CLIP
from clipa_eqx.sharding import shardings_for
from clipa_eqx.training.bucket_saves import BucketSaves
from clipa_eqx.training.checkpoint_record import CheckpointRecord, record_json
from clipa_eqx.training.space import tree_bytes, write_error
from clipa_eqx.training.state import TrainState, replace_average
from clipa_eqx.training.stored_steps import FOLDERS, StoredSteps, parts_of
from clipa_eqx.training.stored_tree import check_same_leaves, leaf_types, nested, with_shardings
from clipa_eqx.trees import leaves_by_path, map_with_path

_log = logging.getLogger(__name__)


class Frozen(NamedTuple):
    """Leaves of a run that are never trained, which its checkpoints leave out.

    Attributes:
        trained: a tree like the model of booleans; False for a frozen leaf.
        sha256: that of the record with which they are stored.
    """

    trained: Any
    sha256: str


class _Kept:
    """The policy of Orbax that keeps the steps that a function chooses."""

    def __init__(self, keep: Callable[[Sequence[int]], set[int]]) -> None:
        self._keep = keep

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        kept = self._keep([one.step for one in checkpoints])
        return [one.step in kept for one in checkpoints]


class Checkpoints:
    """The checkpoints of one run: ``<folder>/<step>/``, the last ``keep`` of them. Use it in a ``with`` block.

    A step exists only once it is committed: a folder that a killed process left unfinished is never read. Leaves are
    stored and restored by path, so that reordering fields cannot swap values. A checksum of each leaf is recorded, and
    compared after a leaf was read.
    """

    def __init__(
        self, folder: Path, *, keep: int | Callable[[Sequence[int]], set[int]] | None, checksums: bool = True
    ) -> None:
        """Open for writing and keep the last ``keep``; with ``None`` open for reading only, which changes no file.

        Args:
            keep: a number, or a function from the steps that are there to those that are kept.
            checksums: record them, and compare those that are recorded; False saves reading each leaf once more.
        """
        if keep is None:
            options = ocp.CheckpointManagerOptions(read_only=True, create=False)
        else:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep if isinstance(keep, int) else None,
                preservation_policy=None if isinstance(keep, int) else _Kept(keep),
                enable_async_checkpointing=True,
                create=True,
                cleanup_tmp_directories=True,
            )
        self.folder = folder
        self.frozen: Frozen | None = None
        self.before_commit: Callable[[], object] = lambda: None
        # Called before a checkpoint in a bucket is committed, by process 0 in another thread.
        self._bucket: BucketSaves | None = None
        if (bucket := bucket_of(folder.parent)) is not None:
            self._bucket = BucketSaves(bucket, folder.name, keep=keep, before_commit=lambda: self.before_commit())
        self._manager: Any = self._bucket or ocp.CheckpointManager(folder.absolute(), options=options)
        self._has_checksums = checksums
        self._stored = StoredSteps(folder, bucket=self._bucket, checksums=checksums)
        self._saving: tuple[int, int] | None = None
        """Step and bytes of the save that may be running in the background."""
        self._failure: CheckpointError | None = None

    def steps(self) -> list[int]:
        """The committed steps, in order."""
        return self._stored.steps()

    def latest(self) -> int | None:
        """The last committed step, or ``None``."""
        return max(self.steps(), default=None)

    def committed(self) -> int | None:
        """Wait for a step that is being written, then give the last committed one."""
        self.wait()
        return self.latest()

    def check(self) -> None:
        """Raise the error of a save that failed in the background since the last call; call it after each step.

        Raises:
            CheckpointError: what could not be saved, why, and which step is saved.
        """
        # Not ``check_for_errors`` of Orbax: it clears the error, and Orbax then deletes old checkpoints as if it had
        # saved a new one.
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def last_saved(self) -> str | None:
        """Wait, then name the last committed step with what this process knows of it; ``None`` if there is none."""
        step = self.committed()
        return None if step is None else f"checkpoint {step} {self.known(step)}"

    def known(self, step: int) -> str:
        """The knowledge of this process about a step, as the end of a sentence that starts with its name."""
        return self._stored.known.get(step, "was not read by this run")

    def save(self, state: TrainState, *, step: int, about: Mapping[str, Any]) -> None:
        """Start writing a state; return once it may be donated. ``about`` is JSON (the resolved run).

        Raises:
            CheckpointError: this save or the one before it failed; or this step, or a later one, exists.
        """
        self.wait()
        frozen = self.frozen
        if frozen is not None:
            state = dataclasses.replace(state, model=eqx.filter(state.model, frozen.trained))
        # On a CPU the host's view of an array is the array itself, and the next step overwrites it: copy first.
        if jax.default_backend() == "cpu" and self._bucket is None:
            state = jax.tree.map(lambda leaf: leaf.copy(), state)
        sums = leaf_checksums(parts_of(state)) if self._has_checksums else None
        record = CheckpointRecord(leaf_types(state), sums, dict(about), self.folder / str(step))
        record = record._replace(frozen=frozen and frozen.sha256)
        is_started = False
        if (self.latest() or -1) < step:
            self._saving = (step, tree_bytes(state))
            with self._explained(), suppress(StepAlreadyExistsError):
                is_started = self._start(state, record)
        if not is_started:
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} cannot be saved: this step or a later one is there or being "
                "written; use another run folder, or end the other process that writes to this one"
            )
        self._stored.known[step] = "was written by this run, after a step with finite loss, gradient and update"

    def restore(self, abstract: TrainState, mesh: Mesh, *, step: int) -> TrainState:
        """The state of a step, placed on ``mesh`` by the rule table; another mesh may have saved it.

        An average that the checkpoint lacks is None, and one that ``abstract`` lacks is not read.

        Raises:
            CheckpointError: the checkpoint has other leaves, shapes or dtypes than ``abstract``, or cannot be read.
            DamageError: its files are incomplete or were changed.
        """
        record = self._stored.agreed_record(step)
        leaves = self._stored.leaves(record)
        averages = {path for path in leaves if path.startswith("ema/")}
        if abstract.ema is None or not averages:
            abstract = replace_average(abstract, None)
            leaves = {path: leaf for path, leaf in leaves.items() if path not in averages}
        check_same_leaves(leaves, abstract, where=f"checkpoint {self.folder / str(step)}")
        shardings = shardings_for(abstract, mesh)
        wanted = with_shardings(abstract, shardings)
        parts = self._stored.trees(record, parts_of(wanted))
        return TrainState(**parts, step=jax.device_put(np.asarray(step, np.int32), shardings.step))

    def restore_model(self, abstract: CLIP, mesh: Mesh, *, step: int) -> CLIP:
        """The model of a step without its optimizer; its average, if the run has one.

        Raises:
            CheckpointError: the checkpoint holds another architecture than ``abstract``, or cannot be read.
            DamageError: its files are incomplete or were changed.
        """
        record = self._stored.agreed_record(step)
        leaves = self._stored.leaves(record)
        stored = {path.removeprefix("model/"): leaf for path, leaf in leaves.items() if path[:6] == "model/"}
        check_same_leaves(stored, abstract, where=f"checkpoint {self.folder / str(step)}")
        wanted: dict[str, Any] = {"model": abstract}
        averaged = map_with_path(lambda path, _: f"ema/model/{path}" in leaves, abstract)
        if any(jax.tree.leaves(averaged)):
            wanted["ema"] = jax.eval_shape(lambda model: new_average(model, averaged), abstract)
        if all(jax.tree.leaves(averaged)):  # the average is the model
            del wanted["model"]
        parts = self._stored.trees(record, with_shardings(wanted, shardings_for(wanted, mesh)))
        return with_average(parts.get("model", abstract), parts.get("ema"))

    def read_leaf(self, step: int, path: str) -> np.ndarray:
        """One leaf of a step, by its path in a ``TrainState``, without the others.

        Raises:
            CheckpointError: it cannot be read.
            DamageError: its files are incomplete or were changed.
        """
        return self._stored.leaf(step, path)

    def record(self, step: int) -> CheckpointRecord:
        """The record of a step.

        Raises:
            CheckpointError: a later version wrote it.
            DamageError: it is missing or damaged.
        """
        return self._stored.record(step)

    def set_aside(self, step: int, folder: str) -> str | None:
        """Move a checkpoint in a bucket to another folder of its run, by process 0; None if it is not in a bucket."""
        return None if self._bucket is None else self._bucket.set_aside(step, folder)

    def reload(self) -> None:
        """Look at the folder again, after another hand than ``save`` changed which steps it has."""
        if self._bucket is None:
            self._manager.reload()

    def wait(self) -> None:
        """Block until every save is committed.

        Raises:
            CheckpointError: one of them failed in the background.
        """
        with self._explained():
            self._manager.wait_until_finished()
        self._saving = None

    def close(self) -> None:
        """Wait, then release the threads; errors as ``wait``."""
        try:
            self.wait()
            self._manager.close()
        except CheckpointError:
            with suppress(Exception):  # other threads report the same failure
                self._manager.close()
            raise

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except CheckpointError as problem:
            if error is None:
                raise
            if error is not self._failure:  # which is what ended the block
                _log.warning("%s", problem)

    @contextmanager
    def _explained(self) -> Generator[None]:
        """Turn a failed save into one error that names the steps that are saved."""
        if self._failure is not None:
            raise self._failure
        try:
            yield
        except Exception as error:
            self._failure = error if isinstance(error, BucketError) else None  # it does not list its steps now either
            if self._saving is None or self._failure is not None:
                raise
            step, size = self._saving
            what, good = f"checkpoint {step} could not be written to {self.folder}", ""
            with suppress(OSError):  # the disk may be gone
                steps = self.steps()
                good = f"The last saved step is {max(steps)}." if steps else "No step of this run is saved."
            self._failure = write_error(what, error, folder=self.folder, needed=size, then=good)
            raise self._failure from error

    def _start(self, state: TrainState, record: CheckpointRecord) -> bool:
        """Start a save in the background; False if there is a later step."""
        step = int(record.folder.name)
        if self._bucket is not None:
            leaves = leaves_by_path(parts_of(state))
            self._bucket.save(step, leaves, lambda arrays: record_json(record._replace(arrays=arrays)))
            return True
        trees = {FOLDERS[name]: nested(part) for name, part in parts_of(state).items()}
        saves = {name: ocp.args.StandardSave(tree) for name, tree in trees.items() if tree}
        args = ocp.args.Composite(**saves, record=ocp.args.JsonSave(record_json(record)))
        return self._manager.save(step, args=args)
