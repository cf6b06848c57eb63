"""Fixtures: a tiny model, its arrays under the names of the t5x branch, and its vocabulary."""

import pytest
from support.random_models import random_model
from support.t5x_folders import CONFIG

from clipa_eqx.tokenizer.vocabulary import SPECIAL, write_vocab
from conversion.flax_clipa.names import flax_rules
from conversion.flax_clipa.shapes import FlaxLayout
from conversion.weights.rules import export_leaves


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def arrays(model):
    return export_leaves(flax_rules(CONFIG, FlaxLayout("flat", (1,))), model)


@pytest.fixture
def vocab(tmp_path):
    write_vocab(SPECIAL, tmp_path / "vocab.txt")
    return tmp_path / "vocab.txt"
