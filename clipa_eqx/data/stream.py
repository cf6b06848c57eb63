"""Batches as a function of (seed, step): the shuffled training stream and the exactly-once evaluation stream."""

import sys
from collections.abc import Callable, Sequence
from functools import partial

import grain

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.load_batch import EvalTransformFn, LoadEvalBatch, LoadTrainBatch, OnBadRecord, TrainTransformFn
from clipa_eqx.data.mixture import Mixture
from clipa_eqx.data.prefetch import BatchIterator, StreamConfig, prefetch
from clipa_eqx.data.progress import BatchProgress
from clipa_eqx.data.stalls import WARN_SECONDS, StallWatch, explain_stall
from clipa_eqx.errors import DataError

# A larger share has another cause than bit rot, and substitution would change the distribution of the data.
_MOST_SUBSTITUTED = 0.1


def train_stream(
    source: RecordSource | Mixture,
    transform: TrainTransformFn,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rows: range | None = None,
    on_bad_record: OnBadRecord = "error",
    config: StreamConfig | None = None,
    warn_seconds: float = WARN_SECONDS,
) -> BatchIterator:
    """Endless training batches from ``start_step`` on; batch ``step`` depends on (source, transform, seed, step) only.

    Sample n = step * batch_size + row comes from the source and position that ``Mixture.position_of(n)`` returns; the
    position counts in the source's shuffled order, a new permutation in each of its epochs. A batch may extend into the
    next epoch. Each process asks for its own rows of the global batch, which is the same for any number of processes.

    Each batch has the arrays of the transform with a leading axis of these rows, and per row ``sample_id`` int64
    (the mixture's id of the record), ``source`` int32 (the number of its source) and ``substituted`` bool.

    Args:
        source: an opened record folder, or several of them with weights.
        transform: makes a row of a record and a random generator that depends on (seed, n). It must not use jax, must
            be picklable if ``config.workers`` > 0, and must return the same names, shapes and types for every record.
        batch_size: rows of the global batch.
        seed: seed of the order and of all generators; not negative.
        start_step: step of the first batch.
        rows: the rows of the global batch that are made, in steps of 1; None makes all.
        on_bad_record: "error" stops at a record that cannot be read or transformed. "substitute" replaces it with
            another record of its source, sampled from (seed, n), logs it and marks the row in ``substituted``;
            ``check_substituted`` decides how many are too many.
        config: preparation of batches ahead of their use; it does not change them.
        warn_seconds: time without a batch before each warning that names worker, record and shard.

    Raises:
        DataError: no records, an invalid size, step or seed, or rows that are not in the batch. The
            iterator raises it for a bad record.
    """
    _check_batch_size(batch_size)
    mixture = source if isinstance(source, Mixture) else Mixture(sources=(source,))
    rows = range(batch_size) if rows is None else rows
    if not 0 <= rows.start < rows.stop <= batch_size or rows.step != 1:
        raise DataError(f"rows must be a range of step 1 in a batch of {batch_size}, got {rows}")
    if start_step < 0 or seed < 0:
        raise DataError(f"start_step and seed must not be negative, got {start_step} and {seed}")
    config = config or StreamConfig()
    progress = _progress(config)
    load = LoadTrainBatch(
        mixture=mixture,
        transform=transform,
        orders=mixture.orders(seed=seed),
        seed=seed,
        batch_size=batch_size,
        first_row=rows.start,
        local_size=len(rows),
        on_bad_record=on_bad_record,
        progress=progress,
    )
    steps = grain.MapDataset.range(start_step, sys.maxsize // batch_size).map(load)
    explain = _explanation(config, progress, mixture.describe, first=start_step, rows=len(rows))
    watch = StallWatch(explain, first=start_step, seconds=warn_seconds)
    return prefetch(steps, config=config, progress=progress, watch=watch)


def eval_stream(
    source: RecordSource,
    transform: EvalTransformFn,
    *,
    batch_size: int,
    indices: Sequence[int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
    config: StreamConfig | None = None,
    warn_seconds: float = WARN_SECONDS,
) -> BatchIterator:
    """Batches that contain each record exactly once, in order, for any batch size and number of processes.

    Global batch b has the records [b * batch_size, (b + 1) * batch_size). Process p gets ``local`` rows of it, from row
    p * local on, local = ceil(batch_size / process_count). Rows beyond the batch or the data are padding: zeros, with
    ``mask`` False and ``sample_id`` -1. All processes get the same number of batches of the same shapes.

    Args:
        source: an opened record folder.
        transform: makes a row of a record; the same conditions hold as for ``train_stream``.
        batch_size: rows of the global batch.
        indices: positions of the records to read, in this order; None reads all. ``sample_id`` then counts them.
        process_index: number of this process.
        process_count: number of processes.
        config: preparation of batches ahead of their use; it does not change them.
        warn_seconds: time without a batch before each warning that names worker, record and shard.

    Raises:
        DataError: an invalid batch size or process. The iterator raises it for a bad record.
    """
    _check_batch_size(batch_size)
    if not 0 <= process_index < process_count:
        raise DataError(f"process_index must be in [0, {process_count}), got {process_index}")
    local = -(-batch_size // process_count)
    config = config or StreamConfig()
    progress = _progress(config)
    load = LoadEvalBatch(
        source=source,
        transform=transform,
        batch_size=batch_size,
        indices=None if indices is None else tuple(indices),
        first_row=process_index * local,
        local_size=local,
        progress=progress,
    )
    steps = grain.MapDataset.range(sys.maxsize // batch_size).map(load)
    explain = _explanation(config, progress, source.describe, first=0, rows=local)
    watch = StallWatch(explain, first=0, seconds=warn_seconds)
    return prefetch(steps, config=config, progress=progress, watch=watch)


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


def _progress(config: StreamConfig) -> BatchProgress:
    # One batch more than exist ahead of their use: the one that is asked for.
    return BatchProgress(workers=config.workers, batches=config.batches_ahead + max(1, config.workers))


def _explanation(
    config: StreamConfig, progress: BatchProgress, describe: Callable[[int], str], *, first: int, rows: int
) -> Callable[[int], str]:
    """Make the function that explains why a batch is not there, from its number."""
    return partial(
        explain_stall,
        first=first,
        workers=config.workers,
        progress=progress,
        describe=describe,
        rows=rows,
    )


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, got {batch_size}")
