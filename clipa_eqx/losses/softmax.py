"""The softmax loss over complete rows of logits, on one device and split over devices.

Sources: Radford et al. 2021 (arXiv:2103.00020), section 2.3, and ``losses/common`` of the reference. The reference's
count of correct rows is right on the first device only; here it is right on all.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from clipa_eqx.losses.pairs import (
    EXCLUDED,
    ContrastiveOutput,
    check_pairs,
    check_split,
    means_over_pairs,
    similarities,
)


def softmax_contrastive(
    image: Float[Array, "batch embed"],
    text: Float[Array, "batch embed"],
    *,
    log_temperature: Float[Array, ""],
    mask: Bool[Array, " batch"] | None = None,
) -> ContrastiveOutput:
    """Symmetric InfoNCE loss over the complete batch: row i of ``image`` belongs to row i of ``text``.

    Each direction has its own matrix product, so that each device of a split batch computes the logits of its own rows
    and all columns only.

    Args:
        image: image embeddings of unit length.
        text: text embeddings of unit length.
        log_temperature: logarithm of the multiplier of the similarities.
        mask: false for pairs that are neither rows nor columns; None includes all pairs.

    Examples:
        >>> rows = jnp.eye(4)
        >>> softmax_contrastive(rows, rows, log_temperature=jnp.log(1 / 0.07)).accuracy
        Array(1., dtype=float32)

    Raises:
        ConfigError: image, text and mask are not of shapes (batch, embed), (batch, embed) and (batch,).
    """
    check_pairs(image, text, mask)
    first = jnp.zeros((), jnp.int32)
    losses, correct = _own_rows(image, text, image, text, mask, mask, first=first, log_temperature=log_temperature)
    return means_over_pairs(losses, correct, mask)


def local_softmax_contrastive(
    image: Float[Array, "batch embed"],
    text: Float[Array, "batch embed"],
    *,
    log_temperature: Float[Array, ""],
    axis_names: Sequence[str],
    mask: Bool[Array, " batch"] | None = None,
) -> ContrastiveOutput:
    """Loss of one device's pairs against the pairs of all devices; call it inside ``jax.shard_map``.

    The arguments are those of ``softmax_contrastive`` for the device's own pairs. They are gathered over the mesh axes
    ``axis_names``; the means are over the device's own pairs. Without a mask, the mean of ``loss`` over the devices is
    the loss of the complete batch.

    Raises:
        ConfigError: image, text and mask are not of shapes (batch, embed), (batch, embed) and (batch,).
    """
    check_pairs(image, text, mask)
    names = tuple(axis_names)
    all_image = lax.all_gather(image, names, tiled=True)
    all_text = lax.all_gather(text, names, tiled=True)
    all_mask = None if mask is None else lax.all_gather(mask, names, tiled=True)
    first = lax.axis_index(names) * image.shape[0]
    losses, correct = _own_rows(
        image, text, all_image, all_text, mask, all_mask, first=first, log_temperature=log_temperature
    )
    return means_over_pairs(losses, correct, mask)


def sharded_softmax_contrastive(
    image: Float[Array, "batch embed"],
    text: Float[Array, "batch embed"],
    *,
    log_temperature: Float[Array, ""],
    mesh: Mesh,
    axis_names: Sequence[str],
    mask: Bool[Array, " batch"] | None = None,
) -> ContrastiveOutput:
    """Compute ``softmax_contrastive`` on the devices that have the rows; values and gradients are the same.

    Args:
        image: image embeddings of unit length.
        text: text embeddings of unit length.
        log_temperature: logarithm of the multiplier of the similarities.
        mesh: mesh of the devices.
        axis_names: mesh axes that split the batch, for example ``("data", "fsdp")``.
        mask: false for pairs that are neither rows nor columns; None includes all pairs.

    Raises:
        ConfigError: the mesh has no such axis, or the shapes are not those of ``softmax_contrastive``.
        ShardingError: the axes do not divide the batch.
    """
    check_pairs(image, text, mask)
    names = tuple(axis_names)
    check_split(image.shape[0], mesh, names)

    def rows(
        image: Array, text: Array, log_temperature: Array, mask: Array | None
    ) -> tuple[Float[Array, " batch"], Bool[Array, " batch"]]:
        out = local_softmax_contrastive(image, text, log_temperature=log_temperature, axis_names=names, mask=mask)
        return out.losses, out.correct

    split = PartitionSpec(names)
    losses, correct = jax.shard_map(
        rows, mesh=mesh, in_specs=(split, split, PartitionSpec(), split), out_specs=(split, split)
    )(image, text, log_temperature, mask)
    return means_over_pairs(losses, correct, mask)


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
    """Losses and correctness of the rows ``first, first + 1, ...`` of the complete batch."""
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
    """Subtract the largest similarity of each row from the similarities, so that all are at most 0.

    The temperature is applied after the subtraction. If the own column is the largest, its logit is then exactly 0, and
    a small loss keeps all its digits. In the other order, the rounding of logits near the temperature stays in the
    loss.
    """
    similarity = similarities(rows, columns)
    if mask is not None:
        similarity = jnp.where(mask[None, :], similarity, EXCLUDED)
    return similarity - lax.stop_gradient(jnp.max(similarity, axis=1, keepdims=True))


def _nll(logits: Float[Array, "batch columns"], target: Int[Array, " batch"]) -> Float[Array, " batch"]:
    # The target logit is selected by comparison, not by indexing: for a gather from logits split by rows, the compiler
    # could collect all of them on every device. Logits are at most 0, so the exponentials cannot overflow.
    is_target = target[:, None] == jnp.arange(logits.shape[1])[None, :]
    return jnp.log(jnp.sum(jnp.exp(logits), axis=1)) - jnp.sum(jnp.where(is_target, logits, 0.0), axis=1)
