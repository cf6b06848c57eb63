"""The training step of a run, compiled: its kernels, the time of compiling, and whether it fits on the devices."""

import logging
import time
from collections.abc import Callable

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from clipa_eqx.device_memory import GIB, memory_of
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.models.kernels import choose_kernels
from clipa_eqx.progress import LINE_EVERY, waiting
from clipa_eqx.training.memory import check_step_fits
from clipa_eqx.training.shapes import trained_by
from clipa_eqx.training.state import TrainState
from clipa_eqx.training.step import TrainStep, make_train_step

Compiler = Callable[[ExperimentConfig, optax.GradientTransformation, TrainState, Mesh], TrainStep]
"""``(config, optimizer, abstract state, mesh) -> step``, as ``compile_step``."""

_log = logging.getLogger(__name__)


def lower_step(
    config: ExperimentConfig, optimizer: optax.GradientTransformation, abstract: TrainState, mesh: Mesh
) -> jax.stages.Lowered:
    """The step of a run, ready to be compiled for the devices of the mesh. Call it under ``jax.set_mesh(mesh)``.

    Raises:
        ConfigError: cuDNN's attention is chosen and cannot be used.
    """
    kernels = choose_kernels(
        config.attention,
        config.model,
        compute=config.precision.compute,
        device=mesh.devices.flat[0],
        tensor=mesh.shape["tensor"],
    )
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
        kernels=kernels,
        trained=trained_by(config, abstract.model),
        ema=config.ema,
    )
    rows, size, length = config.batch_size, config.model.image.image_size, config.model.text.length
    batch = {
        "image": jax.ShapeDtypeStruct((rows, *size, 3), np.uint8),
        "tokens": jax.ShapeDtypeStruct((rows, length), np.int32),
    }
    _log.info("attention of the image tower by %s, of the text tower by %s", *kernels)
    return step.lower(abstract, batch)


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
        ConfigError: the step needs more memory than a device has, or cuDNN's attention is chosen and cannot be used.
    """
    _log.info("compiling the step; that takes from seconds to a few minutes")
    since = time.perf_counter()
    with waiting("compiling the step", first=LINE_EVERY):
        compiled = lower_step(config, optimizer, abstract, mesh).compile()
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
