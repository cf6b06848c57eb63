"""Five training steps of every recorded run: gradients, parameters and metrics after each."""

import functools
import re

import goldens
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference_models import clip_config

from clipa_eqx.durations import Duration
from clipa_eqx.losses import softmax_contrastive
from clipa_eqx.models.pixels import normalise_pixels
from clipa_eqx.optim import OptimConfig, make_optimizer
from clipa_eqx.precision import Precision
from clipa_eqx.schedules import Cosine, Polynomial
from clipa_eqx.sharding import MeshConfig, make_mesh, put_global_batch, shardings_for
from clipa_eqx.training.state import abstract_state, start_state
from clipa_eqx.training.step import batch_loss, make_train_step
from clipa_eqx.trees import leaf_paths
from conversion.flax_clipa.names import flax_rules, from_flax, to_flax

goldens.require("train")
METAS = {int(re.findall(r"\d+", name)[0]): goldens.load_json(name) for name in goldens.names("train/meta_*dev.json")}
META = METAS[min(METAS)]
RUNS = [(run, devices) for devices, meta in METAS.items() for run in meta["runs"]]
# Attention key biases have no gradient in exact arithmetic: Adam turns rounding noise into steps of up to lr each.
NOISE = "key/bias"


@pytest.mark.parametrize(("run", "devices"), RUNS)
def test_training_equals_the_reference(run, devices):
    meta = METAS[devices]
    recorded = meta["runs"][run]
    config = clip_config(meta["model"], image_size=(meta["res"],) * 2, length=meta["text_len"])
    model = from_flax(goldens.under(goldens.load_npz("train/init_params.npz"), "params/"), config)
    optim = reference_optimiser(recorded["config"], config)
    optimizer = make_optimizer(optim, model, total_steps=recorded["config"]["total_steps"])
    mesh = make_mesh(MeshConfig(data=devices), devices=jax.devices()[:devices])
    abstract = abstract_state(config, optimizer)
    is_slices = not recorded["config"]["loss_use_global_batch"] and devices > 1
    with jax.set_mesh(mesh):
        state = jax.device_put(start_state(model, optimizer), shardings_for(abstract, mesh))
        grad = reference_gradient(
            mesh, is_local=recorded["config"]["local_loss"], is_whole=recorded["config"]["loss_use_global_batch"]
        )
        product_step = make_train_step(
            optimizer,
            abstract=abstract,
            mesh=mesh,
            seed=0,
            precision=Precision(),
            kind="sharded" if recorded["config"]["local_loss"] else "global",
        )
        for row in recorded["metrics"]:
            step = row["step"]
            batch = load_batch(step, mesh)
            (_, out), grads = grad(state.model, batch)
            if is_slices:  # the reference's option without gathering is no product behaviour: the test steps by itself
                updates, opt_state = jax.jit(optimizer.update)(grads, state.opt_state, state.model)
                model = optax.apply_updates(state.model, updates)
                state = type(state)(model=model, opt_state=opt_state, step=state.step + 1)
                metrics = {"loss": out.loss, "grad_norm": optax.tree.norm(grads)}
            else:
                state, metrics = product_step(state, batch)
            check_metrics(metrics, row, config=recorded["config"], devices=devices)
            check_leaves(run, devices, step, grads, state.model, recorded["config"])
    assert int(state.step) == len(recorded["metrics"])


def load_batch(step, mesh):
    batches = goldens.load_npz("train/batches.npz")
    return put_global_batch({"image": batches[f"image_{step}"], "tokens": batches[f"labels_{step}"]}, mesh)


@functools.cache  # several runs share a loss, and compiling it takes longer than their steps
def reference_gradient(mesh, *, is_local, is_whole):
    """The reference's loss of the whole batch or, on several devices, the mean over the devices' slices."""
    kind = "sharded" if is_local else "global"

    def whole(model, batch):
        out = batch_loss(model, batch["image"], batch["tokens"], key=None, precision=Precision(), mesh=mesh, kind=kind)
        return out.loss, out

    def slices(model, batch):
        z_image = jax.vmap(model.encode_image)(normalise_pixels(batch["image"]))
        z_text = jax.vmap(model.encode_text)(batch["tokens"])
        split = [z.reshape(mesh.size, -1, z.shape[1]) for z in (z_image, z_text)]
        outs = jax.vmap(lambda i, t: softmax_contrastive(i, t, log_temperature=model.log_temperature))(*split)
        loss = jnp.mean(outs.loss)
        return loss, outs._replace(loss=loss)

    return jax.jit(jax.value_and_grad(whole if is_whole or mesh.size == 1 else slices, has_aux=True))


def reference_optimiser(config, model_config):
    """The reference's patterns over its own names, as one rule for each of our leaves."""
    names = {rule.path: rule.name.format(i=0) for rule in flax_rules(model_config)}

    def first(patterns, name, default):
        return next((value for pattern, value in patterns if re.fullmatch(pattern, name)), default)

    def rules(patterns, default=None):
        return tuple((re.escape(path), first(patterns, name, default)) for path, name in names.items())

    schedules = [(pattern, as_schedule(entry)) for pattern, entry in config["schedule"]]
    return OptimConfig(
        peak_lr=config["lr"],
        weight_decay=config["wd"],
        decay=rules(config.get("wd_mults", [[".*/kernel$", 1.0]]), 0.0),
        lr_factors=rules(config.get("lr_mults", [[".*", 1.0]])),
        schedules=rules(schedules),
        b1=config["optax"]["b1"],
        b2=config["optax"]["b2"],
        mu_dtype=config["optax"]["mu_dtype"],
        clip_norm=config.get("grad_clip_norm"),
    )


def as_schedule(entry):
    if entry is None:
        return None
    warmup = Duration(steps=entry["warmup_steps"])
    if entry["decay_type"] == "linear":
        return Polynomial(warmup=warmup)
    assert entry["decay_type"] == "cosine"
    return Cosine(warmup=warmup, min_ratio=entry["min_lr"] / entry["max_lr"] if entry["min_lr"] else 0.0)


def check_metrics(metrics, row, *, config, devices):
    """Ours against the recorded row; the reference counts correct rows on its first device only in local mode."""
    ours = {
        "training_loss": "loss",
        "t": "temperature",
        "nimg": "image_norm",
        "ntxt": "text_norm",
        "l2_grads": "grad_norm",
        "l2_params": "param_norm",
        "l2_updates": "update_norm",
    }
    is_live = not any(schedule is None for _, schedule in config["schedule"])
    for theirs, name in ours.items():
        if name not in metrics or (name == "grad_norm" and not is_live):
            continue
        np.testing.assert_allclose(metrics[name], row[theirs], rtol=1e-4, atol=1e-7, err_msg=theirs)
    if "accuracy" in metrics and not (config["local_loss"] and devices > 1):
        np.testing.assert_allclose(metrics["accuracy"], row["ncorrect"], rtol=1e-6)


def check_leaves(run, devices, step, grads, model, config):
    recorded = goldens.load_npz(f"train/{run}_{devices}dev.npz") if f"train/{run}_{devices}dev.npz" in FILES else {}
    for name, value in goldens.under(recorded, f"step{step}/grads/").items():
        atol = 1e-4 * np.abs(value).max() + 2e-6
        np.testing.assert_allclose(to_flax(grads)[bare(name)], value, rtol=0, atol=atol, err_msg=name)
    close = 1e-4 if config["optax"]["mu_dtype"] == "bfloat16" else 1e-5
    ours = to_flax(model) if any(name.startswith(f"step{step}/params/") for name in recorded) else {}
    for name, value in goldens.under(recorded, f"step{step}/params/").items():
        atol = 5 * config["lr"] if name.endswith(NOISE) else close
        np.testing.assert_allclose(ours[bare(name)], value, rtol=0, atol=atol, err_msg=name)


def bare(name):
    return name.removeprefix("params/")


FILES = set(goldens.names("train/*.npz"))


def test_every_recorded_parameter_is_one_of_ours():
    config = clip_config(META["model"], image_size=(META["res"],) * 2, length=META["text_len"])
    model = from_flax(goldens.under(goldens.load_npz("train/init_params.npz"), "params/"), config)
    assert set(to_flax(model)) == {bare(n) for n in goldens.load_npz("train/init_params.npz")}
    assert len(leaf_paths(model)) == len(flax_rules(config))
