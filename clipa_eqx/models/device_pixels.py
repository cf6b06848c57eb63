"""Pixel normalization in the compiled step, with jax; ``data.images.host_pixels`` does the same with numpy."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from clipa_eqx.data.images.host_pixels import IMAGENET_MEAN, IMAGENET_STD
from clipa_eqx.models.inputs import check_levels


def normalize_on_device(image: UInt8[Array, "*batch height width 3"]) -> Float[Array, "*batch height width 3"]:
    """Map levels 0..255 to ``(level - 255 mean) / (255 std)`` per channel, in float32, on the device.

    Mean and standard deviation are ImageNet's, as in the reference's update step.

    Raises:
        ConfigError: other levels than uint8, or another last axis than the three channels.
    """
    check_levels(image)
    shape = (1,) * (image.ndim - 1) + (3,)
    mean = jnp.asarray(IMAGENET_MEAN, jnp.float32).reshape(shape) * 255
    std = jnp.asarray(IMAGENET_STD, jnp.float32).reshape(shape) * 255
    return (image.astype(jnp.float32) - mean) / std
