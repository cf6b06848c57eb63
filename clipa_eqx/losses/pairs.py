"""The pairs of a batch: checks, similarities, and the means over pairs that all losses share."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from clipa_eqx.errors import ConfigError, ShardingError

EXCLUDED = -1e30
"""Value of an excluded similarity: its exp() is exactly 0 and, unlike with -inf, all gradients stay finite."""


class ContrastiveOutput(NamedTuple):
    """Loss and accuracy of a batch; the means are over the pairs that ``mask`` does not exclude.

    Attributes:
        loss: mean of ``losses``, in nats.
        accuracy: mean of ``correct``, from 0 to 1.
        losses: per pair, in nats; 0 for excluded pairs. Softmax: half the negative log-likelihood of its text given the
            image plus half that of its image given the text. Sigmoid: the sum over all texts of the negative
            log-likelihood that the text belongs to the image, or does not.
        correct: per pair, true if its own text has the largest similarity to the image (the first of equal ones);
            false for excluded pairs.
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    losses: Float[Array, " batch"]
    correct: Bool[Array, " batch"]


def check_pairs(image: Array, text: Array, mask: Array | None) -> None:
    """Check that row i of both arrays can be a pair, and that the mask has an entry for each.

    Raises:
        ConfigError: image, text and mask are not of shapes (batch, embed), (batch, embed) and (batch,).
    """
    if image.ndim != 2 or image.shape != text.shape:
        raise ConfigError(
            f"the loss takes embeddings (batch, embed) of pairs, got image {image.shape} and text {text.shape}; row i "
            "of both must belong together"
        )
    if mask is not None and (mask.shape != image.shape[:1] or mask.dtype != jnp.bool_):
        raise ConfigError(f"the mask is {mask.dtype}{list(mask.shape)}, expected bool{[image.shape[0]]}, one per pair")


def check_split(batch: int, mesh: Mesh, axis_names: Sequence[str]) -> int:
    """Number of parts into which the axes split a batch of this many pairs.

    Raises:
        ConfigError: the mesh has no such axis.
        ShardingError: the axes do not divide the batch.
    """
    if unknown := [name for name in axis_names if name not in mesh.shape]:
        raise ConfigError(f"axis_names {unknown} are not axes of the mesh, which has {list(mesh.shape)}")
    parts = math.prod(mesh.shape[name] for name in axis_names)
    if batch % parts:
        raise ShardingError(
            f"a batch of {batch} pairs cannot be split into {parts} equal parts over axes {list(axis_names)};"
            f" use a multiple of {parts}"
        )
    return parts


def similarities(
    rows: Float[Array, "rows embed"], columns: Float[Array, "columns embed"]
) -> Float[Array, "rows columns"]:
    """Inner products, multiplied in float32 on every backend, which without ``precision`` may use bfloat16."""
    return jnp.matmul(rows, columns.T, precision=lax.Precision.HIGHEST)


def means_over_pairs(
    losses: Float[Array, " batch"], correct: Bool[Array, " batch"], mask: Bool[Array, " batch"] | None
) -> ContrastiveOutput:
    """The means over the pairs that the mask does not exclude."""
    counted = losses.shape[0] if mask is None else jnp.maximum(jnp.sum(mask), 1)
    return ContrastiveOutput(
        loss=jnp.sum(losses) / counted,
        accuracy=jnp.sum(correct).astype(jnp.float32) / counted,
        losses=losses,
        correct=correct,
    )
