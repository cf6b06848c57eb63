"""Several sets of records as one endless order of samples, mixed by weight."""

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

import grain
import numpy as np

from clipa_eqx.data.array_record_reader import RecordSource, read_grouped
from clipa_eqx.data.records import Record
from clipa_eqx.errors import DataError


class Drawn(NamedTuple):
    """Which source a sample comes from, and how many samples before it came from that source."""

    source: int
    draw: int


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Record sets and the weights by which samples are taken from them.

    Records are numbered through: `id` = records of all sources before + index in the own source. Only the ratio of the
    weights matters. They are taken as the decimal numbers they are written as, so 0.7 is 7/10 exactly.

    Raises:
        DataError: no source, a source without records, or a weight that is not positive and finite.
    """

    sources: tuple[RecordSource, ...]
    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.sources or len(self.weights) != len(self.sources):
            raise DataError(f"a mixture needs one weight per source, got {len(self.weights)} for {len(self.sources)}")
        for source, weight in zip(self.sources, self.weights, strict=True):
            if len(source) == 0:
                raise DataError(f"data folder {source.folder} holds no records; there is nothing to train on")
            if not (weight > 0 and math.isfinite(weight)):
                raise DataError(f"data folder {source.folder} has weight {weight}; it must be a positive number")

    def __len__(self) -> int:
        """Records of all sources; as many samples are an epoch."""
        return self._ends[-1]

    def orders(self, *, seed: int) -> tuple[Any, ...]:
        """Per source its shuffled order: entry `Drawn.draw` is the record's index there."""
        return tuple(shuffled_order(len(s), seed=seed, source=number) for number, s in enumerate(self.sources))

    def drawn(self, sample: int) -> Drawn:
        """The source of sample n. Of the first n samples, source k has n times its share, up to a few samples."""
        return pick(sample, self._parts)

    def record_id(self, source: int, index: int) -> int:
        return self._ends[source] - len(self.sources[source]) + index

    def locate(self, record_id: int) -> tuple[int, int]:
        """(number of the source, index in it) of a record."""
        source = bisect.bisect_right(self._ends, record_id)
        if not 0 <= record_id < len(self):
            raise IndexError(f"record {record_id} of a mixture of {len(self)} records")
        return source, record_id - (self._ends[source] - len(self.sources[source]))

    def describe(self, record_id: int) -> str:
        """Where a record is, for messages: shard file and position in it."""
        source, index = self.locate(record_id)
        return self.sources[source].describe(index)

    def read(self, record_ids: Sequence[int]) -> list[Record | DataError]:
        """The records in the order asked for, with one read per shard; a damaged one is its error."""
        return read_grouped(
            map(self.locate, record_ids), lambda source, indices: self.sources[source].read_each(indices)
        )

    @cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(map(len, self.sources)))

    @cached_property
    def _parts(self) -> tuple[int, ...]:
        """The weights as whole numbers of the same ratio."""
        exact = [Fraction(str(weight)) for weight in self.weights]
        scale = math.lcm(*(weight.denominator for weight in exact))
        return tuple(int(weight * scale) for weight in exact)


def pick(sample: int, parts: Sequence[int]) -> Drawn:
    """Deal samples out to sources by whole-number weights, evenly spread, without looking at the samples before.

    The first source takes the samples at which n * part / sum steps over a whole number, the second its part of the
    rest in the same way, and so on. Each source's draws are 0, 1, 2, ... in the order of the samples.

    >>> [pick(sample, (1, 3)).source for sample in range(8)]
    [1, 1, 1, 0, 1, 1, 1, 0]
    """
    rest = sum(parts)
    for source, part in enumerate(parts):
        before = sample * part // rest
        if (sample + 1) * part // rest > before:
            return Drawn(source, before)
        sample -= before
        rest -= part
    raise AssertionError("the last source takes all that is left")


def shuffled_order(records: int, *, seed: int, source: int = 0) -> Any:
    """Random access order: `order[n]` is the record of draw n; each epoch of `records` draws is a permutation."""
    # Grain adds the epoch to the seed of a shuffle. Hashing first keeps seeds 1 and 2, and the sources of a mixture,
    # from sharing shifted epochs.
    shuffle_seed = int(np.random.SeedSequence((seed, source)).generate_state(1)[0])
    # It needs no repeat(): an index beyond the end is one of a later epoch.
    return grain.MapDataset.range(records).shuffle(seed=shuffle_seed)
