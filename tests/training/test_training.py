"""The training loop: traced once, logged as documented, stopped by non-finite numbers, started from other weights."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from support import tiny_runs
from support.leaves import assert_bit_equal
from support.tiny_models import tiny_clip_config

from clipa_eqx.errors import CheckpointError, ConfigError, NonFiniteError
from clipa_eqx.models.clip import CLIP, abstract_clip
from clipa_eqx.precision import Precision
from clipa_eqx.saved.model import load_model
from clipa_eqx.sharding import MeshConfig, make_mesh
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.training import step as step_module
from clipa_eqx.training.checkpoint import Checkpoints
from clipa_eqx.training.gradients import batch_gradients, batch_loss
from clipa_eqx.training.inputs import open_sources, train_batches
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.start import first_state
from clipa_eqx.training.step import make_train_step, step_key
from clipa_eqx.trees import leaves_by_path

pytestmark = pytest.mark.usefixtures("quick_compile")


def config_of_run(**fields):
    return tiny_runs.run_config(model=tiny_clip_config(**tiny_runs.STOCHASTIC), log_every_steps=5, **fields)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its folder, what ``train`` returned, and how often the loss was traced."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    tiny_runs.forget_compiled()
    with mock.patch.object(step_module, "batch_gradients", side_effect=batch_gradients) as traced:
        result = tiny_runs.train_on_one_device(config_of_run(), workdir)
    return workdir, result, traced.call_count


def start_of(config):
    """The state of step 0 on one device."""
    optimizer, abstract = tiny_runs.optimizer_and_state(config)
    mesh = make_mesh(MeshConfig(), devices=tiny_runs.one_device())
    vocab = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab).vocab_sha256
    with jax.set_mesh(mesh):
        return first_state(config, optimizer, abstract=abstract, mesh=mesh, vocab_sha256=vocab)


def test_the_step_is_traced_once_in_a_run(finished):
    assert finished[2] == 1


def test_steps_1_and_2_each_fifth_and_the_last_are_logged(finished):
    workdir, result, _ = finished
    lines = read_metrics(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 5, 10, 12]
    assert (result.steps, result.metrics) == (12, lines[-1])


def test_a_line_holds_what_the_reference_logs_and_norms_per_tower_and_block(finished):
    lines = read_metrics(finished[0] / "metrics.jsonl")
    norms = {
        f"{name}{part}"
        for name in ("grad_norm", "param_norm", "update_norm")
        for part in ("", "/image", "/text", "/image/blocks", "/text/blocks")
    }
    rates = {"images_per_second", "images_per_second_per_device", "seconds_per_step", "input_bound_percent", "time"}
    rates.add("host_seconds_per_step")
    state = {"step", "loss", "accuracy", "temperature", "image_norm", "text_norm", "lr", "truncated_fraction"}
    state.add("unknown_fraction")
    for line in lines:
        assert set(line) == norms | rates | state | {"examples_seen", "epoch"}
        assert line["examples_seen"] == 16 * line["step"]
        assert line["epoch"] == 16 * line["step"] / tiny_runs.RECORDS
        assert line["images_per_second_per_device"] == line["images_per_second"]  # of one device
        assert 0 <= line["input_bound_percent"] <= 100
        assert 0 <= line["host_seconds_per_step"] <= line["seconds_per_step"]
        assert all(len(line[name]) == 2 for name in norms if name.endswith("blocks"))
        for name in ("grad_norm", "param_norm", "update_norm"):
            towers = np.square([line[f"{name}/image"], line[f"{name}/text"]])
            assert line[name] >= np.sqrt(sum(towers)) * (1 - 1e-6)
            assert line[f"{name}/image"] >= np.linalg.norm(line[f"{name}/image/blocks"]) * (1 - 1e-6)
    assert [round(line["lr"], 9) for line in lines[:2]] == [0.0, 0.0005]  # warm-up of 2 steps
    assert lines[0]["update_norm"] == 0.0 < lines[1]["update_norm"]


def test_the_first_line_equals_a_recomputation(finished):
    config, line = config_of_run(), read_metrics(finished[0] / "metrics.jsonl")[0]
    source = open_sources(config)
    with train_batches(config, source, load_tokenizer(config.data.vocab, model_vocab=64), start_step=0) as batches:
        rows = {
            name: jnp.asarray(value)
            for name, value in next(batches).items()
            if name in ("image", "tokens", "truncated", "pieces", "unknown")
        }
    model = start_of(config).model

    @jax.jit
    def value_and_grad(model):
        def loss(m):
            out = batch_loss(m, rows["image"], rows["tokens"], key=step_key(0, 0), precision=Precision())
            return out.loss, out

        return jax.value_and_grad(loss, has_aux=True)(model)

    (loss, out), grads = value_and_grad(model)
    expected = {
        "loss": loss,
        "accuracy": out.accuracy,
        "temperature": 1 / 0.07,
        "image_norm": out.image_norm,
        "text_norm": out.text_norm,
        "truncated_fraction": rows["truncated"].mean(),
        "unknown_fraction": rows["unknown"].sum() / rows["pieces"].sum(),
        "grad_norm": optax.tree.norm(grads),
        "grad_norm/image": optax.tree.norm(grads.image),
        "grad_norm/text/blocks": [
            optax.tree.norm(jax.tree.map(lambda x, i=i: x[i], grads.text.blocks)) for i in range(2)
        ],
        "param_norm": optax.tree.norm(model),  # the first update is zero
    }
    for name, value in expected.items():
        np.testing.assert_allclose(line[name], value, rtol=1e-5, err_msg=name)


def test_training_ends_with_a_model_of_the_last_checkpoint(finished):
    workdir, result, _ = finished
    loaded = load_model(result.model_folder)
    with Checkpoints(workdir / "checkpoints", keep=3) as checkpoints:
        last = checkpoints.restore_model(abstract_clip(loaded.model.config), make_mesh(MeshConfig()), step=12)
    assert_bit_equal(loaded.model, last)
    assert loaded.provenance.steps == 12
    assert loaded.tokenizer.tokenizer.vocab_size == tiny_runs.VOCAB


def poisoned(at):
    """A compiler of steps before which, at step ``at``, weights become NaN."""

    def compile_poisoned(*args):
        step = tiny_runs.compile_once(*args)

        def run(state, batch):
            if int(state.step) == at - 1:
                state = dataclasses.replace(state, model=jax.tree.map(lambda x: x * jnp.nan, state.model))
            return step(state, batch)

        return run

    return compile_poisoned


@pytest.mark.parametrize(
    ("at", "good"),
    [
        (1, "there is no checkpoint yet"),
        (6, "checkpoint 4 was written by this run, after a step with finite loss"),
        (8, "checkpoint 4 was written by this run, after a step with finite loss"),
    ],
)
def test_a_non_finite_step_ends_the_run_with_step_samples_and_last_good_checkpoint(finished, tmp_path, at, good):
    with pytest.raises(NonFiniteError) as caught:
        tiny_runs.train_on_one_device(config_of_run(), tmp_path / "a run", compiler=poisoned(at))
    message = str(caught.value)
    assert message.startswith(f"step {at} gave loss=nan")
    assert f"samples {16 * (at - 1)} to {16 * at - 1} (records " in message
    assert good in message
    # Advice that works: flags to paste, and weights to start from only if there are any.
    flags = ["--optim.peak-lr below 0.001", "--optim.clip-norm 1", "--optim.max-temperature 100"]
    assert [flag for flag in flags if flag not in message] == []
    start = f"start a new --workdir with --init-from '{tmp_path / 'a run'}' (the optimizer"
    assert (start in message) == ("--init-from" in message) == (at > 4)
    saved = sorted(int(path.name) for path in (tmp_path / "a run" / "checkpoints").iterdir())
    assert saved == [step for step in (4,) if step < at]
    assert max((line["step"] for line in read_metrics(tmp_path / "a run" / "metrics.jsonl")), default=0) < at
    assert not (tmp_path / "a run" / "model").exists()


def test_the_first_text_positions_stay_where_they_are_on_request(finished):
    init = InitConfig(source=str(finished[1].model_folder), resize_text=True, text_rows="first")
    config = dataclasses.replace(config_of_run(init=init), model=tiny_clip_config(text={"length": 16}))
    before, after = load_model(finished[1].model_folder).model.text.position, start_of(config).model.text.position
    np.testing.assert_array_equal(after[:8], before)
    np.testing.assert_array_equal(after[8:], np.tile(before[7], (8, 1)))
    with pytest.raises(ConfigError, match=r'init.text_rows "first" has no effect without init.resize_text'):
        InitConfig(source="x", text_rows="first")


@pytest.mark.parametrize("kind", ["run", "model folder"])
def test_weights_come_from_a_run_or_a_model_folder_with_texts_resized_and_the_optimizer_fresh(finished, kind):
    source = finished[0] if kind == "run" else finished[1].model_folder
    model = tiny_clip_config(text={"length": 16})
    config = config_of_run(init=InitConfig(source=str(source), resize_text=True), seed=3)
    config = dataclasses.replace(config, model=model)
    state = start_of(config)
    before = load_model(finished[1].model_folder).model
    after = leaves_by_path(state.model)
    assert after.keys() == leaves_by_path(before).keys()
    for path, b in leaves_by_path(before).items():
        a = np.asarray(after[path])
        if path == "text/position":
            assert (a.shape, b.shape) == ((16, 32), (8, 32))
            np.testing.assert_allclose(a[1:-1].mean(axis=0), b.mean(axis=0), atol=np.abs(b).max() / 4)
        else:
            np.testing.assert_array_equal(a, b, err_msg=path)
    fresh = start_of(dataclasses.replace(config, init=None))
    assert_bit_equal(state.opt_state, fresh.opt_state)
    assert int(state.step) == 0


def test_texts_are_not_resized_unless_asked_for(finished):
    config = config_of_run(init=InitConfig(source=str(finished[0])))
    config = dataclasses.replace(config, model=tiny_clip_config(text={"length": 16}))
    with pytest.raises(CheckpointError, match=r"text/position: \(8, 32\) found, \(16, 32\) wanted \(resize_text"):
        start_of(config)


def test_a_run_starts_from_anothers_weights_and_counts_its_own_steps(finished, tmp_path):
    config = config_of_run(init=InitConfig(source=str(finished[0])))
    result = tiny_runs.train_on_one_device(config, tmp_path / "second")
    first = read_metrics(tmp_path / "second" / "metrics.jsonl")[0]
    last = read_metrics(finished[0] / "metrics.jsonl")[-1]
    assert (result.steps, first["step"], first["lr"]) == (12, 1, 0.0)
    np.testing.assert_allclose(first["param_norm"], last["param_norm"], rtol=1e-6)


@pytest.mark.parametrize("source", ["nowhere", "unfinished"])
def test_a_source_without_weights_is_refused(tmp_path, finished, source):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.json").write_text((finished[0] / "config.json").read_text())
    with pytest.raises(
        CheckpointError, match=rf"init\.source:? .*{source} (does not exist; expected|has no committed checkpoint)"
    ):
        start_of(config_of_run(init=InitConfig(source=str(tmp_path / source))))


def test_bfloat16_is_for_the_towers_only():
    config = config_of_run(precision=Precision(compute="bfloat16"))
    optimizer, abstract = tiny_runs.optimizer_and_state(config)
    towers = jax.eval_shape(config.precision.for_towers, abstract.model)
    image = jax.ShapeDtypeStruct((*tiny_runs.SIZE, 3), jnp.bfloat16)
    tokens = jax.ShapeDtypeStruct((tiny_runs.LENGTH,), jnp.int32)
    for key in (None, jax.eval_shape(lambda: jr.key(0))):
        assert jax.eval_shape(lambda m, x, k: m.image(x, key=k), towers, image, key).dtype == jnp.bfloat16
        assert (
            jax.eval_shape(lambda m, x, k: m.text(x, key=k, dtype="bfloat16"), towers, tokens, key).dtype
            == jnp.bfloat16
        )
    mesh = make_mesh(MeshConfig(), devices=tiny_runs.one_device())
    step = make_train_step(optimizer, abstract=abstract, mesh=mesh, seed=0, precision=config.precision)
    batch = {
        "image": jax.ShapeDtypeStruct((16, *tiny_runs.SIZE, 3), np.uint8),
        "tokens": jax.ShapeDtypeStruct((16, tiny_runs.LENGTH), np.int32),
    }
    with jax.set_mesh(mesh):
        state, metrics = jax.eval_shape(step, abstract, batch)
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, abstract)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.model)} == {jnp.dtype(jnp.float32)}
    assert {value.dtype for value in metrics.values()} == {jnp.dtype(jnp.float32)}


def test_the_bfloat16_loss_is_close_to_the_float32_loss():
    model = CLIP.init(tiny_clip_config(), key=jr.key(0))
    images = jr.randint(jr.key(1), (16, *tiny_runs.SIZE, 3), 0, 256).astype(np.uint8)
    tokens = jr.randint(jr.key(2), (16, tiny_runs.LENGTH), 0, tiny_runs.VOCAB)

    @functools.partial(jax.jit, static_argnums=0)
    def loss(precision):
        return batch_loss(model, images, tokens, key=None, precision=precision).loss

    low, full = loss(Precision(compute="bfloat16")), loss(Precision())
    assert low != full
    np.testing.assert_allclose(low, full, rtol=2e-2)  # 8 bits of mantissa, logits of size 1 / 0.07
