"""Exports for programs without this package: each is loaded again, and its embeddings are those of the model."""

import json
import os
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.open_clip_folders import VOCAB, save, tiny_model
from support.random_models import random_model
from support.tiny_models import tiny_clip_config

from clipa_eqx.cli import run
from clipa_eqx.errors import CheckpointError, ConfigError, ConversionError
from clipa_eqx.saved.model import load_model
from conversion.export import stablehlo
from conversion.export.__main__ import main

pytestmark = pytest.mark.usefixtures("quick_compile")
ALONE = """
import json, sys
from pathlib import Path
import jax, numpy as np
from jax import export

jax.config.update("jax_disable_most_optimizations", True)
folder, out = Path(sys.argv[1]), {}
for tower in ("image", "text"):
    program = export.deserialize((folder / f"{tower}.stablehlo").read_bytes())
    weights = dict(np.load(folder / f"{tower}.npz"))
    inputs = np.load(folder.parent / f"{tower}-inputs.npy")
    for rows in (1, len(inputs)):
        out[f"{tower}-{rows}"] = jax.jit(program.call)(weights, inputs[:rows])
assert not {"clipa_eqx", "conversion", "equinox"} & set(sys.modules), "more than jax and numpy was imported"
np.savez(folder.parent / "alone.npz", **out)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a tiny model."""
    return save(tmp_path_factory.mktemp("source") / "model", tiny_model())


@pytest.fixture(scope="module")
def exported(folder):
    """The StableHLO export of the tiny model."""
    main([str(folder), str(folder.parent / "programs"), "--to", "stablehlo"])
    return folder.parent / "programs"


def inputs(config, count):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *config.image.image_size, 3), dtype=np.uint8)
    return images, rng.integers(0, config.text.vocab, (count, config.text.length)).astype(np.int32)


def expected(folder, images, tokens):
    clip = load_model(folder)
    return clip.encode_images(list(images)), np.asarray(jax.jit(jax.vmap(clip.model.encode_text))(tokens))


def alone(code, *argv, cwd):
    """Run Python without the paths of this package."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, argv)],
        cwd=cwd,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_stablehlo_is_loaded_by_jax_alone_at_any_batch_size(folder, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "programs")
    images, tokens = inputs(tiny_model().config, 5)
    np.save(tmp_path / "image-inputs.npy", images)
    np.save(tmp_path / "text-inputs.npy", tokens)
    done = alone(ALONE, tmp_path / "programs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    wanted = dict(zip(("image", "text"), expected(folder, images, tokens), strict=True))
    with np.load(tmp_path / "alone.npz") as found:
        assert len(found.files) == 4
        for name in found.files:
            tower, rows = name.split("-")
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name], wanted[tower][: int(rows)], rtol=0, atol=1e-6)


def test_an_export_describes_model_images_and_texts(folder, exported):
    about = json.loads((exported / "model.json").read_text())
    clip = load_model(folder)
    assert (about["image_size"], about["text_length"], about["embed"]) == ([16, 16], 8, 16)
    assert about["temperature"] == pytest.approx(float(jnp.exp(clip.model.log_temperature)), rel=1e-6)
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    assert about["towers"]["image"]["input"] == "uint8[batch, 16, 16, 3]"
    assert about["towers"]["text"]["output"] == "float32[batch, 16]"
    with np.load(exported / "text.npz") as file:
        assert "token/weight" in file.files
        assert not [path for path in file.files if path.startswith(("image/", "text/"))]
    assert all(tower["largest_difference"] <= 1e-5 for tower in about["towers"].values())
    steps = json.loads((exported / "preprocess.json").read_text())
    assert (steps["size"], steps["resize"]) == ([16, 16], "squash")


def test_the_tokenizer_of_an_export_gives_our_ids(folder, exported):
    from tokenizers import Tokenizer

    theirs = Tokenizer.from_file(str(exported / "tokenizer" / "tokenizer.json"))
    texts = ["w1 w2", "W3, w4!", "unknown w5", " ".join(VOCAB[5:30]), ""]
    ids = [encoded.ids for encoded in theirs.encode_batch(texts)]
    np.testing.assert_array_equal(ids, load_model(folder).tokenizer(texts).ids)


def test_weights_of_bfloat16_are_half_as_large_and_near_the_model(folder, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "half")  # an export of both towers, which is replaced
    flags = ["--dtype", "bfloat16", "--tower", "text", "--overwrite"]
    main([str(folder), str(tmp_path / "half"), "--to", "stablehlo", *flags])
    assert sorted(path.name for path in (tmp_path / "half").iterdir()) == [
        *("README.md", "model.json", "preprocess.json", "text.npz", "text.stablehlo", "tokenizer")
    ]
    with np.load(tmp_path / "half" / "text.npz") as half, np.load(exported / "text.npz") as full:
        assert {name: 2 * half[name].nbytes for name in half.files} == {name: full[name].nbytes for name in full.files}
    about = json.loads((tmp_path / "half" / "model.json").read_text())
    assert 0 < about["towers"]["text"]["largest_difference"] < 0.05


def test_a_program_with_other_embeddings_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(stablehlo, "_run", lambda program, weights, tower: tower.expected + 1e-3)
    with pytest.raises(ConversionError, match=r"differ by 1\.0e-03.*nothing was written"):
        main([str(folder), str(tmp_path / "wrong"), "--to", "stablehlo", "--tower", "text"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (("--to", "open-clip", "--tower", "image"), ConfigError, "--tower is for --to stablehlo and onnx"),
        (("--to", "onnx", "--dtype", "bfloat16"), ConfigError, "--dtype is for --to stablehlo, not for onnx"),
        (("--to", "stablehlo", "--license", "mit"), ConfigError, "--license is for --to huggingface"),
        (("--to", "huggingface", "--license", "a\nb"), ConfigError, "give an identifier such as apache-2.0"),
        (("--to", "torch"), ConfigError, "invalid choice: 'torch'"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, error, message, folder, tmp_path):
    with pytest.raises(error, match=re.escape(message)):
        main([str(folder), str(tmp_path / "new"), *flags])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["stablehlo", "huggingface", "open-clip"])
def test_an_existing_folder_is_refused_and_kept(to, folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for flags in ((), ("--overwrite",)):
        with pytest.raises(CheckpointError, match="exists"):
            main([str(folder), str(tmp_path / "mine"), "--to", to, *flags])
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_an_export_of_the_same_kind_is_replaced_if_asked_for(folder, exported, tmp_path):
    target = str(tmp_path / "hub")
    main([str(folder), target, "--to", "huggingface"])
    main([str(folder), target, "--to", "huggingface", "--license", "mit", "--overwrite"])
    assert "license: mit" in (tmp_path / "hub" / "README.md").read_text()
    with pytest.raises(CheckpointError, match="is not a stablehlo export"):
        main([str(folder), target, "--to", "stablehlo", "--overwrite"])
    with pytest.raises(CheckpointError, match="is not a repository that was exported here"):
        main([str(folder), str(exported), "--to", "huggingface", "--overwrite"])
    assert "license: mit" in (tmp_path / "hub" / "README.md").read_text()


def test_a_finished_run_is_exported_by_its_model_and_another_one_is_refused(folder, tmp_path):
    running = tmp_path / "run"
    running.mkdir()
    (running / "config.json").write_text('{"data_sha256": ""}')
    with pytest.raises(CheckpointError, match="a run that has not ended"):
        main([str(running), str(tmp_path / "new"), "--to", "huggingface"])
    shutil.copytree(folder, running / "model")
    lines = [{"step": 2, "loss": 1.0, "zero_shot/icons/top1": 0.25}, {"step": 4, "zero_shot/icons/top1": 0.5}]
    (running / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    main([str(running), str(tmp_path / "new"), "--to", "huggingface"])
    assert "| zero-shot on icons | top-1 | 50.00 % | 4 |" in (tmp_path / "new" / "README.md").read_text()


def test_a_repository_is_what_open_clip_loads_with_a_card_that_says_what_is_known(folder, tmp_path, no_self_check):
    from conversion.open_clip.__main__ import main as open_clip

    main([str(folder), str(tmp_path / "unknown"), "--to", "huggingface"])
    main([str(folder), str(tmp_path / "known"), "--to", "huggingface", "--license", "apache-2.0"])
    open_clip(["export", str(folder), str(tmp_path / "open_clip")])
    for name in ("open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "vocab.txt"):
        assert (tmp_path / "known" / name).read_bytes() == (tmp_path / "open_clip" / name).read_bytes()
    unknown, known = ((tmp_path / name / "README.md").read_text() for name in ("unknown", "known"))
    assert known.startswith("---\nlibrary_name: open_clip\n")
    assert "license: apache-2.0" in known.split("---")[1]
    assert "license" not in unknown.split("---")[1]
    assert "license of the weights is not recorded" in unknown
    assert "| images | 16 x 16 pixels, patches of 8 |" in known
    assert "## Scores" not in known
    assert "filter=lfs" in (tmp_path / "known" / ".gitattributes").read_text()
    open_clip(["import", str(tmp_path / "known"), str(tmp_path / "again")])
    again, model = load_model(tmp_path / "again").model, load_model(folder).model
    np.testing.assert_array_equal(again.text.token.weight, model.text.token.weight)


def test_a_model_that_open_clip_cannot_have_is_refused(tmp_path):
    model = random_model(tiny_clip_config(blocks={"depth": 1}, image={"pool": "map"}, text={"pool": "gap"}))
    folder = save(tmp_path / "model", model)
    with pytest.raises(ConversionError, match="open_clip cannot represent this model"):
        main([str(folder), str(tmp_path / "no"), "--to", "huggingface"])
    assert not (tmp_path / "no").exists()


def test_missing_packages_are_named_with_the_command_that_installs_them(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    for to, message in (("stablehlo", "pip install flatbuffers"), ("onnx", "pip install --no-deps jax2onnx==")):
        assert run(lambda to=to: main([str(folder), str(tmp_path / "new"), "--to", to])) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_example_in_the_readme_of_an_export_runs_in_its_folder(exported, tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), flags=re.S)
    done = alone(code, cwd=exported)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 3)"
