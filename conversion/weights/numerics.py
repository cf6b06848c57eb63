"""What no tensor tells of a model's towers: the epsilon of norms and the kind of GELU, and the profiles by name."""

from collections.abc import Mapping
from typing import Any, Literal

from clipa_eqx.models.clip import CLIPConfig

Profile = Literal["flax", "open_clip"]
PROFILES: Mapping[Profile, dict[str, Any]] = {
    "flax": {"norm_eps": 1e-6, "gelu": "tanh"},
    "open_clip": {"norm_eps": 1e-5, "gelu": "exact"},
}
"""Numerics that no weight file records (docs/reference.md F4.4)."""


def numerics_of(config: CLIPConfig) -> dict[str, dict[str, Any]]:
    """The numerics of both towers, as JSON."""
    towers = {"image": config.image.blocks, "text": config.text.blocks}
    return {name: {"norm_eps": blocks.norm_eps, "gelu": blocks.gelu} for name, blocks in towers.items()}


def profile_of(numerics: Mapping[str, Mapping[str, Any]]) -> str:
    """The profile that both towers have, or "custom"."""
    return next((name for name, one in PROFILES.items() if all(one == n for n in numerics.values())), "custom")


Rules = Literal["reference", "bert"]
"""How texts are normalized and split: as tensorflow-text does, and our tokenizer, or as Hugging Face's BERT does."""
