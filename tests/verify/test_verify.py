"""``python -m conversion.verify``: a complete folder passes, every kind of damage is reported, the model is named."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from support.random_models import random_model
from support.tiny_models import tiny_clip_config
from support.tiny_runs import folder as tiny_folder

from clipa_eqx.cli import run
from clipa_eqx.commands import command_line
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.models.presets import preset
from clipa_eqx.saved.model import save_model
from clipa_eqx.saved.optimizer_file import Counts, write_optimizer_state
from clipa_eqx.saved.provenance import TRAINED_HERE
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from clipa_eqx.trees import count_params
from conversion.compare.__main__ import main as compare
from conversion.flax_clipa.__main__ import main as flax
from conversion.flax_clipa.names import to_flax
from conversion.open_clip.__main__ import main as open_clip
from conversion.verify.__main__ import main
from conversion.verify.identity import identity
from conversion.weights.released import RELEASED

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A model folder as an importer writes it."""
    root = tmp_path_factory.mktemp("verify")
    np.savez(root / "model.npz", **to_flax(random_model(tiny_clip_config())))
    flags = ["--image-pool", "gap", "--text-pool", "last", "--image-position", "sincos2d", "--image-size", "16"]
    flax(["import", str(root / "model.npz"), str(root / "model"), *flags, "--vocab", str(tiny_folder() / "vocab.txt")])
    return root / "model"


@pytest.fixture
def copy(imported, tmp_path):
    return shutil.copytree(imported, tmp_path / "model")


def test_an_imported_model_passes_and_the_command_that_scores_it_is_printed(imported, capsys):
    main([str(imported)])
    out = capsys.readouterr().out
    count = count_params(random_model(tiny_clip_config()))
    leaves = len(jax.tree.leaves(random_model(tiny_clip_config())))
    assert f"{count:,} parameters in {leaves} leaves, all finite; {leaves} of {leaves} leaves have the recorded" in out
    assert "embeddings of fixed inputs: norm 1; as at the import" in out
    assert "source: model.npz, sha256 " in out
    assert "numerics profile: flax" in out
    command = out.splitlines()[-1]
    assert command.startswith(f"{command_line('evaluate', imported)} --suite zero-shot ")
    assert "--templates clip_paper" in command


@pytest.mark.parametrize("provenance", [{}, {"source": {"name": TRAINED_HERE}}, {"by": "me"}])
def test_a_model_that_was_saved_here_has_checksums_but_no_recorded_embeddings(provenance, tmp_path, capsys):
    folder = save_model(
        tmp_path / "model",
        random_model(tiny_clip_config()),
        tokenizer=Tokenizer.from_file(tiny_folder() / "vocab.txt"),
        preprocess=EvalImageConfig(size=(16, 16)),
        provenance=provenance,
    )
    main([str(folder)])
    out = capsys.readouterr().out
    leaves = len(jax.tree.leaves(random_model(tiny_clip_config())))
    assert f"{leaves} of {leaves} leaves have the recorded sha256" in out
    assert "none are recorded to compare with" in out
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1000] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert re.search(r"sha256 of \S+ is not the recorded one", refused(folder, capsys))
    edit(folder / "provenance.json", lambda found: found.pop("leaves_sha256"))
    main([str(folder)])  # as version 0.1.0 wrote it
    assert "no checksums are recorded" in capsys.readouterr().out


def refused(folder, capsys):
    assert run(lambda: main([str(folder)])) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {folder}")
    return err


def test_a_flipped_bit_is_found(copy, capsys):
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1000] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert re.search(r"sha256 of \S+ is not the recorded one", refused(copy, capsys))


def test_values_that_are_not_finite_are_found(copy, capsys):
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-4:] = np.array([np.nan], "<f4").tobytes()
    (copy / "model.safetensors").write_bytes(data)
    assert "not finite: " in refused(copy, capsys)


def test_other_weights_under_the_same_names_are_found(copy, tmp_path, capsys):
    other = save_model(
        tmp_path / "other",
        random_model(tiny_clip_config(), seed=3),
        tokenizer=Tokenizer.from_file(tiny_folder() / "vocab.txt"),
        preprocess=EvalImageConfig(size=(16, 16)),
        provenance={},
    )
    shutil.copy(other / "model.safetensors", copy / "model.safetensors")
    assert "sha256 of image/patch/weight is not the recorded one" in refused(copy, capsys)
    edit(copy / "provenance.json", lambda found: found.pop("leaves_sha256"))
    assert "no checksum is recorded for" in refused(copy, capsys)
    edit(copy / "provenance.json", lambda found: found.update(leaves_sha256={}))
    assert "no checksum is recorded for" in refused(copy, capsys)
    edit(copy / "provenance.json", lambda found: found.update(converter=1))
    edit(copy / "provenance.json", lambda found: found.pop("leaves_sha256"))
    assert "no checksum is recorded for" in refused(copy, capsys)
    # For weights that no importer wrote, only the embeddings show the difference.
    edit(copy / "provenance.json", lambda found: found.pop("converter"))
    assert "embeddings of fixed inputs differ from those recorded" in refused(copy, capsys)


@pytest.mark.parametrize(
    "values", [None, {}, {"embeddings": {"image": [1]}}, {"embeddings": {"image": {"first_values": ["x"]}}}]
)
def test_an_imported_folder_without_recorded_embeddings_is_incomplete(values, copy, capsys):
    edit(copy / "provenance.json", lambda found: found.update(self_check=values))
    assert "no embeddings to compare with are recorded; the import writes them" in refused(copy, capsys)


def test_a_config_of_another_model_is_found(copy, capsys):
    config = json.loads((copy / "config.json").read_text())
    config["model"]["image"]["embed"] = config["model"]["text"]["embed"] = 8
    (copy / "config.json").write_text(json.dumps(config))
    err = refused(copy, capsys)
    assert "shape: image/head/weight is (16, 32), expected (8, 32)" in err
    assert "text/head/weight" in err


def edit(file, change):
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))


def test_numerics_that_differ_from_those_of_the_import_are_found(copy, capsys):
    # The embeddings of a small model stay within the tolerance.
    edit(copy / "config.json", lambda found: found["model"]["text"]["blocks"].update(gelu="exact", norm_eps=1e-5))
    assert "the text tower's numerics are {'norm_eps': 1e-05, 'gelu': 'exact'} in config.json" in refused(copy, capsys)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": [0.5, 0.5, 0.5]}, "has another mean or std"),
        ({"resize": "stretch"}, "got 'stretch'"),
        ({"size": [24, 24]}, "preprocess.size is (24, 24)"),
    ],
)
def test_an_image_preparation_that_is_not_supported_is_found(changes, words, copy, capsys):
    edit(copy / "preprocess.json", lambda found: found.update(changes))
    assert words in refused(copy, capsys)


def test_checksums_are_recorded_for_all_leaves_or_for_none(copy, capsys):
    def drop(found):
        del found["leaves_sha256"]["log_temperature"]
        found["leaves_sha256"]["image/nothing"] = "0" * 64

    edit(copy / "provenance.json", drop)
    err = refused(copy, capsys)
    assert "no checksum is recorded for log_temperature of model.safetensors" in err
    assert "a checksum is recorded for image/nothing of model.safetensors, which is not there" in err
    edit(copy / "provenance.json", lambda found: found.update(leaves_sha256=[1]))
    assert "the recorded checksums are list" in refused(copy, capsys)


def test_a_vocabulary_that_differs_from_that_of_the_import_is_found(copy, capsys):
    recorded = json.loads((copy / "provenance.json").read_text())["vocabulary"]
    assert recorded["sha256"] == Tokenizer.load(copy / "tokenizer").vocab_sha256
    assert recorded["origin"] == "--vocab vocab.txt"
    edit(copy / "provenance.json", lambda found: found["vocabulary"].update(sha256="0" * 64))
    assert "the vocabulary differs from that of the import" in refused(copy, capsys)


def test_a_missing_optimizer_state_is_reported(copy, capsys):
    provenance = json.loads((copy / "provenance.json").read_text())
    provenance["leaves_sha256"]["optimizer.safetensors/updates"] = "0" * 64
    (copy / "provenance.json").write_text(json.dumps(provenance))
    assert "optimizer.safetensors is missing" in refused(copy, capsys)


@pytest.mark.parametrize("name", ["optimizer.safetensors", "optimiser.safetensors"])
def test_an_optimizer_state_is_checked_under_its_former_name_too(name, copy, capsys):
    checksums = write_optimizer_state(
        copy / name, {}, [], counts=Counts(3, 3, {}), mu_dtype=np.dtype(np.float32), frozen=[]
    )
    recorded = {f"{name}/{leaf}": one for leaf, one in checksums.items()}
    edit(copy / "provenance.json", lambda found: found["leaves_sha256"].update(recorded))
    main([str(copy)])
    assert "optimizer state: 2 leaves, 2 with the recorded sha256" in capsys.readouterr().out
    recorded[f"{name}/updates"] = "0" * 64
    edit(copy / "provenance.json", lambda found: found["leaves_sha256"].update(recorded))
    assert "sha256 of updates is not the recorded one" in refused(copy, capsys)


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    words = f"{tmp_path} is a folder that clipa_eqx did not write; expected a model folder"
    assert words in refused(tmp_path, capsys)


def test_a_released_architecture_is_recognized(tmp_path):
    # The complete model would be large, and its identity depends on the config alone.
    config = preset("H/14", image_size=84, length=8)
    lines = identity(tmp_path, config)
    assert "preset: H/14 at 84 px with 8 tokens" in lines
    named = [line.split()[4].rstrip(",") for line in lines if line.startswith("has the sizes of")]
    assert named == ["h14-84px-t8-laion2b", "h14-84px-t8-datacomp1b"]
    assert "--text-reduction syntax" in lines[-1]
    assert identity(tmp_path, tiny_clip_config())[1] == "preset: none"


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("l14-224px-t32-datacomp1b", "--templates clip_paper --out"),
        ("l14-224px-t32-datacomp1b-open-clip", "--templates open_clip --no-canonicalize --out"),
    ],
)
def test_the_command_has_the_prompts_of_the_published_score(name, flags, tmp_path):
    assert flags in identity(tmp_path, RELEASED[name].config())[-1]


def test_towers_with_different_numerics_have_no_profile(tmp_path):
    # The towers have equal epsilons and different GELUs.
    config = tiny_clip_config()
    image = dataclasses.replace(config.image, blocks=dataclasses.replace(config.image.blocks, gelu="exact"))
    config = dataclasses.replace(config, image=image)
    assert config.image.blocks.norm_eps == config.text.blocks.norm_eps
    lines = identity(tmp_path, config)
    assert "numerics profile: custom" in lines


def test_for_a_run_folder_its_model_is_named(tmp_path, capsys):
    """By each command that takes a model folder: verify, export, import, compare."""
    work = tmp_path / "run"
    (work / "checkpoints").mkdir(parents=True)
    record = {"version": 1, "config": {}, "data_sha256": "0", "vocab_sha256": "0"}
    (work / "config.json").write_text(json.dumps(record))
    words = f"{work} is a run folder; its model is {work / 'model'}, written when the run ends"
    assert words in refused(work, capsys)
    for command in ("export", "import"):
        assert run(lambda command=command: open_clip([command, str(work), str(tmp_path / "new")])) == 2
        assert words in capsys.readouterr().err
    assert run(lambda: compare([str(work), str(work)])) == 2
    assert words in capsys.readouterr().err
