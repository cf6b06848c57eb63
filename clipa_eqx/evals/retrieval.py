"""Retrieval: images found by their captions, and captions by their images."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from clipa_eqx.errors import ConfigError
from clipa_eqx.evals.embeddings import Captions, caption_embeddings, image_embeddings
from clipa_eqx.evals.encode import encode_images, encode_texts
from clipa_eqx.evals.gathering import sum_processes
from clipa_eqx.evals.recall import best_ranks
from clipa_eqx.models.clip import CLIP

RANKS = (1, 5, 10)
"""The k of each recall at k."""


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """A folder of captioned records, and how a model is scored on it.

    Attributes:
        data: record folder; each image may have several captions.
        max_captions: take only the first captions of each image; None takes all, as the reference does.
        batch_size: images (and captions) at once over all devices; it changes no count.
        text_reduction: how captions longer than the text tower are cut: "truncate" keeps the first pieces, "syntax" the
            words of the most important classes.
        every_steps: period of scoring in the training loop, in steps; None scores at its end only.

    Raises:
        ConfigError: a field is out of range.
    """

    data: str
    max_captions: int | None = None
    batch_size: int = 256
    text_reduction: Literal["truncate", "syntax"] = "truncate"
    every_steps: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.max_captions is not None and self.max_captions < 1):
            raise ConfigError(
                "retrieval: batch_size and max_captions must be at least 1, got "
                f"{self.batch_size} and {self.max_captions}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class RetrievalResult:
    """Exact counts over all processes.

    Attributes:
        images: number of images, each a query for its captions.
        texts: number of captions, each a query for its image.
        image_to_text: for each k of ``RANKS`` the images with one of their captions among the k most similar.
        text_to_image: for each k the captions with their image among the k most similar.
        truncated: captions that are longer than the text tower.
    """

    images: int
    texts: int
    image_to_text: Mapping[int, int]
    text_to_image: Mapping[int, int]
    truncated: int

    def scores(self) -> dict[str, float]:
        """Each recall by its name, such as ``image_to_text_recall@5``, from 0 to 1."""
        both = (("image_to_text", self.image_to_text, self.images), ("text_to_image", self.text_to_image, self.texts))
        return {f"{name}_recall@{k}": counts[k] / total for name, counts, total in both for k in RANKS}

    def to_json(self) -> dict[str, Any]:
        """The recalls and the numbers of images and captions."""
        return {
            **self.scores(),
            "count": self.images,
            "caption_count": self.texts,
            "truncated_captions": self.truncated,
        }


def evaluate_retrieval(
    model: CLIP,
    config: RetrievalConfig,
    captions: Captions,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    mesh: Mesh | None = None,
) -> RetrievalResult:
    """Score a model on captioned images.

    Args:
        model: its arrays are on ``mesh`` (any sharding) or, without a mesh, on one device.
        captions: what ``read_captions`` returned.
        batches: those of ``eval_stream(source, ImageTransform(...), batch_size=...)``, all records in order.

    Returns:
        Counts over all processes. Each process must pass as many batches of the same size.

    Raises:
        DataError: there are no images or captions.
        NonFiniteError: an embedding is NaN or infinite.

    Source: ``evaluators/proj/image_text/retrieval.py`` of the reference.
    """
    number = np.arange(len(captions.counts))
    images = image_embeddings(partial(encode_images, model, mesh=mesh), batches, records=len(number))
    texts = caption_embeddings(partial(encode_texts, model, mesh=mesh), captions, batch_size=config.batch_size)
    return RetrievalResult(
        images=len(images),
        texts=len(texts),
        image_to_text=_within(images, texts, query_owner=number, item_owner=captions.owner, what="images"),
        text_to_image=_within(texts, images, query_owner=captions.owner, item_owner=number, what="captions"),
        truncated=captions.truncated,
    )


def _within(
    queries: Float[np.ndarray, "queries embed"],
    items: Float[np.ndarray, "items embed"],
    *,
    query_owner: Int[np.ndarray, " queries"],
    item_owner: Int[np.ndarray, " items"],
    what: str,
) -> dict[int, int]:
    """For each k of ``RANKS`` the queries with a right item among the k first. Processes share the queries."""
    mine = np.array_split(np.arange(len(queries)), jax.process_count())[jax.process_index()]
    ranks = best_ranks(
        queries[mine], items, query_owner=query_owner[mine], item_owner=item_owner, what=f"ranking {what}"
    )
    counts = sum_processes(np.array([np.count_nonzero(ranks < k) for k in RANKS]))
    return dict(zip(RANKS, map(int, counts), strict=True))
