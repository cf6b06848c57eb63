"""The losses without a matrix of all logits: "chunked" and "ring", with gradients that compute the logits again."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from clipa_eqx.losses.blocks import (
    RowGradients,
    RowSums,
    Scale,
    Side,
    SoftmaxSums,
    Weights,
    block_gradients,
    block_sums,
    losses_of,
    merge_columns,
    merge_columns_over,
    merge_rows,
    no_column_sums,
    no_row_sums,
)
from clipa_eqx.losses.config import LossConfig
from clipa_eqx.losses.pairs import ContrastiveOutput, check_pairs, check_split, means_over_pairs
from clipa_eqx.losses.visiting import visit_in_chunks, visit_in_ring


class _Plan(NamedTuple):
    """The loss, and the mesh axes that split the batch: none without a mesh."""

    config: LossConfig
    mesh: Mesh | None
    names: tuple[str, ...]

    @property
    def parts(self) -> int:
        return 1 if self.mesh is None else math.prod(self.mesh.shape[name] for name in self.names)


class _Saved(NamedTuple):
    """Values of the forward pass that the backward pass reads."""

    image: Float[Array, "batch embed"]
    text: Float[Array, "batch embed"]
    scale: Scale
    mask: Bool[Array, " batch"]
    rows: RowSums
    columns: SoftmaxSums | None


def streamed_contrastive(
    image: Float[Array, "batch embed"],
    text: Float[Array, "batch embed"],
    *,
    log_temperature: Float[Array, ""],
    bias: Float[Array, ""] | None,
    config: LossConfig,
    mesh: Mesh | None,
    axis_names: tuple[str, ...],
    mask: Bool[Array, " batch"] | None = None,
) -> ContrastiveOutput:
    """Loss of a batch by the algorithm "chunked" or "ring"; arguments and errors are those of ``contrastive_loss``.

    One matrix product per block serves both directions of the softmax. The gradient is defined for reverse mode only.
    """
    check_pairs(image, text, mask)
    if mesh is not None:
        check_split(image.shape[0], mesh, axis_names)
    plan = _Plan(config, mesh, () if mesh is None else axis_names)
    included = jnp.ones(image.shape[0], bool) if mask is None else mask
    losses, correct = _row_losses(plan, image, text, Scale(log_temperature, bias), included)
    return means_over_pairs(losses, correct, mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _row_losses(plan: _Plan, image: Array, text: Array, scale: Scale, mask: Array) -> tuple[Array, Array]:
    return _forward(plan, image, text, scale, mask)[0]


def _forward(plan: _Plan, image: Array, text: Array, scale: Scale, mask: Array) -> tuple[tuple[Array, Array], _Saved]:
    def own(image: Array, text: Array, mask: Array, scale: Scale) -> tuple[Array, Array, RowSums, SoftmaxSums | None]:
        rows, columns = (Side(x, _numbers(plan, x), mask) for x in (image, text))
        sums, column_sums = _visit_for_sums(plan, scale, rows, columns)
        return *losses_of(plan.config.kind, scale, rows, sums, column_sums), sums, column_sums

    losses, correct, rows, columns = _on_devices(plan, own, (image, text, mask), scale)
    return (losses, correct), _Saved(image, text, scale, mask, rows, columns)


def _backward(plan: _Plan, saved: _Saved, cotangents: tuple[Array, Any]) -> tuple[Array, Array, Scale, None]:
    split = (saved.image, saved.text, saved.mask, saved.rows, saved.columns, cotangents[0])

    def own(
        image: Array,
        text: Array,
        mask: Array,
        rows: RowSums,
        columns: SoftmaxSums | None,
        cotangent: Array,
        scale: Scale,
    ) -> tuple[Array, Array, Array, Array | None]:
        cotangent = jnp.where(mask, cotangent, 0.0)
        row_weights = Weights(cotangent, None if columns is None else SoftmaxSums(rows.best, rows.total))
        column_weights = Weights(cotangent, columns)
        sides = (Side(x, _numbers(plan, x), mask) for x in (image, text))
        mine, d_text = _visit_for_gradients(plan, scale, *sides, row_weights, column_weights)
        # A scalar of each device in an array, so that all results are split over the devices.
        return mine.image, d_text, *(None if x is None else x[None] for x in mine.scale)

    d_image, d_text, d_temperature, d_bias = _on_devices(plan, own, split, saved.scale)
    scale = Scale(jnp.sum(d_temperature), None if d_bias is None else jnp.sum(d_bias))
    return d_image, d_text, scale, None


_row_losses.defvjp(_forward, _backward)


def _on_devices(plan: _Plan, own: Any, split: tuple[Any, ...], scale: Scale) -> Any:
    """Call ``own(*split, scale)`` on each device with its part of ``split``; results are split in the same way."""
    if plan.mesh is None:
        return own(*split, scale)
    spec = PartitionSpec(plan.names)
    # Not differentiated, and equal on devices that differ in other axes: nothing for check_vma to check.
    return jax.shard_map(
        own,
        mesh=plan.mesh,
        in_specs=(*(spec for _ in split), PartitionSpec()),
        out_specs=spec,
        check_vma=False,
    )(*split, scale)


def _numbers(plan: _Plan, own: Array) -> Array:
    """Numbers in the batch of this device's pairs."""
    numbers = jnp.arange(own.shape[0], dtype=jnp.int32)
    return numbers + lax.axis_index(plan.names) * own.shape[0] if plan.names else numbers


def _visit_for_sums(plan: _Plan, scale: Scale, rows: Side, columns: Side) -> tuple[RowSums, SoftmaxSums | None]:
    kind = plan.config.kind

    def visit(columns: Side) -> tuple[RowSums, SoftmaxSums | None]:
        return block_sums(kind, scale, rows, columns)

    def merge(a: tuple[RowSums, Any], b: tuple[RowSums, Any]) -> tuple[RowSums, SoftmaxSums | None]:
        return merge_rows(kind, scale, a[0], b[0]), merge_columns(scale, a[1], b[1])

    mine = no_row_sums(rows.embeddings)
    if plan.config.algorithm == "ring":
        theirs = no_column_sums(kind, columns.embeddings)
        return visit_in_ring(
            visit, merge, columns=columns, mine=mine, theirs=theirs, names=plan.names, parts=plan.parts
        )
    columns = _gathered(plan, columns)
    theirs = no_column_sums(kind, columns.embeddings)
    sums, theirs = visit_in_chunks(
        visit, merge, columns=columns, exclude=_kept, mine=mine, theirs=theirs, chunk=plan.config.chunk
    )
    if not plan.names:
        return sums, theirs
    first, count = lax.axis_index(plan.names) * rows.number.shape[0], rows.number.shape[0]
    theirs = merge_columns_over(scale, theirs, plan.names)
    return sums, jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, count), theirs)


def _visit_for_gradients(
    plan: _Plan, scale: Scale, rows: Side, columns: Side, row_weights: Weights, column_weights: Weights
) -> tuple[RowGradients, Array]:
    def visit(columns: tuple[Side, Weights]) -> tuple[RowGradients, Array]:
        return block_gradients(scale, rows, row_weights, *columns)

    def merge(a: Any, b: Any) -> Any:
        return jax.tree.map(jnp.add, a, b)

    mine = RowGradients(jnp.zeros_like(rows.embeddings), jax.tree.map(jnp.zeros_like, scale))
    sides = (columns, column_weights)
    if plan.config.algorithm == "ring":
        theirs = jnp.zeros_like(columns.embeddings)
        return visit_in_ring(visit, merge, columns=sides, mine=mine, theirs=theirs, names=plan.names, parts=plan.parts)
    sides = _gathered(plan, sides)
    mine, theirs = visit_in_chunks(
        visit,
        merge,
        columns=sides,
        exclude=lambda sides, is_new: (_kept(sides[0], is_new), sides[1]),
        mine=mine,
        theirs=jnp.zeros_like(sides[0].embeddings),
        chunk=plan.config.chunk,
    )
    if plan.names:
        theirs = lax.psum_scatter(theirs, plan.names, scatter_dimension=0, tiled=True)
    return mine, theirs


def _gathered(plan: _Plan, tree: Any) -> Any:
    return jax.tree.map(lambda x: lax.all_gather(x, plan.names, tiled=True), tree) if plan.names else tree


def _kept(columns: Side, is_kept: Array) -> Side:
    return columns._replace(is_included=columns.is_included & is_kept)
