"""Steps whose loss or gradient is NaN or infinite: stop the run, or skip their update."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from clipa_eqx.training.norms import norms

OnNonFinite = Literal["stop", "skip"]

SKIPPED = "skipped"
"""Metric of a step under the policy "skip": 1 if its update was skipped, else 0."""

MOST_SKIPS = 10
"""Skipped steps in a row that a run survives.

A bad batch spoils one step, and a burst of bad records a few. If the weights are the cause, every step after the first
one is skipped too: ten steps show that, and cost little.
"""


def update(
    optimizer: optax.GradientTransformation,
    grads: Any,
    opt_state: Any,
    params: Any,
    *,
    loss: Float[Array, ""],
    on_non_finite: OnNonFinite,
) -> tuple[Any, Any, dict[str, Array]]:
    """The updates of a step, the new optimizer state, and the metric ``SKIPPED`` if the policy is "skip".

    With "skip", if the loss or a gradient is not finite, parameters to which the updates are added stay as they are,
    and so does the optimizer state with its counts. The devices decide that; the host waits for nothing. If both are
    finite and the state was, the new state is finite too: the squares in the second moments sum up to the norm that is
    checked.
    """
    updates, new_state = optimizer.update(grads, opt_state, params)
    if on_non_finite == "stop":
        return updates, new_state, {}
    is_good = jnp.isfinite(loss) & jnp.isfinite(norms("grad_norm", grads)["grad_norm"])
    # Adding -0.0 changes no bit; adding 0.0 changes -0.0. (Some devices flush denormal numbers in any addition.)
    kept = jax.tree.map(lambda new: jnp.where(is_good, new, jnp.full_like(new, -0.0)), updates)
    new_state = jax.tree.map(lambda new, old: jnp.where(is_good, new, old), new_state, opt_state)
    return kept, new_state, {SKIPPED: jnp.where(is_good, 0, 1)}


def too_many_skips(in_a_row: int, *, step: int, alarm: str) -> str:
    """The message of the error that ends a run after ``MOST_SKIPS`` skipped steps in a row.

    Args:
        in_a_row: skipped steps up to ``step``, without a good one between them.
        alarm: the message about the last of them.
    """
    return (
        f"the last {in_a_row} steps, {step - in_a_row + 1} to {step}, were all skipped: the weights are the cause, not "
        f"single batches. {alarm}"
    )
