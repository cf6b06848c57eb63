"""Contents of an ``open_clip_config.json``: sizes, numerics, image preprocessing and tokenizer settings."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from clipa_eqx.errors import ConversionError, listed
from clipa_eqx.json_files import read_json_object
from conversion.open_clip.config_fields import (
    OFF_PREPROCESS,
    OFF_TEXT,
    OFF_TOKENIZER,
    OFF_VISION,
    READ_MODEL,
    READ_PREPROCESS,
    READ_TEXT,
    READ_VISION,
    UNUSED_MODEL,
    UNUSED_TEXT,
    UNUSED_VISION,
    FieldReader,
)
from conversion.open_clip.pixels import OPENAI_MEAN, OPENAI_STD, ImageSettings
from conversion.weights.tower_options import ReplayGelu, TowerOptions

CONFIG_FILE = "open_clip_config.json"

DEFAULT_EPS = 1e-5
"""Epsilon of torch's LayerNorm."""


@dataclass(frozen=True, kw_only=True)
class OpenClipTower:
    """Sizes of a tower as the config states them, and how the tower computes."""

    width: int
    layers: int
    mlp_dim: int
    options: TowerOptions


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """Settings of the tokenizer.

    Attributes:
        name: the vocabulary's name, ``hf_tokenizer_name``.
        strips_sep: [SEP] is replaced by padding.
        unsupported: a message for each other setting that our tokenizer does not have.
    """

    name: str | None
    strips_sep: bool
    unsupported: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OpenClipConfig:
    """A complete config.

    Attributes:
        image: the image tower.
        text: the text tower.
        image_size: height and width in pixels.
        patch_size: height and width in pixels.
        length: tokens of a text.
        vocab: rows of the token table.
        embed: width of the joint embedding.
        preprocess: image preprocessing; None if the file is a bare ``model_cfg``.
        tokenizer: how texts are tokenized.
        bias: initial bias of the logits, of the sigmoid loss; None without one.
    """

    image: OpenClipTower
    text: OpenClipTower
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    length: int
    vocab: int
    embed: int
    preprocess: ImageSettings | None
    tokenizer: TokenizerSettings
    bias: float | None = None


def load_open_clip_config(path: Path) -> OpenClipConfig:
    """Read a config file. Raises ``ConversionError`` that lists all missing, unknown and unsupported fields."""
    found = read_json_object(path, error=ConversionError, hint="give the config that open_clip wrote")
    return parse_open_clip_config(found, where=str(path))


def parse_open_clip_config(found: Mapping[str, Any], *, where: str) -> OpenClipConfig:
    """Parse a config, or a bare ``model_cfg`` as open_clip ships them.

    Args:
        where: the origin of the config, for messages.

    Raises:
        ConversionError: lists all missing, unknown and unsupported fields.
    """
    outer, is_bare = FieldReader(found), "model_cfg" not in found
    if not is_bare:
        outer.refuse_others(("model_cfg", "preprocess_cfg"))
    model = found.get("model_cfg", found)
    if not isinstance(model, dict):
        raise ConversionError(f"{where}: model_cfg is {type(model).__name__}, expected an object")
    reader = FieldReader(cast("dict[str, Any]", model))
    vision, text = reader.child("vision_cfg"), reader.child("text_cfg")
    reader.refuse_others(READ_MODEL, unused=UNUSED_MODEL)
    vision.refuse_others(READ_VISION, unused=UNUSED_VISION, off=OFF_VISION)
    text.refuse_others(READ_TEXT, unused=UNUSED_TEXT, off=OFF_TEXT)
    if not vision.flag("no_ln_pre"):
        vision.problems.append("vision_cfg.no_ln_pre is not set: a norm before the blocks is not supported")
    preprocess = outer.child("preprocess_cfg", is_needed=False)
    is_quick = reader.flag("quick_gelu")
    image_size, patch_size = vision.pair("image_size", 224), vision.pair("patch_size", 16)
    image_tower = _tower(vision, heads=None, options=_image_options(vision, is_quick))
    text_tower = _tower(text, heads=text.count("heads", 8), options=_text_options(text, is_quick))
    parsed = OpenClipConfig(
        image=image_tower,
        text=text_tower,
        image_size=image_size,
        patch_size=patch_size,
        length=text.count("context_length", 77),
        vocab=text.count("vocab_size", 49408),
        embed=reader.count("embed_dim", None),
        # open_clip uses its defaults for a complete config without preprocess_cfg.
        preprocess=None if is_bare else _image_settings(preprocess, image_size),
        bias=None
        if reader.values.get("init_logit_bias") is None
        else reader.number("init_logit_bias", 0.0, above=-1e6),
        tokenizer=_tokenizer_settings(text),
    )
    problems = outer.problems + reader.problems + vision.problems + text.problems + preprocess.problems
    if problems:
        raise ConversionError(f"{where}: {listed(problems)}")
    return parsed


def _tower(reader: FieldReader, *, heads: int | None, options: TowerOptions) -> OpenClipTower:
    width, layers = reader.count("width", 768 if heads is None else 512), reader.count("layers", 12)
    mlp_dim = int(width * reader.number("mlp_ratio", 4.0))
    number = max(width // reader.count("head_width", 64), 1) if heads is None else heads
    if width % number:
        reader.problems.append(f"{reader.prefix}width {width} is not a multiple of {number} heads")
    return OpenClipTower(width=width, layers=layers, mlp_dim=max(mlp_dim, 1), options=replace(options, heads=number))


def _image_options(reader: FieldReader, is_quick: bool) -> TowerOptions:
    # An option of old open_clip versions: the mean includes the class token, and the norm follows.
    is_old_mean = reader.flag("global_average_pool")
    pool = "gap" if is_old_mean else reader.one_of("pool_type", "tok", {"avg": "gap", "tok": "tok"})
    is_after = reader.flag("final_ln_after_pool") or is_old_mean
    return TowerOptions(
        heads=1,
        eps=_eps(reader),
        gelu=_gelu(reader, is_quick),
        pool="gap" if pool == "gap" else "tok",
        pool_norm="after" if is_after and pool == "gap" else "before",
        has_class_in_mean=is_old_mean,
    )


def _text_options(reader: FieldReader, is_quick: bool) -> TowerOptions:
    pool = reader.one_of("pool_type", "argmax", {"last": "last", "first": "tok"})
    return TowerOptions(
        heads=1,
        eps=_eps(reader),
        gelu=_gelu(reader, is_quick),
        pool="last" if pool == "last" else "tok",
        pool_norm="before",
        is_causal=not reader.flag("no_causal_mask"),
    )


def _eps(reader: FieldReader) -> float:
    inner = reader.child("norm_kwargs", is_needed=False)
    inner.refuse_others(("eps",))
    value = inner.number("eps", DEFAULT_EPS)
    reader.problems += inner.problems
    return value


def _gelu(reader: FieldReader, is_quick: bool) -> ReplayGelu:
    inner = reader.child("act_kwargs", is_needed=False)
    inner.refuse_others(("approximate",))
    kind = inner.one_of("approximate", "none", {"none": "exact", "tanh": "tanh"})
    reader.problems += inner.problems
    return "quick" if is_quick else "tanh" if kind == "tanh" else "exact"


def _image_settings(reader: FieldReader, size: tuple[int, int]) -> ImageSettings:
    stated = reader.pair("size", 224) if "size" in reader.values else size
    if stated != size and not reader.problems:
        reader.problems.append(f"preprocess_cfg.size is {stated}, vision_cfg.image_size {size}")
    reader.refuse_others(READ_PREPROCESS, off=OFF_PREPROCESS)
    modes = {name: name for name in ("squash", "shortest", "longest")}
    return ImageSettings(
        size=stated,
        mean=reader.triple("mean", OPENAI_MEAN),
        std=reader.triple("std", OPENAI_STD, above=0.0),
        interpolation=reader.one_of("interpolation", "bicubic", {"bilinear": "bilinear", "bicubic": "bicubic"}),
        resize_mode=reader.one_of("resize_mode", "shortest", modes),
    )


def _tokenizer_settings(reader: FieldReader) -> TokenizerSettings:
    name = reader.values.get("hf_tokenizer_name")
    if name is not None and not isinstance(name, str):
        reader.problems.append(f"{reader.prefix}hf_tokenizer_name is {name!r}, expected a name")
    kwargs = reader.child("tokenizer_kwargs", is_needed=False)
    strips_sep = kwargs.flag("strip_sep_token")
    reader.problems += kwargs.problems
    # The weights do not depend on the other settings: an import refuses them, a comparison skips the texts.
    kwargs.problems = []
    kwargs.refuse_others(("strip_sep_token",), off=OFF_TOKENIZER)
    return TokenizerSettings(
        name=name if isinstance(name, str) else None, strips_sep=strips_sep, unsupported=tuple(kwargs.problems)
    )
