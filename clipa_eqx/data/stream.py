"""Batches as a function of (seed, step): the shuffled train stream and the exact-once evaluation stream."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.prefetch import Batch as Batch
from clipa_eqx.data.prefetch import BatchIterator as BatchIterator
from clipa_eqx.data.prefetch import StreamConfig as StreamConfig
from clipa_eqx.data.prefetch import prefetch
from clipa_eqx.data.records import Record
from clipa_eqx.errors import DataError

Row = Mapping[str, Any]
TrainTransformFn = Callable[[Record, np.random.Generator], Row]
EvalTransformFn = Callable[[Record], Row]

# Records held as bytes at once while a batch is built; larger reads save nothing and only cost memory.
_READ_RECORDS = 256


def train_stream(
    source: RecordSource,
    transform: TrainTransformFn,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    config: StreamConfig | None = None,
) -> BatchIterator:
    """Endless training batches from `start_step` on; batch `step` depends on (source, transform, seed, step) only.

    Sample n = step * batch_size + row is record `shuffled_order(...)[n]`, a new permutation of the source in every
    epoch, transformed with a generator made from (seed, n). A batch may reach into the next epoch. Process p gets rows
    [p * local, (p + 1) * local), local = batch_size // process_count, so the processes' batches laid end to end are
    the same global batch for any count. Each batch also holds `sample_id` int64[local], the index of the record.

    The transform must be picklable when `config.workers` > 0, must not use jax, and returns arrays or numbers of one
    shape and type for every record.

    Raises:
        DataError: no records, a bad size, step or seed, or a `process_count` that does not divide `batch_size`.
    """
    _check_processes(batch_size=batch_size, process_index=process_index, process_count=process_count)
    if len(source) == 0:
        raise DataError(f"data folder {source.folder} holds no records; there is nothing to train on")
    if batch_size % process_count:
        raise DataError(f"batch_size {batch_size} does not divide over {process_count} processes; choose a multiple")
    if start_step < 0 or seed < 0:
        raise DataError(f"start_step and seed must not be negative, got {start_step} and {seed}")
    local = batch_size // process_count
    load = _LoadTrainBatch(
        source=source,
        transform=transform,
        order=shuffled_order(len(source), seed=seed),
        seed=seed,
        batch_size=batch_size,
        first_row=process_index * local,
        local_size=local,
    )
    last_step = sys.maxsize // batch_size
    return prefetch(grain.MapDataset.range(start_step, last_step).map(load), config=config or StreamConfig())


def eval_stream(
    source: RecordSource,
    transform: EvalTransformFn,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    config: StreamConfig | None = None,
) -> BatchIterator:
    """Each record exactly once, in order, for any number of records, batch size and number of processes.

    Global batch b holds the records [b * batch_size, (b + 1) * batch_size); process p has `local` rows of it from row
    p * local on, local = ceil(batch_size / process_count). Rows beyond the batch or the data are padding: zeros, with
    `mask` False and `sample_id` -1. All processes yield the same number of batches of the same shapes.

    Raises:
        DataError: a bad batch size or process index.
    """
    _check_processes(batch_size=batch_size, process_index=process_index, process_count=process_count)
    local = -(-batch_size // process_count)
    load = _LoadEvalBatch(
        source=source, transform=transform, batch_size=batch_size, first_row=process_index * local, local_size=local
    )
    steps = -(-len(source) // batch_size)
    return prefetch(grain.MapDataset.range(steps).map(load), config=config or StreamConfig())


def shuffled_order(records: int, *, seed: int) -> Any:
    """Random access order: `order[n]` is the record of sample n; each epoch of `records` samples is a permutation."""
    # Grain adds the epoch to the seed of a shuffle. Hashing first keeps seeds 1 and 2 from sharing shifted epochs.
    shuffle_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return grain.MapDataset.range(records).shuffle(seed=shuffle_seed).repeat()


def sample_generator(*, seed: int, sample: int) -> np.random.Generator:
    """The generator of sample n = step * batch_size + row; fresh each time, so that `spawn` depends on (seed, n) too.

    (Grain's `random_map` reuses generators: a `spawn` from those depends on how many were spawned before.)
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, sample))))


@dataclass(frozen=True, kw_only=True)
class _LoadTrainBatch:
    source: RecordSource
    transform: TrainTransformFn
    order: Any
    seed: int
    batch_size: int
    first_row: int
    local_size: int

    def __call__(self, step: int) -> Batch:
        first = step * self.batch_size + self.first_row
        samples = range(first, first + self.local_size)
        ids = [int(self.order[sample]) for sample in samples]

        def transform(at: int, record: Record) -> Row:
            return self.transform(record, sample_generator(seed=self.seed, sample=samples[at]))

        batch = _load(self.source, ids, transform, size=self.local_size)
        batch["sample_id"] = np.array(ids, np.int64)
        return batch


@dataclass(frozen=True, kw_only=True)
class _LoadEvalBatch:
    source: RecordSource
    transform: EvalTransformFn
    batch_size: int
    first_row: int
    local_size: int

    def __call__(self, step: int) -> Batch:
        rows = np.arange(self.first_row, self.first_row + self.local_size)
        index = step * self.batch_size + rows
        mask = (rows < self.batch_size) & (index < len(self.source))
        ids: list[int] = index[mask].tolist()
        # A process without a record in this batch still needs the shapes: it pads from the first record of the batch.
        read = ids or [step * self.batch_size]
        batch = _load(self.source, read, lambda _, record: self.transform(record), size=self.local_size)
        for values in batch.values():
            values[len(ids) :] = 0
        batch["sample_id"] = np.where(mask, index, -1)
        batch["mask"] = mask
        return batch


def _load(source: RecordSource, ids: Sequence[int], transform: Callable[[int, Record], Row], *, size: int) -> Batch:
    """Rows into arrays with a leading axis of `size`; rows beyond `ids` stay zero."""
    batch: Batch = {}
    for first in range(0, len(ids), _READ_RECORDS):
        for at, record in enumerate(source.read(ids[first : first + _READ_RECORDS]), start=first):
            try:
                row = {name: np.asarray(value) for name, value in transform(at, record).items()}
                if not batch:
                    batch = {name: np.zeros((size, *value.shape), value.dtype) for name, value in row.items()}
                _fill(batch, at, row)
            except DataError as error:
                raise DataError(f"{source.describe(ids[at])}, key {record.key!r}: {error}") from error
    return batch


def _fill(batch: Batch, at: int, row: Mapping[str, np.ndarray]) -> None:
    if row.keys() != batch.keys():
        raise DataError(f"the transform gave {sorted(row)}, for the first record of the batch {sorted(batch)}")
    for name, value in row.items():
        values = batch[name]
        # Checked, because numpy would broadcast or cast silently.
        if value.shape != values.shape[1:] or value.dtype != values.dtype:
            raise DataError(
                f"the transform gave {name} {value.dtype}{value.shape}, "
                f"for the first record of the batch {values.dtype}{values.shape[1:]}"
            )
        values[at] = value


def _check_processes(*, batch_size: int, process_index: int, process_count: int) -> None:
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 <= process_index < process_count:
        raise DataError(f"process_index must be in [0, {process_count}), got {process_index}")
