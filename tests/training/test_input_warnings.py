"""Warnings about inputs that train badly without any error: words without a piece, batches larger than the data."""

import dataclasses
import os

import jax
import numpy as np
import pytest
from support import tiny_runs

from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.durations import RunLength
from clipa_eqx.experiment import DataConfig, DataSource
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from clipa_eqx.training.inputs import log_inputs, open_sources
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.reporting import Reports, StepNumbers

PIECES = 80


def report(folder, config, unknown):
    """Report steps 1, 2, ... of a run, with so many unknown pieces in each."""
    run = RunLength(total_steps=9, batch_size=16, data_size=9)
    with Reports(config, folder, run, start=0, devices=1) as reports:
        for step, count in enumerate(unknown, start=1):
            numbers = {"loss": 1.0, "accuracy": 0.0, "grad_norm": 1.0, "update_norm": 1.0}
            numbers |= {"truncated": 0, "substituted": 0, "pieces": PIECES, "unknown": count}
            on_devices = {name: jax.device_put(np.asarray(value)) for name, value in numbers.items()}
            reports.finish(StepNumbers(step, on_devices, np.arange(16)), last_checkpoint=lambda: None)
    return [line["unknown_fraction"] for line in read_metrics(folder / "metrics.jsonl")]


def test_many_unknown_pieces_at_the_first_logged_step_are_one_warning_that_names_the_vocabulary(tmp_path, caplog):
    config = tiny_runs.run_config(log_every_steps=1)
    assert report(tmp_path, config, [60, 60, 4]) == [0.75, 0.75, 0.05]
    (message,) = [one.getMessage() for one in caplog.records]
    assert message.startswith("75 % of the word pieces of the captions of step 1 are [UNK]")
    for part in (f"the vocabulary {config.data.vocab}", "train_wordpiece", "data.vocab", "model.text.vocab"):
        assert part in message


def test_few_unknown_pieces_are_no_warning(tmp_path, caplog):
    assert report(tmp_path, tiny_runs.run_config(log_every_steps=1), [8, 60]) == [0.1, 0.75]
    assert caplog.text == ""


def test_the_default_vocabulary_is_named_in_words(tmp_path, caplog):
    config = tiny_runs.run_config(log_every_steps=1)
    report(tmp_path, tiny_runs.run_config(data=DataConfig(sources=config.data.sources, image=config.data.image)), [9])
    assert "BERT's English vocabulary, the default, cannot spell" in caplog.text


def test_chinese_captions_are_mostly_unknown_to_the_default_vocabulary():
    tokenizer = Tokenizer.bert()
    ids = tokenizer(["\u4e00\u53ea\u68d5\u8272\u7684\u72d7\u5728\u8349\u5730\u4e0a\u5954\u8dd1"], length=77).ids
    assert (ids == tokenizer.unk_id).sum() / (ids[:, 1:] > 0).sum() > 0.1


@pytest.mark.parametrize(
    ("batch", "is_warned"), [(tiny_runs.RECORDS, False), (tiny_runs.RECORDS + 1, True)], ids=["equal", "larger"]
)
def test_a_batch_larger_than_the_data_is_a_warning(caplog, batch, is_warned):
    config = tiny_runs.run_config(batch_size=batch)
    log_inputs(config, open_sources(config), (), Tokenizer.bert())
    assert ("larger than the data" in caplog.text) == is_warned
    if is_warned:
        assert f"records has 200 records for {batch} rows of each batch" in caplog.text
        assert "a batch_size of at most 200" in caplog.text


def test_more_workers_than_processors_are_a_warning(caplog):
    data = tiny_runs.run_config().data
    workers = (os.cpu_count() or 1) + 1
    for number, is_warned in ((1, False), (workers, True)):
        config = tiny_runs.run_config(data=dataclasses.replace(data, stream=StreamConfig(workers=number)))
        log_inputs(config, open_sources(config), (), Tokenizer.bert())
        assert (f"data.stream.workers is {number}, and this machine has" in caplog.text) == is_warned


def test_a_small_source_with_a_large_weight_is_named_alone(tmp_path, caplog):
    large = tiny_runs.run_config().data.sources[0]
    write_records(tiny_runs.make_records(10), tmp_path / "small")
    data = tiny_runs.run_config().data
    sources = (DataSource(folder=large.folder, weight=0.5), DataSource(folder=str(tmp_path / "small"), weight=1.5))
    config = tiny_runs.run_config(batch_size=16, data=DataConfig(sources=sources, image=data.image, vocab=data.vocab))
    mixture = open_sources(config)
    assert mixture.repeats(16) == [f"{tmp_path / 'small'} has 10 records for 12 rows of each batch"]
    assert str(large.folder) not in caplog.text
    assert mixture.largest_batch == 13
    assert mixture.repeats(13) == []
