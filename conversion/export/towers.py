"""The towers as functions of arrays alone: what is exported, what it takes, and how it is compared with the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, UInt8

from clipa_eqx.errors import ConversionError
from clipa_eqx.models.clip import CLIP, CLIPConfig, abstract_clip
from clipa_eqx.models.device_pixels import normalize_on_device
from clipa_eqx.models.layers import l2_normalize
from clipa_eqx.trees import from_leaves, leaves_by_path
from conversion.weights.self_check import fixed_inputs

TowerName = Literal["image", "text"]
Dtype = Literal["float32", "bfloat16"]
Weights = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A tower to export.

    Attributes:
        name: "image" or "text".
        weights: its leaves by their paths within the tower, such as ``blocks/attn/q/weight``; those of a tower in
            bfloat16 are the bits as uint16, because NumPy's files have no bfloat16.
        encode: ``encode(weights, batch)`` gives unit embeddings float32[batch, embed].
        examples: inputs that are the same on every machine.
        expected: embeddings of the examples by this tower.
        reference: embeddings of the examples by the tower in float32.
    """

    name: TowerName
    weights: Weights
    encode: Callable[[Weights, Array], Array]
    examples: np.ndarray
    expected: Float32[np.ndarray, "examples embed"]
    reference: Float32[np.ndarray, "examples embed"]

    @property
    def input(self) -> str:
        """The input in words, such as "uint8[batch, 224, 224, 3]"."""
        return f"{self.examples.dtype.name}[batch, {', '.join(map(str, self.examples.shape[1:]))}]"

    @property
    def output(self) -> str:
        """The output in words, such as "float32[batch, 1024]"."""
        return f"float32[batch, {self.expected.shape[1]}]"

    def difference(self, found: np.ndarray, *, tolerance: float) -> float:
        """The largest difference of the exported program's embeddings of the examples from the float32 model's.

        Args:
            found: the embeddings by the exported program.
            tolerance: largest difference from ``expected`` in any component of the unit vectors.

        Raises:
            ConversionError: it is larger; the program must not be used.
        """
        largest = float(np.max(np.abs(np.asarray(found, np.float32) - self.expected)))
        if not largest <= tolerance:
            raise ConversionError(
                f"the exported {self.name} tower gives other embeddings than the model: they differ by {largest:.1e}, "
                f"at most {tolerance:.0e} is expected; nothing was written. Please report it"
            )
        return float(np.max(np.abs(np.asarray(found, np.float32) - self.reference)))


def tower_of(model: CLIP, name: TowerName, *, dtype: Dtype) -> Tower:
    """A tower of a model, with weights and activations of a dtype; the embeddings are float32."""
    config = model.config
    images, tokens = fixed_inputs(config)
    examples: np.ndarray = images if name == "image" else tokens
    weights: Weights = leaves_by_path(model.image if name == "image" else model.text)
    expected = reference = np.asarray(jax.jit(encoder(config, name, dtype="float32"))(weights, examples))
    encode = encoder(config, name, dtype=dtype)
    if dtype == "bfloat16":
        weights = {path: _to_bits(leaf) for path, leaf in weights.items()}
        expected = np.asarray(jax.jit(encode)(weights, examples))
    return Tower(name=name, weights=weights, encode=encode, examples=examples, expected=expected, reference=reference)


def encoder(config: CLIPConfig, name: TowerName, *, dtype: Dtype) -> Callable[[Weights, Array], Array]:
    """A function of weights by path and of a batch, without any object of this package in its arguments."""
    skeleton = abstract_clip(config)

    def encode_images(weights: Weights, images: UInt8[Array, "batch height width 3"]) -> Float[Array, "batch embed"]:
        tower = from_leaves(skeleton.image, _of_bits(weights))
        return jax.vmap(lambda image: l2_normalize(tower(normalize_on_device(image).astype(dtype))))(images)

    def encode_texts(weights: Weights, tokens: Int32[Array, "batch length"]) -> Float[Array, "batch embed"]:
        tower = from_leaves(skeleton.text, _of_bits(weights))
        return jax.vmap(lambda row: l2_normalize(tower(row, dtype=dtype)))(tokens)

    return encode_images if name == "image" else encode_texts


def _to_bits(leaf: Array) -> Array:
    return jax.lax.bitcast_convert_type(leaf.astype(jnp.bfloat16), jnp.uint16)


def _of_bits(weights: Weights) -> Weights:
    """The weights with bfloat16 for uint16."""
    return {
        path: jax.lax.bitcast_convert_type(leaf, jnp.bfloat16) if leaf.dtype == jnp.uint16 else leaf
        for path, leaf in weights.items()
    }
