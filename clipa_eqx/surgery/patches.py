"""Changes of the patch projection: other pixel statistics, another patch size."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from clipa_eqx.data.images.host_pixels import IMAGENET_MEAN, IMAGENET_STD
from clipa_eqx.errors import ConfigError
from clipa_eqx.models.clip import CLIP
from clipa_eqx.surgery.configuration import operated, rebuild
from clipa_eqx.surgery.report import Move, Operated
from clipa_eqx.surgery.sizes import resample_grid
from clipa_eqx.trees import leaves_by_path

PatchResize = Literal["pseudo-inverse", "bilinear"]
"""Ways to make the kernels of another patch size; ``resize_patch`` describes them."""


def with_pixel_statistics(model: CLIP, *, mean: Sequence[float], std: Sequence[float]) -> Operated:
    """Change the patch projection so that pixels normalized with ImageNet's statistics act as with others.

    This is exact in real numbers, also at the border: images are not padded. A projection without a bias gets one: the
    field ``patch`` becomes "linear".

    Args:
        mean: mean of each channel that the weights expect, of values from 0 to 1.
        std: standard deviation of each channel, likewise.

    Raises:
        ConfigError: not three numbers each, or a ``std`` that is not positive.
    """
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(f"pixel statistics need three means and three positive stds, got {mean} and {std}")
    old, patch = (np.asarray(IMAGENET_MEAN), np.asarray(IMAGENET_STD)), model.image.patch
    kernel = patch.weight.reshape(*patch.weight.shape[:1], -1, 3)
    factor = jnp.asarray(old[1] / np.asarray(std), kernel.dtype)
    shift = jnp.asarray((old[0] - np.asarray(mean)) / np.asarray(std), kernel.dtype)
    bias = jnp.einsum("dpc,c->d", kernel, shift, precision="highest")
    leaves = leaves_by_path(model) | {
        "image/patch/weight": (kernel * factor[None, None]).reshape(patch.weight.shape),
        "image/patch/bias": bias if patch.bias is None else patch.bias + bias,
    }
    config = dataclasses.replace(model.config, image=dataclasses.replace(model.config.image, patch="linear"))
    changes = [f"image/patch: pixels of mean {tuple(mean)} and std {tuple(std)}"]
    if patch.bias is None:
        changes.append("image.patch: 'conv' -> 'linear', for the bias")
    return operated(model, rebuild(config, leaves), changes)


def resize_patch(
    model: CLIP,
    *,
    patch_size: tuple[int, int],
    image_size: tuple[int, int] | None = None,
    method: PatchResize = "pseudo-inverse",
) -> Operated:
    """Change the size of the patches to (height, width) in pixels; positions follow as in ``resize_image``.

    With B, the bilinear resizing of a patch from the old to the new size (half-pixel centers, edges clamped, no
    antialiasing), the new kernel of each output is ``pinv(B.T) @ w``, or ``B @ w`` for "bilinear". The pseudo-inverse
    makes the new kernel on a resized patch act as the old kernel on the patch: exactly when the patch grows in both
    directions, and as closely as least squares allow when it shrinks. "bilinear" changes the scale of the outputs.

    Args:
        model: model to change.
        patch_size: new (height, width) of a patch.
        image_size: new (height, width) of the images; None keeps it.
        method: "pseudo-inverse" (FlexiViT) or "bilinear".

    Raises:
        ConfigError: the patches do not divide the image size.

    Source: Beyer et al., "FlexiViT: One Model for All Patch Sizes", arXiv:2212.08013, section 3.4.
    """
    old = model.config.image
    image = dataclasses.replace(old, patch_size=patch_size, image_size=image_size or old.image_size)
    if image == old:
        return operated(model, model, ())
    names = [name for name in ("patch_size", "image_size") if getattr(image, name) != getattr(old, name)]
    leaves, moves = leaves_by_path(model), dict[str, Move]()
    changes = [f"image.{name}: {getattr(old, name)} -> {getattr(image, name)}" for name in names]
    if patch_size != old.patch_size:
        leaves["image/patch/weight"] = _resample_kernel(model.image.patch.weight, old.patch_size, patch_size, method)
        # A gradient is a sum of pixels, and those of a resized patch are B @ pixels; pinv is for weights.
        moves["image/patch/weight"] = partial(_resample_kernel, old=old.patch_size, new=patch_size, method="bilinear")
        changes.append(f"image/patch/weight: kernels resampled from {old.patch_size} to {patch_size} pixels ({method})")
    if model.image.position is not None and image.grid != old.grid:
        moves["image/position"] = partial(resample_grid, old=old.grid, new=image.grid)
        leaves["image/position"] = moves["image/position"](model.image.position)
        changes.append(f"image/position: class token's row kept, grid {old.grid} resampled to {image.grid}")
    return operated(model, rebuild(dataclasses.replace(model.config, image=image), leaves), changes, moves=moves)


def _resample_kernel(
    weight: Float[Array, "dim old_pixels"], old: tuple[int, int], new: tuple[int, int], method: PatchResize
) -> Float[Array, "dim new_pixels"]:
    # B is the Kronecker product of two matrices, one per axis, and so is its pseudo-inverse.
    down, across = (
        matrix if method == "bilinear" else np.linalg.pinv(matrix.T)
        for matrix in (_bilinear(*sizes) for sizes in zip(old, new, strict=True))
    )
    wide = jnp.promote_types(weight.dtype, jnp.float32)
    kernel = weight.astype(wide).reshape(-1, *old, 3)
    resized = jnp.einsum(
        "dyxc,vy,ux->dvuc", kernel, jnp.asarray(down, wide), jnp.asarray(across, wide), precision="highest"
    )
    return resized.reshape(len(weight), -1).astype(weight.dtype)


def _bilinear(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Matrix of linear interpolation from ``old`` to ``new`` values: half-pixel centers, clamped edges, float64."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(old)))
