"""A tiny model as a folder, and photos that it embeds."""

import pytest
from support.scored_runs import noise_png
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
        (folder / ("more" if i == 3 else "") / f"{i}.png").write_bytes(noise_png(i))
    return folder
