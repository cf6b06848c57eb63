"""The training step of a tiny model as a jaxpr and as a compiled program."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clipa_eqx.models.clip import CLIP, abstract_clip
from clipa_eqx.sharding import MeshConfig, make_mesh
from clipa_eqx.training.state import TrainState
from clipa_eqx.training.step import make_train_step
from support.tiny_models import tiny_clip_config


class StepValues(NamedTuple):
    """Variables of the step's jaxpr."""

    parameters: list[Any]
    moments: list[Any]
    metrics: list[Any]


def step_of(config, precision, *, batch, mesh):
    """The step of AdamW, and its abstract arguments."""
    optimizer = optax.adamw(1e-3)

    def first(model: CLIP) -> TrainState:
        return TrainState(model=model, opt_state=optimizer.init(model), step=jnp.zeros((), jnp.int32))

    state = jax.eval_shape(first, abstract_clip(config))
    step = make_train_step(optimizer, abstract=state, mesh=mesh, seed=0, precision=precision)
    images = jax.ShapeDtypeStruct((batch, *config.image.image_size, 3), np.uint8)
    tokens = jax.ShapeDtypeStruct((batch, config.text.length), np.int32)
    return step, (state, {"image": images, "tokens": tokens})


def step_jaxpr(config, precision, *, batch):
    """The jaxpr of the step, the variables of the updated parameters, and other variables by name."""
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    step, arguments = step_of(config, precision, batch=batch, mesh=mesh)
    with jax.set_mesh(mesh):
        traced = jax.make_jaxpr(step)(*arguments)
        state, metrics = jax.eval_shape(step, *arguments)
    count, after = len(jax.tree.leaves(arguments[0].model)), jax.tree.leaves(state)
    moments = len(jax.tree.leaves(arguments[0].opt_state))
    inputs, outputs = traced.jaxpr.invars, traced.jaxpr.outvars
    assert len(outputs) == len(after) + len(jax.tree.leaves(metrics))
    named = StepValues(inputs[:count], inputs[count : count + moments], outputs[len(after) :])
    return traced.jaxpr, outputs[:count], named


def compiled_text(precision, data, fsdp, *, devices=None):
    """The step of a small model, batch 64, compiled for a mesh."""
    config = tiny_clip_config(blocks={"remat": "full"})
    chosen = (jax.devices() if devices is None else devices)[: data * fsdp]
    mesh = make_mesh(MeshConfig(data=data, fsdp=fsdp), devices=chosen)
    step, arguments = step_of(config, precision, batch=64, mesh=mesh)
    with jax.set_mesh(mesh):
        return step.lower(*arguments).compile().as_text()


def reductions_of(text):
    """Lines of a compiled program that reduce gradients over devices."""
    lines = [line for line in text.splitlines() if re.search(r" (all-reduce|reduce-scatter)(-start)?\(", line)]
    return [line for line in lines if "transpose(" in line]


def compiled_reductions(precision, data, fsdp):
    return reductions_of(compiled_text(precision, data, fsdp))
