"""The sigmoid loss over complete rows of logits, on one device and split over devices.

Source: Zhai et al. 2023 (arXiv:2303.15343), section 3.2 and algorithm 1.
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


def sigmoid_contrastive(
    image: Float[Array, "batch embed"],
    text: Float[Array, "batch embed"],
    *,
    log_temperature: Float[Array, ""],
    bias: Float[Array, ""],
    mask: Bool[Array, " batch"] | None = None,
) -> ContrastiveOutput:
    """Sigmoid loss over the complete batch: each image and each text belong together, or do not.

    Args:
        image: image embeddings of unit length.
        text: text embeddings of unit length; row i belongs to row i of ``image``.
        log_temperature: logarithm of the multiplier of the similarities.
        bias: added to the logits; negative, since most combinations of an image and a text are no pair.
        mask: false for pairs that are neither rows nor columns; None includes all pairs.

    Raises:
        ConfigError: image, text and mask are not of shapes (batch, embed), (batch, embed) and (batch,).
    """
    check_pairs(image, text, mask)
    first = jnp.zeros((), jnp.int32)
    losses, correct = _own_rows(image, text, mask, mask, first=first, log_temperature=log_temperature, bias=bias)
    return means_over_pairs(losses, correct, mask)


def sharded_sigmoid_contrastive(
    image: Float[Array, "batch embed"],
    text: Float[Array, "batch embed"],
    *,
    log_temperature: Float[Array, ""],
    bias: Float[Array, ""],
    mesh: Mesh,
    axis_names: Sequence[str],
    mask: Bool[Array, " batch"] | None = None,
) -> ContrastiveOutput:
    """Compute ``sigmoid_contrastive`` on the devices that have the images; the texts are gathered on each.

    Args:
        image: image embeddings of unit length.
        text: text embeddings of unit length.
        log_temperature: logarithm of the multiplier of the similarities.
        bias: added to the logits.
        mesh: mesh of the devices.
        axis_names: mesh axes that split the batch, for example ``("data", "fsdp")``.
        mask: false for pairs that are neither rows nor columns; None includes all pairs.

    Raises:
        ConfigError: the mesh has no such axis, or the shapes are not those of ``sigmoid_contrastive``.
        ShardingError: the axes do not divide the batch.
    """
    check_pairs(image, text, mask)
    names = tuple(axis_names)
    check_split(image.shape[0], mesh, names)

    def rows(
        image: Array, text: Array, log_temperature: Array, bias: Array, mask: Array | None
    ) -> tuple[Float[Array, " batch"], Bool[Array, " batch"]]:
        all_text = lax.all_gather(text, names, tiled=True)
        all_mask = None if mask is None else lax.all_gather(mask, names, tiled=True)
        first = lax.axis_index(names) * image.shape[0]
        return _own_rows(image, all_text, mask, all_mask, first=first, log_temperature=log_temperature, bias=bias)

    split, whole = PartitionSpec(names), PartitionSpec()
    losses, correct = jax.shard_map(
        rows, mesh=mesh, in_specs=(split, split, whole, whole, split), out_specs=(split, split)
    )(image, text, log_temperature, bias, mask)
    return means_over_pairs(losses, correct, mask)


def _own_rows(
    image: Float[Array, "batch embed"],
    all_text: Float[Array, "columns embed"],
    mask: Bool[Array, " batch"] | None,
    all_mask: Bool[Array, " columns"] | None,
    *,
    first: Int[Array, ""],
    log_temperature: Float[Array, ""],
    bias: Float[Array, ""],
) -> tuple[Float[Array, " batch"], Bool[Array, " batch"]]:
    """Losses and correctness of the images ``first, first + 1, ...`` of the complete batch."""
    similarity = similarities(image, all_text)
    target = first + jnp.arange(image.shape[0])
    is_pair = target[:, None] == jnp.arange(all_text.shape[0])[None, :]
    logits = jnp.exp(log_temperature) * similarity + bias
    terms = jax.nn.softplus(jnp.where(is_pair, -logits, logits))
    if all_mask is not None:
        similarity = jnp.where(all_mask[None, :], similarity, EXCLUDED)
        terms = jnp.where(all_mask[None, :], terms, 0.0)
    losses, correct = jnp.sum(terms, axis=1), jnp.argmax(similarity, axis=1) == target
    if mask is not None:
        losses, correct = jnp.where(mask, losses, 0.0), correct & mask
    return losses, correct
