"""The tiny model, and the same model in a folder as open_clip loads it."""

import shutil

import pytest
from support.open_clip_folders import export_tiny, tiny_model


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """The exported folder; tests must not change it."""
    return export_tiny(tmp_path_factory.mktemp("open_clip"))


@pytest.fixture
def theirs(exported, tmp_path):
    """A copy of the exported folder that a test may change."""
    return shutil.copytree(exported, tmp_path / "theirs")
