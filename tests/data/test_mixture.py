"""Mixtures: exact shares, epochs of each source, ids of source and record, the same for any number of processes."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.streams import ON_DEMAND, assert_same_batches, concatenate, share, write_numbered

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.mixture import Mixture, pick
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.data.shuffled_order import shuffled_order
from clipa_eqx.data.stream import train_stream
from clipa_eqx.errors import DataError

COUNTS, WEIGHTS = (200, 90, 37), (0.7, 0.2, 0.1)
# Result of seed 42 for WEIGHTS with grain 0.2.18 and numpy 2.4.
PINNED_SOURCES = [2, 0, 0, 1, 0, 0, 1, 0, 0, 0]
PINNED_IDS = [324, 93, 146, 284, 155, 177, 247, 100, 170, 154]


def random_row(record, rng):
    return {"value": np.int64(int(record.key)), "noise": rng.random(2).astype(np.float32)}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixture")
    sources = [write_numbered(root / str(n), count, first=sum(COUNTS[:n])) for n, count in enumerate(COUNTS)]
    return Mixture(sources=tuple(sources), weights=WEIGHTS)


@pytest.fixture(scope="module")
def reference(mixture):
    with train_stream(mixture, random_row, batch_size=24, seed=3, config=ON_DEMAND) as stream:
        return [next(stream) for _ in range(14)]


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=6), st.integers(0, 10**15))
def test_each_prefix_has_its_shares_up_to_one_sample_per_source(parts, sample):
    """The positions are the counts: position k of a source follows k of its samples."""
    total = sum(parts)
    for n in range(sample, sample + 3 * len(parts)):
        source, position = pick(n, parts)
        assert abs(position - Fraction(n * parts[source], total)) < len(parts)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_a_period_has_exactly_the_weights_and_each_source_is_in_order(parts):
    period = sum(parts)
    picked = [pick(n, parts) for n in range(3 * period)]
    for source, part in enumerate(parts):
        assert [one.position for one in picked if one.source == source] == list(range(3 * part))
        assert sum(one.source == source for one in picked[:period]) == part


def test_decimal_weights_are_exact_and_only_their_ratio_matters(mixture):
    far = 10**12
    for weights in ((7.0, 2.0, 1.0), (2.1, 0.6, 0.3), (7e-9, 2e-9, 1e-9)):
        same = Mixture(sources=mixture.sources, weights=weights)
        assert [same.position_of(n) for n in range(50)] == [mixture.position_of(n) for n in range(50)]
    # In floating point 0.7 + 0.2 + 0.1 is less than 1 and the counts would drift by then.
    assert sorted(mixture.position_of(far + n).position for n in range(10)) == sorted(
        [*range(7 * far // 10, 7 * far // 10 + 7), *range(far // 5, far // 5 + 2), far // 10]
    )


@settings(deadline=None, max_examples=15)
@given(processes=st.sampled_from([1, 2, 3, 8]), threads=st.sampled_from([0, 2]), start=st.integers(0, 12))
def test_a_mixture_does_not_depend_on_processes_threads_or_start(mixture, reference, processes, threads, start):
    config = StreamConfig(threads=threads)
    parts = []
    for p in range(processes):
        options = {"rows": share(24, p, processes), "start_step": start, "config": config}
        with train_stream(mixture, random_row, batch_size=24, seed=3, **options) as stream:
            parts.append([next(stream) for _ in range(2)])
    assert_same_batches(concatenate(parts), reference[start : start + 2])


@pytest.mark.parametrize("workers", [2, 4])
def test_a_mixture_does_not_depend_on_worker_processes(mixture, reference, workers):
    config = StreamConfig(workers=workers, threads=1)
    with train_stream(mixture, random_row, batch_size=24, seed=3, start_step=2, config=config) as stream:
        assert_same_batches([next(stream) for _ in range(6)], reference[2:8])


def test_each_source_passes_through_its_own_epochs(mixture, reference):
    ids = np.concatenate([batch["sample_id"] for batch in reference])
    sources = np.concatenate([batch["source"] for batch in reference])
    for number, count in enumerate(COUNTS):
        first = sum(COUNTS[:number])
        own = ids[sources == number]
        assert set(own) <= set(range(first, first + count))
        assert len(set(own[:count])) == min(count, len(own))  # nothing twice within an epoch
    smallest = ids[sources == 2][:33]
    assert len(set(smallest)) == 33


def test_ids_name_source_and_record(mixture, reference):
    assert len(mixture) == sum(COUNTS)
    for batch in reference:
        np.testing.assert_array_equal(batch["sample_id"], batch["value"])
        for record_id, source in zip(batch["sample_id"], batch["source"], strict=True):
            number, index = mixture.locate(int(record_id))
            assert number == source
            assert mixture.record_id(number, index) == record_id
            assert mixture.describe(int(record_id)) == mixture.sources[source].describe(index)
    for outside in (-1, len(mixture)):
        with pytest.raises(IndexError):
            mixture.locate(outside)


def test_the_mixture_of_seed_42_stays_what_it_was(mixture):
    """Fails if a new library version or a change here would silently change the order of a seed."""
    with train_stream(mixture, random_row, batch_size=10, seed=42, config=ON_DEMAND) as stream:
        batch = next(stream)
    assert batch["source"].tolist() == PINNED_SOURCES
    assert batch["sample_id"].tolist() == PINNED_IDS


def test_sources_of_equal_size_have_different_orders():
    orders = [[shuffled_order(100, seed=7, source=source)[n] for n in range(400)] for source in range(3)]
    epochs = {tuple(order[at : at + 10]) for order in orders for at in range(0, 400, 100)}
    assert len(epochs) == 12


def test_impossible_mixtures_are_refused(mixture, tmp_path):
    write_records([], tmp_path / "none")
    empty = open_records(tmp_path / "none")
    for sources, weights, message in (
        ((), (), "one weight per source"),
        (mixture.sources, (1.0,), "one weight per source"),
        (mixture.sources, (1.0, 0.0, 1.0), "has weight 0.0"),
        (mixture.sources, (1.0, float("inf"), 1.0), "has weight inf"),
        ((*mixture.sources[:2], empty), WEIGHTS, "no records"),
    ):
        with pytest.raises(DataError, match=message):
            Mixture(sources=sources, weights=weights)
