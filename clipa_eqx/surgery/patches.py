"""Changes of the patch projection: other pixel statistics, another patch size."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from clipa_eqx.data.images.host_pixels import IMAGENET_MEAN, IMAGENET_STD
from clipa_eqx.errors import ConfigError
from clipa_eqx.models.clip import CLIP
from clipa_eqx.surgery.report import Operated, operated


def with_pixel_statistics(model: CLIP, *, mean: Sequence[float], std: Sequence[float]) -> Operated:
    """Change the patch projection so that pixels normalized with ImageNet's statistics act as with others.

    This is exact in real numbers, also at the border: images are not padded. A projection without a bias gets one.

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
    changed = dataclasses.replace(
        patch,
        weight=(kernel * factor[None, None]).reshape(patch.weight.shape),
        bias=bias if patch.bias is None else patch.bias + bias,
    )
    image = dataclasses.replace(model.image, patch=changed)
    line = f"image/patch: pixels of mean {tuple(mean)} and std {tuple(std)}"
    return operated(model, dataclasses.replace(model, image=image), (line,))
