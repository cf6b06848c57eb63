"""The contrastive loss between image and text embeddings, for whole batches and for batches split over devices.

Sources: Radford et al. 2021 (arXiv:2103.00020), section 2.3; ``losses/common`` of the reference, whose count of correct
rows is right on the first device only and is defined here for all.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from clipa_eqx.errors import ConfigError, ShardingError

# Stands for an excluded similarity: exp() of it is exactly 0 and, unlike with -inf, all gradients stay finite.
_EXCLUDED = -1e30


class ContrastiveOutput(NamedTuple):
    """Loss and hits; the means are over the rows that count.

    ``losses`` holds, per pair, half the negative log-likelihood of its text given the image plus half that of its image
    given the text, in nats. ``correct`` says that no text scores above the own one (among equals the first counts).
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    losses: Float[Array, " batch"]
    correct: Bool[Array, " batch"]


def softmax_contrastive(
    image: Float[Array, "batch embed"],
    text: Float[Array, "batch embed"],
    *,
    log_temperature: Float[Array, ""],
    mask: Bool[Array, " batch"] | None = None,
) -> ContrastiveOutput:
    """Symmetric InfoNCE over the whole batch: row i of ``image`` belongs to row i of ``text``.

    Both directions have their own product, so that a batch split over devices keeps its logits as own rows times
    all columns. Pairs where ``mask`` is false are neither rows nor columns.

    >>> rows = jnp.eye(4)
    >>> softmax_contrastive(rows, rows, log_temperature=jnp.log(1 / 0.07)).accuracy
    Array(1., dtype=float32)
    """
    first = jnp.zeros((), jnp.int32)
    losses, correct = _own_rows(image, text, image, text, mask, mask, first=first, log_temperature=log_temperature)
    return _reduce(losses, correct, mask)


def local_softmax_contrastive(
    image: Float[Array, "batch embed"],
    text: Float[Array, "batch embed"],
    *,
    log_temperature: Float[Array, ""],
    axis_names: Sequence[str],
    mask: Bool[Array, " batch"] | None = None,
) -> ContrastiveOutput:
    """A device's own pairs against the pairs of all devices; call it inside ``jax.shard_map``.

    Own embeddings go in and are gathered over ``axis_names``; the means are over own rows. With equal slices
    and no mask the mean over devices of ``loss`` is the loss of the whole batch.
    """
    names = tuple(axis_names)
    all_image = lax.all_gather(image, names, tiled=True)
    all_text = lax.all_gather(text, names, tiled=True)
    all_mask = None if mask is None else lax.all_gather(mask, names, tiled=True)
    first = lax.axis_index(names) * image.shape[0]
    losses, correct = _own_rows(
        image, text, all_image, all_text, mask, all_mask, first=first, log_temperature=log_temperature
    )
    return _reduce(losses, correct, mask)


def sharded_softmax_contrastive(
    image: Float[Array, "batch embed"],
    text: Float[Array, "batch embed"],
    *,
    log_temperature: Float[Array, ""],
    mesh: Mesh,
    axis_names: Sequence[str],
    mask: Bool[Array, " batch"] | None = None,
) -> ContrastiveOutput:
    """``softmax_contrastive`` computed where the rows are: same value, same gradients, explicit communication.

    Args:
        axis_names: the mesh axes that split the batch, for example ``("data", "fsdp")``.

    Raises:
        ConfigError: the mesh has no such axis.
        ShardingError: the axes do not divide the batch.
    """
    names = tuple(axis_names)
    if unknown := [name for name in names if name not in mesh.shape]:
        raise ConfigError(f"axis_names {unknown} are not axes of the mesh, which has {list(mesh.shape)}")
    slices = 1
    for name in names:
        slices *= mesh.shape[name]
    if image.shape[0] % slices:
        raise ShardingError(
            f"a batch of {image.shape[0]} pairs cannot be split into {slices} equal parts over axes {list(names)};"
            f" use a multiple of {slices}"
        )

    def rows(
        image: Array, text: Array, log_temperature: Array, mask: Array | None
    ) -> tuple[Float[Array, " batch"], Bool[Array, " batch"]]:
        out = local_softmax_contrastive(image, text, log_temperature=log_temperature, axis_names=names, mask=mask)
        return out.losses, out.correct

    split = PartitionSpec(names)
    losses, correct = jax.shard_map(
        rows, mesh=mesh, in_specs=(split, split, PartitionSpec(), split), out_specs=(split, split)
    )(image, text, log_temperature, mask)
    return _reduce(losses, correct, mask)


def _own_rows(
    image: Float[Array, "batch embed"],
    text: Float[Array, "batch embed"],
    all_image: Float[Array, "columns embed"],
    all_text: Float[Array, "columns embed"],
    mask: Bool[Array, " batch"] | None,
    all_mask: Bool[Array, " columns"] | None,
    *,
    first: Int[Array, ""],
    log_temperature: Float[Array, ""],
) -> tuple[Float[Array, " batch"], Bool[Array, " batch"]]:
    """Losses and hits of the rows ``first, first + 1, ...`` of the whole batch."""
    temperature = jnp.exp(log_temperature)
    target = first + jnp.arange(image.shape[0])
    to_text = _below_best(image, all_text, all_mask)
    to_image = _below_best(text, all_image, all_mask)
    losses = 0.5 * (_nll(to_text * temperature, target) + _nll(to_image * temperature, target))
    correct = jnp.argmax(to_text, axis=1) == target
    if mask is not None:
        losses, correct = jnp.where(mask, losses, 0.0), correct & mask
    return losses, correct


def _below_best(
    rows: Float[Array, "batch embed"],
    columns: Float[Array, "columns embed"],
    mask: Bool[Array, " columns"] | None,
) -> Float[Array, "batch columns"]:
    """Similarities less the largest of the row, so at most 0.

    The temperature comes after the subtraction: where the own column is the best its logit is exactly 0 and a small
    loss keeps all its digits. In the other order the rounding of logits near the temperature stays in the loss.
    """
    similarity = rows @ columns.T
    if mask is not None:
        similarity = jnp.where(mask[None, :], similarity, _EXCLUDED)
    return similarity - lax.stop_gradient(jnp.max(similarity, axis=1, keepdims=True))


def _nll(logits: Float[Array, "batch columns"], target: Int[Array, " batch"]) -> Float[Array, " batch"]:
    # The target logit is picked by comparison, not by indexing: a gather from logits split by rows could make the
    # compiler collect them on every device. Logits are at most 0, so the exponentials cannot overflow.
    is_target = target[:, None] == jnp.arange(logits.shape[1])[None, :]
    return jnp.log(jnp.sum(jnp.exp(logits), axis=1)) - jnp.sum(jnp.where(is_target, logits, 0.0), axis=1)


def _reduce(
    losses: Float[Array, " batch"], correct: Bool[Array, " batch"], mask: Bool[Array, " batch"] | None
) -> ContrastiveOutput:
    counted = losses.shape[0] if mask is None else jnp.maximum(jnp.sum(mask), 1)
    return ContrastiveOutput(
        loss=jnp.sum(losses) / counted,
        accuracy=jnp.sum(correct).astype(jnp.float32) / counted,
        losses=losses,
        correct=correct,
    )
