"""Retrieval: images found by their captions, and captions by their images."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, Int32

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.first_records import first_records
from clipa_eqx.errors import ConfigError, DataError, counted
from clipa_eqx.evals.counting import EncodeImages, sum_processes
from clipa_eqx.evals.encode import encode_images, encode_texts, local_rows
from clipa_eqx.evals.recall import best_ranks
from clipa_eqx.evals.zero_shot import EncodeTexts
from clipa_eqx.models.clip import CLIP
from clipa_eqx.progress import progress_bar
from clipa_eqx.tokenizer.wordpiece import Tokenizer

RANKS = (1, 5, 10)
"""The k of each recall at k."""

_log = logging.getLogger(__name__)


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
            raise ConfigError(f"retrieval: batch_size and max_captions must be at least 1, got {self}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Captions:
    """The tokenized captions of this process's share of the records, and how many each record has.

    Attributes:
        tokens: ids of the captions of records ``process, process + processes, ...``, in order.
        image: for each row of ``tokens`` its record.
        counts: captions of every record, of all processes.
        truncated: captions over all processes that are longer than the text tower.
    """

    tokens: Int32[np.ndarray, "own length"]
    image: Int[np.ndarray, " own"]
    counts: Int[np.ndarray, " records"]
    truncated: int


@dataclass(frozen=True, kw_only=True, eq=False)
class RetrievalResult:
    """Exact counts over all processes.

    Attributes:
        images: number of images, each a query for its captions.
        texts: number of captions, each a query for its image.
        image_to_text: for each k of ``RANKS`` the images with one of their captions among the k most similar.
        text_to_image: for each k the captions with their image among the k most similar.
        about: what was scored (JSON).
    """

    images: int
    texts: int
    image_to_text: Mapping[int, int]
    text_to_image: Mapping[int, int]
    about: Mapping[str, Any]

    def recall(self) -> dict[str, float]:
        """Each recall by its name, such as ``image_to_text_recall@5``, from 0 to 1."""
        both = (("image_to_text", self.image_to_text, self.images), ("text_to_image", self.text_to_image, self.texts))
        return {f"{name}_recall@{k}": counts[k] / total for name, counts, total in both for k in RANKS}

    def to_json(self) -> dict[str, Any]:
        """The recalls, the number of images and captions, and what was scored."""
        return {**self.recall(), "count": self.images, "caption_count": self.texts, **self.about}


def check_captioned(config: RetrievalConfig, source: RecordSource) -> None:
    """Check a few records, so that a folder without captions is found before anything is computed.

    Raises:
        DataError: the folder has no records; a record that was read is damaged or has no caption.
    """
    if not len(source):
        raise DataError(f"data folder {config.data} has no records; there is nothing to score")
    for record in first_records(source):
        if isinstance(record, DataError):
            raise record
        if not record.captions:
            raise _no_caption(config.data, record.key)


def read_captions(config: RetrievalConfig, source: RecordSource, *, tokenizer: Tokenizer, length: int) -> Captions:
    """Read and tokenize the captions of this process's share of the records.

    Args:
        length: tokens per caption, that of the text tower.

    Raises:
        DataError: a record is damaged or has no caption.
    """
    first, every = jax.process_index(), jax.process_count()
    counts = np.zeros(len(source), np.int64)
    texts: list[str] = []
    for index in progress_bar(
        range(first, len(source), every), what="reading captions", total=len(source) // every, unit="record"
    ):
        record = source[index]
        if not record.captions:
            raise _no_caption(config.data, record.key)
        taken = record.captions[: config.max_captions]
        counts[index] = len(taken)
        texts += taken
    encoded = tokenizer(texts, length=length, reduction=config.text_reduction)
    owners = np.repeat(np.arange(len(source)), counts)
    totals = sum_processes(np.append(counts, encoded.truncated))
    return Captions(tokens=encoded.ids, image=owners, counts=totals[:-1], truncated=int(totals[-1]))


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
        batches: those of ``eval_stream(source, ImageTransform(...), batch_size=...)``: ``image`` uint8[batch height
            width 3], ``mask`` bool[batch], ``sample_id`` int64[batch].

    Returns:
        Counts over all processes. Each process must pass as many batches of the same size.

    Raises:
        DataError: there are no images or captions.
        NonFiniteError: an embedding is NaN or infinite.

    Source: ``evaluators/proj/image_text/retrieval.py`` of the reference.
    """
    images = image_embeddings(partial(encode_images, model, mesh=mesh), batches, records=len(captions.counts))
    texts = caption_embeddings(partial(encode_texts, model, mesh=mesh), captions, batch_size=config.batch_size)
    owner = np.repeat(np.arange(len(captions.counts)), captions.counts)
    number = np.arange(len(captions.counts))
    about = {"data": config.data, "truncated_captions": captions.truncated}
    return RetrievalResult(
        images=len(images),
        texts=len(texts),
        image_to_text=_within(images, texts, query_owner=number, item_owner=owner, what="images"),
        text_to_image=_within(texts, images, query_owner=owner, item_owner=number, what="captions"),
        about=about,
    )


def image_embeddings(
    encode_image: EncodeImages, batches: Iterable[Mapping[str, np.ndarray]], *, records: int
) -> Float[np.ndarray, "records embed"]:
    """The unit embeddings of all records in their order, on each process.

    Raises:
        DataError: there are no images.
    """
    found: np.ndarray | None = None
    for batch in batches:
        rows = local_rows(encode_image(batch["image"]), rows=len(batch["mask"]))
        found = np.zeros((records, rows.shape[1]), np.float32) if found is None else found
        found[batch["sample_id"][batch["mask"]]] = rows[batch["mask"]]
    if found is None:
        raise DataError("retrieval: the record folder has no images; nothing to score")
    return sum_processes(found)


def caption_embeddings(
    encode_text: EncodeTexts, captions: Captions, *, batch_size: int
) -> Float[np.ndarray, "captions embed"]:
    """The unit embeddings of all captions, in the order of their records, on each process.

    Raises:
        DataError: there are no captions.
    """
    local = -(-batch_size // jax.process_count())
    own = captions.counts[jax.process_index() :: jax.process_count()].sum()
    most = max(captions.counts[process :: jax.process_count()].sum() for process in range(jax.process_count()))
    owner = np.repeat(np.arange(len(captions.counts)), captions.counts)
    at = np.flatnonzero(owner % jax.process_count() == jax.process_index())  # of this process's among all captions
    found: np.ndarray | None = None
    starts = range(0, int(most), local)
    for start in progress_bar(starts, what="encoding captions", total=len(starts), unit="batch"):
        batch = np.zeros((local, captions.tokens.shape[1]), np.int32)
        rows = captions.tokens[start : min(start + local, own)]
        batch[: len(rows)] = rows
        encoded = local_rows(encode_text(batch), rows=len(rows))
        found = np.zeros((captions.counts.sum(), encoded.shape[1]), np.float32) if found is None else found
        found[at[start : start + len(rows)]] = encoded
    if found is None:
        raise DataError("retrieval: there are no captions; nothing to score")
    return sum_processes(found)


def _within(
    queries: Float[np.ndarray, "queries embed"],
    items: Float[np.ndarray, "items embed"],
    *,
    query_owner: Int[np.ndarray, " queries"],
    item_owner: Int[np.ndarray, " items"],
    what: str,
) -> dict[int, int]:
    """For each k of ``RANKS`` the queries with a right item among the k first. Processes share the queries."""
    processes = jax.process_count()
    mine = np.array_split(np.arange(len(queries)), processes)[jax.process_index()]
    ranks = best_ranks(
        queries[mine], items, query_owner=query_owner[mine], item_owner=item_owner, what=f"ranking {what}"
    )
    counts = sum_processes(np.array([np.count_nonzero(ranks < k) for k in RANKS]))
    return dict(zip(RANKS, map(int, counts), strict=True))


def log_captions(config: RetrievalConfig, captions: Captions) -> None:
    """Log the number of images and captions, and how many captions are cut."""
    texts = int(captions.counts.sum())
    images = counted(len(captions.counts), "image")
    _log.info(
        "retrieval on %s: %s, %s, %d of them cut", config.data, images, counted(texts, "caption"), captions.truncated
    )


def _no_caption(data: str, key: str) -> DataError:
    return DataError(f"data folder {data}: record {key!r} has no caption; retrieval needs captioned records")
