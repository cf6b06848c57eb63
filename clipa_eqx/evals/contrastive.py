"""Contrastive loss and accuracy within batches of held-out pairs: a health check next to the training loss."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from clipa_eqx.errors import ConfigError, NonFiniteError
from clipa_eqx.evals.embeddings import Captions, caption_embeddings, image_embeddings
from clipa_eqx.evals.encode import encode_images, encode_texts
from clipa_eqx.models.clip import CLIP


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """A folder of captioned records, of which each image and its first caption are a pair.

    Attributes:
        data: record folder.
        batch_size: pairs that are compared with one another. A larger batch is harder, so compare scores of equal sizes
            only.
        text_reduction: how captions longer than the text tower are cut.
        every_steps: period of scoring in the training loop, in steps; None scores at its end only.

    Raises:
        ConfigError: a batch of fewer than 2 pairs.
    """

    data: str
    batch_size: int = 256
    text_reduction: Literal["truncate", "syntax"] = "truncate"
    every_steps: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ConfigError(f"contrastive: batch_size is {self.batch_size}; a comparison needs at least 2 pairs")


@dataclass(frozen=True, kw_only=True)
class ContrastiveResult:
    """Means over all pairs.

    Attributes:
        count: number of pairs.
        loss: the symmetric softmax loss, in nats.
        accuracy: images whose own caption is the most similar of their batch, from 0 to 1.
    """

    count: int
    loss: float
    accuracy: float

    def scores(self) -> dict[str, float]:
        """Loss and accuracy by their names."""
        return {"loss": self.loss, "accuracy": self.accuracy}

    def to_json(self) -> dict[str, Any]:
        """The scores and the number of pairs."""
        return {**self.scores(), "count": self.count}


def evaluate_contrastive(
    model: CLIP,
    config: ContrastiveConfig,
    captions: Captions,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    mesh: Mesh | None = None,
) -> ContrastiveResult:
    """Score a model on pairs, with its own temperature.

    Args:
        model: its arrays are on ``mesh`` (any sharding) or, without a mesh, on one device.
        captions: what ``read_captions(..., most=1)`` returned.
        batches: those of ``eval_stream(source, ImageTransform(...), batch_size=...)``, all records in order.

    Raises:
        DataError: there are no pairs.
        NonFiniteError: a loss is NaN or infinite.

    Source: ``evaluators/proj/image_text/contrastive.py`` of the reference, with ``use_global_batch``.
    """
    images = image_embeddings(partial(encode_images, model, mesh=mesh), batches, records=len(captions.counts))
    texts = caption_embeddings(partial(encode_texts, model, mesh=mesh), captions, batch_size=config.batch_size)
    return compare_pairs(
        images, texts, batch_size=config.batch_size, temperature=float(np.exp(np.asarray(model.log_temperature)))
    )


def compare_pairs(
    images: Float[np.ndarray, "pairs embed"],
    texts: Float[np.ndarray, "pairs embed"],
    *,
    batch_size: int,
    temperature: float,
) -> ContrastiveResult:
    """Compare unit embeddings of pairs within consecutive batches; the last batch may be smaller.

    Args:
        temperature: factor of the cosines.

    Raises:
        NonFiniteError: a loss is NaN or infinite.
    """
    loss, right = 0.0, 0
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        logits = temperature * (images[part].astype(np.float64) @ texts[part].astype(np.float64).T)
        own = np.diagonal(logits)
        by_row, by_column = (np.logaddexp.reduce(logits, axis=axis) for axis in (1, 0))
        loss += float(np.sum((by_row + by_column) / 2 - own))
        right += int(np.count_nonzero(logits.argmax(axis=1) == np.arange(len(own))))
    if not np.isfinite(loss):
        raise NonFiniteError("contrastive: the loss is not finite; is the model damaged, or did training diverge?")
    return ContrastiveResult(count=len(images), loss=loss / len(images), accuracy=right / len(images))
