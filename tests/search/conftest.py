"""A tiny model as a folder, and photos that it embeds."""

import numpy as np
import pytest
from support.image_files import encode
from support.tiny_models import tiny_clip, tiny_tokenizer

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.programs.encoders import load_encoder
from clipa_eqx.saved.model import save_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    return save_model(
        folder,
        tiny_clip(),
        tokenizer=tiny_tokenizer(),
        preprocess=EvalImageConfig(size=(16, 16), resize="squash"),
        provenance={},
    )


@pytest.fixture(scope="session")
def encoder(model_folder):
    return load_encoder(model_folder)


@pytest.fixture
def photos(tmp_path):
    """A folder of 7 noise images, one in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i in range(7):
        (folder / ("more" if i == 3 else "") / f"{i}.png").write_bytes(noise(i))
    return folder


def noise(seed):
    return encode(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8))
