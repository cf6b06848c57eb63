"""What an ``open_clip_config.json`` says: sizes, numerics, pictures and texts."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from clipa_eqx.errors import ConversionError, listed
from conversion.open_clip.pixels import OPENAI_MEAN, OPENAI_STD, Pictures
from conversion.weights.tower_options import ReplayGelu, TowerOptions

CONFIG_FILE = "open_clip_config.json"


DEFAULT_EPS = 1e-5
"""Of torch's LayerNorm."""

# Fields of open_clip's config classes (its model.py and transform.py); any other is refused, as open_clip does itself.
# Those that are read here, and those that change nothing that a model computes from given weights:
_READ_MODEL = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_bias")
_IDLE_MODEL: dict[str, type] = {
    "init_logit_scale": float,
    "nonscalar_logit_scale": bool,
    "cast_dtype": str,
    "output_dict": bool,
    "custom_text": bool,
}
_READ_TOWER = ("width", "layers", "mlp_ratio", "act_kwargs", "norm_kwargs", "pool_type")
_READ_VISION = ("image_size", "patch_size", "head_width", "no_ln_pre", "global_average_pool", "final_ln_after_pool")
_READ_TEXT = ("context_length", "vocab_size", "heads", "no_causal_mask", "hf_tokenizer_name", "tokenizer_kwargs")
_READ_PICTURES = ("size", "mean", "std", "interpolation", "resize_mode")
# Of towers and poolers that are refused as such, of training, or (the kind of positions) stored as a table anyway.
_IDLE_VISION: dict[str, type] = {
    **dict.fromkeys(("patch_dropout", "timm_drop", "timm_drop_path"), float),
    **dict.fromkeys(("attn_pooler_queries", "attn_pooler_heads"), int),
    **dict.fromkeys(("pos_embed_type", "timm_pool", "timm_proj"), str),
    **dict.fromkeys(("timm_model_pretrained", "timm_proj_bias"), bool),
}
_IDLE_TEXT: dict[str, type] = {
    **dict.fromkeys(("pad_id", "eos_id"), int),
    **dict.fromkeys(("hf_proj_type", "hf_pooler_type"), str),
    **dict.fromkeys(("hf_model_pretrained", "final_ln_after_pool"), bool),
}
_NONE: dict[str, Any] = {}
# Options that nothing here can compute, with the value that leaves them off; None does too.
_OFF_TOWER: dict[str, Any] = {
    "ls_init_value": None,
    "output_tokens": False,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
_OFF_VISION = _OFF_TOWER | {
    "attentional_pool": False,
    "timm_model_name": None,
    "in_chans": 3,
    "input_patchnorm": False,
}
_OFF_TEXT = _OFF_TOWER | {
    "hf_model_name": None,
    "embed_cls": False,
    "proj_bias": False,
    "proj_type": "linear",
    "tokenizer_mode": None,
}
_OFF_PICTURES = {"mode": "RGB", "fill_color": 0}
_OFF_TOKENIZER = {"clean": "whitespace"}


@dataclass(frozen=True, kw_only=True)
class OpenClipTower:
    """Sizes of a tower as its config has them, and how it computes."""

    width: int
    layers: int
    mlp_dim: int
    options: TowerOptions


@dataclass(frozen=True, kw_only=True)
class Texts:
    """How texts are tokenized: the vocabulary's name, whether [SEP] is replaced by padding, what else is asked for."""

    tokenizer_name: str | None
    strips_sep: bool
    other: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OpenClipConfig:
    """A whole config; ``pictures`` is None where the file is a bare ``model_cfg``."""

    image: OpenClipTower
    text: OpenClipTower
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    length: int
    vocab: int
    embed: int
    pictures: Pictures | None
    texts: Texts


def load_open_clip_config(path: Path) -> OpenClipConfig:
    """Read a config file. Raises ``ConversionError`` listing all that is missing or that nothing here can compute."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConversionError(f"{path} cannot be read ({error}); expected open_clip's JSON") from error
    if not isinstance(found, dict):
        raise ConversionError(f"{path} holds {type(found).__name__}, expected an object")
    return parse_open_clip_config(cast("dict[str, Any]", found), where=str(path))


def parse_open_clip_config(found: Mapping[str, Any], *, where: str) -> OpenClipConfig:
    """As ``load_open_clip_config``; a bare ``model_cfg``, as open_clip ships them, is taken too."""
    outer, is_bare = _Reader(found), "model_cfg" not in found
    if not is_bare:
        outer.refuse_all_but(("model_cfg", "preprocess_cfg"))
    model = found.get("model_cfg", found)
    if not isinstance(model, dict):
        raise ConversionError(f"{where}: model_cfg is {type(model).__name__}, expected an object")
    reader = _Reader(cast("dict[str, Any]", model))
    vision, text = reader.child("vision_cfg"), reader.child("text_cfg")
    reader.refuse_all_but(_READ_MODEL, idle=_IDLE_MODEL)
    vision.refuse_all_but(_READ_TOWER + _READ_VISION, idle=_IDLE_VISION, off=_OFF_VISION)
    text.refuse_all_but(_READ_TOWER + _READ_TEXT, idle=_IDLE_TEXT, off=_OFF_TEXT)
    if not vision.flag("no_ln_pre"):
        vision.problems.append("vision_cfg.no_ln_pre is not set: a norm before the blocks is unknown here")
    if reader.values.get("init_logit_bias") is not None:
        reader.problems.append("init_logit_bias: a bias of the logits is unknown here")
    pictures = outer.child("preprocess_cfg", is_needed=False)
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
        # What open_clip makes of a whole config without preprocess_cfg: its defaults.
        pictures=None if is_bare else _pictures(pictures, image_size),
        texts=_texts(text),
    )
    problems = outer.problems + reader.problems + vision.problems + text.problems + pictures.problems
    if problems:
        raise ConversionError(f"{where}: {listed(problems)}")
    return parsed


class _Reader:
    """An object of the JSON, and what is wrong with it."""

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self.values, self.prefix = values, prefix
        self.problems: list[str] = []

    def child(self, key: str, *, is_needed: bool = True) -> "_Reader":
        """The object under a key; where it is absent or null, an empty one."""
        value = self.values.get(key)
        if value is None and is_needed:
            self.problems.append(f"{self.prefix}{key} is missing")
        elif value is not None and not isinstance(value, dict):
            self.problems.append(f"{self.prefix}{key} is {value!r}, expected an object")
        return _Reader(cast("dict[str, Any]", value) if isinstance(value, dict) else {}, f"{self.prefix}{key}.")

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if type(value) is not bool:
            self.problems.append(f"{self.prefix}{key} is {value!r}, expected true or false")
        return value is True

    def count(self, key: str, default: int | None) -> int:
        value = self.values.get(key, default)
        if type(value) is not int or not 1 <= value < 1 << 31:
            self.problems.append(f"{self.prefix}{key} is {value!r}, expected a positive whole number")
            return 1
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or not 0 < value < 1e6:
            self.problems.append(f"{self.prefix}{key} is {value!r}, expected a positive number")
            return 1.0
        return float(value)

    def pair(self, key: str, default: int) -> tuple[int, int]:
        value = self.values.get(key, default)
        if isinstance(value, list):
            sizes = cast("list[object]", value)
            if len(sizes) == 2:
                down, across = sizes
                if type(down) is int and type(across) is int and down > 0 and across > 0:
                    return down, across
        elif type(value) is int and value > 0:
            return value, value
        self.problems.append(f"{self.prefix}{key} is {value!r}, expected pixels or a list of two")
        return 1, 1

    def one_of(self, key: str, default: str, known: Mapping[str, str]) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str) or value not in known:
            self.problems.append(f"{self.prefix}{key} is {value!r}, expected one of {', '.join(known)}")
            return next(iter(known.values()))
        return known[value]

    def refuse_all_but(
        self, known: tuple[str, ...], *, idle: Mapping[str, type] = _NONE, off: Mapping[str, Any] = _NONE
    ) -> None:
        """List fields that are not ``known``, not ``idle`` of that type, and not ``off`` by that value."""
        for key, value in self.values.items():
            if key in idle:
                kinds = (int, float) if idle[key] is float else (idle[key],)
                if value is not None and type(value) not in kinds:
                    self.problems.append(f"{self.prefix}{key} is {value!r}, expected {idle[key].__name__}")
            elif key in off:
                # 0 == False, so types are compared too.
                if value is not None and (type(value), value) != (type(off[key]), off[key]):
                    self.problems.append(f"{self.prefix}{key} is {value!r}, which is unknown here")
            elif key not in known:
                self.problems.append(f"{self.prefix}{key} ({value!r}) is no field that is known here")


def _tower(reader: _Reader, *, heads: int | None, options: TowerOptions) -> OpenClipTower:
    width, layers = reader.count("width", 768 if heads is None else 512), reader.count("layers", 12)
    mlp_dim = int(width * reader.number("mlp_ratio", 4.0))
    number = max(width // reader.count("head_width", 64), 1) if heads is None else heads
    if width % number:
        reader.problems.append(f"{reader.prefix}width {width} is not divided by {number} heads")
    return OpenClipTower(
        width=width,
        layers=layers,
        mlp_dim=max(mlp_dim, 1),
        options=replace(options, heads=number),
    )


def _image_options(reader: _Reader, is_quick: bool) -> TowerOptions:
    # Old versions of open_clip had this option; their mean took the class token, then came the norm.
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


def _text_options(reader: _Reader, is_quick: bool) -> TowerOptions:
    pool = reader.one_of("pool_type", "argmax", {"last": "last", "first": "tok"})
    return TowerOptions(
        heads=1,
        eps=_eps(reader),
        gelu=_gelu(reader, is_quick),
        pool="last" if pool == "last" else "tok",
        pool_norm="before",
        is_causal=not reader.flag("no_causal_mask"),
    )


def _eps(reader: _Reader) -> float:
    inner = reader.child("norm_kwargs", is_needed=False)
    inner.refuse_all_but(("eps",))
    value = inner.number("eps", DEFAULT_EPS)
    reader.problems += inner.problems
    return value


def _gelu(reader: _Reader, is_quick: bool) -> ReplayGelu:
    inner = reader.child("act_kwargs", is_needed=False)
    inner.refuse_all_but(("approximate",))
    kind = inner.one_of("approximate", "none", {"none": "exact", "tanh": "tanh"})
    reader.problems += inner.problems
    return "quick" if is_quick else "tanh" if kind == "tanh" else "exact"


def _pictures(reader: _Reader, size: tuple[int, int]) -> Pictures:
    stated = reader.pair("size", 224) if "size" in reader.values else size
    if stated != size and not reader.problems:
        reader.problems.append(f"preprocess_cfg.size is {stated}, vision_cfg.image_size {size}")
    reader.refuse_all_but(_READ_PICTURES, off=_OFF_PICTURES)
    modes = {name: name for name in ("squash", "shortest", "longest")}
    return Pictures(
        size=stated,
        mean=_triple(reader, "mean", OPENAI_MEAN),
        std=_triple(reader, "std", OPENAI_STD, above=0.0),
        interpolation=reader.one_of("interpolation", "bicubic", {"bilinear": "bilinear", "bicubic": "bicubic"}),
        resize_mode=reader.one_of("resize_mode", "shortest", modes),
    )


def _triple(reader: _Reader, key: str, default: tuple[float, ...], *, above: float = -math.inf) -> tuple[float, ...]:
    value = reader.values.get(key, default)
    if isinstance(value, list | tuple):
        numbers = [float(x) for x in cast("list[Any]", value) if type(x) in (int, float) and math.isfinite(x)]
        if len(numbers) == len(cast("list[Any]", value)) == 3 and min(numbers) > above:
            return tuple(numbers)
    reader.problems.append(f"preprocess_cfg.{key} is {value!r}, expected three {'positive ' * (above == 0)}numbers")
    return default


def _texts(reader: _Reader) -> Texts:
    name = reader.values.get("hf_tokenizer_name")
    if name is not None and not isinstance(name, str):
        reader.problems.append(f"{reader.prefix}hf_tokenizer_name is {name!r}, expected a name")
    kwargs = reader.child("tokenizer_kwargs", is_needed=False)
    strips_sep = kwargs.flag("strip_sep_token")
    reader.problems += kwargs.problems
    # Nothing that weights depend on: who compares texts says that it cannot, who imports refuses.
    kwargs.problems = []
    kwargs.refuse_all_but(("strip_sep_token",), off=_OFF_TOKENIZER)
    return Texts(
        tokenizer_name=name if isinstance(name, str) else None, strips_sep=strips_sep, other=tuple(kwargs.problems)
    )
