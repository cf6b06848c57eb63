"""The files of a model folder next to its weights: former names, foreign folders, and damage file by file."""

import json

import pytest
from support.tiny_models import tiny_clip_config, tiny_tokenizer

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.errors import CheckpointError, ConfigError
from clipa_eqx.saved.description import (
    MODEL_FOLDER,
    check_parts,
    load_model_config,
    load_preprocess,
    optimizer_file,
    write_description,
)
from clipa_eqx.saved.provenance import Provenance, Source

PREPROCESS = EvalImageConfig(size=(16, 16), resize="squash")


@pytest.fixture
def folder(tmp_path):
    parts = {"tokenizer": tiny_tokenizer(), "preprocess": PREPROCESS, "provenance": Provenance(source=Source(name="x"))}
    write_description(tmp_path, tiny_clip_config(), **parts)
    (tmp_path / "model.safetensors").touch()
    return tmp_path


def edit(path, **fields):
    found = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def test_config_and_preprocessing_come_back_without_any_weights(folder):
    assert load_model_config(folder) == tiny_clip_config()
    assert load_preprocess(folder) == PREPROCESS


def test_the_current_name_of_the_optimizer_file_wins_over_the_former_one(folder):
    assert optimizer_file(folder).name == "optimizer.safetensors"
    (folder / "optimiser.safetensors").touch()
    assert optimizer_file(folder).name == "optimiser.safetensors"
    (folder / "optimizer.safetensors").touch()
    assert optimizer_file(folder).name == "optimizer.safetensors"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": None}, "another mean or std"),
        ({"std": [1.0, 1.0, 1.0]}, "another mean or std"),
        ({"resize": "stretch"}, "stretch"),
        ({"size": [0, 16]}, "size"),
        ({"sharpness": 2}, "sharpness"),
        ({"size": "16"}, "size"),
    ],
)
def test_a_wrong_field_of_the_preprocessing_is_an_error_with_its_path(change, words, folder):
    edit(folder / "preprocess.json", **change)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_preprocess(folder)
    assert str(folder / "preprocess.json") in str(caught.value)


@pytest.mark.parametrize("model", [{}, {"image": 3}, {"image": {}, "text": {}}])
def test_a_config_that_describes_no_model_is_an_error_with_its_path(model, folder):
    edit(folder / "config.json", model=model)
    with pytest.raises(CheckpointError) as caught:
        load_model_config(folder)
    assert str(folder / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("change", "is_one"),
    [
        (lambda folder: None, True),
        (lambda folder: (folder / "model.safetensors").unlink(), False),
        (lambda folder: (folder / "config.json").unlink(), False),
        (lambda folder: edit(folder / "config.json", schema=2), False),
        (lambda folder: (folder / "config.json").write_text('{"hidden_size": 3}'), False),
        (lambda folder: (folder / "config.json").write_text("{"), False),
        (lambda folder: (folder / "preprocess.json").unlink(), True),
    ],
    ids=["complete", "no weights", "no config", "later schema", "of another program", "damaged", "no preprocessing"],
)
def test_only_a_folder_of_ours_may_be_replaced(change, is_one, folder):
    change(folder)
    assert MODEL_FOLDER.is_one(folder) == is_one


def test_every_file_that_is_written_may_be_replaced(folder):
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert written <= MODEL_FOLDER.files


@pytest.mark.parametrize(
    ("config", "preprocess", "words"),
    [
        (
            {},
            {"size": (16, 8), "resize": "squash"},
            r"preprocess.size is \(16, 8\), the model takes images of \(16, 16\)",
        ),
        ({"text": {"vocab": 63}}, {}, "the tokenizer has 64 pieces, the model's token table 63 rows"),
    ],
)
def test_parts_that_do_not_fit_the_model_are_named(config, preprocess, words):
    with pytest.raises(ConfigError, match=words):
        check_parts(tiny_clip_config(**config), tiny_tokenizer(), EvalImageConfig(**{"size": (16, 16)} | preprocess))


def test_a_token_table_may_have_more_rows_than_the_tokenizer_has_pieces():
    check_parts(tiny_clip_config(text={"vocab": 65}), tiny_tokenizer(), PREPROCESS)
