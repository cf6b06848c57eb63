"""Recorded checkpoints through the converter: outputs, byte-equal export, and resumed runs of the reference."""

import dataclasses
import functools
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import goldens
from support.recorded_runs import METAS, NOISE, bare, load_batch, reference_optimizer
from support.recorded_runs import load_model as load_facts
from support.reference_models import clip_config
from support.tiny_models import tiny_run

from clipa_eqx.durations import Duration, RunLength
from clipa_eqx.json_config import to_json
from clipa_eqx.losses.config import LossConfig
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.models.device_pixels import normalize_on_device
from clipa_eqx.optim import make_optimizer
from clipa_eqx.precision import Precision
from clipa_eqx.saved.model import load_model
from clipa_eqx.saved.optimizer_file import open_optimizer_state
from clipa_eqx.sharding import MeshConfig, make_mesh
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.tokenizer.vocabulary import SPECIAL, write_vocab
from clipa_eqx.training.start import first_state
from clipa_eqx.training.state import abstract_state
from clipa_eqx.training.step import make_train_step
from conversion.flax_clipa.__main__ import main
from conversion.flax_clipa.names import to_flax

pytestmark = pytest.mark.usefixtures("quick_compile")

goldens.require("models")
goldens.require("facts")
goldens.require("checkpoints")
goldens.require("train")
MODELS = goldens.load_json("models/index.json")
FORWARDS = goldens.names("facts/forward_*.npz")
CHECKPOINTS = goldens.names("checkpoints/*.npz")


def convert(source, folder, config, *flags):
    """Import by the command line, with a config file and a vocabulary that is small enough."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    described, vocab = folder.parent / "config.json", folder.parent / "vocab.txt"
    described.write_text(json.dumps(to_json(config)))
    write_vocab(SPECIAL, vocab)
    main(["import", str(source), str(folder), "--config", str(described), "--vocab", str(vocab), *flags])
    return load_model(folder)


@pytest.mark.parametrize("case", MODELS)
def test_recorded_models_give_their_outputs_and_come_back_byte_by_byte(case, tmp_path):
    io = goldens.load_npz(f"models/{case}/io.npz")
    config = clip_config(MODELS[case]["model"], image_size=io["image"].shape[1:3], length=io["text"].shape[1])
    source = goldens.path(f"models/{case}/params.npz")
    model = convert(source, tmp_path / "model", config).model
    for name, encode, inputs in (("zimg", model.encode_image, "image"), ("ztxt", model.encode_text, "text")):
        np.testing.assert_allclose(jax.jit(jax.vmap(encode))(jnp.asarray(io[inputs])), io[name], rtol=0, atol=1e-5)
    main(["export", str(tmp_path / "model"), str(tmp_path / "back.npz")])
    assert_same_arrays(tmp_path / "back.npz", source)


@pytest.mark.parametrize("file", FORWARDS)
def test_recorded_forwards_come_from_the_converted_subtree(file, tmp_path):
    config, recorded = load_facts(file, "params/")[1].config, goldens.load_npz(file)
    model = convert(f"{goldens.path(file)}:params", tmp_path / "model", config).model
    image = normalize_on_device(jnp.asarray(recorded["in_image_uint8"]))
    for name, encode, inputs in (
        ("out_zimg", model.encode_image, image),
        ("out_ztxt", model.encode_text, jnp.asarray(recorded["in_tokens"])),
    ):
        np.testing.assert_allclose(jax.jit(jax.vmap(encode))(inputs), recorded[name], rtol=0, atol=1e-5)


def assert_same_arrays(file, source):
    with np.load(file) as ours, np.load(source) as theirs:
        assert ours.files == theirs.files
        for name in ours.files:
            a, b = ours[name], theirs[name]
            assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes()), name


@functools.cache
def run_of(checkpoint):
    """Name, recorded run and model config of a checkpoint, from its file name."""
    run = checkpoint.removeprefix("checkpoints/").rsplit("_step", 1)[0]
    meta = METAS[1]
    return run, meta["runs"][run], clip_config(meta["model"], image_size=(meta["res"],) * 2, length=meta["text_len"])


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_training_checkpoints_come_back_byte_by_byte(checkpoint, tmp_path):
    source = goldens.path(checkpoint)
    convert(source, tmp_path / "model", run_of(checkpoint)[2])
    main(["export", str(tmp_path / "model"), str(tmp_path / "back.npz")])
    with zipfile.ZipFile(tmp_path / "back.npz") as ours, zipfile.ZipFile(source) as theirs:
        assert ours.namelist() == theirs.namelist()
        assert all(ours.read(name) == theirs.read(name) for name in ours.namelist())


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_run_of_the_reference_goes_on_to_its_recorded_parameters(checkpoint, tmp_path):
    name, recorded, model_config = run_of(checkpoint)
    convert(goldens.path(checkpoint), tmp_path / "model", model_config)
    with open_optimizer_state(tmp_path / "model") as stored:
        start = stored.counts.schedule_steps
    optim = reference_optimizer(recorded["config"], model_config)
    total = recorded["config"]["total_steps"]
    config = tiny_run(
        model=model_config,
        optim=optim,
        duration=Duration(steps=total),
        init=InitConfig(source=str(tmp_path / "model"), optimizer=True),
        data=dataclasses.replace(
            tiny_run().data, image=dataclasses.replace(tiny_run().data.image, size=model_config.image.image_size)
        ),
        eval_image=dataclasses.replace(tiny_run().eval_image, size=model_config.image.image_size),
    )
    optimizer = make_optimizer(optim, abstract_clip(model_config), RunLength(total_steps=total))
    abstract = abstract_state(model_config, optimizer)
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        vocab = load_model(tmp_path / "model").tokenizer.tokenizer.vocab_sha256
        state = first_state(config, optimizer, abstract=abstract, mesh=mesh, vocab_sha256=vocab)
        assert int(state.step) == start > 0
        step_fn = make_train_step(
            optimizer,
            abstract=abstract,
            mesh=mesh,
            seed=0,
            precision=Precision(),
            loss_config=LossConfig(algorithm="sharded" if recorded["config"]["local_loss"] else "global"),
        )
        compared = 0
        for row in (row for row in recorded["metrics"] if row["step"] > start):
            state, metrics = step_fn(state, load_batch(row["step"], mesh))
            np.testing.assert_allclose(metrics["loss"], row["training_loss"], rtol=1e-4)
            compared += compare(name, row["step"], state.model, recorded["config"])
    assert compared


def compare(run, step, model, config):
    """Parameters after a step with those recorded, at the tolerances of the golden README; how many there were."""
    wanted = goldens.under(goldens.load_npz(f"train/{run}_1dev.npz"), f"step{step}/params/")
    close = 1e-4 if config["optax"]["mu_dtype"] == "bfloat16" else 1e-5
    ours = to_flax(model) if wanted else {}
    for name, value in wanted.items():
        atol = 5 * config["lr"] if name.endswith(NOISE) else close
        np.testing.assert_allclose(ours[bare(name)], value, rtol=0, atol=atol, err_msg=name)
    return len(wanted)
