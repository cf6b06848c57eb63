"""Guards how positions, sizes and numerics of an open_clip model follow from files and flags, and contradictions."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.leaves import assert_same_leaves
from support.open_clip_folders import (
    VOCAB,
    WEIGHTS,
    convert,
    edit_config,
    edit_weights,
    save,
    set_in,
)
from support.random_models import random_model
from support.tiny_models import tiny_clip_config

from clipa_eqx.cli import run
from clipa_eqx.saved.model import load_model
from clipa_eqx.tokenizer.vocabulary import write_vocab
from conversion.open_clip.__main__ import main

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_positions_off_our_formula_are_loaded_as_learned(theirs, tmp_path, caplog):
    table = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    edit_weights(theirs, lambda t: t.update({"visual.positional_embedding": table}))
    with caplog.at_level("INFO"):
        loaded = convert(theirs, tmp_path / "back")
    assert loaded.model.config.image.position == "learned"
    np.testing.assert_array_equal(loaded.model.image.position, table)
    assert "visual.positional_embedding is up to" in caplog.text
    assert any("off sincos2d with denominator q-1" in note for note in loaded.provenance.config_notes)


def test_positions_that_contradict_a_named_config_are_an_error_unless_a_flag_decides(model, theirs, tmp_path, capsys):
    table = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    edit_weights(theirs, lambda t: t.update({"visual.positional_embedding": table}))
    named = save(tmp_path / "model", model) / "config.json"
    argv = ["import", str(theirs), str(tmp_path / "back"), "--config", str(named)]
    assert run(lambda: main(argv)) == 2
    err = capsys.readouterr().err
    assert "image.position: learned from the file (visual.positional_embedding is up to" in err
    assert f"sincos2d in {named}; --image-position overrides it" in err
    main([*argv, "--image-position", "learned"])
    np.testing.assert_array_equal(load_model(tmp_path / "back").model.image.position, table)


def test_an_impossible_image_size_is_an_error_and_no_table_is_made_for_it(theirs, tmp_path, capsys):
    source = shutil.copy(theirs / WEIGHTS, tmp_path / "weights.safetensors")
    write_vocab(VOCAB, tmp_path / "vocab.txt")
    argv = [
        "import",
        str(source),
        str(tmp_path / "back"),
        *BARE,
        str(tmp_path / "vocab.txt"),
        "--image-size",
        "99999992",
    ]
    assert run(lambda: main(argv)) == 2
    assert "the longest supported side has 4096 pixels" in capsys.readouterr().err


def test_computed_positions_are_dropped_and_can_be_kept(exported, tmp_path):
    dropped = convert(exported, tmp_path / "dropped")
    assert dropped.model.image.position is None
    kept = convert(exported, tmp_path / "kept", "--image-position", "learned")
    np.testing.assert_array_equal(
        kept.model.image.position, load_file(exported / WEIGHTS)["visual.positional_embedding"]
    )


def test_a_file_alone_needs_flags_for_what_shapes_leave_open(model, theirs, tmp_path, capsys):
    shutil.copy(theirs / WEIGHTS, tmp_path / "weights.safetensors")
    source = tmp_path / "weights.safetensors"
    assert run(lambda: main(["import", str(source), str(tmp_path / "back")])) == 2
    err = capsys.readouterr().err
    for flag in ("--image-heads", "--text-heads", "--image-pool", "--text-pool"):
        assert flag in err
    write_vocab(VOCAB, tmp_path / "vocab.txt")
    flags = "--image-heads 2 --text-heads 2 --image-pool gap --text-pool last --profile flax --vocab".split()  # noqa: SIM905
    loaded = convert(source, tmp_path / "back", *flags, tmp_path / "vocab.txt")
    assert_same_leaves(loaded.model, model)
    assert loaded.model.config.image.blocks.gelu == "tanh"
    assert loaded.provenance.vocabulary.origin == "--vocab vocab.txt"


BARE = ("--image-heads", "2", "--text-heads", "2", "--image-pool", "gap", "--text-pool", "last", "--vocab")


def test_our_export_records_its_numerics_in_the_weight_file(theirs, tmp_path, caplog, capsys):
    write_vocab(VOCAB, tmp_path / "vocab.txt")
    source = shutil.copy(theirs / WEIGHTS, tmp_path / "weights.safetensors")
    loaded = convert(source, tmp_path / "back", *BARE, tmp_path / "vocab.txt")
    profile = loaded.provenance.profile
    assert (profile["name"], profile["why"]) == ("flax", "the metadata of weights.safetensors")
    assert loaded.model.config.text.blocks.norm_eps == 1e-6
    with caplog.at_level("INFO"):
        convert(source, tmp_path / "other", *BARE, tmp_path / "vocab.txt", "--profile", "open_clip")
    assert "the profile is flax by the metadata of weights.safetensors; open_clip because --profile" in caplog.text
    # A file that torch wrote records none.
    tensors = load_file(theirs / WEIGHTS)
    save_file(tensors, source)
    loaded = convert(source, tmp_path / "plain", *BARE, tmp_path / "vocab.txt")
    assert loaded.provenance.profile["name"] == "open_clip"
    save_file(tensors, source, metadata={"clipa_eqx_numerics": '{"image": {"norm_eps": 0, "gelu": "tanh"}}'})
    argv = ["import", str(source), str(tmp_path / "bad"), *BARE, str(tmp_path / "vocab.txt")]
    assert run(lambda: main(argv)) == 2
    assert "metadata clipa_eqx_numerics" in capsys.readouterr().err


def test_two_different_custom_numerics_are_a_contradiction(theirs, tmp_path, capsys):
    for tower in ("vision_cfg", "text_cfg"):
        edit_config(theirs, set_in("model_cfg", tower, norm_kwargs={"eps": 1e-3}))
    named = (
        save(tmp_path / "named", random_model(tiny_clip_config(blocks={"depth": 1, "norm_eps": 1e-4}))) / "config.json"
    )
    argv = ["import", str(theirs), str(tmp_path / "back"), "--config", str(named)]
    assert run(lambda: main(argv)) == 2
    err = capsys.readouterr().err
    assert "'norm_eps': 0.001" in err
    assert "'norm_eps': 0.0001" in err
    assert "choose one with --profile" in err
