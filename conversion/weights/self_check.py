"""Embeddings of fixed inputs by the model in a folder, computed one block at a time from the mapped file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, UInt8

from clipa_eqx.models.blocks import Block
from clipa_eqx.models.clip import CLIP, CLIPConfig, abstract_clip
from clipa_eqx.models.device_pixels import normalize_on_device
from clipa_eqx.models.layers import l2_normalize
from clipa_eqx.models.text import TextTower
from clipa_eqx.models.vision import VisionTower
from clipa_eqx.saved.description import load_model_config
from clipa_eqx.saved.kinds import WEIGHTS_FILE
from clipa_eqx.saved.leaf_file import LeafReader
from clipa_eqx.trees import leaf_paths

IMAGES, TEXTS = 1, 2
"""Numbers of fixed inputs."""


class Embeddings(NamedTuple):
    """Embeddings of the fixed inputs before normalization."""

    image: Float32[np.ndarray, "images embed"]
    text: Float32[np.ndarray, "texts embed"]

    def report(self) -> dict[str, Any]:
        """Norms before and after normalization and the first normalized values, as JSON for the provenance."""
        out: dict[str, Any] = {}
        for name, raw in (("image", self.image), ("text", self.text)):
            unit = np.asarray(jax.vmap(l2_normalize)(jnp.asarray(raw)))
            out[name] = {
                "norm": np.linalg.norm(raw.astype(np.float64), axis=1).tolist(),
                "unit_norm": np.linalg.norm(unit.astype(np.float64), axis=1).tolist(),
                "first_values": unit[:, :8].round(6).tolist(),
            }
        return out

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.image).all() and np.isfinite(self.text).all())


def fixed_inputs(
    config: CLIPConfig,
) -> tuple[UInt8[np.ndarray, "images height width 3"], Int32[np.ndarray, "texts length"]]:
    """Images and token ids that are the same on every machine."""
    size, length = config.image.image_size, config.text.length
    values = np.arange(IMAGES * size[0] * size[1] * 3, dtype=np.int64)
    images = (values * 7919 // 64 % 256).astype(np.uint8).reshape(IMAGES, *size, 3)
    tokens = (np.arange(TEXTS * length, dtype=np.int64) * 7919 + 101) % config.text.vocab
    return images, tokens.astype(np.int32).reshape(TEXTS, length)


def embed_fixed_inputs(folder: Path, *, advance: Callable[[int], object] | None = None) -> Embeddings:
    """Embeddings of the fixed inputs; needs memory for one block and the tables, for models of any depth.

    Args:
        folder: a model folder.
        advance: called with the number of bytes of weights that were used.

    Raises:
        CheckpointError: the folder is not a model folder.
    """
    config = load_model_config(folder)
    skeleton = abstract_clip(config)
    images, tokens = fixed_inputs(config)
    with LeafReader(folder / WEIGHTS_FILE) as leaves:
        model = _without_blocks(skeleton, leaves)
        x = _before_image(model.image, jnp.asarray(images))
        x = _through_blocks(x, skeleton.image.blocks, "image/blocks", leaves, advance)
        image = np.asarray(_after(model.image, x))
        x = _before_text(model.text, jnp.asarray(tokens))
        x = _through_blocks(x, skeleton.text.blocks, "text/blocks", leaves, advance)
        return Embeddings(image, np.asarray(_after(model.text, x)))


def _without_blocks(skeleton: CLIP, leaves: LeafReader) -> CLIP:
    """The model with zeros as the leaves of its blocks; all other leaves are read."""
    found = [jnp.zeros(()) if "/blocks/" in path else jnp.asarray(leaves.read(path)) for path in leaf_paths(skeleton)]
    return jax.tree.unflatten(jax.tree.structure(skeleton), found)


def _through_blocks(
    x: Float[Array, "batch seq dim"],
    skeleton: Block,
    path: str,
    leaves: LeafReader,
    advance: Callable[[int], object] | None,
) -> Float[Array, "batch seq dim"]:
    names, structure = leaf_paths(skeleton), jax.tree.structure(skeleton)
    for layer in range(jax.tree.leaves(skeleton)[0].shape[0]):
        views = [leaves.read(f"{path}/{name}", layer) for name in names]
        x = _one_block(jax.tree.unflatten(structure, views), x)
        x.block_until_ready()
        if advance is not None:
            advance(sum(view.nbytes for view in views))
    return x


@jax.jit
def _before_image(tower: VisionTower, images: UInt8[Array, "batch height width 3"]) -> Float[Array, "batch seq dim"]:
    return jax.vmap(lambda one: tower.before_blocks(one).with_position)(normalize_on_device(images))


@jax.jit
def _before_text(tower: TextTower, tokens: Int32[Array, "batch length"]) -> Float[Array, "batch seq dim"]:
    return jax.vmap(lambda one: tower.before_blocks(one).with_position)(tokens)


@jax.jit
def _after(tower: VisionTower | TextTower, x: Float[Array, "batch seq dim"]) -> Float[Array, "batch embed"]:
    return jax.vmap(lambda one: tower.after_blocks(one).embedding)(x)


@jax.jit
def _one_block(block: Block, x: Float[Array, "batch seq dim"]) -> Float[Array, "batch seq dim"]:
    return jax.vmap(lambda one: block(one, dropout_rate=0.0, drop_path_rate=None, key=None).after_mlp)(x)
