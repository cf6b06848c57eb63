"""The compared model: as a model folder, and as an open_clip folder."""

import shutil

import pytest
from support.comparison import LENGTH, SIZE
from support.random_models import random_model
from support.tiny_models import tiny_clip_config

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.saved.model import save_model
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from conversion.open_clip.exporting import export_open_clip


@pytest.fixture(scope="module")
def model():
    # A square head, so that its transpose fits; four patches, so that means and positions matter.
    return random_model(tiny_clip_config(image={"embed": 32}, text={"vocab": 30522, "length": LENGTH, "embed": 32}))


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """A root with ``ours``, the model folder, and ``theirs``, its export."""
    root = tmp_path_factory.mktemp("compare")
    save_model(
        root / "ours",
        model,
        tokenizer=Tokenizer.bert(),
        preprocess=EvalImageConfig(size=SIZE, resize="squash"),
        provenance={},
    )
    export_open_clip(root / "ours", root / "theirs")
    return root


@pytest.fixture
def theirs(folders, tmp_path):
    return shutil.copytree(folders / "theirs", tmp_path / "theirs")
