"""Names that the provenance of an imported model records: weight formats, and rules for texts."""

from typing import Literal

Format = Literal["flax npz", "t5x checkpoint", "open_clip"]

FLAX: Format = "flax npz"
T5X: Format = "t5x checkpoint"
OPEN_CLIP: Format = "open_clip"

TextRules = Literal["reference", "bert"]
"""Rules for normalizing and splitting texts: those of tensorflow-text and our tokenizer, or of Hugging Face's BERT."""
