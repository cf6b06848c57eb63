"""The committed steps of a folder of checkpoints, to read: records, trees and leaves, compared with checksums."""

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import numpy as np
import orbax.checkpoint as ocp

from clipa_eqx.buckets.array_store import ArrayStore
from clipa_eqx.buckets.mirror import bucket_of
from clipa_eqx.errors import DamageError
from clipa_eqx.saved.kinds import FROZEN_NAME
from clipa_eqx.saved.leaf_file import Leaf
from clipa_eqx.training.bucket_saves import BucketSaves
from clipa_eqx.training.checkpoint_record import (
    CheckpointRecord,
    committed_steps,
    parsed_record,
    read_checkpoint_record,
)
from clipa_eqx.training.damage import check_checksums, read_intact
from clipa_eqx.training.state import TrainState
from clipa_eqx.training.stored_arrays import local_store, read_array, read_arrays
from clipa_eqx.training.stored_tree import nested, unnested
from clipa_eqx.trees import from_leaves, leaves_by_path, map_with_path

T = TypeVar("T")

FOLDERS = {"model": "model", "opt_state": "optimizer", "ema": "ema"}
"""Folder of each part of a ``TrainState`` inside a checkpoint."""

_FORMER_OPTIMIZER = "optimiser"
"""Folder of the optimizer state before fields and files took US spelling."""


class StoredSteps:
    """The committed steps of ``<folder>/<step>/``. All processes call its functions together.

    A step has the leaves that are trained. Those that are frozen for the complete run are in a folder next to this one,
    stored once; functions here read them from there.
    """

    def __init__(self, folder: Path, *, bucket: BucketSaves | None, checksums: bool) -> None:
        """Read steps from a local folder, or from a bucket; compare the checksums that are recorded, or do not."""
        self.folder = folder
        self.known: dict[int, str] = {}
        """What this process knows about a step, as the end of a sentence that starts with its name."""
        self._bucket, self._has_checksums = bucket, checksums

    def steps(self) -> list[int]:
        """The committed steps, in order."""
        return committed_steps(self.folder) if self._bucket is None else self._bucket.steps()

    def record(self, step: int) -> CheckpointRecord:
        """The record of a step; errors as ``Checkpoints.record``."""
        path = self.folder / str(step)
        return read_checkpoint_record(path) if self._bucket is None else parsed_record(self._bucket.record(step), path)

    def agreed_record(self, step: int) -> CheckpointRecord:
        """The record of a step; with several processes, all fail if one cannot read it."""
        return read_intact(lambda: self.record(step), folder=self.folder / str(step))

    def leaves(self, record: CheckpointRecord) -> dict[str, Leaf]:
        """Shape and dtype of each leaf of a step by path, those that are frozen included."""
        if record.frozen is None:
            return record.leaves
        store, step = self._frozen(record)
        return {**store.agreed_record(step).leaves, **record.leaves}

    def trees(self, record: CheckpointRecord, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Parts of a step, such as ``model``, placed by the shardings of their abstract leaves, and verified.

        Raises:
            CheckpointError: they cannot be read.
            DamageError: the files are incomplete or were changed.
        """
        own = map_with_path(lambda path, leaf: leaf if path in record.leaves else None, dict(wanted))
        found: dict[str, Any] = self._verified(record, lambda: self._read(record, own))
        if record.frozen is None or "model" not in wanted:
            return found
        rest = map_with_path(lambda path, leaf: None if path in record.leaves else leaf, {"model": wanted["model"]})
        store, step = self._frozen(record)
        try:
            frozen = store.trees(store.agreed_record(step), rest)
        except DamageError as error:
            raise self._frozen_damage(record, error.reason) from error
        return {**found, "model": eqx.combine(found["model"], frozen["model"])}

    def leaf(self, step: int, path: str) -> np.ndarray:
        """One leaf of a step by its path in a ``TrainState``, without the others; errors as ``trees``."""
        record = self.agreed_record(step)
        if path not in record.leaves and record.frozen is not None:
            store, number = self._frozen(record)
            return store.leaf(number, path)

        def read() -> dict[str, np.ndarray]:
            values = self._read_leaf(record, path)
            if Leaf(values.shape, values.dtype) != record.leaves[path]:
                raise ValueError(f"{path} is {values.dtype}{list(values.shape)}")
            return {path: values}

        return self._verified(record, read)[path]

    def _frozen(self, record: CheckpointRecord) -> "tuple[StoredSteps, int]":
        """The folder of the frozen leaves of a step, and its entry of them."""
        folder = self.folder.with_name(FROZEN_NAME)
        bucket = None if self._bucket is None else bucket_of(folder.parent)
        reading = None if bucket is None else BucketSaves(bucket, FROZEN_NAME, keep=None, before_commit=lambda: None)
        store = StoredSteps(folder, bucket=reading, checksums=self._has_checksums)

        def find() -> int:
            entries = store.steps()
            for one in entries:
                try:
                    if store.record(one).sha256 == record.frozen:
                        return one
                except DamageError as error:
                    raise self._frozen_damage(record, error.reason) from error
            raise self._frozen_damage(record, "they are not there" if not entries else "they are of another run")

        return store, read_intact(find, folder=record.folder)

    def _frozen_damage(self, record: CheckpointRecord, reason: str) -> DamageError:
        where = self.folder.with_name(FROZEN_NAME)
        return DamageError(f"its frozen leaves in {where} cannot be used: {reason}", folder=record.folder)

    def _read(self, record: CheckpointRecord, wanted: dict[str, Any]) -> dict[str, Any]:
        if record.arrays is not None:
            return from_leaves(wanted, read_arrays(self._store(record, record.arrays), leaves_by_path(wanted)))
        # Not by Orbax's manager: it ends a read with a barrier, which a process that cannot read its part never
        # reaches.
        with closing(ocp.StandardCheckpointHandler()) as reader:
            stored = {
                part: reader.restore(_place(record, part), args=ocp.args.StandardRestore(nested(tree)))
                for part, tree in wanted.items()
            }
        return {part: unnested(tree, stored[part]) for part, tree in wanted.items()}

    def _read_leaf(self, record: CheckpointRecord, path: str) -> np.ndarray:
        if record.arrays is not None:
            return read_array(self._store(record, record.arrays), path)
        part, _, rest = path.partition("/")
        item: Any = 0
        how: Any = ocp.RestoreArgs(restore_type=np.ndarray)
        for name in reversed(rest.split("/")):
            item, how = {name: item}, {name: how}
        args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            node: Any = reader.restore(_place(record, part), args=args)
        for name in rest.split("/"):
            node = node[name]
        return np.asarray(node)

    def _store(self, record: CheckpointRecord, arrays: str) -> ArrayStore:
        """The arrays of a checkpoint that was written to a bucket; it may be a local copy."""
        folder = record.folder
        return local_store(folder / arrays) if self._bucket is None else self._bucket.store(int(folder.name), arrays)

    def _verified(self, record: CheckpointRecord, read: Callable[[], T]) -> T:
        """The result of ``read``, compared with the recorded checksums."""
        leaves = read_intact(read, folder=record.folder)
        sums = record.checksums if self._has_checksums else None
        check_checksums(leaves, sums, folder=record.folder)
        is_compared = sums is not None
        self.known[int(record.folder.name)] = (
            "was verified by its checksums" if is_compared else "was read without checksums"
        )
        return leaves


def parts_of(state: TrainState) -> dict[str, Any]:
    """The parts of a state that a checkpoint stores, by the names of its fields."""
    return {name: part for name in FOLDERS if (part := getattr(state, name)) is not None}


def _place(record: CheckpointRecord, part: str) -> Any:
    """The folder of a part of the state in a checkpoint."""
    former = record.folder / _FORMER_OPTIMIZER
    is_former = part == "opt_state" and former.is_dir()
    return (former if is_former else record.folder / FOLDERS[part]).absolute()
