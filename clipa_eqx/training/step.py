"""One training step: pixels and tokens to loss, gradients, update and metrics."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from clipa_eqx.ema import EmaConfig, update_average
from clipa_eqx.losses.config import LossConfig
from clipa_eqx.models.kernels import XLA_KERNELS, Kernels
from clipa_eqx.optim import cap_temperature
from clipa_eqx.precision import Precision
from clipa_eqx.sharding import batch_sharding, replicated, shardings_for
from clipa_eqx.training import non_finite
from clipa_eqx.training.gradients import batch_gradients
from clipa_eqx.training.norms import norms
from clipa_eqx.training.state import TrainState

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Metrics]]
"""``(state, batch) -> (state, metrics)``; the metrics stay on the devices."""

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
    kernels: Kernels = XLA_KERNELS,
    trained: Any = True,
    ema: EmaConfig | None = None,
) -> jax.stages.Wrapped:
    """The jitted step, a ``TrainStep`` that can also be lowered; the state is donated.

    ``batch`` holds ``image`` uint8[batch h w 3] and ``tokens`` int32[batch length], split over the batch axes.
    Metrics stay on the devices. Lower and call it under ``jax.set_mesh(mesh)``.

    Args:
        trained: True, or a tree like the model of booleans. Leaves that are False stay as they are, bit for bit; their
            gradients are not computed, and the norms in the metrics leave them out.
        ema: the average that the state has; None if it has none.
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
            kernels=kernels,
            trained=trained,
        )
        params: Any = state.model
        with jax.named_scope("optimizer"):
            # The optimizer has no state for frozen leaves, and drops these zeros.
            full: Any = grads if trained is True else eqx.combine(grads, jax.tree.map(jnp.zeros_like, params))
            updates, opt_state, skipped = non_finite.update(
                optimizer, full, state.opt_state, params, loss=out.loss, on_non_finite=on_non_finite
            )
            moved: Any = cap_temperature(optax.apply_updates(params, updates), max_temperature)
            changed, updates = eqx.filter(moved, trained), eqx.filter(updates, trained)
            model: Any = eqx.combine(changed, params)
        metrics = {
            "loss": out.loss,
            "accuracy": out.accuracy,
            "temperature": jnp.exp(state.model.log_temperature),
            **({} if state.model.bias is None else {"bias": state.model.bias}),
            "image_norm": out.image_norm,
            "text_norm": out.text_norm,
            **norms("grad_norm", grads),
            **norms("param_norm", changed),
            **norms("update_norm", updates),
            **skipped,
        }
        average = state.ema
        if average is not None and ema is not None:
            average = update_average(average, model, ema, is_skipped=skipped.get(non_finite.SKIPPED, 0) == 1)
        return TrainState(model=model, opt_state=opt_state, step=state.step + 1, ema=average), metrics

    shardings = shardings_for(abstract, mesh)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )
