"""Five training steps of every recorded run: gradients, parameters and metrics after each.

One recorded option, ``loss_use_global_batch=False`` on several devices, averages the losses of the devices' own slices.
The product does not offer it, because its result depends on the number of devices. For those runs the test takes the
gradient of that mean, with the product's ``batch_loss`` of each slice, and applies the product's optimizer to it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import goldens
from support.recorded_runs import META, METAS, NOISE, bare, load_batch, reference_optimizer
from support.reference_models import clip_config

from clipa_eqx.durations import RunLength
from clipa_eqx.losses.config import LossConfig
from clipa_eqx.optim import make_optimizer
from clipa_eqx.precision import Precision
from clipa_eqx.sharding import MeshConfig, make_mesh, shardings_for
from clipa_eqx.training.gradients import batch_loss
from clipa_eqx.training.state import abstract_state, start_state
from clipa_eqx.training.step import make_train_step
from clipa_eqx.trees import leaf_paths
from conversion.flax_clipa.names import flax_rules, from_flax, to_flax

goldens.require("train")
RUNS = [(run, devices) for devices, meta in METAS.items() for run in meta["runs"]]


@pytest.mark.parametrize(("run", "devices"), RUNS)
def test_training_equals_the_reference(run, devices):
    meta = METAS[devices]
    recorded = meta["runs"][run]
    config = clip_config(meta["model"], image_size=(meta["res"],) * 2, length=meta["text_len"])
    model = from_flax(goldens.under(goldens.load_npz("train/init_params.npz"), "params/"), config)
    optim = reference_optimizer(recorded["config"], config)
    optimizer = make_optimizer(optim, model, RunLength(total_steps=recorded["config"]["total_steps"]))
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
            loss_config=LossConfig(algorithm="sharded" if recorded["config"]["local_loss"] else "global"),
        )
        for row in recorded["metrics"]:
            step = row["step"]
            batch = load_batch(step, mesh)
            (_, out), grads = grad(state.model, batch)
            if is_slices:
                updates, opt_state = jax.jit(optimizer.update)(grads, state.opt_state, state.model)
                model = optax.apply_updates(state.model, updates)
                state = type(state)(model=model, opt_state=opt_state, step=state.step + 1)
                metrics = {**out, "grad_norm": optax.tree.norm(grads)}
            else:
                state, metrics = product_step(state, batch)
            check_metrics(metrics, row, config=recorded["config"], devices=devices)
            check_leaves(run, devices, step, grads, state.model, recorded["config"])
    assert int(state.step) == len(recorded["metrics"])


@functools.cache  # several runs share a loss, and compiling it takes longer than their steps
def reference_gradient(mesh, *, is_local, is_whole):
    """The gradient of the loss of the whole batch or, on several devices, of the mean over the devices' slices."""
    loss_config = LossConfig(algorithm="sharded" if is_local else "global")

    def whole(model, batch):
        out = batch_loss(
            model, batch["image"], batch["tokens"], key=None, precision=Precision(), mesh=mesh, loss_config=loss_config
        )
        return out.loss, out

    def slices(model, batch):
        split = [x.reshape(mesh.size, -1, *x.shape[1:]) for x in (batch["image"], batch["tokens"])]
        losses = jax.vmap(lambda i, t: batch_loss(model, i, t, key=None, precision=Precision()).loss)(*split)
        return jnp.mean(losses), {"loss": jnp.mean(losses)}

    return jax.jit(jax.value_and_grad(whole if is_whole or mesh.size == 1 else slices, has_aux=True))


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


FILES = set(goldens.names("train/*.npz"))


def test_every_recorded_parameter_is_one_of_ours():
    config = clip_config(META["model"], image_size=(META["res"],) * 2, length=META["text_len"])
    model = from_flax(goldens.under(goldens.load_npz("train/init_params.npz"), "params/"), config)
    assert set(to_flax(model)) == {bare(n) for n in goldens.load_npz("train/init_params.npz")}
    assert len(leaf_paths(model)) == len(flax_rules(config))
