"""Batches depend on (seed, step) only, for any number of processes; evaluation sees each record exactly once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.streams import ON_DEMAND, assert_same_batches, concatenate, share, write_numbered

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.data.records import Record
from clipa_eqx.data.shuffled_order import shuffled_order
from clipa_eqx.data.stream import eval_stream, train_stream
from clipa_eqx.errors import DataError

# Result of seed 42 with grain 0.2.18 and numpy 2.4.
PINNED_ORDER = [5, 9, 2, 4, 3, 0, 6, 1, 7, 8, 4, 7, 1, 6, 9, 0, 8, 3, 2, 5, 9, 5, 6, 3, 4, 7, 8, 0, 1, 2]
PINNED_IDS = [28, 79, 167]
PINNED_NUMBERS = [460153405, 944108819, 626289175]


def random_row(record, rng):
    """A random transform that also uses child generators."""
    child, _ = rng.spawn(2)
    return {
        "value": np.int64(int(record.key)),
        "noise": rng.random(2).astype(np.float32),
        "child": child.integers(1 << 30),
    }


def value(record):
    return {"value": np.int64(int(record.key) + 1), "pixels": np.full((2, 2, 3), 7, np.uint8)}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sizes")
    return {count: write_numbered(root / str(count), count) for count in (0, 1, 2, 7, 12)}


def take(stream, count):
    with stream:
        return [next(stream) for _ in range(count)]


def global_batches(source, *, processes, steps, **options):
    """Concatenated batches of all processes."""
    parts = [
        take(train_stream(source, random_row, rows=share(options["batch_size"], p, processes), **options), steps)
        for p in range(processes)
    ]
    return concatenate(parts)


@pytest.fixture(scope="module")
def references(source):
    """The first 12 batches of each seed, more than one epoch, made without threads."""
    return {
        seed: take(train_stream(source, random_row, batch_size=24, seed=seed, config=ON_DEMAND), 12)
        for seed in (0, 7, 2**40)
    }


@settings(deadline=None, max_examples=25)
@given(
    processes=st.sampled_from([1, 2, 3, 8]),
    threads=st.sampled_from([0, 1, 4]),
    start=st.integers(0, 10),
    seed=st.sampled_from([0, 7, 2**40]),
)
def test_batches_do_not_depend_on_processes_threads_or_start(source, references, processes, threads, start, seed):
    config = StreamConfig(threads=threads, prefetch_batches=3)
    got = global_batches(
        source, processes=processes, steps=2, batch_size=24, seed=seed, start_step=start, config=config
    )
    assert_same_batches(got, references[seed][start : start + 2])


def test_each_epoch_is_another_permutation(source):
    batches = take(train_stream(source, random_row, batch_size=len(source), seed=5, config=ON_DEMAND), 4)
    orders = [batch["sample_id"].tolist() for batch in batches]
    assert all(sorted(order) == list(range(len(source))) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_batches_may_span_epochs_and_exceed_the_source(source):
    small = take(train_stream(source, random_row, batch_size=25, seed=1, config=ON_DEMAND), 16)
    large = take(train_stream(source, random_row, batch_size=2 * len(source), seed=1, config=ON_DEMAND), 1)
    np.testing.assert_array_equal(np.concatenate([batch["sample_id"] for batch in small]), large[0]["sample_id"])
    np.testing.assert_array_equal(np.concatenate([batch["noise"] for batch in small]), large[0]["noise"])


def test_sample_ids_are_the_records_in_the_batch(source):
    (batch,) = take(train_stream(source, random_row, batch_size=6, seed=1), 1)
    np.testing.assert_array_equal(batch["sample_id"], batch["value"])
    assert batch["sample_id"].dtype == np.int64


def test_the_same_record_has_new_random_numbers_in_each_epoch(sources):
    batches = take(train_stream(sources[1], random_row, batch_size=2, seed=0), 3)
    assert len({tuple(noise) for batch in batches for noise in batch["noise"]}) == 6
    assert len({int(child) for batch in batches for child in batch["child"]}) == 6


def test_neighboring_seeds_share_no_epoch():
    orders: set[tuple[int, ...]] = set()
    for seed in (0, 1, 2):
        order = shuffled_order(100, seed=seed)
        orders |= {tuple(order[n] for n in range(epoch * 100, epoch * 100 + 10)) for epoch in range(4)}
    assert len(orders) == 12


def test_the_shuffle_and_the_random_numbers_of_seed_42_stay_what_they_were(source):
    """Fails if a new version of Grain or NumPy would silently change the batches of a seed."""
    order = shuffled_order(10, seed=42)
    assert [order[n] for n in range(30)] == PINNED_ORDER
    (batch,) = take(train_stream(source, random_row, batch_size=3, seed=42, start_step=1000), 1)
    assert batch["sample_id"].tolist() == PINNED_IDS
    assert batch["child"].tolist() == PINNED_NUMBERS


@settings(deadline=None, max_examples=40)
@given(
    count=st.sampled_from([0, 1, 2, 7, 12]),
    batch_size=st.integers(1, 15),
    processes=st.sampled_from([1, 2, 3, 8]),
    threads=st.sampled_from([0, 2]),
)
def test_evaluation_sees_each_record_once_in_order(sources, count, batch_size, processes, threads):
    config = StreamConfig(threads=threads)
    parts = [
        list(
            eval_stream(
                sources[count], value, batch_size=batch_size, process_index=p, process_count=processes, config=config
            )
        )
        for p in range(processes)
    ]
    local = -(-batch_size // processes)
    ids = []
    for same in zip(*parts, strict=True):  # strict: all processes have the same number of batches
        for batch in same:
            mask = batch["mask"]
            assert mask.shape == (local,)
            assert batch["pixels"].shape == (local, 2, 2, 3)
            np.testing.assert_array_equal(batch["sample_id"], np.where(mask, batch["value"] - 1, -1))
            np.testing.assert_array_equal(batch["value"][~mask], 0)
            assert not batch["pixels"][~mask].any()
            assert (batch["pixels"][mask] == 7).all()
            ids.extend(batch["sample_id"][mask].tolist())
    assert ids == list(range(count))


def test_evaluation_batches_are_the_global_batches(sources):
    batches = list(eval_stream(sources[7], value, batch_size=3))
    assert [batch["sample_id"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, -1, -1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"rows": range(2, 5)}, "in a batch of 4, got range"),
        ({"rows": range(2, 2)}, "in a batch of 4, got range"),
        ({"rows": range(0, 4, 2)}, "of step 1"),
        ({"start_step": -1}, "start_step"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_wrong_train_stream_is_refused(source, options, message):
    with pytest.raises(DataError, match=message):
        train_stream(source, random_row, **({"batch_size": 4, "seed": 0} | options))


def test_training_on_no_records_is_refused(sources):
    with pytest.raises(DataError, match="no records"):
        train_stream(sources[0], random_row, batch_size=2, seed=0)
    with pytest.raises(DataError, match="must not be negative"):
        StreamConfig(workers=-1)


def test_rows_of_different_shapes_are_refused(source):
    stream = eval_stream(source, lambda record: {"x": np.zeros(int(record.key))}, batch_size=4, config=ON_DEMAND)
    with (
        pytest.raises(DataError, match=r"shard-00000\.array_record, record 1, key '1': the transform returned"),
        stream,
    ):
        next(stream)


def test_a_damaged_record_stops_the_stream_with_its_place(tmp_path):
    write_records([Record(key=str(i), image=b"#" * 40) for i in range(4)], tmp_path / "set")
    shard = tmp_path / "set/shard-00000.array_record"
    data = bytearray(shard.read_bytes())
    data[data.rfind(b"#" * 40) + 1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"shard-00000\.array_record, record 3"):
        list(eval_stream(open_records(tmp_path / "set"), value, batch_size=2))


def test_a_closed_stream_ends(source):
    stream = train_stream(source, random_row, batch_size=2, seed=0)
    next(stream)
    stream.close()
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
