"""Recorded checkpoints of the t5x branch through the converter: leaves, optimizer state, outputs, loss."""

import dataclasses
import functools
import json
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import goldens
from support.reference_models import clip_config
from support.tiny_models import tiny_clip_config, tiny_run

from clipa_eqx.durations import Duration, RunLength
from clipa_eqx.json_config import to_json
from clipa_eqx.losses.softmax import softmax_contrastive
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.models.device_pixels import normalize_on_device
from clipa_eqx.optim import T5X_DECAY, OptimConfig, make_optimizer
from clipa_eqx.precision import Precision
from clipa_eqx.saved.model import load_model
from clipa_eqx.saved.optimizer_file import open_optimizer_state
from clipa_eqx.schedules import Cosine
from clipa_eqx.sharding import MeshConfig, make_mesh, put_global_batch
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.tokenizer.vocabulary import SPECIAL, write_vocab
from clipa_eqx.training.start import first_state
from clipa_eqx.training.state import abstract_state
from clipa_eqx.training.step import make_train_step
from clipa_eqx.trees import match_by_path
from conversion.flax_clipa.__main__ import main as flax
from conversion.flax_clipa.names import flax_rules, to_flax
from conversion.flax_clipa.shapes import FlaxLayout
from conversion.t5x.__main__ import main
from conversion.t5x.folder import T5xFolder
from conversion.weights.rules import export_leaves

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
    folder = T5xFolder(source)
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
def test_the_optimizer_state_is_the_recorded_one(archive, convert):
    _, folder = convert(archive)
    recorded = values(archive)
    rules = {rule.path: rule for rule in flax_rules(config(), FlaxLayout("flat", (1,)))}
    step = int(recorded["optimizer/state/step"])
    with open_optimizer_state(folder) as state:
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
    image = jax.jit(jax.vmap(model.encode_image))(normalize_on_device(jnp.asarray(recorded["image_uint8"])))
    text = jax.jit(jax.vmap(model.encode_text))(jnp.asarray(recorded["text"]))
    np.testing.assert_allclose(image, recorded["zimg"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(text, recorded["ztxt"], rtol=0, atol=1e-5)
    found = softmax_contrastive(image, text, log_temperature=model.log_temperature)
    np.testing.assert_allclose(found.loss, recorded["loss"], rtol=1e-5)


def test_a_run_goes_on_to_the_recorded_end_if_it_decays_as_that_trainer_does(convert):
    first, last = min(ARCHIVES, key=archive_number), max(ARCHIVES, key=archive_number)
    assert archive_number(first) < archive_number(last)
    run, batches = META["config"], goldens.load_npz("t5x/batches.npz")
    [(pattern, schedule)] = run["schedule"]
    cosine = Cosine(warmup=Duration(steps=schedule["warmup_steps"]))
    optim = OptimConfig(
        peak_lr=run["lr"], weight_decay=run["wd"], decay=T5X_DECAY, schedules=((pattern, cosine),), **run["optax"]
    )
    _, folder = convert(first)
    size = config().image.image_size
    whole = tiny_run(
        model=config(),
        optim=optim,
        duration=Duration(steps=run["total_steps"]),
        init=InitConfig(source=str(folder), optimizer=True),
        data=dataclasses.replace(tiny_run().data, image=dataclasses.replace(tiny_run().data.image, size=size)),
        eval_image=dataclasses.replace(tiny_run().eval_image, size=size),
    )
    optimizer = make_optimizer(optim, abstract_clip(config()), RunLength(total_steps=run["total_steps"]))
    mesh, abstract = make_mesh(MeshConfig(), devices=jax.devices()[:1]), abstract_state(config(), optimizer)
    vocab = load_model(folder).tokenizer.tokenizer.vocab_sha256
    with jax.set_mesh(mesh):
        state = first_state(whole, optimizer, abstract=abstract, mesh=mesh, vocab_sha256=vocab)
        assert int(state.step) == archive_number(first)
        step = make_train_step(optimizer, abstract=abstract, mesh=mesh, seed=0, precision=Precision())
        for number in range(archive_number(first) + 1, archive_number(last) + 1):
            batch = {"image": batches[f"image_{number}"], "tokens": batches[f"labels_{number}"]}
            state, metrics = step(state, put_global_batch(batch, mesh))
            np.testing.assert_allclose(metrics["loss"], META["metrics_rows"][number - 1]["training_loss"], rtol=1e-4)
    ours = export_leaves(flax_rules(config(), FlaxLayout("flat", (1,))), state.model)
    recorded = goldens.under(values(last), TARGET)
    assert ours.keys() == recorded.keys()
    for name, value in recorded.items():
        # Key biases have no gradient: Adam makes steps of rounding noise. Seen: 2e-6.
        atol = 5 * run["lr"] if name.endswith("key/bias") else 1e-5
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=atol, err_msg=name)
    # What our default would leave out is more than that.
    table = np.abs(goldens.under(values(first), TARGET)["txt/Embed_0/embedding"]).max()
    assert run["lr"] * run["wd"] * table > 2e-5


@pytest.mark.parametrize("pool", ["gap", "map"])
def test_the_t5x_trainers_decay_is_that_of_the_reference(pool):
    one = tiny_clip_config(image={"pool": pool})
    names = {rule.path: rule.name for rule in flax_rules(one)}
    strengths = match_by_path(T5X_DECAY, abstract_clip(one), what="decay")
    for path, name in names.items():
        is_decayed = name.split("/")[-1] not in ("bias", "scale") and "pos_embedding" not in name and name != "t"
        assert strengths[path] == float(is_decayed), name


def archive_number(archive):
    return int(archive_step(archive))


@pytest.mark.parametrize("archive", ARCHIVES)
def test_a_converted_checkpoint_goes_out_in_the_official_layout(archive, convert, tmp_path):
    _, folder = convert(archive)
    flax(["export", str(folder), str(tmp_path / "out.npz")])
    with np.load(tmp_path / "out.npz") as archive:
        ours = to_flax(load_model(folder).model)
        assert {name for name in archive.files if name.startswith("params/")} == {f"params/{name}" for name in ours}
        for name, array in ours.items():
            np.testing.assert_array_equal(archive[f"params/{name}"], array)
