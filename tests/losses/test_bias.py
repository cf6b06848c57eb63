"""The bias of the sigmoid loss: a leaf of the model that is trained, saved, converted and adopted like the others."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.open_clip_folders import CONFIG, convert, edit_config, edit_weights, save, set_in
from support.random_models import random_model
from support.tiny_models import tiny_clip, tiny_clip_config, tiny_run

from clipa_eqx.durations import RunLength
from clipa_eqx.errors import CheckpointError, ConfigError, ConversionError
from clipa_eqx.flops import step_flops
from clipa_eqx.losses.config import LossConfig
from clipa_eqx.losses.contrastive import contrastive_loss
from clipa_eqx.models.clip import CLIP, abstract_clip
from clipa_eqx.optim import DEFAULT_DECAY, T5X_DECAY, OptimConfig, make_optimizer
from clipa_eqx.precision import Precision
from clipa_eqx.saved.model import load_model
from clipa_eqx.sharding import MeshConfig, describe_shardings, make_mesh, shardings_for
from clipa_eqx.surgery import adopt
from clipa_eqx.training.state import abstract_state, start_state
from clipa_eqx.training.step import make_train_step
from clipa_eqx.trees import count_params, leaf_paths, match_by_path
from conversion.flax_clipa.exporting import export_flax
from conversion.open_clip.__main__ import main

BIASED = tiny_clip_config(blocks={"depth": 1}, temperature=10.0, bias=-10.0)
PLAIN = dataclasses.replace(BIASED, bias=None)


@pytest.fixture(scope="module")
def model():
    return random_model(BIASED)


def test_the_bias_is_one_more_leaf_that_no_rule_decays_or_splits(model):
    fresh = tiny_clip(blocks={"depth": 1}, temperature=10.0, bias=-10.0)
    plain = tiny_clip(blocks={"depth": 1}, temperature=10.0)
    assert (float(fresh.bias), fresh.bias.dtype) == (-10.0, jnp.float32)
    assert set(leaf_paths(fresh)) - set(leaf_paths(plain)) == {"bias"}
    assert count_params(fresh) == count_params(plain) + 1
    for rules in (DEFAULT_DECAY, T5X_DECAY):
        assert match_by_path(rules, fresh, what="decay", unused="allow")["bias"] == 0.0
    mesh = make_mesh(MeshConfig(fsdp=8))
    assert describe_shardings(fresh, mesh)["bias"] == jax.sharding.PartitionSpec()


@pytest.mark.parametrize(
    ("kind", "bias", "message"),
    [("sigmoid", None, "has no bias; set model.bias"), ("softmax", -1.0, "has a bias, which a softmax cannot learn")],
)
def test_a_loss_and_a_model_that_do_not_fit_are_refused(kind, bias, message):
    with pytest.raises(ConfigError, match=message):
        tiny_run(model=tiny_clip_config(bias=bias), loss=LossConfig(kind=kind))
    rows, given = jnp.eye(2), None if bias is None else jnp.asarray(bias)
    with pytest.raises(ConfigError, match=message):
        contrastive_loss(rows, rows, log_temperature=jnp.zeros(()), bias=given, config=LossConfig(kind=kind))


@pytest.mark.parametrize("bias", [float("nan"), float("inf")])
def test_a_bias_that_is_not_finite_is_refused(bias):
    with pytest.raises(ConfigError, match=r"CLIPConfig\.bias is"):
        tiny_clip_config(bias=bias)


def test_a_chunk_without_columns_is_refused():
    with pytest.raises(ConfigError, match=r"loss.chunk is 0; it must be at least 1"):
        LossConfig(chunk=0)


@pytest.mark.slow
def test_a_step_of_the_ring_trains_the_bias_and_reports_it():
    optimizer = make_optimizer(OptimConfig(peak_lr=1e-3), abstract_clip(BIASED), RunLength(total_steps=10))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), devices=jax.devices()[:4])
    abstract = abstract_state(BIASED, optimizer)
    found = {}
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 16, 16, 3), np.uint8),
        "tokens": rng.integers(5, 64, (8, 8)).astype(np.int32),
    }
    with jax.set_mesh(mesh):
        for algorithm in ("global", "ring"):
            step = make_train_step(
                optimizer,
                abstract=abstract,
                mesh=mesh,
                seed=0,
                precision=Precision(),
                loss_config=LossConfig(kind="sigmoid", algorithm=algorithm),
            )
            model = CLIP.init(BIASED, key=jax.random.key(0))
            state = jax.device_put(start_state(model, optimizer), shardings_for(abstract, mesh))
            state, metrics = step(state, batch)
            assert float(metrics["bias"]) == -10.0
            assert abs(float(state.model.bias) + 10.0) > 1e-5
            found[algorithm] = jax.device_get(metrics)
    for name, value in found["global"].items():
        np.testing.assert_allclose(found["ring"][name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_sigmoid_multiplies_images_by_texts_once_the_softmax_twice():
    assert 2 * step_flops(BIASED, batch_size=8).loss == step_flops(PLAIN, batch_size=8).loss


def test_a_model_folder_and_open_clip_keep_the_bias(model, tmp_path):
    save(tmp_path / "model", model)
    saved = load_model(tmp_path / "model").model
    assert (float(saved.bias), saved.config.bias) == (float(model.bias), -10.0)
    main(["export", str(tmp_path / "model"), str(tmp_path / "theirs")])
    assert json.loads((tmp_path / "theirs" / CONFIG).read_text())["model_cfg"]["init_logit_bias"] == -10.0
    back = convert(tmp_path / "theirs", tmp_path / "back").model
    assert (float(back.bias), back.config.bias) == (float(model.bias), -10.0)
    # A file with a bias of shape (1,), whose config has no initial value.
    edit_config(tmp_path / "theirs", set_in("model_cfg", init_logit_bias=None))
    edit_weights(
        tmp_path / "theirs",
        lambda weights: weights.update({name: weights[name].reshape(1) for name in ("logit_scale", "logit_bias")}),
    )
    back = convert(tmp_path / "theirs", tmp_path / "again").model
    assert (float(back.bias), back.config.bias) == (float(model.bias), -10.0)


def test_the_checkpoints_of_the_reference_have_no_place_for_a_bias(model, tmp_path):
    save(tmp_path / "model", model)
    with pytest.raises(ConversionError, match=r"has a bias of the logits.*export it with conversion\.open_clip"):
        export_flax(tmp_path / "model", tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_a_sigmoid_run_starts_from_a_softmax_model_if_asked_to():
    plain, fresh = random_model(PLAIN), tiny_clip(blocks={"depth": 1}, temperature=10.0, bias=-10.0)
    with pytest.raises(CheckpointError, match=r"bias \(\): missing \(keep_initial starts it at model.bias"):
        adopt(plain, BIASED, fresh=fresh)
    model, report = adopt(plain, BIASED, fresh=fresh, keep_initial=("bias", "log_temperature"))
    assert (float(model.bias), float(model.log_temperature)) == (-10.0, float(fresh.log_temperature))
    np.testing.assert_array_equal(model.image.head.weight, plain.image.head.weight)
    assert "bias: kept as initialized" in str(report)
    with pytest.raises(CheckpointError, match=r"bias \(\): present, not wanted"):
        adopt(model, PLAIN, fresh=plain)
