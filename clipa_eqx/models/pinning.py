"""Placement of activations on a mesh: split over the batch only."""

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped


def pin_batch(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """Replicate a per-example activation, so that ``vmap(..., spmd_axis_name=...)`` shards its batch axis only.

    Without the pin the partitioner spreads the FSDP shards of the weights into the activations: 102.8 GiB instead of
    1.8 GiB of temporaries per core for H/14 on a 16x16 slice. The function is the identity if no mesh is set.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(None,) * x.ndim))
