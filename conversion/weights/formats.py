"""Names of the weight formats, as the provenance of an imported model records them."""

from typing import Literal

Format = Literal["flax npz", "t5x checkpoint", "open_clip"]

FLAX: Format = "flax npz"
T5X: Format = "t5x checkpoint"
OPEN_CLIP: Format = "open_clip"
