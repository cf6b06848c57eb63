"""Both losses, a block of logits at a time: sums over a block, sums of several blocks, and the gradient of a block.

A block has the images of this device as rows and any texts as columns. Only sums per row and per column outlive it. The
gradient computes the logits of the block again.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from clipa_eqx.losses.config import LossKind
from clipa_eqx.losses.pairs import EXCLUDED, similarities

NO_COLUMN = 2**31 - 1
"""Column number larger than any other."""


class Scale(NamedTuple):
    """The learned scalars; ``bias`` is None for softmax."""

    log_temperature: Float[Array, ""]
    bias: Float[Array, ""] | None


class Side(NamedTuple):
    """The rows or the columns of a block: their embeddings, numbers in the batch, and whether they are included."""

    embeddings: Float[Array, "side embed"]
    number: Int[Array, " side"]
    is_included: Bool[Array, " side"]


class RowSums(NamedTuple):
    """Sums over the columns seen so far, for each image.

    Attributes:
        best: largest similarity.
        column: number of the first column that has it.
        total: softmax: sum of exp(temperature * (similarity - best)); sigmoid: sum of the losses of all combinations.
        own: similarity to the own text; 0 while it has not been seen.
    """

    best: Float[Array, " rows"]
    column: Int[Array, " rows"]
    total: Float[Array, " rows"]
    own: Float[Array, " rows"]


class SoftmaxSums(NamedTuple):
    """Sums of the softmax over one row or one column; see ``RowSums``."""

    best: Float[Array, " side"]
    total: Float[Array, " side"]


class Weights(NamedTuple):
    """Numbers of the rows or columns of a block that its gradient needs in addition to the embeddings.

    Attributes:
        cotangent: of the pair's loss; 0 for excluded pairs.
        sums: over all of the row or column; None for sigmoid.
    """

    cotangent: Float[Array, " side"]
    sums: SoftmaxSums | None


class RowGradients(NamedTuple):
    """Gradients with respect to the images and to the learned scalars."""

    image: Float[Array, "rows embed"]
    scale: Scale


def no_row_sums(images: Float[Array, "rows embed"]) -> RowSums:
    """Sums over no column."""
    count, dtype = images.shape[0], images.dtype
    zeros = jnp.zeros(count, dtype)
    return RowSums(jnp.full(count, EXCLUDED, dtype), jnp.full(count, NO_COLUMN, jnp.int32), zeros, zeros)


def no_column_sums(kind: LossKind, texts: Float[Array, "columns embed"]) -> SoftmaxSums | None:
    """Sums over no row."""
    if kind == "sigmoid":
        return None
    return SoftmaxSums(jnp.full(texts.shape[0], EXCLUDED, texts.dtype), jnp.zeros(texts.shape[0], texts.dtype))


def block_sums(kind: LossKind, scale: Scale, rows: Side, columns: Side) -> tuple[RowSums, SoftmaxSums | None]:
    """Sums over one block."""
    similarity, is_own, is_included = _block(rows, columns)
    temperature = jnp.exp(scale.log_temperature)
    best = jnp.max(similarity, axis=1)
    column = jnp.min(jnp.where(similarity == best[:, None], columns.number[None, :], NO_COLUMN), axis=1)
    own = jnp.sum(jnp.where(is_own, similarity, 0.0), axis=1)
    if kind == "sigmoid":
        logits = _sigmoid_logits(scale, similarity, is_included)
        terms = jax.nn.softplus(jnp.where(is_own, -logits, logits))
        return RowSums(best, column, jnp.sum(jnp.where(is_included, terms, 0.0), axis=1), own), None
    # The temperature is applied to differences from the best, so that a small loss keeps its digits.
    total = jnp.sum(jnp.exp(temperature * (similarity - best[:, None])), axis=1)
    column_best = jnp.max(similarity, axis=0)
    column_total = jnp.sum(jnp.exp(temperature * (similarity - column_best[None, :])), axis=0)
    return RowSums(best, column, total, own), SoftmaxSums(column_best, column_total)


def merge_rows(kind: LossKind, scale: Scale, a: RowSums, b: RowSums) -> RowSums:
    """Sums over the columns of both."""
    best = jnp.maximum(a.best, b.best)
    column = jnp.minimum(jnp.where(a.best == best, a.column, NO_COLUMN), jnp.where(b.best == best, b.column, NO_COLUMN))
    if kind == "sigmoid":
        total = a.total + b.total
    else:
        total = _rescaled(scale, a.best, a.total, best) + _rescaled(scale, b.best, b.total, best)
    return RowSums(best, column, total, a.own + b.own)


def merge_columns(scale: Scale, a: SoftmaxSums | None, b: SoftmaxSums | None) -> SoftmaxSums | None:
    """Sums over the rows of both."""
    if a is None or b is None:
        return None
    best = jnp.maximum(a.best, b.best)
    return SoftmaxSums(best, _rescaled(scale, a.best, a.total, best) + _rescaled(scale, b.best, b.total, best))


def merge_columns_over(scale: Scale, sums: SoftmaxSums | None, names: tuple[str, ...]) -> SoftmaxSums | None:
    """Sums over the rows of all devices along mesh axes, on each of them."""
    if sums is None:
        return None
    best = lax.pmax(sums.best, names)
    return SoftmaxSums(best, lax.psum(_rescaled(scale, sums.best, sums.total, best), names))


def losses_of(
    kind: LossKind, scale: Scale, rows: Side, sums: RowSums, columns: SoftmaxSums | None
) -> tuple[Float[Array, " rows"], Bool[Array, " rows"]]:
    """Losses and correctness of pairs, from their sums over all columns and over all rows."""
    losses = sums.total
    if columns is not None:
        temperature = jnp.exp(scale.log_temperature)
        to_text = jnp.log(sums.total) - temperature * (sums.own - sums.best)
        to_image = jnp.log(columns.total) - temperature * (sums.own - columns.best)
        losses = 0.5 * (to_text + to_image)
    return jnp.where(rows.is_included, losses, 0.0), (sums.column == rows.number) & rows.is_included


def block_gradients(
    scale: Scale, rows: Side, row_weights: Weights, columns: Side, column_weights: Weights
) -> tuple[RowGradients, Float[Array, "columns embed"]]:
    """Gradient of the sum of cotangents times losses through the similarities of one block.

    Returns:
        the gradients of images and scalars, and the gradient of the texts of the block.
    """
    similarity, is_own, is_included = _block(rows, columns)
    temperature = jnp.exp(scale.log_temperature)
    if row_weights.sums is None or column_weights.sums is None:
        logits = _sigmoid_logits(scale, similarity, is_included)
        slope = jnp.where(is_own, -jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits))
        slope = jnp.where(is_included, slope * row_weights.cotangent[:, None], 0.0)
        d_temperature, d_bias = jnp.sum(slope * jnp.where(is_included, similarity, 0.0)), jnp.sum(slope)
    else:
        to_text, of_text = _softmax_slope(
            temperature, similarity, is_own, row_weights.cotangent, row_weights.sums, axis=1
        )
        to_image, of_image = _softmax_slope(
            temperature, similarity, is_own, column_weights.cotangent, column_weights.sums, axis=0
        )
        slope, d_temperature, d_bias = to_text + to_image, of_text + of_image, None
    d_similarity = temperature * slope
    d_image = jnp.matmul(d_similarity, columns.embeddings, precision=lax.Precision.HIGHEST)
    d_text = jnp.matmul(d_similarity.T, rows.embeddings, precision=lax.Precision.HIGHEST)
    return RowGradients(d_image, Scale(temperature * d_temperature, d_bias)), d_text


def _block(rows: Side, columns: Side) -> tuple[Float[Array, "r c"], Bool[Array, "r c"], Bool[Array, "r c"]]:
    """Similarities, whether an element is that of a pair, and whether its row and its column are included."""
    is_included = rows.is_included[:, None] & columns.is_included[None, :]
    similarity = jnp.where(is_included, similarities(rows.embeddings, columns.embeddings), EXCLUDED)
    return similarity, (rows.number[:, None] == columns.number[None, :]) & is_included, is_included


def _sigmoid_logits(scale: Scale, similarity: Float[Array, "r c"], is_included: Bool[Array, "r c"]) -> Array:
    bias = jnp.zeros((), similarity.dtype) if scale.bias is None else scale.bias
    return jnp.exp(scale.log_temperature) * jnp.where(is_included, similarity, 0.0) + bias


def _softmax_slope(
    temperature: Float[Array, ""],
    similarity: Float[Array, "r c"],
    is_own: Bool[Array, "r c"],
    cotangent: Float[Array, " side"],
    sums: SoftmaxSums,
    *,
    axis: int,
) -> tuple[Float[Array, "r c"], Float[Array, ""]]:
    """Gradients of one direction with respect to the logits and to the temperature; ``axis`` is that of the softmax."""
    cotangent, best, total = (jnp.expand_dims(x, axis) for x in (cotangent, *sums))
    below = similarity - best
    slope = 0.5 * cotangent * (jnp.exp(temperature * below) / total - is_own)
    return slope, jnp.sum(slope * below)


def _rescaled(
    scale: Scale, best: Float[Array, " side"], total: Float[Array, " side"], new_best: Float[Array, " side"]
) -> Float[Array, " side"]:
    return total * jnp.exp(jnp.exp(scale.log_temperature) * (best - new_best))
