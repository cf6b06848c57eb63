"""From pixels and token ids to tokens: patches, token table, fixed sin-cos positions, random masking."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class TokenEmbedding(eqx.Module):
    """Table of token vectors."""

    weight: Float[Array, "vocab dim"]

    def __call__(self, tokens: Int[Array, " seq"]) -> Float[Array, "seq dim"]:
        """Look up the vector of each token id; ids must be below the number of rows."""
        return self.weight[tokens]


def to_patches(image: Float[Array, "height width 3"], patch_size: tuple[int, int]) -> Float[Array, "patches pixels"]:
    """Cut an image into patches, row-major, each flattened as (row, column, channel).

    A linear layer on the result computes both kinds of patch embedding of the reference: a strided VALID convolution
    has the same kernel in another shape. ``patch_size`` is (height, width) in pixels and must divide the image.
    """
    ph, pw = patch_size
    height, width, channels = image.shape
    grid = image.reshape(height // ph, ph, width // pw, pw, channels)
    return grid.transpose(0, 2, 1, 3, 4).reshape(-1, ph * pw * channels)


def sincos_2d(height: int, width: int, dim: int) -> Float[np.ndarray, "tokens dim"]:
    """Fixed 2-D positions of a patch grid: [sin xw, cos xw, sin yw, cos yw], row-major, in float32.

    The frequencies w are ``10000^(-i / (q - 1))`` with q = dim / 4. The denominator is q - 1 in the reference's JAX
    code (``models/vit.py``) and q in its torch code; they must not be mixed. ``dim`` must be divisible by 4 and at
    least 8.
    """
    q = dim // 4
    exponent = (np.arange(q, dtype=np.float32) / np.float32(q - 1)).astype(np.float64)
    omega = np.float32(1.0) / np.power(10000.0, exponent).astype(np.float32)
    y, x = (axis.reshape(-1, 1) * omega[None] for axis in np.mgrid[:height, :width].astype(np.float32))
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)


def sincos_1d(length: int, dim: int) -> Float[np.ndarray, "seq dim"]:
    """Fixed 1-D positions: [sin pw, cos pw], in float32 (``models/text_transformer.py`` of the reference).

    The reference computes this table in float64 and rounds once, but the 2-D table in float32 throughout. ``dim`` must
    be even and at least 4.
    """
    half = dim // 2
    angle = np.arange(length)[:, None] * 10000.0 ** -(np.arange(half) / (half - 1))[None]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def kept_tokens(tokens: int, mask_ratio: float) -> int:
    """Number of ``tokens`` that stay visible: ``int(tokens * (1 - mask_ratio))``, truncated as in the reference."""
    return int(tokens * (1 - mask_ratio))


def keep_random_tokens(
    x: Float[Array, "tokens dim"], noise: Float[Array, " tokens"], kept: int
) -> tuple[Float[Array, "kept dim"], Int[Array, " kept"]]:
    """Select the ``kept`` tokens of lowest noise, in order of rising noise (docs/reference.md F1.7).

    Returns:
        The tokens, and their indices in ``x``.
    """
    order = jnp.argsort(noise, stable=True)[:kept]
    return jnp.take(x, order, axis=0), order
