"""The dtype in which the towers compute; parameters, optimizer state, embeddings, logits and loss stay float32."""

from dataclasses import dataclass
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Precision of the towers.

    Attributes:
        compute: dtype of activations, and of the weights as the towers use them. float32 is the reference's
            (docs/reference.md F1.0); bfloat16 halves the memory of activations and is native to the matrix units of
            TPUs and GPUs.
    """

    compute: Literal["float32", "bfloat16"] = "float32"

    def to_compute(self, tree: Tree) -> Tree:
        """The floating-point leaves of a tree in the compute dtype; called once, at the top of the loss."""
        dtype = jnp.dtype(self.compute)
        return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
