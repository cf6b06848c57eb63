"""Names and shapes of our leaves in open_clip's ``CLIP`` (docs/reference.md F4.3)."""

from collections.abc import Mapping

import numpy as np

from clipa_eqx.errors import ConversionError
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.embed import sincos_1d, sincos_2d
from clipa_eqx.saved.leaf_file import Leaf
from conversion.weights.leaf_rule import ComputedRule, LeafRule, Rule

IMAGE_POSITION, TEXT_POSITION = "visual.positional_embedding", "positional_embedding"

POSITION_ATOL = 1e-5
"""Largest difference between a stored table and the formula it came from.

Float32 rounding alone gives 1e-6; denominator q instead of q-1 gives 0.02.
"""


LOGIT_BIAS = "logit_bias"


def temperature_shape(tensors: Mapping[str, Leaf]) -> tuple[int, ...]:
    """Shape of ``logit_scale`` and ``logit_bias`` in a file: (1,) with ``nonscalar_logit_scale``, else ()."""
    info = tensors.get("logit_scale")
    return (1,) if info is not None and info.shape == (1,) else ()


def open_clip_rules(config: CLIPConfig, temperature: tuple[int, ...] = ()) -> tuple[Rule, ...]:
    """The rule table: one row per leaf of the model, and one per table that open_clip stores and we compute.

    Args:
        config: the model.
        temperature: shape of ``logit_scale``, and of ``logit_bias`` if there is one, in the file.

    Raises:
        ConversionError: the model has parts that open_clip does not have.
    """
    image, text = config.image, config.text
    if image.pool not in ("gap", "tok") or image.patch != "conv" or image.embed is None or text.embed is None:
        raise ConversionError(
            f"open_clip cannot represent image pool {image.pool!r}, patch {image.patch!r} and embed {image.embed}; "
            "expected gap or tok, conv, and a joint width"
        )
    dim, words = image.blocks.width, text.blocks.width
    return (
        # The kernel is (out, channel, row, column) in open_clip, (out, row, column, channel) here.
        LeafRule(
            path="image/patch/weight", name="visual.conv1.weight", shape=(dim, 3, *image.patch_size), axes=(0, 2, 3, 1)
        ),
        LeafRule(path="image/class_token", name="visual.class_embedding", shape=(dim,)),
        _position("image", IMAGE_POSITION, (image.patches + 1, dim), image_table(image.grid, dim), image.position),
        *_block_rules("image/blocks", "visual.transformer.resblocks.{i}", image.blocks),
        *_pair("image/norm", "visual.ln_post", dim),
        LeafRule(path="image/head/weight", name="visual.proj", shape=(dim, image.embed), axes=(1, 0)),
        LeafRule(path="text/token/weight", name="token_embedding.weight", shape=(text.vocab, words)),
        _position("text", TEXT_POSITION, (text.length, words), text_table(text.length, words), text.position),
        *_block_rules("text/blocks", "transformer.resblocks.{i}", text.blocks),
        *_pair("text/norm", "ln_final", words),
        LeafRule(path="text/head/weight", name="text_projection", shape=(words, text.embed), axes=(1, 0)),
        LeafRule(path="log_temperature", name="logit_scale", shape=temperature),
        *(() if config.bias is None else (LeafRule(path="bias", name=LOGIT_BIAS, shape=temperature),)),
    )


def image_table(grid: tuple[int, int], dim: int) -> np.ndarray | None:
    """Computed image positions (1 + rows x columns, dim), zeros for the class token first; None if dim has no table."""
    if dim % 4 or dim < 8:
        return None
    table = sincos_2d(*grid, dim)
    return np.concatenate([np.zeros_like(table[:1]), table])


def text_table(length: int, dim: int) -> np.ndarray | None:
    """Computed text positions (length, dim); None if dim has no table."""
    return None if dim % 2 or dim < 4 else sincos_1d(length, dim)


def _position(
    tower: str, name: str, shape: tuple[int, ...], table: np.ndarray | None, kind: str
) -> LeafRule | ComputedRule:
    if kind == "learned" or table is None:
        return LeafRule(path=f"{tower}/position", name=name, shape=shape)
    return ComputedRule(name=name, value=lambda: table, shape=shape, atol=POSITION_ATOL)


def _block_rules(path: str, name: str, blocks: BlockConfig) -> list[LeafRule]:
    dim, hidden = blocks.width, blocks.mlp_dim
    rules = _pair(f"{path}/norm1", f"{name}.ln_1", dim)
    for index, ours in enumerate(("q", "k", "v")):
        part = (index, 3)
        weight, bias = f"{name}.attn.in_proj_weight", f"{name}.attn.in_proj_bias"
        rules.append(LeafRule(path=f"{path}/attn/{ours}/weight", name=weight, shape=(3 * dim, dim), part=part))
        rules.append(LeafRule(path=f"{path}/attn/{ours}/bias", name=bias, shape=(3 * dim,), part=part))
    return [
        *rules,
        *_pair(f"{path}/attn/out", f"{name}.attn.out_proj", dim, dim),
        *_pair(f"{path}/norm2", f"{name}.ln_2", dim),
        *_pair(f"{path}/mlp/fc_in", f"{name}.mlp.c_fc", hidden, dim),
        *_pair(f"{path}/mlp/fc_out", f"{name}.mlp.c_proj", dim, hidden),
    ]


def _pair(path: str, name: str, *shape: int) -> list[LeafRule]:
    """Weight and bias of a norm, or of a matrix, which is (out, in) on both sides."""
    return [
        LeafRule(path=f"{path}/weight", name=f"{name}.weight", shape=shape),
        LeafRule(path=f"{path}/bias", name=f"{name}.bias", shape=shape[:1]),
    ]
