"""Random generators and shuffled orders made fast: the same numbers as numpy and Grain make one by one."""

import grain
import pytest

from clipa_eqx.data.sample_generators import sample_generator, sample_generators
from clipa_eqx.data.shuffled_order import ShuffledOrder

# Seeds of one, two and three words of 32 bits; the last one does not fit and is hashed by numpy.
SEEDS = [0, 7, 2**32 - 1, 2**32, 2**40 + 3, 2**64 - 1, 2**64]
SAMPLES = [0, 1, 63, 2**31, 2**32 - 1, 2**32, 2**33 + 5, 2**62]


@pytest.mark.parametrize("seed", SEEDS)
def test_generators_of_a_batch_are_those_of_their_samples(seed):
    for samples in (SAMPLES, range(2**32 - 3, 2**32 + 3), []):
        for is_vectorized in (True, False):
            made = sample_generators(seed=seed, samples=samples, is_vectorized=is_vectorized)
            alone = [sample_generator(seed=seed, sample=sample) for sample in samples]
            assert [one.bit_generator.state for one in made] == [one.bit_generator.state for one in alone]


def test_children_of_a_generator_are_those_of_numpy():
    """The caption is chosen by a child; children of a second call differ from those of the first."""
    for made, alone in zip(
        sample_generators(seed=5, samples=SAMPLES), (sample_generator(seed=5, sample=n) for n in SAMPLES), strict=True
    ):
        for count in (1, 2):
            children = zip(made.spawn(count), alone.spawn(count), strict=True)
            assert all(one.bit_generator.state == other.bit_generator.state for one, other in children)
        asked, expected = (one.bit_generator.seed_seq.generate_state(3).tolist() for one in (made, alone))
        assert asked == expected


@pytest.mark.parametrize("records", [1, 2, 3, 10, 1000, 70_000, 10**9])
def test_the_order_is_grains_shuffle(records):
    positions = [0, 1, 2, records - 1, records, records + 1, 5 * records + 3, 10**12, 2**62]
    for seed in (0, 12345, 2**32 - 1):  # the seed of the second epoch wraps around after the last one
        expected = grain.MapDataset.range(records).shuffle(seed=seed)
        order = ShuffledOrder(records, seed)
        assert [order[position] for position in positions] == [int(expected[position]) for position in positions]
