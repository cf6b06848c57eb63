"""One training step: pixels and tokens to loss, gradients, update and metrics."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from clipa_eqx.device_memory import GIB, memory_of
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.losses.config import LossConfig
from clipa_eqx.optim import cap_temperature
from clipa_eqx.precision import Precision
from clipa_eqx.progress import LINE_EVERY, waiting
from clipa_eqx.sharding import batch_sharding, replicated, shardings_for
from clipa_eqx.training import non_finite
from clipa_eqx.training.gradients import batch_gradients
from clipa_eqx.training.memory import check_step_fits
from clipa_eqx.training.norms import norms
from clipa_eqx.training.state import TrainState

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Metrics]]
"""``(state, batch) -> (state, metrics)``; the metrics stay on the devices."""

Compiler = Callable[[ExperimentConfig, optax.GradientTransformation, TrainState, Mesh], TrainStep]
"""``(config, optimizer, abstract state, mesh) -> step``, as ``compile_step``."""

_log = logging.getLogger(__name__)
_SOFTMAX = LossConfig()


def step_key(seed: int, step: Array | int) -> PRNGKeyArray:
    """The key of a step, a function of (seed, step): a resumed run samples what the uninterrupted run would have."""
    return jr.fold_in(jr.key(seed), step)


def make_train_step(
    optimizer: optax.GradientTransformation,
    *,
    abstract: TrainState,
    mesh: Mesh,
    seed: int,
    precision: Precision,
    loss_config: LossConfig = _SOFTMAX,
    micro_batch: int | None = None,
    max_temperature: float | None = None,
    on_non_finite: non_finite.OnNonFinite = "stop",
) -> jax.stages.Wrapped:
    """The jitted step, a ``TrainStep`` that can also be lowered; the state is donated.

    ``batch`` holds ``image`` uint8[batch h w 3] and ``tokens`` int32[batch length], split over the batch axes.
    Metrics stay on the devices. Lower and call it under ``jax.set_mesh(mesh)``.
    """

    def step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        grads, out = batch_gradients(
            state.model,
            batch["image"],
            batch["tokens"],
            key=step_key(seed, state.step),
            precision=precision,
            mesh=mesh,
            loss_config=loss_config,
            micro_batch=micro_batch,
        )
        params: Any = state.model
        with jax.named_scope("optimizer"):
            updates, opt_state, skipped = non_finite.update(
                optimizer, grads, state.opt_state, params, loss=out.loss, on_non_finite=on_non_finite
            )
            model: Any = cap_temperature(optax.apply_updates(params, updates), max_temperature)
        metrics = {
            "loss": out.loss,
            "accuracy": out.accuracy,
            "temperature": jnp.exp(state.model.log_temperature),
            **({} if state.model.bias is None else {"bias": state.model.bias}),
            "image_norm": out.image_norm,
            "text_norm": out.text_norm,
            **norms("grad_norm", grads),
            **norms("param_norm", model),
            **norms("update_norm", updates),
            **skipped,
        }
        return TrainState(model=model, opt_state=opt_state, step=state.step + 1), metrics

    shardings = shardings_for(abstract, mesh)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )


def compile_step(
    config: ExperimentConfig,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    mesh: Mesh,
    *,
    memory_limit: int | None = None,
) -> TrainStep:
    """The step of a run, compiled before any data is read, so that its memory is known first.

    Call this function and the step under ``jax.set_mesh(mesh)``.

    Args:
        memory_limit: bytes of a device; None asks the devices of the mesh.

    Raises:
        ConfigError: the step needs more memory than a device has.
    """
    step = make_train_step(
        optimizer,
        abstract=abstract,
        mesh=mesh,
        seed=config.seed,
        precision=config.precision,
        loss_config=config.loss,
        micro_batch=config.micro_batch,
        max_temperature=config.optim.max_temperature,
        on_non_finite=config.on_non_finite,
    )
    rows, size, length = config.batch_size, config.model.image.image_size, config.model.text.length
    batch = {
        "image": jax.ShapeDtypeStruct((rows, *size, 3), np.uint8),
        "tokens": jax.ShapeDtypeStruct((rows, length), np.int32),
    }
    _log.info("compiling the step; that takes from seconds to a few minutes")
    since = time.perf_counter()
    with waiting("compiling the step", first=LINE_EVERY):
        compiled = step.lower(abstract, batch).compile()
    seconds, needed = time.perf_counter() - since, memory_of(compiled)
    if needed is None:
        _log.info("compiled in %.1f s", seconds)
        return compiled
    _log.info(
        "compiled in %.1f s; per device %.2f GiB of state and batch, %.2f GiB temporary",
        seconds,
        needed.arguments / GIB,
        needed.temporary / GIB,
    )
    check_step_fits(needed, config, mesh, limit=memory_limit)
    return compiled
