"""Embeddings of batches on any mesh, for scoring: uint8 images or tokens in, unit vectors out."""

import functools
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8

from clipa_eqx.device_memory import check_fits, device_limit, memory_of
from clipa_eqx.errors import counted
from clipa_eqx.models.clip import CLIP
from clipa_eqx.models.device_pixels import normalize_on_device
from clipa_eqx.models.inputs import check_image_batch, check_token_batch
from clipa_eqx.progress import LINE_EVERY, waiting


def encode_images(
    model: CLIP, images: UInt8[np.ndarray, "batch height width 3"], *, mesh: Mesh | None = None
) -> Float[Array, "padded embed"]:
    """Unit float32 embeddings of this process's images; read them with ``local_rows``.

    With a mesh, the batch is padded with zeros to the next multiple of the devices of a process, and all processes
    must pass the same number of rows. The call returns before the work is done. One compilation per batch shape.

    Raises:
        ConfigError: not uint8[batch height width 3] of the model's size, or the batch needs more memory than a device
            has.
    """
    check_image_batch(images, size=model.config.image.image_size)
    batch, axes = _place(images, mesh)
    with jax.set_mesh(mesh):
        _compile(_encode_images, model, batch, axes=axes, what="images")
        return _encode_images(model, batch, axes=axes)


def encode_texts(
    model: CLIP, tokens: Int[np.ndarray, "batch length"], *, mesh: Mesh | None = None
) -> Float[Array, "padded embed"]:
    """Unit float32 embeddings of this process's tokenized texts; otherwise like ``encode_images``.

    Raises:
        ConfigError: not integer[batch length] of the model's length, or an id that is not a row of the token table.
    """
    check_token_batch(tokens, length=model.config.text.length, vocab=model.config.text.vocab)
    batch, axes = _place(tokens, mesh)
    with jax.set_mesh(mesh):
        _compile(_encode_texts, model, batch, axes=axes, what="texts")
        return _encode_texts(model, batch, axes=axes)


def encode_features(
    model: CLIP, images: UInt8[np.ndarray, "batch height width 3"], *, mesh: Mesh | None = None
) -> Float[Array, "padded dim"]:
    """The float32 vectors of this process's images before the projection; otherwise like ``encode_images``.

    Raises:
        ConfigError: not uint8[batch height width 3] of the model's size, or the batch needs more memory than a device
            has.
    """
    check_image_batch(images, size=model.config.image.image_size)
    batch, axes = _place(images, mesh)
    with jax.set_mesh(mesh):
        _compile(_encode_features, model, batch, axes=axes, what="features")
        return _encode_features(model, batch, axes=axes)


def local_rows(
    embeddings: Float[Array, "padded embed"] | Float[np.ndarray, "padded embed"], *, rows: int
) -> Float[np.ndarray, "rows embed"]:
    """The first ``rows`` rows that this process passed in, without the padding. Waits until they are computed."""
    if isinstance(embeddings, np.ndarray):
        return embeddings[:rows]
    # On a CPU, a batch of a large model takes minutes, and a progress bar counts batches.
    with waiting(f"waiting for {counted(rows, 'embedding')} from the devices", first=LINE_EVERY):
        if embeddings.is_fully_addressable:
            return np.asarray(embeddings)[:rows]
        parts = {shard.index[0].start or 0: shard.data for shard in embeddings.addressable_shards}
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])[:rows]


@contextmanager
def called_before_batches(function: Callable[[], None]) -> Generator[None]:
    """Call a function before each batch of images or texts that this thread encodes in the ``with`` block.

    All processes of an evaluation encode the same number of batches in the same order, so what the function raises on
    all of them ends the evaluation between the same two batches.
    """
    token = _before_batch.set(function)
    try:
        yield
    finally:
        _before_batch.reset(token)


_before_batch: ContextVar[Callable[[], None] | None] = ContextVar("function before each batch", default=None)


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """Axes of a mesh that split the batch: those of "data" and "fsdp" that it has."""
    return tuple(axis for axis in ("data", "fsdp") if axis in mesh.axis_names)


def _place(rows: np.ndarray, mesh: Mesh | None) -> tuple[np.ndarray | Array, tuple[str, ...]]:
    if (function := _before_batch.get()) is not None:
        function()
    if mesh is None:
        return rows, ()
    # Over all axes, so that processes which share a place on the batch axes still have rows of their own.
    missing = -len(rows) % mesh.local_mesh.size
    padded = np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])
    split = NamedSharding(mesh, PartitionSpec(tuple(mesh.axis_names)))
    return jax.make_array_from_process_local_data(split, padded), batch_axes(mesh)


@functools.partial(jax.jit, static_argnames="axes")
def _encode_images(
    model: CLIP, images: UInt8[Array, "batch height width 3"], *, axes: tuple[str, ...]
) -> Float[Array, "batch embed"]:
    def encode(image: UInt8[Array, "height width 3"]) -> Float[Array, " embed"]:
        return model.encode_image(normalize_on_device(image))

    return _keep_split(jax.vmap(encode, spmd_axis_name=axes or None)(images), axes)


@functools.partial(jax.jit, static_argnames="axes")
def _encode_features(
    model: CLIP, images: UInt8[Array, "batch height width 3"], *, axes: tuple[str, ...]
) -> Float[Array, "batch dim"]:
    def encode(image: UInt8[Array, "height width 3"]) -> Float[Array, " dim"]:
        return model.image.trace(normalize_on_device(image)).head_input.astype(jnp.float32)

    return _keep_split(jax.vmap(encode, spmd_axis_name=axes or None)(images), axes)


@functools.partial(jax.jit, static_argnames="axes")
def _encode_texts(
    model: CLIP, tokens: Int[Array, "batch length"], *, axes: tuple[str, ...]
) -> Float[Array, "batch embed"]:
    return _keep_split(jax.vmap(model.encode_text, spmd_axis_name=axes or None)(tokens), axes)


_compiled: set[tuple[Hashable, ...]] = set()
"""Batches whose memory was checked."""


def _compile(function: Any, model: CLIP, batch: np.ndarray | Array, *, axes: tuple[str, ...], what: str) -> None:
    """Compile for a new kind of batch with progress, and check that it fits; the call that follows reuses the work."""
    leaves: list[Any] = jax.tree.leaves((model, batch))
    described = ((leaf.shape, str(leaf.dtype), getattr(leaf, "sharding", None)) for leaf in leaves)
    signature: tuple[Hashable, ...] = (what, jax.tree.structure(model), axes, *described)
    if signature in _compiled:
        return
    rows = batch.shape[0]
    with waiting(f"compiling for {counted(rows, what[:-1])} at once", first=LINE_EVERY):
        needed = memory_of(function.lower(model, batch, axes=axes).compile())
    device: Any = (
        jax.local_devices()[0] if isinstance(batch, np.ndarray) else next(iter(batch.sharding.addressable_devices))
    )
    if needed is not None:
        advice = [f"a smaller batch: half of it is {max(rows // 2, 1)}"]
        check_fits(needed, device_limit(device), what=f"encoding {counted(rows, what[:-1])} at once", advice=advice)
    _compiled.add(signature)


def _keep_split(rows: Float[Array, "batch embed"], axes: tuple[str, ...]) -> Float[Array, "batch embed"]:
    # Embeddings are split like the input, so that each process reads the rows it passed in.
    if not axes:
        return rows
    names = tuple(jax.sharding.get_abstract_mesh().axis_names)
    return jax.lax.with_sharding_constraint(rows, PartitionSpec(names, None))
