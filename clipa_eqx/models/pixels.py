"""From uint8 pixels to what the image tower takes, on the device."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from clipa_eqx.data.images.pixel_values import IMAGENET_MEAN, IMAGENET_STD


def normalize_pixels(image: UInt8[Array, "*batch height width 3"]) -> Float[Array, "*batch height width 3"]:
    """``(pixel - 255 mean) / (255 std)`` in float32 with ImageNet's constants, as the reference's update step."""
    shape = (1,) * (image.ndim - 1) + (3,)
    mean = jnp.asarray(IMAGENET_MEAN, jnp.float32).reshape(shape) * 255
    std = jnp.asarray(IMAGENET_STD, jnp.float32).reshape(shape) * 255
    return (image.astype(jnp.float32) - mean) / std
