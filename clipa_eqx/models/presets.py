"""Published architectures by name."""

from typing import NamedTuple

from clipa_eqx.errors import ConfigError
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig


class Size(NamedTuple):
    """Sizes of one tower: token width, number of blocks, hidden width of the MLP, attention heads."""

    width: int
    depth: int
    mlp_dim: int
    heads: int


class Variant(NamedTuple):
    """Row of the reference's tables: sizes of both towers, and the joint width if a recipe defines one."""

    image: Size
    text: Size
    embed: int | None


VARIANTS: dict[str, Variant] = {
    "Ti": Variant(Size(192, 12, 768, 3), Size(192, 12, 768, 3), 192),
    "S": Variant(Size(384, 12, 1536, 6), Size(384, 12, 1536, 6), 384),
    "M": Variant(Size(512, 12, 2048, 8), Size(512, 12, 2048, 8), None),
    "B": Variant(Size(768, 12, 3072, 12), Size(512, 12, 2048, 8), 512),
    "L": Variant(Size(1024, 24, 4096, 16), Size(768, 12, 3072, 12), 768),
    "H": Variant(Size(1280, 32, 5120, 16), Size(1024, 24, 4096, 16), 1024),
    "g": Variant(Size(1408, 40, 6144, 16), Size(1408, 40, 6144, 16), 1280),
    "G": Variant(Size(1664, 48, 8192, 16), Size(1664, 48, 8192, 16), 1280),
    "e": Variant(Size(1792, 56, 15360, 16), Size(1792, 56, 15360, 16), None),
}
"""Main table of the reference (``models/vit.py``, ``models/text_transformer.py``; docs/reference.md F1.1)."""

T5X_TEXT = Size(1280, 32, 5120, 20)
"""Text tower of the released bigG/14 and g/14 weights (``models_t5x``, letters g and G)."""

_PRESETS: dict[str, tuple[Variant, int]] = {
    "Ti/16": (VARIANTS["Ti"], 16),
    "S/16": (VARIANTS["S"], 16),
    "B/16": (VARIANTS["B"], 16),
    "B/32": (VARIANTS["B"], 32),
    "L/16": (VARIANTS["L"], 16),
    "L/14": (VARIANTS["L"], 14),
    "H/14": (VARIANTS["H"], 14),
    "g/14": (VARIANTS["g"]._replace(text=T5X_TEXT), 14),
    "bigG/14": (VARIANTS["G"]._replace(text=T5X_TEXT), 14),
}

PRESETS: tuple[str, ...] = tuple(_PRESETS)
"""Names that ``preset`` accepts, such as "B/16": the size of the towers, and the pixels per side of a patch.

They are "Ti/16", "S/16", "B/16", "B/32", "L/16", "L/14", "H/14", "g/14" and "bigG/14".
"""


def preset(name: str, *, image_size: int = 224, length: int = 32) -> CLIPConfig:
    """Configuration of a published architecture.

    As in the releases, image positions are sin-cos, pooling is "gap" and "last", and the token table has 32,000 rows.

    Args:
        name: one of ``PRESETS``.
        image_size: pixels per side.
        length: tokens per text.

    Raises:
        ConfigError: an unknown name, or an image size that the patch does not divide.
    """
    if name not in _PRESETS:
        raise ConfigError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    variant, patch = _PRESETS[name]
    return from_variant(variant, patch_size=patch, image_size=image_size, length=length)


def from_variant(
    variant: Variant, *, patch_size: int, image_size: int, length: int, embed: int | None = None
) -> CLIPConfig:
    """Configuration of a row of ``VARIANTS``; ``embed`` overrides the joint width (rows M and e have none).

    Raises:
        ConfigError: an image size that the patch does not divide.
    """
    embed = variant.embed if embed is None else embed
    return CLIPConfig(
        image=VisionConfig(
            blocks=BlockConfig(**variant.image._asdict(), init="xavier"),
            image_size=(image_size, image_size),
            patch_size=(patch_size, patch_size),
            embed=embed,
        ),
        text=TextConfig(
            blocks=BlockConfig(**variant.text._asdict(), init="scaled"), length=length, vocab=32000, embed=embed
        ),
    )
