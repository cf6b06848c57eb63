"""One training step: pixels and tokens to loss, gradients, update and metrics."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt8

from clipa_eqx.device_memory import GIB, memory_of
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.losses.config import LossConfig
from clipa_eqx.losses.contrastive import contrastive_loss
from clipa_eqx.models.clip import CLIP
from clipa_eqx.models.device_pixels import normalize_on_device
from clipa_eqx.models.layers import l2_normalize
from clipa_eqx.optim import cap_temperature
from clipa_eqx.precision import Precision
from clipa_eqx.progress import LINE_EVERY, waiting
from clipa_eqx.sharding import BATCH_AXES, batch_sharding, replicated, shardings_for
from clipa_eqx.training import non_finite
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


class BatchLoss(NamedTuple):
    """The loss of a batch, and measurements of the same forward pass."""

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    image_norm: Float[Array, ""]
    text_norm: Float[Array, ""]


def batch_loss(
    model: CLIP,
    images: UInt8[Array, "batch height width 3"],
    tokens: Int32[Array, "batch length"],
    *,
    key: PRNGKeyArray | None,
    precision: Precision,
    mesh: Mesh | None = None,
    loss_config: LossConfig = _SOFTMAX,
) -> BatchLoss:
    """Contrastive loss of a batch. With a key, masking, dropout and drop path are on, with one key per row and tower.

    ``image_norm`` and ``text_norm`` are the mean lengths of the embeddings before normalization. With a mesh, call it
    under ``jax.set_mesh(mesh)``; activations are pinned to the axes that split the batch.
    """
    axes = None if mesh is None else BATCH_AXES
    towers, dtype = precision.for_towers(model), precision.compute
    pixels = normalize_on_device(images).astype(dtype)
    if key is None:
        image = jax.vmap(towers.image, spmd_axis_name=axes)(pixels)
        text = jax.vmap(lambda x: towers.text(x, dtype=dtype), spmd_axis_name=axes)(tokens)
    else:
        k_image, k_text = (jr.split(k, images.shape[0]) for k in jr.split(key))
        image = jax.vmap(lambda x, k: towers.image(x, key=k), spmd_axis_name=axes)(pixels, k_image)
        text = jax.vmap(lambda x, k: towers.text(x, key=k, dtype=dtype), spmd_axis_name=axes)(tokens, k_text)
    image, text = (z.astype(jnp.float32) for z in (image, text))
    z_image, z_text = jax.vmap(l2_normalize)(image), jax.vmap(l2_normalize)(text)
    if mesh is not None:
        z_image, z_text = (jax.lax.with_sharding_constraint(z, PartitionSpec(BATCH_AXES)) for z in (z_image, z_text))
    out = contrastive_loss(
        z_image,
        z_text,
        log_temperature=model.log_temperature,
        bias=model.bias,
        config=loss_config,
        mesh=mesh,
    )
    return BatchLoss(
        loss=out.loss,
        accuracy=out.accuracy,
        image_norm=jnp.mean(jnp.linalg.norm(image, axis=1)),
        text_norm=jnp.mean(jnp.linalg.norm(text, axis=1)),
    )


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
    max_temperature: float | None = None,
    on_non_finite: non_finite.OnNonFinite = "stop",
) -> jax.stages.Wrapped:
    """The jitted step, a ``TrainStep`` that can also be lowered; the state is donated.

    ``batch`` holds ``image`` uint8[batch h w 3] and ``tokens`` int32[batch length], split over the batch axes.
    Metrics stay on the devices. Lower and call it under ``jax.set_mesh(mesh)``.
    """

    def step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        def loss(model: CLIP) -> tuple[Float[Array, ""], BatchLoss]:
            out = batch_loss(
                model,
                batch["image"],
                batch["tokens"],
                key=step_key(seed, state.step),
                precision=precision,
                mesh=mesh,
                loss_config=loss_config,
            )
            return out.loss, out

        grads, out = jax.grad(loss, has_aux=True)(state.model)
        params: Any = state.model
        updates, opt_state, skipped = non_finite.update(
            optimizer, grads, state.opt_state, params, loss=out.loss, on_non_finite=on_non_finite
        )
        model: Any = cap_temperature(optax.apply_updates(params, updates), max_temperature)
        metrics = {
            "loss": out.loss,
            "accuracy": out.accuracy,
            "temperature": jnp.exp(state.model.log_temperature),
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
