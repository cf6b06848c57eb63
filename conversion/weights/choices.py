"""Options of an import, among them those that describe a model beyond what its weight file records."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the flags are parsed without loading jax
    from clipa_eqx.models.pool import ImagePool, TextPool
    from conversion.weights.numerics import Profile


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Values of the flags of these names; None for flags that are not given."""

    preset: str | None = None
    released: str | None = None
    config: Path | None = None
    image_pool: "ImagePool | None" = None
    text_pool: "TextPool | None" = None
    image_position: Literal["sincos2d", "learned"] | None = None
    image_heads: int | None = None
    text_heads: int | None = None
    image_size: int | None = None
    profile: "Profile | None" = None


GIVE_VOCAB = "give the model's own vocabulary (--vocab)"
"""Remedy for a vocabulary larger than the token table, whose size is fixed in weights that exist."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of an import, the same for every weight format.

    Attributes:
        folder: the model folder to write.
        choices: what the weight file does not record.
        vocab: vocabulary file or tokenizer folder; None for BERT's vocabulary, or the source's own.
        overwrite: replace the model that ``folder`` holds.
    """

    folder: Path
    choices: Choices
    vocab: Path | None = None
    overwrite: bool = False
