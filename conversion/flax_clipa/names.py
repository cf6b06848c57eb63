"""Names and shapes of our leaves in Flax checkpoints, without ``params/`` (docs/reference.md F2.3)."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from clipa_eqx.errors import ConversionError
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIP, CLIPConfig
from conversion.flax_clipa.shapes import FlaxLayout
from conversion.weights.leaf_rule import LeafRule
from conversion.weights.rules import RuleTable, export_leaves, import_leaves


def to_flax(tree: CLIP) -> dict[str, np.ndarray]:
    """The reference's flat dictionary of a model, or of gradients or moments of its shape.

    Raises:
        ConversionError: the tree has leaves that its ``config`` does not describe.
    """
    return export_leaves(flax_rules(tree.config), tree)


def from_flax(arrays: Mapping[str, np.ndarray], config: CLIPConfig) -> CLIP:
    """The model of ``config`` with the reference's arrays as its leaves.

    Raises:
        ConversionError: lists every missing, unused, mis-shaped or non-finite array at once.
    """
    return import_leaves(RuleTable(flax_rules(config), config), arrays)


def flax_rules(config: CLIPConfig, layout: FlaxLayout | None = None) -> tuple[LeafRule, ...]:
    """Exactly one rule per leaf of the model, in the layout of the reference's main branch unless another is given.

    Raises:
        ConversionError: the model has a bias of the logits.
    """
    if config.bias is not None:
        raise ConversionError(
            "the model has a bias of the logits (of the sigmoid loss), for which checkpoints of the reference have no "
            "place; export it with conversion.open_clip"
        )
    layout = layout or FlaxLayout()
    rules = (
        *_image_rules(config),
        *_text_rules(config),
        LeafRule(path="log_temperature", name="t", shape=layout.temperature),
    )
    return rules if layout.attention == "split" else tuple(_flat(rule) for rule in rules)


def _flat(rule: LeafRule) -> LeafRule:
    """The rule for attention whose heads have no axis of their own, as in the t5x branch (docs/reference.md F2.5)."""
    if "/attn/" not in rule.path:
        return rule
    if rule.axes is None:
        return dataclasses.replace(rule, shape=(math.prod(rule.shape),))
    dim = math.isqrt(math.prod(rule.shape))
    return dataclasses.replace(rule, shape=(dim, dim), axes=(1, 0))


def _image_rules(config: CLIPConfig) -> list[LeafRule]:
    image = config.image
    dim, (ph, pw) = image.blocks.width, image.patch_size
    kernel = (ph, pw, 3, dim) if image.patch == "conv" else (ph * pw * 3, dim)
    rules = [
        LeafRule(path="image/patch/weight", name="img/embedding/kernel", shape=kernel, axes=_last_first(kernel)),
        LeafRule(path="image/class_token", name="img/cls", shape=(1, 1, dim)),
        *_block_rules("image/blocks", "img/Transformer/encoderblock_{i}", image.blocks),
    ]
    if image.patch == "linear":
        rules.append(LeafRule(path="image/patch/bias", name="img/embedding/bias", shape=(dim,)))
    if image.position == "learned":
        rules.append(LeafRule(path="image/position", name="img/pos_embedding", shape=(1, image.patches + 1, dim)))
    if image.pool in ("gap", "tok"):
        rules += _norm_rules("image/norm", "img/encoder_norm", dim)
    if image.pool == "map":
        head = "img/MAPHead_0"
        rules.append(LeafRule(path="image/map_head/probe", name=f"{head}/probe", shape=(1, 1, dim)))
        rules += _attention_rules("image/map_head/attn", f"{head}/MultiHeadDotProductAttention_0", image.blocks)
        rules += _norm_rules("image/map_head/norm", f"{head}/LayerNorm_0", dim)
        rules += _mlp_rules("image/map_head/mlp", f"{head}/MlpBlock_0", image.blocks)
    if image.embed is not None:
        rules.append(LeafRule(path="image/head/weight", name="img/head/kernel", shape=(dim, image.embed), axes=(1, 0)))
    return rules


def _last_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes that move a kernel's output axis, which is last in Flax, to the front."""
    return (len(shape) - 1, *range(len(shape) - 1))


def _text_rules(config: CLIPConfig) -> list[LeafRule]:
    text = config.text
    dim = text.blocks.width
    rules = [
        LeafRule(path="text/token/weight", name="txt/Embed_0/embedding", shape=(text.vocab, dim)),
        *_block_rules("text/blocks", "txt/Transformer/encoderblock_{i}", text.blocks),
        *_norm_rules("text/norm", "txt/encoder_norm", dim),
    ]
    if text.position == "learned":
        rules.append(LeafRule(path="text/position", name="txt/pos_embedding", shape=(1, text.length, dim)))
    if text.embed is not None:
        rules.append(LeafRule(path="text/head/weight", name="txt/head/kernel", shape=(dim, text.embed), axes=(1, 0)))
    return rules


def _block_rules(path: str, name: str, blocks: BlockConfig) -> list[LeafRule]:
    return [
        *_norm_rules(f"{path}/norm1", f"{name}/LayerNorm_0", blocks.width),
        *_attention_rules(f"{path}/attn", f"{name}/MultiHeadDotProductAttention_0", blocks),
        *_norm_rules(f"{path}/norm2", f"{name}/LayerNorm_1", blocks.width),
        *_mlp_rules(f"{path}/mlp", f"{name}/MlpBlock_0", blocks),
    ]


def _norm_rules(path: str, name: str, dim: int) -> list[LeafRule]:
    return [
        LeafRule(path=f"{path}/weight", name=f"{name}/scale", shape=(dim,)),
        LeafRule(path=f"{path}/bias", name=f"{name}/bias", shape=(dim,)),
    ]


def _attention_rules(path: str, name: str, blocks: BlockConfig) -> list[LeafRule]:
    dim, split = blocks.width, (blocks.heads, blocks.width // blocks.heads)
    rules: list[LeafRule] = []
    for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
        kernel, bias = f"{name}/{theirs}/kernel", f"{name}/{theirs}/bias"
        rules.append(LeafRule(path=f"{path}/{ours}/weight", name=kernel, shape=(dim, *split), axes=(1, 2, 0)))
        rules.append(LeafRule(path=f"{path}/{ours}/bias", name=bias, shape=split))
    rules.append(LeafRule(path=f"{path}/out/weight", name=f"{name}/out/kernel", shape=(*split, dim), axes=(2, 0, 1)))
    rules.append(LeafRule(path=f"{path}/out/bias", name=f"{name}/out/bias", shape=(dim,)))
    return rules


def _mlp_rules(path: str, name: str, blocks: BlockConfig) -> list[LeafRule]:
    rules: list[LeafRule] = []
    sizes = {
        ("fc_in", "Dense_0"): (blocks.width, blocks.mlp_dim),
        ("fc_out", "Dense_1"): (blocks.mlp_dim, blocks.width),
    }
    for (ours, theirs), shape in sizes.items():
        rules.append(LeafRule(path=f"{path}/{ours}/weight", name=f"{name}/{theirs}/kernel", shape=shape, axes=(1, 0)))
        rules.append(LeafRule(path=f"{path}/{ours}/bias", name=f"{name}/{theirs}/bias", shape=shape[-1:]))
    return rules
