"""The config of the loss: which one, and how the devices compute it."""

from dataclasses import dataclass
from typing import Literal

from clipa_eqx.errors import ConfigError

LossKind = Literal["softmax", "sigmoid"]
LossAlgorithm = Literal["global", "sharded", "chunked", "ring"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The contrastive loss. ``algorithm`` and ``chunk`` change time and memory, and results by rounding only.

    Attributes:
        kind: "softmax" is CLIP's symmetric loss, "sigmoid" SigLIP's loss of each pair, which needs a model with a bias
            (``CLIPConfig.bias``).
        algorithm: "global" is one program, which the compiler splits; "sharded" gathers the embeddings and computes on
            each device the logits of its rows; "chunked" does the same a chunk of columns at a time, so that the logits
            are never in memory at once; "ring" passes the embeddings from device to device and gathers nothing.
        chunk: columns per chunk of "chunked"; it need not divide the batch. The other algorithms ignore it.

    Raises:
        ConfigError: a chunk below 1.
    """

    kind: LossKind = "softmax"
    algorithm: LossAlgorithm = "global"
    chunk: int = 4096

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ConfigError(f"loss.chunk is {self.chunk}; it must be at least 1 column")
