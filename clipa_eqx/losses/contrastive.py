"""The one function that training calls: the loss that a config names, by the algorithm that it names."""

import functools
from collections.abc import Sequence

from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from clipa_eqx.errors import ConfigError
from clipa_eqx.losses.config import LossConfig
from clipa_eqx.losses.pairs import ContrastiveOutput, check_split
from clipa_eqx.losses.sigmoid import sharded_sigmoid_contrastive, sigmoid_contrastive
from clipa_eqx.losses.softmax import sharded_softmax_contrastive, softmax_contrastive
from clipa_eqx.losses.streamed import streamed_contrastive
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
    _check_bias(config, bias)
    names = tuple(axis_names)
    if config.algorithm in ("chunked", "ring"):
        return streamed_contrastive(
            image,
            text,
            log_temperature=log_temperature,
            bias=bias,
            config=config,
            mesh=mesh,
            axis_names=names,
            mask=mask,
        )
    whole = softmax_contrastive if bias is None else functools.partial(sigmoid_contrastive, bias=bias)
    split = sharded_softmax_contrastive if bias is None else functools.partial(sharded_sigmoid_contrastive, bias=bias)
    # A batch in one part is not split, so that "sharded" then equals "global" in every bit.
    if config.algorithm == "global" or mesh is None or check_split(image.shape[0], mesh, names) == 1:
        return whole(image, text, log_temperature=log_temperature, mask=mask)
    return split(image, text, log_temperature=log_temperature, mesh=mesh, axis_names=names, mask=mask)


def _check_bias(config: LossConfig, bias: Array | None) -> None:
    if config.kind == "sigmoid" and bias is None:
        raise ConfigError(
            'loss.kind is "sigmoid", but the model has no bias; set model.bias, such as -10 with model.temperature 10'
        )
    if config.kind == "softmax" and bias is not None:
        raise ConfigError(
            'loss.kind is "softmax", but the model has a bias, which a softmax cannot learn; leave out model.bias, or '
            'set loss.kind to "sigmoid"'
        )
