"""Translation between ``CLIPConfig`` and open_clip's config, in both directions."""

import json
from collections.abc import Mapping
from typing import Any

from clipa_eqx.data.images.host_pixels import IMAGENET_MEAN, IMAGENET_STD
from clipa_eqx.errors import ConversionError
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.layers import InitStyle
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig
from conversion.open_clip.config import DEFAULT_EPS, OpenClipConfig, OpenClipTower
from conversion.weights.numerics import Numerics, TowerNumerics, numerics_of

BERT_NAME = "bert-base-uncased"
_METADATA = "clipa_eqx_numerics"


def check_expressible(config: OpenClipConfig, *, where: str) -> None:
    """Raise ``ConversionError`` that lists the settings our model does not have."""
    image, text = config.image.options, config.text.options
    problems = ["quick_gelu is set"] if "quick" in (image.gelu, text.gelu) else []
    if image.pool == "gap" and image.pool_norm != "after":
        problems.append("image tower: the norm is before the mean (final_ln_after_pool is not set)")
    if image.has_class_in_mean:
        problems.append("image tower: the mean includes the class token (global_average_pool)")
    if text.is_causal:
        problems.append("text tower: attention is causal (no_causal_mask is not set)")
    if problems:
        raise ConversionError(f"{where} cannot be expressed in clipa_eqx:\n  " + "\n  ".join(problems))


def to_clip_config(config: OpenClipConfig) -> CLIPConfig:
    """The nearest ``CLIPConfig``, with computed image positions and learned text positions."""
    vision = VisionConfig(
        blocks=_blocks(config.image, init="xavier"),
        image_size=config.image_size,
        patch_size=config.patch_size,
        pool="gap" if config.image.options.pool == "gap" else "tok",
        embed=config.embed,
    )
    words = TextConfig(
        blocks=_blocks(config.text, init="scaled"),
        length=config.length,
        vocab=config.vocab,
        pool="last" if config.text.options.pool == "last" else "tok",
        embed=config.embed,
    )
    return CLIPConfig(image=vision, text=words, bias=config.bias)


def from_clip_config(config: CLIPConfig, *, resize: str) -> dict[str, Any]:
    """The JSON with which open_clip computes the same as our model.

    Args:
        config: the model.
        resize: ``EvalImageConfig.resize`` of the model folder.

    Raises:
        ConversionError: lists the settings that open_clip does not have.
    """
    image, text = config.image, config.text
    problems: list[str] = []
    if image.pool not in ("gap", "tok"):
        problems.append(
            f"image pool {image.pool!r}; open_clip has the mean (gap) and the class token (tok), both with a norm"
        )
    if image.patch != "conv":
        problems.append(f"image patch {image.patch!r}; open_clip has only conv, without a bias")
    if text.pool not in ("last", "tok"):
        problems.append(f"text pool {text.pool!r}; open_clip has the last token (last) and the first (tok)")
    if image.embed is None or text.embed is None:
        problems.append("a tower without a head; open_clip needs one")
    if problems:
        raise ConversionError("open_clip cannot represent this model:\n  " + "\n  ".join(problems))
    vision: dict[str, Any] = {
        "image_size": _pair_json(image.image_size),
        "patch_size": _pair_json(image.patch_size),
        **_tower_json(image.blocks),
        "head_width": image.blocks.width // image.blocks.heads,
        "no_ln_pre": True,
        "pool_type": "avg" if image.pool == "gap" else "tok",
        "final_ln_after_pool": True,
    }
    words: dict[str, Any] = {
        "context_length": text.length,
        "vocab_size": text.vocab,
        "hf_tokenizer_name": BERT_NAME,
        "tokenizer_kwargs": {"strip_sep_token": True},
        **_tower_json(text.blocks),
        "heads": text.blocks.heads,
        "pool_type": "last" if text.pool == "last" else "first",
        "no_causal_mask": True,
    }
    preprocess = {
        "size": _pair_json(image.image_size),
        "mode": "RGB",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "interpolation": "bilinear",
        "resize_mode": {"squash": "squash", "resize_small_crop": "shortest"}[resize],
    }
    model: dict[str, Any] = {"embed_dim": image.embed, "vision_cfg": vision, "text_cfg": words}
    if config.bias is not None:
        model["init_logit_bias"] = config.bias
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def numerics_metadata(config: CLIPConfig) -> dict[str, str]:
    """The numerics as metadata of a safetensors file, for readers that get the weight file alone."""
    return {_METADATA: json.dumps(numerics_of(config).to_json())}


def numerics_in(metadata: Mapping[str, str], *, where: str) -> TowerNumerics | None:
    """The numerics that ``numerics_metadata`` wrote, or None. Raises ``ConversionError`` for other content."""
    if _METADATA not in metadata:
        return None
    problem = ConversionError(
        f"{where}: metadata {_METADATA} are {metadata[_METADATA][:200]!r}, expected norm_eps and gelu of image and text"
    )
    try:
        found: Any = json.loads(metadata[_METADATA])
        image, text = (Numerics(found[name]["norm_eps"], found[name]["gelu"]) for name in ("image", "text"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise problem from error
    for one in (image, text):
        if type(one.norm_eps) is not float or not 0 < one.norm_eps < 1 or one.gelu not in ("tanh", "exact"):
            raise problem
    return TowerNumerics(image, text)


def _blocks(tower: OpenClipTower, *, init: InitStyle) -> BlockConfig:
    return BlockConfig(
        width=tower.width,
        depth=tower.layers,
        mlp_dim=tower.mlp_dim,
        heads=tower.options.heads,
        norm_eps=tower.options.eps,
        gelu="tanh" if tower.options.gelu == "tanh" else "exact",
        init=init,
    )


def _tower_json(blocks: BlockConfig) -> dict[str, Any]:
    sizes: dict[str, Any] = {"layers": blocks.depth, "width": blocks.width, "mlp_ratio": _mlp_ratio(blocks)}
    if blocks.gelu == "tanh":
        sizes["act_kwargs"] = {"approximate": "tanh"}
    if blocks.norm_eps != DEFAULT_EPS:
        sizes["norm_kwargs"] = {"eps": blocks.norm_eps}
    return sizes


def _mlp_ratio(blocks: BlockConfig) -> float:
    """A ratio for which open_clip's ``int(width * ratio)`` is exactly the hidden width."""
    ratio = blocks.mlp_dim / blocks.width
    return ratio if int(blocks.width * ratio) == blocks.mlp_dim else (blocks.mlp_dim + 0.5) / blocks.width


def _pair_json(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)
