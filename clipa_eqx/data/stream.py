"""Batches as a function of (seed, step): the shuffled training stream and the exactly-once evaluation stream."""

import functools
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import grain
import numpy as np

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.mixture import Mixture
from clipa_eqx.data.prefetch import Batch, BatchIterator, StreamConfig, prefetch
from clipa_eqx.data.records import Record
from clipa_eqx.errors import DataError

Row = Mapping[str, Any]
"""Arrays or numbers by name: one row of a batch."""

TrainTransformFn = Callable[[Record, np.random.Generator], Row]
EvalTransformFn = Callable[[Record], Row]

_log = logging.getLogger(__name__)

OnBadRecord = Literal["error", "substitute"]

# A larger share has another cause than bit rot, and substitution would change the distribution of the data.
_MOST_SUBSTITUTED = 0.1
_MOST_ATTEMPTS = 8
# Records in memory as bytes while a batch is built; larger reads save nothing and cost memory.
_READ_RECORDS = 64


def train_stream(
    source: RecordSource | Mixture,
    transform: TrainTransformFn,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    on_bad_record: OnBadRecord = "error",
    config: StreamConfig | None = None,
) -> BatchIterator:
    """Endless training batches from ``start_step`` on; batch ``step`` depends on (source, transform, seed, step) only.

    Sample n = step * batch_size + row comes from the source and position that ``Mixture.position_of(n)`` returns; the
    position counts in the source's shuffled order, a new permutation in each of its epochs. A batch may extend into the
    next epoch. Process p gets rows [p * local, (p + 1) * local), local = batch_size // process_count, so the
    concatenation of all processes' batches is the same global batch for any number of processes.

    Each batch has the arrays of the transform with a leading axis of ``local`` rows, and per row ``sample_id`` int64
    (the mixture's id of the record), ``source`` int32 (the number of its source) and ``substituted`` bool.

    Args:
        source: an opened record folder, or several of them with weights.
        transform: makes a row of a record and a random generator that depends on (seed, n). It must not use jax, must
            be picklable if ``config.workers`` > 0, and must return the same names, shapes and types for every record.
        batch_size: rows of the global batch.
        seed: seed of the order and of all generators; not negative.
        start_step: step of the first batch.
        process_index: number of this process.
        process_count: number of processes; must divide ``batch_size``.
        on_bad_record: "error" stops at a record that cannot be read or transformed. "substitute" replaces it with
            another record of its source, sampled from (seed, n), logs it and marks the row in ``substituted``;
            ``check_substituted`` decides how many are too many.
        config: preparation of batches ahead of their use; it does not change them.

    Raises:
        DataError: no records, an invalid size, step, seed or process, or a ``process_count`` that does not divide
            ``batch_size``. The iterator raises it for a bad record.
    """
    _check_processes(batch_size=batch_size, process_index=process_index, process_count=process_count)
    mixture = source if isinstance(source, Mixture) else Mixture(sources=(source,))
    if batch_size % process_count:
        raise DataError(f"batch_size {batch_size} is not a multiple of {process_count} processes; choose a multiple")
    if start_step < 0 or seed < 0:
        raise DataError(f"start_step and seed must not be negative, got {start_step} and {seed}")
    local = batch_size // process_count
    load = _LoadTrainBatch(
        mixture=mixture,
        transform=transform,
        orders=mixture.orders(seed=seed),
        seed=seed,
        batch_size=batch_size,
        first_row=process_index * local,
        local_size=local,
        on_bad_record=on_bad_record,
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
    """Batches that contain each record exactly once, in order, for any batch size and number of processes.

    Global batch b has the records [b * batch_size, (b + 1) * batch_size). Process p gets ``local`` rows of it, from row
    p * local on, local = ceil(batch_size / process_count). Rows beyond the batch or the data are padding: zeros, with
    ``mask`` False and ``sample_id`` -1. All processes get the same number of batches of the same shapes.

    Args:
        source: an opened record folder.
        transform: makes a row of a record; the same conditions hold as for ``train_stream``.
        batch_size: rows of the global batch.
        process_index: number of this process.
        process_count: number of processes.
        config: preparation of batches ahead of their use; it does not change them.

    Raises:
        DataError: an invalid batch size or process. The iterator raises it for a bad record.
    """
    _check_processes(batch_size=batch_size, process_index=process_index, process_count=process_count)
    local = -(-batch_size // process_count)
    load = _LoadEvalBatch(
        source=source, transform=transform, batch_size=batch_size, first_row=process_index * local, local_size=local
    )
    last_step = sys.maxsize // batch_size
    return prefetch(grain.MapDataset.range(last_step).map(load), config=config or StreamConfig())


def check_substituted(count: int, *, step: int, batch_size: int) -> None:
    """Check the number of substitutes in a global batch.

    ``count`` is the sum over all processes, so that a run stops at the same step for any number of processes.

    Raises:
        DataError: more than a tenth of the global batch, and more than one record, are substitutes.
    """
    if count > max(1, _MOST_SUBSTITUTED * batch_size):
        raise DataError(
            f"step {step}: {count} of {batch_size} records are bad, more than {_MOST_SUBSTITUTED:.0%}; the log of "
            "each process names its own. Restore the data, or convert them again without these records"
        )


def sample_generator(*, seed: int, sample: int) -> np.random.Generator:
    """Make the generator of sample n = step * batch_size + row.

    It is new for each sample, so that its ``spawn`` depends on (seed, n) only. The generators of Grain's ``random_map``
    are reused, so that their ``spawn`` depends on the number of earlier calls.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, sample))))


@dataclass(frozen=True, kw_only=True)
class _LoadTrainBatch:
    mixture: Mixture
    transform: TrainTransformFn
    orders: tuple[Any, ...]
    seed: int
    batch_size: int
    first_row: int
    local_size: int
    on_bad_record: OnBadRecord

    def __call__(self, step: int) -> Batch:
        first = step * self.batch_size + self.first_row
        origins = [self.mixture.position_of(sample) for sample in range(first, first + self.local_size)]
        ids = [self.mixture.record_id(source, int(self.orders[source][position])) for source, position in origins]
        substituted = np.zeros(self.local_size, np.bool_)
        batch: Batch = {}
        for chunk in range(0, self.local_size, _READ_RECORDS):
            for at, found in enumerate(self.mixture.read(ids[chunk : chunk + _READ_RECORDS]), start=chunk):
                row, used = self._row(first + at, ids[at], found)
                substituted[at] = used != ids[at]
                ids[at] = used
                batch = _put(batch, at, row, size=self.local_size, where=lambda used=used: self.mixture.describe(used))
        batch["sample_id"] = np.array(ids, np.int64)
        batch["source"] = np.array([source for source, _ in origins], np.int32)
        batch["substituted"] = substituted
        return batch

    def _row(self, sample: int, record_id: int, found: Record | DataError) -> tuple[Row, int]:
        """Make the row of a sample; return it with the id of the record that it was made from."""
        for attempt in range(_MOST_ATTEMPTS):
            try:
                if isinstance(found, DataError):
                    raise found
                return self.transform(found, sample_generator(seed=self.seed, sample=sample)), record_id
            except DataError as error:
                # The error of a record that cannot be read names its place already.
                place = f"{self.mixture.describe(record_id)}, key {found.key!r}: " if isinstance(found, Record) else ""
                problem = DataError(f"{place}{error}")
                if self.on_bad_record == "error":
                    raise problem from error
            source, _ = self.mixture.locate(record_id)
            # Sampled, because damaged records are often neighbors: the next one is likely to be bad too.
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, sample, 1 + attempt))))
            record_id = self.mixture.record_id(source, int(rng.integers(len(self.mixture.sources[source]))))
            _log.warning("sample %d: %s; %s replaces it", sample, problem, self.mixture.describe(record_id))
            (found,) = self.mixture.read([record_id])
        raise DataError(
            f"sample {sample}: {_MOST_ATTEMPTS} sampled records of one source are all bad; restore the data"
        )


@dataclass(frozen=True, kw_only=True)
class _LoadEvalBatch:
    source: RecordSource
    transform: EvalTransformFn
    batch_size: int
    first_row: int
    local_size: int

    def __call__(self, step: int) -> Batch:
        """Make the batch of a step; it has no arrays if the step is beyond the last one."""
        if step * self.batch_size >= len(self.source):
            return {}
        rows = np.arange(self.first_row, self.first_row + self.local_size)
        index = step * self.batch_size + rows
        mask = (rows < self.batch_size) & (index < len(self.source))
        ids: list[int] = index[mask].tolist()
        # A process without a record in this batch still needs the shapes: it pads from the first record of the batch.
        read = ids or [step * self.batch_size]
        batch: Batch = {}
        for chunk in range(0, len(read), _READ_RECORDS):
            for at, record in enumerate(self.source.read(read[chunk : chunk + _READ_RECORDS]), start=chunk):
                place = functools.partial(_place, self.source, read[at], record)
                try:
                    row = self.transform(record)
                except DataError as error:
                    raise DataError(f"{place()}: {error}") from error
                batch = _put(batch, at, row, size=self.local_size, where=place)
        for values in batch.values():
            values[len(ids) :] = 0
        batch["sample_id"] = np.where(mask, index, -1)
        batch["mask"] = mask
        return batch


def _place(source: RecordSource, index: int, record: Record) -> str:
    return f"{source.describe(index)}, key {record.key!r}"


def _put(batch: Batch, at: int, row: Row, *, size: int, where: Callable[[], str]) -> Batch:
    """Write row ``at``; the first row written decides names, shapes and types of a batch of ``size`` rows of zeros."""
    values = {name: np.asarray(value) for name, value in row.items()}
    if not batch:
        batch = {name: np.zeros((size, *value.shape), value.dtype) for name, value in values.items()}
    if values.keys() != batch.keys():
        raise DataError(
            f"{where()}: the transform returned {sorted(values)}, for the first record of the batch {sorted(batch)}"
        )
    for name, value in values.items():
        rows = batch[name]
        # Checked here, because numpy would broadcast or cast silently.
        if value.shape != rows.shape[1:] or value.dtype != rows.dtype:
            raise DataError(
                f"{where()}: the transform returned {name} {value.dtype}{value.shape}, "
                f"for the first record of the batch {rows.dtype}{rows.shape[1:]}"
            )
        rows[at] = value
    return batch


def _check_processes(*, batch_size: int, process_index: int, process_count: int) -> None:
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 <= process_index < process_count:
        raise DataError(f"process_index must be in [0, {process_count}), got {process_index}")
