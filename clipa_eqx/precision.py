"""The dtypes in which the towers compute and in which gradients are summed (docs/precision.md has all dtypes)."""

from dataclasses import dataclass
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp

from clipa_eqx.errors import ConfigError

Tree = TypeVar("Tree")


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Precision of the towers. Parameters, optimizer state, embeddings, logits and loss are float32.

    Attributes:
        compute: dtype of activations, and of the weights in matrix products. float32 is the reference's
            (docs/reference.md F1.0), with all bits on every backend; bfloat16 halves the memory of activations and is
            native to the matrix units of TPUs and GPUs.
        gradients: dtype in which gradients of parameters are summed over tokens, batch and devices. "bfloat16" is for
            ``compute="bfloat16"`` only: it halves the traffic of gradients between devices, and each partial sum is
            rounded to 8 bits.

    Raises:
        ConfigError: bfloat16 gradients of towers that compute in float32.
    """

    compute: Literal["float32", "bfloat16"] = "float32"
    gradients: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.gradients == "bfloat16" and self.compute == "float32":
            raise ConfigError(
                'precision.gradients is "bfloat16", but precision.compute is "float32"; set both to "bfloat16", or '
                'precision.gradients to "float32"'
            )

    def for_towers(self, model: Tree) -> Tree:
        """The model as the towers take it, at the top of the loss.

        With float32 gradients it is unchanged, and each layer casts its parameters where it uses them. With bfloat16
        gradients, all parameters are cast here, and the gradients are summed before they are cast back.
        """
        if self.gradients == "float32":
            return model
        dtype = jnp.dtype(self.gradients)
        return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, model)
