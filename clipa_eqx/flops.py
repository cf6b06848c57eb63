"""Floating-point operations of a training step, counted from the configuration."""

from typing import NamedTuple

from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.vision import VisionConfig


class StepFlops(NamedTuple):
    """Operations of one step, forward and backward: two per multiply-add of the matrix products, nothing else.

    Attributes:
        image: operations of the image tower.
        text: operations of the text tower.
        loss: operations of the similarities between all images and texts.
    """

    image: int
    text: int
    loss: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.image + self.text + self.loss


def step_flops(config: CLIPConfig, *, batch_size: int) -> StepFlops:
    """Count the operations of one training step over ``batch_size`` pairs; patches that are masked do not count.

    Every product counts once forward and twice backward, except that of the patches, whose input needs no gradient.
    Recomputation by ``remat`` does not count, so that utilization is comparable between its settings.

    >>> from clipa_eqx.models.presets import preset
    >>> step_flops(preset("B/16", image_size=64), batch_size=1).total // 10**9
    16
    """
    image, (patches, image_rest, words) = config.image, _forward(config)
    # Per pair: its image with all texts and, for the softmax, its text with all images.
    logits = (2 if config.bias is None else 1) * _product(1, image.output, batch_size)
    # All pairs share the query of attention pooling.
    query = _product(1, image.blocks.width, image.blocks.width) if image.pool == "map" else 0
    return StepFlops(
        image=batch_size * (2 * patches + 3 * image_rest) + 3 * query,
        text=batch_size * 3 * words,
        loss=batch_size * 3 * logits,
    )


def recomputed_flops(config: CLIPConfig, *, batch_size: int, is_cached: bool = False) -> int:
    """Count the operations that a step repeats to save memory, which ``step_flops`` leaves out.

    Args:
        is_cached: whether embeddings are computed first for the loss (``micro_batch``), and again for the gradients.
    """
    total = 0
    for tokens, blocks in ((config.image.visible, config.image.blocks), (config.text.length, config.text.blocks)):
        if blocks.remat == "full":
            # No gradient needs the result of a block's last product.
            total += _blocks(tokens, blocks) - blocks.depth * _product(tokens, blocks.mlp_dim, blocks.width)
        elif blocks.remat == "dots":
            # Products of activations with each other have batch axes, so they are not kept.
            total += blocks.depth * 2 * _product(tokens, blocks.width, tokens)
    return batch_size * (total + (sum(_forward(config)) if is_cached else 0))


class _Forward(NamedTuple):
    """Operations for one pair, forward: projection of the patches, rest of the image tower, text tower."""

    patches: int
    image_rest: int
    text: int


def _forward(config: CLIPConfig) -> _Forward:
    image, text = config.image, config.text
    return _Forward(
        patches=_product(image.patches, 3 * image.patch_size[0] * image.patch_size[1], image.blocks.width),
        image_rest=_blocks(image.visible, image.blocks) + _pool(image) + _head(image.blocks.width, image.embed),
        text=_blocks(text.length, text.blocks) + _head(text.blocks.width, text.embed),
    )


def _blocks(tokens: int, blocks: BlockConfig) -> int:
    attention = 4 * _product(tokens, blocks.width, blocks.width) + 2 * _product(tokens, blocks.width, tokens)
    return blocks.depth * (attention + 2 * _product(tokens, blocks.width, blocks.mlp_dim))


def _pool(image: VisionConfig) -> int:
    """Operations of attention pooling without its query: keys and values of all tokens, output and MLP of one."""
    if image.pool != "map":
        return 0
    width, tokens = image.blocks.width, image.visible
    attention = _product(1, width, width) + 2 * _product(tokens, width, width) + 2 * _product(1, width, tokens)
    return attention + 2 * _product(1, width, image.blocks.mlp_dim)


def _head(width: int, embed: int | None) -> int:
    return 0 if embed is None else _product(1, width, embed)


def _product(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns
