"""From pixels and token ids to tokens: patches, token table, fixed sin-cos positions, random masking."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class TokenEmbedding(eqx.Module):
    """A table of token vectors."""

    weight: Float[Array, "vocab dim"]

    def __call__(self, tokens: Int[Array, " seq"]) -> Float[Array, "seq dim"]:
        return self.weight[tokens]


def to_patches(image: Float[Array, "height width 3"], patch_size: tuple[int, int]) -> Float[Array, "patches pixels"]:
    """Cut an image into patches, row-major, each flattened as (row, column, channel).

    With a linear layer this is both patch embeddings of the reference: a strided VALID convolution has the same
    kernel, reshaped.
    """
    ph, pw = patch_size
    height, width, channels = image.shape
    grid = image.reshape(height // ph, ph, width // pw, pw, channels)
    return grid.transpose(0, 2, 1, 3, 4).reshape(-1, ph * pw * channels)


def sincos_2d(height: int, width: int, dim: int) -> Float[np.ndarray, "tokens dim"]:
    """Fixed 2-D positions of a patch grid: [sin xw, cos xw, sin yw, cos yw], row-major (``models/vit.py``).

    The frequencies are ``10000^(-i / (q - 1))`` with q = dim / 4: the denominator is q - 1 in the reference's JAX
    code, q in its torch code; they must not be mixed. ``dim`` must be divisible by 4.
    """
    q = dim // 4
    exponent = (np.arange(q, dtype=np.float32) / np.float32(q - 1)).astype(np.float64)
    omega = np.float32(1.0) / np.power(10000.0, exponent).astype(np.float32)
    y, x = (axis.reshape(-1, 1) * omega[None] for axis in np.mgrid[:height, :width].astype(np.float32))
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)


def sincos_1d(length: int, dim: int) -> Float[np.ndarray, "seq dim"]:
    """Fixed 1-D positions: [sin pw, cos pw] (``models/text_transformer.py``). ``dim`` must be even.

    The reference computes this table in float64 and rounds once, the 2-D table in float32 throughout.
    """
    half = dim // 2
    angle = np.arange(length)[:, None] * 10000.0 ** -(np.arange(half) / (half - 1))[None]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def kept_tokens(tokens: int, mask_ratio: float) -> int:
    """How many of ``tokens`` stay visible: ``int(tokens * (1 - mask_ratio))``, with the reference's truncation."""
    return int(tokens * (1 - mask_ratio))


def keep_random_tokens(
    x: Float[Array, "tokens dim"], noise: Float[Array, " tokens"], kept: int
) -> tuple[Float[Array, "kept dim"], Int[Array, " kept"]]:
    """The ``kept`` tokens of lowest noise, in order of rising noise, and their indices (docs/reference.md F1.7)."""
    order = jnp.argsort(noise, stable=True)[:kept]
    return jnp.take(x, order, axis=0), order
