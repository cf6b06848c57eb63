"""Several record folders as one endless order of samples, mixed by weight."""

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from clipa_eqx.data.array_record_reader import RecordSource, read_grouped
from clipa_eqx.data.records import Record
from clipa_eqx.data.shuffled_order import ShuffledOrder, shuffled_order
from clipa_eqx.errors import DataError, counted


class SourcePosition(NamedTuple):
    """Origin of a sample: the number of its source, and its position in that source's shuffled order.

    The position is the number of earlier samples from the same source.
    """

    source: int
    position: int


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Record folders and the weights by which samples are taken from them.

    Ids number the records of all sources: id = records of all earlier sources + index in the own source. Only the ratio
    of the weights matters. A weight has the exact value of its decimal form, so 0.7 is 7/10.

    Attributes:
        sources: opened record folders.
        weights: one positive number per source.

    Raises:
        DataError: no source, a source without records, or a weight that is not positive and finite.
    """

    sources: tuple[RecordSource, ...]
    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.sources or len(self.weights) != len(self.sources):
            raise DataError(
                f"a mixture needs one weight per source, got {len(self.weights)} for {len(self.sources)} sources"
            )
        for source, weight in zip(self.sources, self.weights, strict=True):
            if len(source) == 0:
                raise DataError(f"data folder {source.folder} has no records; there is nothing to train on")
            if not (weight > 0 and math.isfinite(weight)):
                raise DataError(f"data folder {source.folder} has weight {weight}; it must be a positive number")

    def __len__(self) -> int:
        """Number of records of all sources, which is the number of samples of an epoch."""
        return self._ends[-1]

    def orders(self, *, seed: int) -> tuple[ShuffledOrder, ...]:
        """Shuffled order of each source: entry ``SourcePosition.position`` is the index of the record."""
        return tuple(shuffled_order(len(s), seed=seed, source=number) for number, s in enumerate(self.sources))

    def position_of(self, sample: int) -> SourcePosition:
        """Determine the source of a sample. Source k has its share of the first n samples up to a few samples."""
        return pick(sample, self._parts)

    @property
    def largest_batch(self) -> int:
        """Largest batch in which no source has fewer records than rows."""
        return min(
            len(source) * sum(self._parts) // part for source, part in zip(self.sources, self._parts, strict=True)
        )

    def repeats(self, batch_size: int) -> list[str]:
        """Sources that have fewer records than their share of a batch, so that a batch has records twice.

        Returns:
            One line per such source, for messages: its folder, its records and its rows per batch.
        """
        rows = [batch_size * part / sum(self._parts) for part in self._parts]
        return [
            f"{source.folder} has {counted(len(source), 'record')} for {share:,.0f} rows of each batch"
            for source, share in zip(self.sources, rows, strict=True)
            if share > len(source)
        ]

    def record_id(self, source: int, index: int) -> int:
        """Id of record ``index`` of a source; the inverse of ``locate``."""
        return self._ends[source] - len(self.sources[source]) + index

    def locate(self, record_id: int) -> tuple[int, int]:
        """Return (number of the source, index in the source) of a record id. Raises IndexError."""
        source = bisect.bisect_right(self._ends, record_id)
        if not 0 <= record_id < len(self):
            raise IndexError(f"record {record_id} of a mixture of {len(self)} records")
        return source, record_id - (self._ends[source] - len(self.sources[source]))

    def describe(self, record_id: int) -> str:
        """Name the shard file of a record and the position in it, for messages. Raises IndexError."""
        source, index = self.locate(record_id)
        return self.sources[source].describe(index)

    def read(
        self, record_ids: Sequence[int], *, on_shard: Callable[[int], None] | None = None
    ) -> list[Record | DataError]:
        """Read records in the given order, with one read per shard; a damaged record is returned as its error.

        Args:
            record_ids: the records to read.
            on_shard: called before each read from a shard, with the id of the first record of that read.

        Raises:
            IndexError: an id outside the mixture.
            DataError: a shard is missing or damaged as a whole.
        """

        def read(source: int, indices: list[int]) -> list[Record | DataError]:
            def on_source_shard(index: int) -> None:
                if on_shard is not None:
                    on_shard(self.record_id(source, index))

            return self.sources[source].read_each(indices, on_shard=on_source_shard)

        return read_grouped(map(self.locate, record_ids), read)

    @cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(map(len, self.sources)))

    @cached_property
    def _parts(self) -> tuple[int, ...]:
        """Whole numbers with the ratio of the weights."""
        exact = [Fraction(str(weight)) for weight in self.weights]
        scale = math.lcm(*(weight.denominator for weight in exact))
        return tuple(int(weight * scale) for weight in exact)


def pick(sample: int, parts: Sequence[int]) -> SourcePosition:
    """Determine the source of one sample by whole-number weights, evenly spread, from the sample's number alone.

    The first source gets the samples at which n * part / sum passes a whole number, the second gets its part of the
    remaining ones in the same way, and so on. The positions in each source are 0, 1, 2, ... in the order of samples.

    >>> [pick(sample, (1, 3)).source for sample in range(8)]
    [1, 1, 1, 0, 1, 1, 1, 0]
    """
    rest = sum(parts)
    for source, part in enumerate(parts):
        before = sample * part // rest
        if (sample + 1) * part // rest > before:
            return SourcePosition(source, before)
        sample -= before
        rest -= part
    raise AssertionError("the last source gets all remaining samples")
