"""Recorded checkpoints of the t5x branch through the converter: leaves, optimiser state, outputs, loss."""

import dataclasses
import functools
import json
import tarfile

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_dtypes import bfloat16
from reference_models import clip_config
from test_golden_train import NOISE
from tiny_runs import tiny_run

from clipa_eqx.artefact import load_model
from clipa_eqx.durations import Duration
from clipa_eqx.experiment import InitConfig
from clipa_eqx.json_config import to_json
from clipa_eqx.losses import softmax_contrastive
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.optim import DEFAULT_DECAY, OptimConfig, make_optimizer
from clipa_eqx.optimiser_file import open_optimiser_state
from clipa_eqx.pixels import normalise_pixels
from clipa_eqx.schedules import Cosine
from clipa_eqx.sharding import MeshConfig, make_mesh
from clipa_eqx.tokenizer.vocabulary import SPECIAL, write_vocab
from clipa_eqx.training.start import first_state
from clipa_eqx.training.state import abstract_state
from conversion.flax_clipa import main as flax
from conversion.flax_names import flax_rules, to_flax
from conversion.flax_shapes import FlaxLayout
from conversion.rules import export_leaves
from conversion.t5x import DECAY_NOTE, main
from conversion.t5x_files import T5xFolder

pytestmark = pytest.mark.usefixtures("quick_compile")

goldens.require("t5x")
META = goldens.load_json("t5x/meta.json")
ARCHIVES = goldens.names("t5x/checkpoint_*.tar.gz")
TARGET, STATE = "optimizer/target/", "optimizer/state/param_states/0/"


def config():
    model = META["config"]["model"]
    return clip_config(model, image_size=(META["res"],) * 2, length=META["text_len"])


def unpacked(archive, folder):
    with tarfile.open(goldens.path(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.split("/")[-1].removesuffix(".tar.gz")


def values(archive):
    return goldens.load_npz(archive.removesuffix(".tar.gz") + "_values.npz")


@pytest.fixture(scope="module")
def convert(tmp_path_factory):
    """From the name of an archive to the checkpoint's folder and the model folder made of it."""

    @functools.cache
    def converted(archive):
        root = tmp_path_factory.mktemp("t5x")
        source = unpacked(archive, root)
        (root / "config.json").write_text(json.dumps(to_json(config())))
        write_vocab(SPECIAL, root / "vocab.txt")
        flags = ["--config", str(root / "config.json"), "--vocab", str(root / "vocab.txt")]
        main(["import", str(source), str(root / "model"), *flags])
        return source, root / "model"

    return converted


def archive_of(file):
    """The checkpoint that a recorded call was made with."""
    return f"t5x/checkpoint_{file.split('_')[-1].removesuffix('.npz')}.tar.gz"


@pytest.mark.parametrize("archive", ARCHIVES)
def test_every_stored_array_is_read_exactly(archive, convert):
    source, _ = convert(archive)
    recorded = {name: array for name, array in values(archive).items() if name.startswith("optimizer/")}
    with T5xFolder(source) as folder:
        arrays = {name: folder.read(name) for name in folder.tensors}
    recorded = {name: array for name, array in recorded.items() if not name.endswith(" (empty dict)")}
    assert arrays.keys() == recorded.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array.astype(recorded[name].dtype), recorded[name], err_msg=name)
        assert [list(array.shape), str(array.dtype)] == META["leaves_as_stored"][archive_step(archive)][name]


def archive_step(archive):
    return archive.split("_")[-1].removesuffix(".tar.gz")


@pytest.mark.parametrize("archive", ARCHIVES)
def test_the_leaves_are_the_recorded_parameters(archive, convert):
    _, folder = convert(archive)
    recorded = goldens.under(values(archive), TARGET)
    ours = export_leaves(flax_rules(config(), FlaxLayout("flat", (1,))), load_model(folder).model)
    assert ours.keys() == recorded.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, recorded[name], err_msg=name)


@pytest.mark.parametrize("archive", ARCHIVES)
def test_the_optimiser_state_is_the_recorded_one(archive, convert):
    _, folder = convert(archive)
    recorded = values(archive)
    rules = {rule.path: rule for rule in flax_rules(config(), FlaxLayout("flat", (1,)))}
    step = int(recorded["optimizer/state/step"])
    with open_optimiser_state(folder) as state:
        assert state.counts.updates == int(recorded[STATE + "count"])
        assert state.counts.schedule_steps == int(recorded["optimizer/state/param_states/2/count"])
        assert state.counts.about["step"] == step == int(archive_step(archive))
        assert state.mu_dtype == "bfloat16"
        assert set(state.paths) == set(rules)
        for path, rule in rules.items():
            for kind in ("mu", "nu"):
                layers = range(state.file.leaves[f"{kind}/{path}"].shape[0]) if rule.is_stacked else [None]
                for layer in layers:
                    theirs = recorded[f"{STATE}{kind}/{rule.name.format(i=layer)}"]
                    ours = rule.to_theirs(state.read(kind, path, layer).astype(np.float32))
                    np.testing.assert_array_equal(ours, theirs, err_msg=path)


@pytest.mark.parametrize("file", goldens.names("t5x/forward_checkpoint_*.npz"))
def test_the_model_gives_the_recorded_embeddings(file, convert):
    _, folder = convert(archive_of(file))
    recorded, model = goldens.load_npz(file), load_model(folder).model
    for encode, inputs, name in ((model.encode_image, "image", "zimg"), (model.encode_text, "text", "ztxt")):
        np.testing.assert_allclose(
            jax.jit(jax.vmap(encode))(jnp.asarray(recorded[inputs])), recorded[name], rtol=0, atol=1e-5
        )
    np.testing.assert_allclose(np.exp(model.log_temperature), recorded["t"][0], rtol=1e-6)


@pytest.mark.parametrize("file", goldens.names("t5x/train_call_checkpoint_*.npz"))
def test_the_model_gives_the_recorded_training_loss(file, convert):
    _, folder = convert(archive_of(file))
    recorded, model = goldens.load_npz(file), load_model(folder).model
    image = jax.jit(jax.vmap(model.encode_image))(normalise_pixels(jnp.asarray(recorded["image_uint8"])))
    text = jax.jit(jax.vmap(model.encode_text))(jnp.asarray(recorded["text"]))
    np.testing.assert_allclose(image, recorded["zimg"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(text, recorded["ztxt"], rtol=0, atol=1e-5)
    found = softmax_contrastive(image, text, log_temperature=model.log_temperature)
    np.testing.assert_allclose(found.loss, recorded["loss"], rtol=1e-5)


@pytest.mark.parametrize("archive", ARCHIVES)
def test_a_converted_checkpoint_goes_out_in_the_official_layout(archive, convert, tmp_path):
    _, folder = convert(archive)
    flax(["export", str(folder), str(tmp_path / "out.npz")])
    with np.load(tmp_path / "out.npz") as archive:
        ours = to_flax(load_model(folder).model)
        assert {name for name in archive.files if name.startswith("params/")} == {f"params/{name}" for name in ours}
        for name, array in ours.items():
            np.testing.assert_array_equal(archive[f"params/{name}"], array)


def t5x_optimiser():
    """AdamW of that trainer, as its log says to go on with it."""
    extra = (r"image/class_token|text/token/weight", 1.0)
    assert f'("{extra[0]}", 1.0)' in DECAY_NOTE
    recorded, warmup = META["config"], META["config"]["schedule"][0][1]["warmup_steps"]
    return OptimConfig(
        peak_lr=recorded["lr"],
        weight_decay=recorded["wd"],
        decay=(extra, *DEFAULT_DECAY),
        schedules=((".*", Cosine(warmup=Duration(steps=warmup))),),
        b1=recorded["optax"]["b1"],
        b2=recorded["optax"]["b2"],
        mu_dtype=recorded["optax"]["mu_dtype"],
    )


@pytest.mark.parametrize("archive", ARCHIVES)
def test_a_run_of_the_t5x_trainer_goes_on_with_its_optimiser(archive, convert):
    _, folder = convert(archive)
    model_config, optim, start = config(), t5x_optimiser(), int(archive_step(archive))
    total = start + 7
    run = tiny_run(
        model=model_config,
        optim=optim,
        duration=Duration(steps=total),
        init=InitConfig(source=str(folder), optimiser=True),
        data=dataclasses.replace(
            tiny_run().data, image=dataclasses.replace(tiny_run().data.image, size=model_config.image.image_size)
        ),
        eval_image=dataclasses.replace(tiny_run().eval_image, size=model_config.image.image_size),
    )
    optimizer = make_optimizer(optim, abstract_clip(model_config), total_steps=total)
    abstract, mesh = abstract_state(model_config, optimizer), make_mesh(MeshConfig(), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        vocab = load_model(folder).tokenizer.tokenizer.vocab_sha256
        state = first_state(run, optimizer, abstract=abstract, mesh=mesh, vocab_sha256=vocab)
        assert int(state.step) == start
    batch = goldens.load_npz("t5x/batches.npz")
    gradient = gradients(load_model(folder).model, batch["image_1"], batch["labels_1"])
    updates, _ = jax.jit(optimizer.update)(gradient, state.opt_state, state.model)
    expected = next_parameters(values(archive), official(gradient), optim, total=total)
    for name, array in official(optax.apply_updates(state.model, updates)).items():
        if not name.endswith(NOISE):
            np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-6, err_msg=name)


def gradients(model, image, tokens):
    def loss(model):
        pixels = normalise_pixels(jnp.asarray(image))
        towers = jax.vmap(model.encode_image)(pixels), jax.vmap(model.encode_text)(jnp.asarray(tokens))
        return softmax_contrastive(*towers, log_temperature=model.log_temperature).loss

    return jax.jit(jax.grad(loss))(model)


def official(tree):
    return export_leaves(flax_rules(config(), FlaxLayout("flat", (1,))), tree)


def next_parameters(recorded, gradient, optim, *, total):
    """A step of AdamW in numpy from the recorded state, with what that trainer decays (facts 6.2)."""
    start, adam = int(recorded["optimizer/state/step"]), int(recorded[STATE + "count"]) + 1
    warmup = META["config"]["schedule"][0][1]["warmup_steps"]
    rate = optim.peak_lr * 0.5 * (1 + np.cos(np.pi * (start - warmup) / (total - warmup)))
    found = {}
    for name, p in goldens.under(recorded, TARGET).items():
        g, mu, nu = gradient[name], recorded[f"{STATE}mu/{name}"], recorded[f"{STATE}nu/{name}"]
        # Old moment and factor are bfloat16, their product and the sum float32: so it is compiled (see OptimConfig).
        mu = (1 - optim.b1) * g + np.float32(bfloat16(optim.b1)) * mu
        nu = (1 - optim.b2) * g**2 + optim.b2 * nu
        direction = mu / (1 - optim.b1**adam) / (np.sqrt(nu / (1 - optim.b2**adam)) + optim.eps)
        is_decayed = name != "t" and not name.endswith(("/bias", "/scale")) and "pos_embedding" not in name
        found[name] = p - rate * (direction + optim.weight_decay * is_decayed * p)
    return found
