"""The one function that training calls: the loss that a config names, by the algorithm that it names."""

from collections.abc import Sequence

from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from clipa_eqx.errors import ConfigError
from clipa_eqx.losses.config import LossConfig
from clipa_eqx.losses.pairs import ContrastiveOutput
from clipa_eqx.losses.softmax import sharded_softmax_contrastive, softmax_contrastive
from clipa_eqx.sharding import BATCH_AXES


def contrastive_loss(
    image: Float[Array, "batch embed"],
    text: Float[Array, "batch embed"],
    *,
    log_temperature: Float[Array, ""],
    bias: Float[Array, ""] | None = None,
    config: LossConfig,
    mesh: Mesh | None = None,
    axis_names: Sequence[str] = BATCH_AXES,
    mask: Bool[Array, " batch"] | None = None,
) -> ContrastiveOutput:
    """Loss of a batch in which row i of ``image`` belongs to row i of ``text``.

    All algorithms have the same values and gradients up to rounding.

    Args:
        image: image embeddings of unit length.
        text: text embeddings of unit length.
        log_temperature: logarithm of the multiplier of the similarities.
        bias: added to the logits of the sigmoid loss; None for softmax.
        config: kind and algorithm.
        mesh: mesh whose axes ``axis_names`` split the batch; None if one device has all of it.
        axis_names: mesh axes that split the batch. Over the other axes, the same loss is computed on each device.
        mask: false for pairs that are neither rows nor columns; None includes all pairs.

    Raises:
        ConfigError: shapes that are not those of pairs, an axis that the mesh lacks, a sigmoid loss without a bias, or
            softmax with one.
        ShardingError: the axes do not divide the batch.
    """
    if config.kind == "sigmoid" or config.algorithm in ("chunked", "ring") or bias is not None:
        raise ConfigError("not on this branch yet")
    if config.algorithm == "sharded" and mesh is not None:
        return sharded_softmax_contrastive(
            image, text, log_temperature=log_temperature, mesh=mesh, axis_names=axis_names, mask=mask
        )
    return softmax_contrastive(image, text, log_temperature=log_temperature, mask=mask)
