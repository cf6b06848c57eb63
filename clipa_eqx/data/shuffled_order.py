"""Endless shuffled orders of records with random access."""

from dataclasses import dataclass

import grain
import numpy as np

# Rounds of Grain's cipher, as in its own ``shuffle``.
_ROUNDS = 4


@dataclass(frozen=True)
class ShuffledOrder:
    """Endless order of ``records`` records: ``order[n]`` is the index of the n-th record to read.

    Each epoch of ``records`` entries is another permutation, computed and never stored. The order is that of Grain's
    ``MapDataset.range(records).shuffle(seed=seed)``, whose general machinery takes more time per entry
    (``benchmarks/sample_order.py``).

    Attributes:
        records: number of records, at least 1.
        seed: seed of the first epoch, below 2**32.
    """

    records: int
    seed: int

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self.records)
        seed = (self.seed + epoch) % 2**32
        return int(grain.experimental.index_shuffle(index, max_index=self.records - 1, seed=seed, rounds=_ROUNDS))


def shuffled_order(records: int, *, seed: int, source: int = 0) -> ShuffledOrder:
    """Make the order of one source of a mixture from the seed of the run."""
    # The epoch is added to the seed of a shuffle. Hashing first keeps seeds 1 and 2, and the sources of a mixture,
    # from sharing shifted epochs.
    return ShuffledOrder(records, int(np.random.SeedSequence((seed, source)).generate_state(1)[0]))
