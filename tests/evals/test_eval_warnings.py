"""Warnings about evaluations that score badly or cost too much without any error."""

import logging

import jax
import jax.numpy as jnp
import pytest

from clipa_eqx.evals import encode
from clipa_eqx.evals.zero_shot import ZeroShotConfig, prepare_zero_shot, warn_of_padding
from clipa_eqx.tokenizer.wordpiece import Tokenizer


@pytest.mark.parametrize(("name", "is_warned"), [("\u72d7", True), ("dog", False)])
def test_prompts_that_the_vocabulary_cannot_spell_are_a_warning(caplog, name, is_warned):
    config = ZeroShotConfig(data="x", templates="class_name_only", canonicalize=False)
    prepare_zero_shot(config, manifest_class_names=(name, "cat"), tokenizer=Tokenizer.bert(), length=8)
    assert ("50 % of the word pieces of the prompts of x are [UNK]" in caplog.text) == is_warned


@pytest.mark.parametrize(("batch", "is_warned"), [(300, True), (256, False), (10, False)])
def test_a_batch_larger_than_the_evaluation_is_a_warning(caplog, batch, is_warned):
    warn_of_padding(ZeroShotConfig(data="x", batch_size=batch), records=10)
    assert ("batch_size 300 is larger than the data of 10 records" in caplog.text) == is_warned


def test_a_batch_that_takes_long_is_reported(caplog, monkeypatch):
    monkeypatch.setattr(encode, "LINE_EVERY", 0.001)
    long = jax.jit(lambda x: jax.lax.fori_loop(0, 100, lambda _, y: jnp.tanh(y @ x), x))
    embeddings = long(jnp.ones((512, 512)))
    with caplog.at_level(logging.INFO, "clipa_eqx.progress"):
        assert encode.local_rows(embeddings, rows=2).shape == (2, 512)
    assert "waiting for 2 embeddings from the devices: 0 s so far" in caplog.text
