"""Floating-point operations of a training step, counted from the configuration."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.text import TextConfig
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


def step_flops(
    config: CLIPConfig,
    *,
    batch_size: int,
    trained: Collection[str] | None = None,
    ranks: Mapping[str, int] | None = None,
) -> StepFlops:
    """Count the operations of one training step over ``batch_size`` pairs; patches that are masked do not count.

    A product counts once forward, once for the gradient of its weight, and once for that of its input, except for the
    patches, whose input needs none. Of a step that trains some leaves only, gradients of frozen weights do not count,
    nor do gradients of what no trained leaf is before. Recomputation by ``remat`` does not count, so that utilization
    is comparable between its settings.

    Args:
        config: the model.
        batch_size: pairs per step.
        trained: paths of the leaves of which a layer is trained; None for all.
        ranks: rank of the LoRA factors next to a weight, by the path of its layer.

    >>> from clipa_eqx.models.presets import preset
    >>> step_flops(preset("B/16", image_size=64), batch_size=1).total // 10**9
    16
    """
    image, counter = config.image, _Counter(trained, ranks or {})
    per_image, is_image_moving = counter.tower(_image_stages(image))
    per_text, is_text_moving = counter.tower(_text_stages(config.text))
    shared = 0
    if image.pool == "map":  # all pairs share the query of attention pooling
        query = _Layer("image/map_head/attn/q", 1, image.blocks.width, image.blocks.width)
        is_probe_moving = counter.is_trained("image/map_head/probe")
        shared = counter.layer(query, is_input_moving=is_probe_moving)
    # Per pair: its image with all texts and, for the softmax, its text with all images.
    logits = (2 if config.bias is None else 1) * _product(1, image.output, batch_size)
    return StepFlops(
        image=batch_size * per_image + shared,
        text=batch_size * per_text,
        loss=batch_size * logits * (1 + is_image_moving + is_text_moving),
    )


def recomputed_flops(config: CLIPConfig, *, batch_size: int, is_cached: bool = False) -> int:
    """Count the operations that a step repeats to save memory, which ``step_flops`` leaves out.

    Args:
        is_cached: whether embeddings are computed first for the loss (``micro_batch``), and again for the gradients.
    """
    total = 0
    towers = ("image", config.image.visible, config.image.blocks), ("text", config.text.length, config.text.blocks)
    for name, tokens, blocks in towers:
        if blocks.remat == "full":
            # No gradient needs the result of a block's last product.
            last = _product(tokens, blocks.mlp_dim, blocks.width)
            total += _block_stage(name, tokens, blocks).forward - blocks.depth * last
        elif blocks.remat == "dots":
            # Products of activations with each other have batch axes, so they are not kept.
            total += blocks.depth * 2 * _product(tokens, blocks.width, tokens)
    forward = sum(stage.forward for stage in (*_image_stages(config.image), *_text_stages(config.text)))
    return batch_size * (total + (forward if is_cached else 0))


class _Layer(NamedTuple):
    """A linear layer: its path, and rows, inner size and columns of its product."""

    path: str
    rows: int
    inner: int
    columns: int

    @property
    def operations(self) -> int:
        return _product(self.rows, self.inner, self.columns)


class _Stage(NamedTuple):
    """A part of a tower, forward for one pair.

    Attributes:
        leaves: pattern of the paths of its leaves.
        layers: its linear layers.
        plain: operations of products of activations with each other.
        times: number of such parts that follow each other.
        is_joint: whether its leaves are before its own products; else only those of former stages are.
        is_input: whether it is the first, whose input needs no gradient.
    """

    leaves: str
    layers: tuple[_Layer, ...] = ()
    plain: int = 0
    times: int = 1
    is_joint: bool = False
    is_input: bool = False

    @property
    def forward(self) -> int:
        return self.times * (sum(layer.operations for layer in self.layers) + self.plain)


class _Counter(NamedTuple):
    """Operations of a step, with the leaves that are trained, None for all, and the ranks of factors."""

    trained: Collection[str] | None
    ranks: Mapping[str, int]

    def is_trained(self, leaves: str) -> bool:
        """Whether a leaf of these is trained."""
        return self.trained is None or any(re.fullmatch(leaves, path) for path in self.trained)

    def layer(self, layer: _Layer, *, is_input_moving: bool) -> int:
        """Operations of a layer; its input needs a gradient if it is moving."""
        total = layer.operations * (1 + self.is_trained(re.escape(f"{layer.path}/weight")) + is_input_moving)
        if rank := self.ranks.get(layer.path):
            down, up = _product(layer.rows, layer.inner, rank), _product(layer.rows, rank, layer.columns)
            trains_down = self.is_trained(re.escape(f"{layer.path}/lora_down"))
            trains_up = self.is_trained(re.escape(f"{layer.path}/lora_up"))
            total += down * (1 + trains_down + is_input_moving) + up * (1 + trains_up + (trains_down | is_input_moving))
        return total

    def tower(self, stages: Sequence[_Stage]) -> tuple[int, bool]:
        """Operations of a tower for one pair, and whether its embedding depends on a trained leaf."""
        total, is_moving = 0, False
        for stage in stages:
            has_trained = self.is_trained(stage.leaves)
            is_inside = not stage.is_input and (is_moving or (stage.is_joint and has_trained))
            each = sum(self.layer(layer, is_input_moving=is_inside) for layer in stage.layers)
            total += stage.times * (each + stage.plain * (1 + 2 * is_inside))
            is_moving |= has_trained
        return total, is_moving


def _image_stages(image: VisionConfig) -> list[_Stage]:
    width, tokens = image.blocks.width, image.visible
    patch = _Layer("image/patch", image.patches, 3 * image.patch_size[0] * image.patch_size[1], width)
    stages = [
        _Stage("image/(patch/.*|class_token|position)", (patch,), is_input=True),
        _block_stage("image", tokens, image.blocks),
    ]
    if image.pool == "map":  # without its query: keys and values of all tokens, output and MLP of one
        keys = tuple(_Layer(f"image/map_head/attn/{name}", tokens, width, width) for name in "kv")
        out = _Layer("image/map_head/attn/out", 1, width, width)
        layers = (*keys, out, *_mlp("image/map_head/mlp", 1, image.blocks))
        stages.append(_Stage("image/map_head/.*", layers, 2 * _product(1, width, tokens), is_joint=True))
    return [*stages, _Stage("image/norm/.*"), *_head("image", width, image.embed)]


def _text_stages(text: TextConfig) -> list[_Stage]:
    first, last = _Stage("text/(token/weight|position)"), _Stage("text/norm/.*")
    return [first, _block_stage("text", text.length, text.blocks), last, *_head("text", text.blocks.width, text.embed)]


def _block_stage(tower: str, tokens: int, blocks: BlockConfig) -> _Stage:
    width = blocks.width
    attention = tuple(_Layer(f"{tower}/blocks/attn/{name}", tokens, width, width) for name in ("q", "k", "v", "out"))
    return _Stage(
        f"{tower}/blocks/.*",
        (*attention, *_mlp(f"{tower}/blocks/mlp", tokens, blocks)),
        2 * _product(tokens, width, tokens),
        times=blocks.depth,
        is_joint=True,
    )


def _mlp(path: str, tokens: int, blocks: BlockConfig) -> tuple[_Layer, _Layer]:
    up = _Layer(f"{path}/fc_in", tokens, blocks.width, blocks.mlp_dim)
    return up, _Layer(f"{path}/fc_out", tokens, blocks.mlp_dim, blocks.width)


def _head(tower: str, width: int, embed: int | None) -> list[_Stage]:
    return [] if embed is None else [_Stage(f"{tower}/head/.*", (_Layer(f"{tower}/head", 1, width, embed),))]


def _product(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns
