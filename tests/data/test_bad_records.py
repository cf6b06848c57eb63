"""Bad records at read time: an error that names the place, or a counted substitute that depends on (seed, sample)."""

import dataclasses
import logging

import numpy as np
import pytest
from support import tiny_runs
from support.streams import ON_DEMAND, assert_same_batches, concatenate, share, write_numbered

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.mixture import Mixture
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.data.records import Record
from clipa_eqx.data.shuffled_order import shuffled_order
from clipa_eqx.data.stream import check_substituted, train_stream
from clipa_eqx.errors import DataError
from clipa_eqx.experiment import DataSource
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.reporting import Reports

pytestmark = pytest.mark.usefixtures("quick_compile")

RECORDS, REJECTED, DAMAGED = 200, (17, 90), (50, 120, 121)
BAD = {*REJECTED, *DAMAGED}


def accept(record, rng):
    return {"value": np.int64(int(record.key)), "noise": rng.random(2).astype(np.float32)}


def accept_some(record, rng):
    if int(record.key) in REJECTED:
        raise DataError(f"image {record.key} is damaged")
    return accept(record, rng)


def payload(index):
    return b"payload %3d " % index * 8


def flip_bytes(folder, indices, *, make=payload):
    """Change the last byte of these payloads; sizes, manifest and index stay the same."""
    found = 0
    for shard in folder.glob("*.array_record"):
        data = shard.read_bytes()
        for index in indices:
            found += data.count(make(index))
            data = data.replace(make(index), make(index)[:-1] + b"#")
        shard.write_bytes(data)
    assert found == len(indices)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A record folder without bad records, and one with five."""
    root = tmp_path_factory.mktemp("bad")
    good = write_numbered(root / "good", RECORDS, first=1000, make_image=payload)
    bad = write_numbered(root / "bad", RECORDS, make_image=payload)
    flip_bytes(root / "bad", DAMAGED)
    return good, bad


@pytest.fixture(scope="module")
def mixture(sources):
    return Mixture(sources=sources, weights=(1.0, 3.0))


def take(source, count, **options):
    options = {"batch_size": 24, "seed": 5, "on_bad_record": "substitute", "config": ON_DEMAND} | options
    with train_stream(source, accept_some, **options) as stream:
        return [next(stream) for _ in range(count)]


@pytest.fixture(scope="module")
def reference(mixture):
    return take(mixture, 12)


def test_an_error_names_place_and_reason(sources):
    rejected = r"shard-\d{5}\.array_record, record \d+, key '\d+': image \d+ is damaged"
    rotten = r"shard-\d{5}\.array_record, record \d+ cannot be read"
    with pytest.raises(DataError, match=f"{rejected}|{rotten}"):
        take(sources[1], 9, on_bad_record="error")
    take(sources[0], 9, on_bad_record="error")


def test_substitutes_are_good_records_of_the_same_source_and_are_marked(mixture, reference):
    marked = [(b["sample_id"][b["substituted"]], b["source"][b["substituted"]]) for b in reference]
    assert sum(len(ids) for ids, _ in marked) >= 5
    assert all((sources == 1).all() and (ids >= RECORDS).all() for ids, sources in marked)
    for batch in reference:
        # Keys of the good folder are 1000 above its ids; those of the bad folder equal the index in it.
        expected = np.where(batch["source"] == 0, 1000 + batch["sample_id"], batch["sample_id"] - RECORDS)
        np.testing.assert_array_equal(batch["value"], expected)
        assert not BAD & set(batch["value"].tolist())


def test_substitution_changes_the_bad_rows_only(tmp_path, sources):
    """Compared with the same records without damage, read with a transform that accepts all."""
    intact = write_numbered(tmp_path / "intact", RECORDS, make_image=payload)
    with train_stream(intact, accept, batch_size=24, seed=5, config=ON_DEMAND) as stream:
        for batch in take(sources[1], 9):
            good = next(stream)
            is_bad = np.isin(good["value"], list(BAD))
            np.testing.assert_array_equal(batch["substituted"], is_bad)
            np.testing.assert_array_equal(batch["value"][~is_bad], good["value"][~is_bad])
            np.testing.assert_array_equal(batch["noise"], good["noise"])


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_substitutes_do_not_depend_on_processes_or_start(mixture, reference, processes):
    parts = [take(mixture, 7, rows=share(24, p, processes), start_step=5) for p in range(processes)]
    assert_same_batches(concatenate(parts), reference[5:])


@pytest.mark.parametrize("config", [StreamConfig(threads=3), StreamConfig(workers=2, threads=1)], ids=str)
def test_substitutes_do_not_depend_on_threads_and_workers(mixture, reference, config):
    assert_same_batches(take(mixture, 12, config=config), reference)


def test_each_substitution_is_logged_with_both_places(mixture, caplog):
    with caplog.at_level(logging.WARNING, logger="clipa_eqx.data.load_batch"):
        batches = take(mixture, 12)
    assert len(caplog.records) >= sum(int(b["substituted"].sum()) for b in batches)
    for record in caplog.records:
        assert record.getMessage().count(".array_record, record ") == 2


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_bad_records_that_are_all_in_one_process_stop_no_process(sources, processes):
    """2 of 24 rows are less than a tenth; 2 of the 8 or 3 rows of one process are more."""
    with train_stream(sources[0], accept, batch_size=24, seed=5, config=ON_DEMAND) as stream:
        bad = set(next(stream)["value"][:2].tolist())

    def reject(record, rng):
        if int(record.key) in bad:
            raise DataError("damaged")
        return accept(record, rng)

    options = {"batch_size": 24, "seed": 5, "on_bad_record": "substitute", "config": ON_DEMAND}
    marked = []
    for process in range(processes):
        with train_stream(sources[0], reject, rows=share(24, process, processes), **options) as stream:
            marked.extend(next(stream)["substituted"].tolist())
    assert marked == [True, True] + [False] * 22


def test_a_tenth_of_the_batch_or_one_record_may_be_bad():
    for count, batch_size in ((0, 4), (1, 4), (2, 24), (3, 30)):
        check_substituted(count, step=7, batch_size=batch_size)
    for count, batch_size in ((2, 4), (3, 24), (4, 30)):
        with pytest.raises(DataError, match=f"step 7: {count} of {batch_size} records are bad, more than 10%"):
            check_substituted(count, step=7, batch_size=batch_size)


def test_a_sample_without_a_good_record_is_an_error(tmp_path):
    write_records((Record(key="0", image=payload(0)) for i in range(RECORDS)), tmp_path / "set", overwrite=True)
    shard = tmp_path / "set/shard-00000.array_record"
    shard.write_bytes(shard.read_bytes().replace(payload(0), payload(1)))
    with pytest.raises(DataError, match="8 sampled records of one source are all bad"):
        take(open_records(tmp_path / "set"), 1)


def test_a_missing_shard_is_an_error_in_either_mode(tmp_path):
    source = write_numbered(tmp_path / "set", RECORDS, make_image=payload, records_per_shard=50)
    (tmp_path / "set/shard-00001.array_record").unlink()
    with pytest.raises(DataError, match=r"shard-00001\.array_record is missing"):
        take(source, 9)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Configs that stop at bad records (steps 3, 7 and 10) and that substitute them, and the log of a complete run."""
    root = tmp_path_factory.mktemp("runs")
    records = list(tiny_runs.make_records(tiny_runs.RECORDS))
    order = shuffled_order(tiny_runs.RECORDS, seed=0)
    write_records(records, root / "records")
    flip_bytes(
        root / "records", [int(order[n]) for n in (40, 100, 150)], make=lambda index: records[index].image[100:150]
    )
    base = tiny_runs.run_config()
    data = dataclasses.replace(base.data, sources=(DataSource(folder=str(root / "records")),))
    stopping = dataclasses.replace(base, data=data)
    counting = dataclasses.replace(base, data=dataclasses.replace(data, on_bad_record="substitute"))
    tiny_runs.train_on_one_device(counting, root / "complete")
    return stopping, counting, lines_of(root / "complete")


def lines_of(workdir):
    return [(line["step"], line["loss"], line["bad_records"]) for line in read_metrics(workdir / "metrics.jsonl")]


def test_a_run_counts_bad_records_and_one_that_stopped_may_resume_with_substitutes(runs, tmp_path):
    stopping, counting, lines = runs
    assert [count for _, _, count in lines] == [0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    with pytest.raises(DataError, match="cannot be read"):
        tiny_runs.train_on_one_device(stopping, tmp_path / "run")
    tiny_runs.train_on_one_device(counting, tmp_path / "run")
    assert lines_of(tmp_path / "run") == lines


def test_the_count_of_bad_records_continues_after_a_resume(runs, tmp_path, monkeypatch):
    _, counting, lines = runs
    finish = Reports.finish

    def fail_at_10(self, numbers, **rest):
        finish(self, numbers, **rest)
        if numbers.step == 10:
            raise ZeroDivisionError

    monkeypatch.setattr(Reports, "finish", fail_at_10)
    with pytest.raises(ZeroDivisionError):
        tiny_runs.train_on_one_device(counting, tmp_path / "run")
    monkeypatch.undo()
    tiny_runs.train_on_one_device(counting, tmp_path / "run")  # from the checkpoint of step 8
    assert lines_of(tmp_path / "run") == lines


def test_too_many_bad_records_stop_the_run_at_their_step(runs, tmp_path):
    """The rows may be on any devices; that step is neither logged nor saved."""
    _, counting, _ = runs
    records = list(tiny_runs.make_records(tiny_runs.RECORDS))
    order = shuffled_order(tiny_runs.RECORDS, seed=0)
    write_records(records, tmp_path / "records")
    # 1 of 16 in the second batch, 2 in the fourth, which is where a checkpoint is due.
    bad = [int(order[n]) for n in (20, 50, 63)]
    flip_bytes(tmp_path / "records", bad, make=lambda index: records[index].image[100:150])
    data = dataclasses.replace(counting.data, sources=(DataSource(folder=str(tmp_path / "records")),))
    with pytest.raises(DataError, match=r"step 4: 2 of 16 records are bad, more than 10%"):
        tiny_runs.train_on_one_device(dataclasses.replace(counting, data=data), tmp_path / "run")
    assert [(step, count) for step, _, count in lines_of(tmp_path / "run")] == [(1, 0), (2, 1), (3, 1)]
    assert not list((tmp_path / "run/checkpoints").glob("4*"))
