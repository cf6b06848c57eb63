"""Fields of open_clip's config classes, and a reader that lists every unknown or wrong one."""

import math
from collections.abc import Mapping
from typing import Any, cast

# The fields of open_clip's config classes (its model.py and transform.py). Any other field is refused, as open_clip
# itself does. ``READ_*`` are read here.
READ_MODEL = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_bias")
READ_TOWER = ("width", "layers", "mlp_ratio", "act_kwargs", "norm_kwargs", "pool_type")
READ_VISION = (
    *READ_TOWER,
    *("image_size", "patch_size", "head_width", "no_ln_pre", "global_average_pool", "final_ln_after_pool"),
)
READ_TEXT = (
    *READ_TOWER,
    *("context_length", "vocab_size", "heads", "no_causal_mask", "hf_tokenizer_name", "tokenizer_kwargs"),
)
READ_PREPROCESS = ("size", "mean", "std", "interpolation", "resize_mode")

# Fields that cannot change the result, with their types: options of refused towers, training-only options, and the
# position type, which is stored as a table.
UNUSED_MODEL: dict[str, type] = {
    "init_logit_scale": float,
    "nonscalar_logit_scale": bool,
    "cast_dtype": str,
    "output_dict": bool,
    "custom_text": bool,
}
UNUSED_VISION: dict[str, type] = {
    **dict.fromkeys(("patch_dropout", "timm_drop", "timm_drop_path"), float),
    **dict.fromkeys(("attn_pooler_queries", "attn_pooler_heads"), int),
    **dict.fromkeys(("pos_embed_type", "timm_pool", "timm_proj"), str),
    **dict.fromkeys(("timm_model_pretrained", "timm_proj_bias"), bool),
}
UNUSED_TEXT: dict[str, type] = {
    **dict.fromkeys(("pad_id", "eos_id"), int),
    **dict.fromkeys(("hf_proj_type", "hf_pooler_type"), str),
    **dict.fromkeys(("hf_model_pretrained", "final_ln_after_pool"), bool),
}

# Options that nothing here can compute, with the value that turns them off; null turns them off too.
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
OFF_VISION = _OFF_TOWER | {
    "attentional_pool": False,
    "timm_model_name": None,
    "in_chans": 3,
    "input_patchnorm": False,
}
OFF_TEXT = _OFF_TOWER | {
    "hf_model_name": None,
    "embed_cls": False,
    "proj_bias": False,
    "proj_type": "linear",
    "tokenizer_mode": None,
}
OFF_PREPROCESS = {"mode": "RGB", "fill_color": 0}
OFF_TOKENIZER = {"clean": "whitespace"}

_NONE: dict[str, Any] = {}


class FieldReader:
    """One object of the config, and the problems found in it so far.

    Each method returns a usable value even for a wrong field, so that one pass finds every problem.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self.values, self.prefix = values, prefix
        self.problems: list[str] = []

    def child(self, key: str, *, is_needed: bool = True) -> "FieldReader":
        """A reader of the object under a key; of an empty object if the key is absent or null."""
        value = self.values.get(key)
        if value is None and is_needed:
            self.problems.append(f"{self.prefix}{key} is missing")
        elif value is not None and not isinstance(value, dict):
            self.problems.append(f"{self.prefix}{key} is {value!r}, expected an object")
        return FieldReader(cast("dict[str, Any]", value) if isinstance(value, dict) else {}, f"{self.prefix}{key}.")

    def flag(self, key: str) -> bool:
        """A boolean, false by default."""
        value = self.values.get(key, False)
        if type(value) is not bool:
            self.problems.append(f"{self.prefix}{key} is {value!r}, expected true or false")
        return value is True

    def count(self, key: str, default: int | None) -> int:
        """An integer from 1 to 2^31 - 1."""
        value = self.values.get(key, default)
        if type(value) is not int or not 1 <= value < 1 << 31:
            self.problems.append(f"{self.prefix}{key} is {value!r}, expected a positive whole number")
            return 1
        return value

    def number(self, key: str, default: float, *, above: float = 0.0) -> float:
        """A number between ``above`` and 1e6, both excluded."""
        value = self.values.get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or not above < value < 1e6:
            self.problems.append(
                f"{self.prefix}{key} is {value!r}, expected {'a positive' if above == 0 else 'a'} number"
            )
            return 1.0
        return float(value)

    def pair(self, key: str, default: int) -> tuple[int, int]:
        """Height and width in pixels; one number means a square."""
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

    def triple(self, key: str, default: tuple[float, ...], *, above: float = -math.inf) -> tuple[float, ...]:
        """Three finite numbers, each larger than ``above``."""
        value = self.values.get(key, default)
        if isinstance(value, list | tuple):
            numbers = [float(x) for x in cast("list[Any]", value) if type(x) in (int, float) and math.isfinite(x)]
            if len(numbers) == len(cast("list[Any]", value)) == 3 and min(numbers) > above:
                return tuple(numbers)
        kind = "positive numbers" if above == 0 else "numbers"
        self.problems.append(f"{self.prefix}{key} is {value!r}, expected three {kind}")
        return default

    def one_of(self, key: str, default: str, known: Mapping[str, str]) -> str:
        """The value that ``known`` has for the field."""
        value = self.values.get(key, default)
        if not isinstance(value, str) or value not in known:
            self.problems.append(f"{self.prefix}{key} is {value!r}, expected one of {', '.join(known)}")
            return next(iter(known.values()))
        return known[value]

    def refuse_others(
        self, read: tuple[str, ...], *, unused: Mapping[str, type] = _NONE, off: Mapping[str, Any] = _NONE
    ) -> None:
        """List the fields that are not ``read``, not ``unused`` of that type, and not ``off`` by that value."""
        for key, value in self.values.items():
            if key in unused:
                kinds = (int, float) if unused[key] is float else (unused[key],)
                if value is not None and type(value) not in kinds:
                    self.problems.append(f"{self.prefix}{key} is {value!r}, expected {unused[key].__name__}")
            elif key in off:
                # 0 == False, so types are compared too.
                if value is not None and (type(value), value) != (type(off[key]), off[key]):
                    self.problems.append(f"{self.prefix}{key} is {value!r}, which is not supported")
            elif key not in read:
                self.problems.append(f"{self.prefix}{key} ({value!r}) is an unknown field")
