"""Loss and gradients of a batch: in one pass, or in micro-batches with the embeddings cached in between.

The cached way is that of Gao et al. 2021 (arXiv:2101.06983): the loss of a batch depends on its embeddings, which are
small, so activations are kept for one micro-batch at a time. Adding up the gradients of the losses of micro-batches is
something else: a pair would be compared with the pairs of its micro-batch only.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt8

from clipa_eqx.losses.config import LossConfig
from clipa_eqx.losses.contrastive import contrastive_loss
from clipa_eqx.models.clip import CLIP
from clipa_eqx.models.device_pixels import normalize_on_device
from clipa_eqx.models.kernels import XLA_KERNELS, Kernels, with_kernels
from clipa_eqx.models.layers import l2_normalize
from clipa_eqx.precision import Precision
from clipa_eqx.sharding import BATCH_AXES, batch_parts, check_micro_batch, shardings_for

_SOFTMAX = LossConfig()


class BatchLoss(NamedTuple):
    """The loss of a batch, and measurements of the same forward pass."""

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    image_norm: Float[Array, ""]
    text_norm: Float[Array, ""]


class Embeddings(NamedTuple):
    """Float32 embeddings of both towers, before they are brought to unit length."""

    image: Float[Array, "batch embed"]
    text: Float[Array, "batch embed"]


class Rows(NamedTuple):
    """Rows of a batch: the inputs of both towers, and the keys of each row, which are None if nothing is random."""

    images: UInt8[Array, "batch height width 3"]
    tokens: Int32[Array, "batch length"]
    image_keys: PRNGKeyArray | None
    text_keys: PRNGKeyArray | None


def batch_rows(
    images: UInt8[Array, "batch height width 3"], tokens: Int32[Array, "batch length"], *, key: PRNGKeyArray | None
) -> Rows:
    """The rows of a batch with one key per row and tower, which do not depend on how the batch is split."""
    if key is None:
        return Rows(images, tokens, None, None)
    k_image, k_text = (jr.split(k, images.shape[0]) for k in jr.split(key))
    return Rows(images, tokens, k_image, k_text)


def embed_rows(
    model: CLIP, rows: Rows, *, precision: Precision, mesh: Mesh | None = None, kernels: Kernels = XLA_KERNELS
) -> Embeddings:
    """Embed rows; with keys, masking, dropout and drop path are on. With a mesh, call it under ``jax.set_mesh``."""
    axes = None if mesh is None else BATCH_AXES
    towers, dtype = with_kernels(precision.for_towers(model), kernels), precision.compute
    pixels = normalize_on_device(rows.images).astype(dtype)
    tokens, text_keys = rows.tokens, rows.text_keys
    with jax.named_scope("image_tower"):
        image = jax.vmap(lambda x, k: towers.image(x, key=k), spmd_axis_name=axes)(pixels, rows.image_keys)
    with jax.named_scope("text_tower"):
        text = jax.vmap(lambda x, k: towers.text(x, key=k, dtype=dtype), spmd_axis_name=axes)(tokens, text_keys)
    return Embeddings(image.astype(jnp.float32), text.astype(jnp.float32))


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
    embeddings = embed_rows(model, batch_rows(images, tokens, key=key), precision=precision, mesh=mesh)
    scale = (model.log_temperature, model.bias)
    return _loss_of(embeddings, scale, mesh=mesh, loss_config=loss_config)


def batch_gradients(
    model: CLIP,
    images: UInt8[Array, "batch height width 3"],
    tokens: Int32[Array, "batch length"],
    *,
    key: PRNGKeyArray | None,
    precision: Precision,
    mesh: Mesh | None = None,
    loss_config: LossConfig = _SOFTMAX,
    micro_batch: int | None = None,
    kernels: Kernels = XLA_KERNELS,
    trained: Any = True,
) -> tuple[CLIP, BatchLoss]:
    """The gradients of ``batch_loss`` by the model, and its result.

    Args:
        micro_batch: pairs whose activations are in memory at once, over all devices; None takes the complete batch.
            It need not divide the batch. Each micro-batch is embedded twice: without activations, for the loss, and
            again with them, for the gradients. Results differ by rounding only.
        kernels: kernels of attention, as ``choose_kernels`` returns them.
        trained: True, or a tree like ``model`` of booleans. Gradients of leaves that are False are not computed; the
            result has None there.

    Raises:
        ShardingError: ``micro_batch`` is no multiple of the devices that split the batch.
    """
    rows = batch_rows(images, tokens, key=key)
    if micro_batch is not None and micro_batch < images.shape[0]:
        return _cached_gradients(
            model,
            rows,
            precision=precision,
            mesh=mesh,
            loss_config=loss_config,
            micro_batch=micro_batch,
            kernels=kernels,
            trained=trained,
        )
    moving, frozen = eqx.partition(model, trained)

    def loss(moving: CLIP) -> tuple[Float[Array, ""], BatchLoss]:
        model = eqx.combine(moving, frozen)
        embeddings = embed_rows(model, rows, precision=precision, mesh=mesh, kernels=kernels)
        out = _loss_of(embeddings, (model.log_temperature, model.bias), mesh=mesh, loss_config=loss_config)
        return out.loss, out

    return jax.grad(loss, has_aux=True)(moving)


@jax.named_scope("loss")
def _loss_of(
    embeddings: Embeddings,
    scale: tuple[Float[Array, ""], Float[Array, ""] | None],
    *,
    mesh: Mesh | None,
    loss_config: LossConfig,
) -> BatchLoss:
    image, text = embeddings
    z_image, z_text = jax.vmap(l2_normalize)(image), jax.vmap(l2_normalize)(text)
    if mesh is not None:
        z_image, z_text = (jax.lax.with_sharding_constraint(z, PartitionSpec(BATCH_AXES)) for z in (z_image, z_text))
    log_temperature, bias = scale
    out = contrastive_loss(z_image, z_text, log_temperature=log_temperature, bias=bias, config=loss_config, mesh=mesh)
    return BatchLoss(
        loss=out.loss,
        accuracy=out.accuracy,
        image_norm=jnp.mean(jnp.linalg.norm(image, axis=1)),
        text_norm=jnp.mean(jnp.linalg.norm(text, axis=1)),
    )


def _cached_gradients(
    model: CLIP,
    rows: Rows,
    *,
    precision: Precision,
    mesh: Mesh | None,
    loss_config: LossConfig,
    micro_batch: int,
    kernels: Kernels,
    trained: Any,
) -> tuple[CLIP, BatchLoss]:
    parts = 1
    if mesh is not None:
        check_micro_batch(micro_batch, mesh)
        parts = batch_parts(mesh)
    split = _Split(rows.images.shape[0] // parts, micro_batch // parts, parts, mesh)

    def embed(model: CLIP, rows: Rows) -> Embeddings:
        return embed_rows(model, rows, precision=precision, mesh=mesh, kernels=kernels)

    def forward(_: None, rows: Rows) -> tuple[None, Embeddings]:
        return None, embed(model, rows)

    full, rest = split.apart(rows)
    _, embedded = jax.lax.scan(forward, None, full)
    embeddings = split.together(embedded, None if rest is None else embed(model, rest))

    def loss(embeddings: Embeddings, scale: Any) -> tuple[Float[Array, ""], BatchLoss]:
        out = _loss_of(embeddings, scale, mesh=mesh, loss_config=loss_config)
        return out.loss, out

    scale = (model.log_temperature, model.bias)
    (by_embeddings, (by_temperature, by_bias)), out = jax.grad(loss, argnums=(0, 1), has_aux=True)(embeddings, scale)

    moving, frozen = eqx.partition(model, trained)

    def add(grads: CLIP, rows: Rows, cotangents: Embeddings) -> CLIP:
        _, pull_back = jax.vjp(lambda moving: embed(eqx.combine(moving, frozen), rows), moving)
        (more,) = pull_back(cotangents)
        total = jax.tree.map(jnp.add, grads, more)
        return total if mesh is None else jax.lax.with_sharding_constraint(total, shardings_for(total, mesh))

    def backward(grads: CLIP, xs: tuple[Rows, Embeddings]) -> tuple[CLIP, None]:
        return add(grads, *xs), None

    full_cotangents, rest_cotangents = split.apart(by_embeddings)
    zeros = jax.tree.map(jnp.zeros_like, moving)
    if mesh is not None:
        zeros = jax.lax.with_sharding_constraint(zeros, shardings_for(zeros, mesh))
    grads, _ = jax.lax.scan(backward, zeros, (full, full_cotangents))
    if rest is not None:
        grads = add(grads, rest, rest_cotangents)
    # No tower depends on these two.
    by_scale = dataclasses.replace(model, log_temperature=by_temperature, bias=by_bias)
    by_scale = eqx.filter(by_scale, trained)

    def scale_of(tree: CLIP) -> tuple[Any, Any]:
        return tree.log_temperature, tree.bias

    return eqx.tree_at(scale_of, grads, scale_of(by_scale), is_leaf=lambda leaf: leaf is None), out


class _Split(NamedTuple):
    """The split of a batch into micro-batches: each device takes the next of its own rows, so that none are moved.

    Attributes:
        local: rows of a device.
        size: rows of a device in a micro-batch; the last micro-batch may have fewer.
        parts: devices that split the batch.
    """

    local: int
    size: int
    parts: int
    mesh: Mesh | None

    def apart(self, tree: Any) -> tuple[Any, Any]:
        """The full micro-batches, stacked along a new first axis, and a smaller last one or None."""
        count, rest = divmod(self.local, self.size)

        def full(x: Array) -> Array:
            per_device = x.reshape(self.parts, self.local, *x.shape[1:])[:, : count * self.size]
            stacked = per_device.reshape(self.parts, count, self.size, *x.shape[1:]).swapaxes(0, 1)
            return self._pinned(stacked.reshape(count, self.parts * self.size, *x.shape[1:]), leading=1)

        def last(x: Array) -> Array:
            per_device = x.reshape(self.parts, self.local, *x.shape[1:])[:, count * self.size :]
            return self._pinned(per_device.reshape(self.parts * rest, *x.shape[1:]))

        return jax.tree.map(full, tree), jax.tree.map(last, tree) if rest else None

    def together(self, stacked: Any, last: Any) -> Any:
        """The rows in the order of the batch again."""

        def join(x: Array, *rest: Array) -> Array:
            count = x.shape[0]
            shape = x.shape[2:]
            per_device = x.reshape(count, self.parts, self.size, *shape).swapaxes(0, 1)
            pieces = [per_device.reshape(self.parts, count * self.size, *shape)]
            pieces += [one.reshape(self.parts, -1, *shape) for one in rest]
            return self._pinned(jnp.concatenate(pieces, axis=1).reshape(self.parts * self.local, *shape))

        return jax.tree.map(join, stacked, *(() if last is None else (last,)))

    def _pinned(self, x: Array, *, leading: int = 0) -> Array:
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, PartitionSpec(*(None,) * leading, BATCH_AXES))
