"""Construction of one batch from the records of its step, for training and for evaluation."""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.mixture import Mixture
from clipa_eqx.data.prefetch import Batch
from clipa_eqx.data.progress import COMPLETE, PREPARING, READING, BatchProgress
from clipa_eqx.data.records import Record
from clipa_eqx.data.sample_generators import sample_generator, sample_generators
from clipa_eqx.data.shuffled_order import ShuffledOrder
from clipa_eqx.errors import DataError

Row = Mapping[str, Any]
"""Arrays or numbers by name: one row of a batch."""

TrainTransformFn = Callable[[Record, np.random.Generator], Row]
EvalTransformFn = Callable[[Record], Row]
OnBadRecord = Literal["error", "substitute"]

_log = logging.getLogger(__name__)

_MOST_ATTEMPTS = 8
# Records in memory as bytes while a batch is built; larger reads save nothing and cost memory.
_READ_RECORDS = 64


@dataclass(frozen=True, kw_only=True)
class LoadTrainBatch:
    """Function from a step to this process's rows of the training batch; ``train_stream`` describes them.

    Attributes:
        mixture: the record folders.
        transform: makes a row of a record and a random generator.
        orders: shuffled order of each source, see ``Mixture.orders``.
        seed: seed of the rows' generators and of substitutes.
        batch_size: rows of the global batch.
        first_row: first row of this process in the global batch.
        local_size: number of rows of this process.
        on_bad_record: stop at a bad record, or replace it.
        progress: gets the record that each batch has reached.
    """

    mixture: Mixture
    transform: TrainTransformFn
    orders: tuple[ShuffledOrder, ...]
    seed: int
    batch_size: int
    first_row: int
    local_size: int
    on_bad_record: OnBadRecord
    progress: BatchProgress

    def __call__(self, step: int) -> Batch:
        """Make the batch of a step.

        Raises:
            DataError: a record is bad and must not be replaced, no good substitute was found, or rows do not have the
                same names, shapes and types.
        """
        first = step * self.batch_size + self.first_row
        origins = [self.mixture.position_of(sample) for sample in range(first, first + self.local_size)]
        ids = [self.mixture.record_id(source, int(self.orders[source][position])) for source, position in origins]
        generators = sample_generators(seed=self.seed, samples=range(first, first + self.local_size))
        substituted = np.zeros(self.local_size, np.bool_)
        batch: Batch = {}
        for chunk in range(0, self.local_size, _READ_RECORDS):
            on_shard = functools.partial(self._reads, step, chunk)
            for at, found in enumerate(
                self.mixture.read(ids[chunk : chunk + _READ_RECORDS], on_shard=on_shard), start=chunk
            ):
                self.progress.set_position(step, stage=PREPARING, row=at, record=ids[at])
                row, used = self._row(first + at, ids[at], found, rng=generators[at])
                substituted[at] = used != ids[at]
                ids[at] = used
                batch = _put(batch, at, row, size=self.local_size, where=lambda used=used: self.mixture.describe(used))
        batch["sample_id"] = np.array(ids, np.int64)
        batch["source"] = np.array([source for source, _ in origins], np.int32)
        batch["substituted"] = substituted
        self.progress.set_position(step, stage=COMPLETE)
        return batch

    def _reads(self, step: int, row: int, record_id: int) -> None:
        self.progress.set_position(step, stage=READING, row=row, record=record_id)

    def _row(
        self, sample: int, record_id: int, found: Record | DataError, *, rng: np.random.Generator
    ) -> tuple[Row, int]:
        """Make the row of a sample; return it with the id of the record that it was made from."""
        for attempt in range(_MOST_ATTEMPTS):
            try:
                if isinstance(found, DataError):
                    raise found
                return self.transform(found, rng), record_id
            except DataError as error:
                # The error of a record that cannot be read names its place already.
                place = f"{self.mixture.describe(record_id)}, key {found.key!r}: " if isinstance(found, Record) else ""
                problem = DataError(f"{place}{error}")
                if self.on_bad_record == "error":
                    raise problem from error
            source, _ = self.mixture.locate(record_id)
            # Sampled, because damaged records are often neighbors: the next one is likely to be bad too.
            choice = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, sample, 1 + attempt))))
            record_id = self.mixture.record_id(source, int(choice.integers(len(self.mixture.sources[source]))))
            _log.warning("sample %d: %s; %s replaces it", sample, problem, self.mixture.describe(record_id))
            on_shard = functools.partial(self._reads, *divmod(sample, self.batch_size))
            (found,) = self.mixture.read([record_id], on_shard=on_shard)
            rng = sample_generator(seed=self.seed, sample=sample)  # as new: the bad record may have used the first one
        raise DataError(
            f"sample {sample}: {_MOST_ATTEMPTS} sampled records of one source are all bad; restore the data"
        )


@dataclass(frozen=True, kw_only=True)
class LoadEvalBatch:
    """Function from a step to this process's rows of the evaluation batch; ``eval_stream`` describes them.

    Attributes:
        source: the record folder.
        transform: makes a row of a record.
        batch_size: rows of the global batch.
        indices: positions of the records to read, in order; None for all.
        first_row: first row of this process in the global batch.
        local_size: number of rows of this process, padding included.
        progress: gets the record that each batch has reached.
    """

    source: RecordSource
    transform: EvalTransformFn
    batch_size: int
    indices: tuple[int, ...] | None
    first_row: int
    local_size: int
    progress: BatchProgress

    def __call__(self, step: int) -> Batch:
        """Make the batch of a step; it has no arrays if the step is beyond the last one.

        Raises:
            DataError: a record is bad, or rows do not have the same names, shapes and types.
        """
        count = len(self.source) if self.indices is None else len(self.indices)
        if step * self.batch_size >= count:
            return {}
        rows = np.arange(self.first_row, self.first_row + self.local_size)
        index = step * self.batch_size + rows
        mask = (rows < self.batch_size) & (index < count)
        ids: list[int] = index[mask].tolist()
        # A process without a record in this batch still needs the shapes: it pads from the first record of the batch.
        read = [self._position(number) for number in ids or [step * self.batch_size]]
        batch: Batch = {}
        for chunk in range(0, len(read), _READ_RECORDS):
            on_shard = functools.partial(self._reads, step, chunk)
            for at, record in enumerate(
                self.source.read(read[chunk : chunk + _READ_RECORDS], on_shard=on_shard), start=chunk
            ):
                self.progress.set_position(step, stage=PREPARING, row=at, record=read[at])
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
        self.progress.set_position(step, stage=COMPLETE)
        return batch

    def _position(self, number: int) -> int:
        return number if self.indices is None else self.indices[number]

    def _reads(self, step: int, row: int, index: int) -> None:
        self.progress.set_position(step, stage=READING, row=row, record=index)


def _place(source: RecordSource, index: int, record: Record) -> str:
    return f"{source.describe(index)}, key {record.key!r}"


def _put(batch: Batch, at: int, row: Row, *, size: int, where: Callable[[], str]) -> Batch:
    """Write row ``at``; the first row written decides names, shapes and types of a batch of ``size`` unset rows."""
    if not batch:
        first = {name: np.asarray(value) for name, value in row.items()}
        batch = {name: np.empty((size, *value.shape), value.dtype) for name, value in first.items()}
    if row.keys() != batch.keys():
        raise DataError(
            f"{where()}: the transform returned {sorted(row)}, for the first record of the batch {sorted(batch)}"
        )
    for name, rows in batch.items():
        value = np.asarray(row[name])
        # Checked here, because numpy would broadcast or cast silently.
        if value.shape != rows.shape[1:] or value.dtype != rows.dtype:
            raise DataError(
                f"{where()}: the transform returned {name} {value.dtype}{value.shape}, "
                f"for the first record of the batch {rows.dtype}{rows.shape[1:]}"
            )
        rows[at] = value
    return batch
