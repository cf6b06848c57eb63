"""Batches that are fetched ahead to measure the input: the same batches in the same order, and the rate."""

import itertools
import threading
import time
from unittest import mock

import numpy as np
import pytest

from clipa_eqx.training import read_ahead
from clipa_eqx.training.read_ahead import Fetch, ReadAhead, batches_per_second

ROWS = 16


def batches(*, seconds=0.0, until=None, then=None):
    """Batches 0, 1, ... that each take some time to make; ``then`` is raised in place of batch ``until``."""
    for number in itertools.count():
        if number == until:
            raise then
        time.sleep(seconds)
        yield {"sample_id": np.full(ROWS, number)}


def numbers(rows, count):
    return [int(next(rows)["sample_id"][0]) for _ in range(count)]


def measured(rows):
    """Take no batch until the measurement is over."""
    deadline = time.monotonic() + 60
    while not rows.is_measured:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return rows


def test_a_first_wave_of_workers_that_started_together_is_no_rate():
    def waves():
        time.sleep(0.6)
        for _ in range(8):  # they were made together, and come one shortly after the other
            time.sleep(0.005)
            yield {"sample_id": np.arange(10)}
        while True:
            time.sleep(0.1)
            yield {"sample_id": np.arange(10)}

    with ReadAhead(waves(), most=1000, seconds=0.02) as rows:
        assert measured(rows).images_per_second() < 400


def test_batches_come_once_and_in_order_during_and_after_the_measurement():
    with ReadAhead(batches(seconds=0.002), most=300, seconds=0.1) as rows:
        assert numbers(rows, 5) == [0, 1, 2, 3, 4]
        measured(rows)
        assert numbers(rows, 200) == list(range(5, 205))


def test_no_more_batches_are_fetched_than_are_needed():
    made = []

    def counted():
        for batch in batches():
            made.append(batch)
            yield batch

    with ReadAhead(counted(), most=7) as rows:
        measured(rows)
        assert len(made) == 7
        assert numbers(rows, 7) == list(range(7))
    with ReadAhead(counted(), most=0) as rows:
        assert measured(rows).images_per_second() is None
    assert len(made) == 7


@pytest.mark.parametrize("error", [ValueError("a bad record"), StopIteration()])
def test_an_error_comes_in_place_of_its_batch(error):
    source = iter([{"sample_id": np.zeros(ROWS)}] * 3) if isinstance(error, StopIteration) else None
    with ReadAhead(source or batches(until=3, then=error), most=10) as rows:
        measured(rows)
        for _ in range(3):
            next(rows)
        with pytest.raises(type(error)):
            next(rows)


def test_the_rate_is_that_of_the_input_however_slowly_batches_are_taken():
    with ReadAhead(batches(seconds=0.02), most=1000, seconds=0.5) as rows:
        measured(rows)
    # A busy machine makes batches more slowly, never faster.
    assert 1 < rows.images_per_second() <= ROWS / 0.02
    assert not rows.is_at_least


def test_slow_batches_are_measured_until_two_were_waited_for():
    with ReadAhead(batches(seconds=0.3), most=1000, seconds=0.1) as rows:
        assert rows.images_per_second() is None
        measured(rows)
        assert rows.images_per_second() <= ROWS / 0.3


def test_large_batches_wait_in_limited_memory_and_the_rate_is_a_lower_bound():
    with mock.patch.object(read_ahead, "_MOST_BYTES", 3 * ROWS * 8):
        made = []

        def counted():
            for batch in batches():
                made.append(batch)
                yield batch

        with ReadAhead(counted(), most=100) as rows:
            deadline = time.monotonic() + 60
            while not rows.is_at_least:
                assert time.monotonic() < deadline
            time.sleep(0.3)
            assert len(made) == 4
            assert numbers(rows, 100) == list(range(100))
            assert rows.is_at_least


def test_a_batch_that_never_comes_does_not_keep_the_end_waiting(monkeypatch):
    monkeypatch.setattr(read_ahead, "_END_SECONDS", 0.05)
    over = threading.Event()

    def stuck():
        yield {"sample_id": np.zeros(ROWS)}
        over.wait()

    with ReadAhead(stuck(), most=10) as rows:
        next(rows)
    assert not rows.is_measured
    over.set()


def fetches(*waits):
    ends = itertools.accumulate(waits)
    return [Fetch(end, wait) for end, wait in zip(ends, waits, strict=True)]


@pytest.mark.parametrize(
    ("waits", "rate"),
    [
        ((), None),
        ((3.0,), None),
        ((3.0, 0.5, 0.5, 0.5), 2.0),
        ((9.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0), 2.0),  # bursts of 4 workers
        ((9.0, 0.1, 0.3, 0.2, 0.2), 5.0),
        ((0.0, 0.0, 0.0, 0.5, 0.5), 4.0),
    ],
)
def test_the_start_of_workers_and_bursts_do_not_count(waits, rate):
    found = batches_per_second(fetches(*waits))
    assert found == (None if rate is None else pytest.approx(rate))
