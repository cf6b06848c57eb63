"""Exports are loaded by the programs that they are for: onnxruntime and open_clip. Needs `onnx` or `open-clip`."""

import json
import os
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from support.open_clip_folders import save, tiny_model
from support.paths import ROOT
from support.random_models import random_model
from support.tiny_models import tiny_clip_config

from clipa_eqx.models.device_pixels import normalize_on_device
from conversion.export.__main__ import main

PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
pytestmark = [
    pytest.mark.slow,
    # The packages emit deprecation warnings of their own.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
MODELS = {
    "mean pooling": {},
    "attention pooling": {"image": {"pool": "map"}, "text": {"pool": "gap"}},
    "exact GELU, learned positions": {"blocks": {"gelu": "exact"}, "image": {"position": "learned", "pool": "tok"}},
    "not square": {"image": {"image_size": (16, 24)}, "text": {"pool": "tok"}},
}


def page_commands(*formats):
    """The commands of the page that export to one of the formats."""
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
    return [shlex.split(line) for line in lines if any(f"--to {name}" in line for name in formats)]


def inputs(config, count):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, *config.image.image_size, 3), dtype=np.uint8)
    return images, rng.integers(0, config.text.vocab, (count, config.text.length)).astype(np.int32)


def our_features(model, images, tokens):
    image = jax.jit(jax.vmap(lambda one: model.encode_image(normalize_on_device(one))))(images)
    return np.asarray(image), np.asarray(jax.jit(jax.vmap(model.encode_text))(tokens))


def test_the_page_has_a_command_for_each_format():
    assert [len(page_commands(name)) for name in ("stablehlo", "onnx", "open-clip", "huggingface")] == [2, 1, 1, 1]


@pytest.mark.parametrize("command", page_commands("stablehlo", "open-clip", "huggingface"), ids=" ".join)
def test_the_commands_of_the_page_run(command, tmp_path):
    for name in ("models/l14", "runs/mine/model"):
        save(tmp_path / name, tiny_model())
    (tmp_path / "runs/mine/metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (tmp_path / "runs/mine/config.json").write_text('{"data_sha256": ""}')
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, str(ROOT / command[1]), *command[2:]]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / command[3] / ("open_clip_config.json" if "open" in command[-1] else "README.md")).is_file()


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_jax_gives_our_embeddings_at_any_batch_size(changes, tmp_path):
    model = random_model(tiny_clip_config(**changes))
    main([str(save(tmp_path / "model", model)), str(tmp_path / "programs"), "--to", "stablehlo"])
    images, tokens = inputs(model.config, 7)
    for name, batch, ours in zip(("image", "text"), (images, tokens), our_features(model, images, tokens), strict=True):
        program = export.deserialize(bytearray((tmp_path / "programs" / f"{name}.stablehlo").read_bytes()))
        with np.load(tmp_path / "programs" / f"{name}.npz") as file:
            weights = dict(file)
        for rows in (1, 2, 7):
            np.testing.assert_allclose(program.call(weights, batch[:rows]), ours[:rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_onnxruntime_gives_our_embeddings_at_any_batch_size(changes, tmp_path):
    reason = "not installed: see docs/export.md"
    pytest.importorskip("jax2onnx", reason=reason)
    onnxruntime = pytest.importorskip("onnxruntime", reason=reason)
    model = random_model(tiny_clip_config(**changes))
    main([str(save(tmp_path / "model", model)), str(tmp_path / "onnx"), "--to", "onnx"])
    about = json.loads((tmp_path / "onnx" / "model.json").read_text())
    images, tokens = inputs(model.config, 7)
    for name, batch, ours in zip(("image", "text"), (images, tokens), our_features(model, images, tokens), strict=True):
        session = onnxruntime.InferenceSession(tmp_path / "onnx" / f"{name}.onnx")
        assert session.get_inputs()[0].shape == ["batch", *batch.shape[1:]]
        assert about["towers"][name]["largest_difference"] <= 1e-5
        for rows in (1, 2, 7):
            (found,) = session.run(["embeddings"], {session.get_inputs()[0].name: batch[:rows]})
            np.testing.assert_allclose(found, ours[:rows], rtol=0, atol=1e-5)
    [code] = re.findall(r"```python\n(.*?)```", (tmp_path / "onnx" / "README.md").read_text(), flags=re.S)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "onnx", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(2, 3)"


def test_open_clip_loads_the_repository_and_gives_our_embeddings(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    reason = "not installed: pip install -e '.[open-clip]'"
    torch = pytest.importorskip("torch", reason=reason)
    open_clip = pytest.importorskip("open_clip", reason=reason)
    model = random_model(tiny_clip_config())
    main([str(save(tmp_path / "model", model)), str(tmp_path / "hub"), "--to", "huggingface", "--license", "mit"])
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'hub'}")
    images, tokens = inputs(model.config, 3)
    pixels = np.array(normalize_on_device(jnp.asarray(images))).transpose(0, 3, 1, 2)
    with torch.no_grad():
        image = theirs.eval().encode_image(torch.from_numpy(pixels.copy()), normalize=True)
        text = theirs.encode_text(torch.from_numpy(tokens.astype(np.int64)), normalize=True)
    for found, ours in zip((image, text), our_features(model, images, tokens), strict=True):
        np.testing.assert_allclose(found.numpy(), ours, rtol=0, atol=2e-5)
    assert float(theirs.logit_scale.exp()) == pytest.approx(float(np.exp(model.log_temperature)), rel=1e-5)
