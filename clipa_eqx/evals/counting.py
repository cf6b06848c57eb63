"""Ranking of images against class embeddings, counted exactly over batches and processes."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Int32, UInt8

from clipa_eqx.agreement import taken_together
from clipa_eqx.errors import DataError, NonFiniteError
from clipa_eqx.evals.encode import local_rows
from clipa_eqx.evals.gathering import sum_processes

Batch = Mapping[str, np.ndarray]
EncodeImages = Callable[[UInt8[np.ndarray, "batch height width 3"]], Array | np.ndarray]

_RANKS = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class ZeroShotResult:
    """Counts over all processes, and the predictions of this process.

    Attributes:
        count: images scored.
        correct_top1: images with one of their labels at rank 1.
        correct_top5: images with one of their labels within rank 5.
        per_class_count: images with label c.
        per_class_correct: images with label c that were right at rank 1.
        sample_id: indices of this process's images in the record folder.
        predictions: their likeliest classes, best first; 5, or all if there are fewer classes.
        about: what was scored (JSON).
    """

    count: int
    correct_top1: int
    correct_top5: int
    per_class_count: Int[np.ndarray, " classes"]
    per_class_correct: Int[np.ndarray, " classes"]
    sample_id: Int[np.ndarray, " local"]
    predictions: Int32[np.ndarray, "local ranks"]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])

    @property
    def top1(self) -> float:
        """Fraction of images right at rank 1."""
        return self.correct_top1 / self.count

    @property
    def top5(self) -> float:
        """Fraction of images right within rank 5."""
        return self.correct_top5 / self.count

    def scores(self) -> dict[str, float]:
        """Top-1 and top-5 by their names, from 0 to 1."""
        return {"top1": self.top1, "top5": self.top5}

    def to_json(self, *, with_predictions: bool = False) -> dict[str, Any]:
        """Scores, counts and what was scored, as JSON; on request also the likeliest classes of each image."""
        content: dict[str, Any] = {
            "top1": self.top1,
            "top5": self.top5,
            "correct_top1": self.correct_top1,
            "correct_top5": self.correct_top5,
            "count": self.count,
            "class_count": len(self.per_class_count),
            "per_class_count": self.per_class_count.tolist(),
            "per_class_correct": self.per_class_correct.tolist(),
            **self.about,
        }
        if with_predictions:
            content |= {"sample_id": self.sample_id.tolist(), "predictions": self.predictions.tolist()}
        return content


def score(
    encode_image: EncodeImages,
    class_embeddings: Float[np.ndarray, "classes embed"],
    batches: Iterable[Batch],
) -> ZeroShotResult:
    """Rank the classes for each image, and count each unmasked row once, in integers.

    If similarities are equal, the lower class comes first, also for classes with equal embeddings.

    Args:
        encode_image: uint8[batch height width 3] to unit embeddings [at least batch, embed].
        batches: ``image`` uint8[batch height width 3], ``label`` int[batch] or int[batch labels] padded with -1 (each
            of them counts as right), ``mask`` bool[batch] and ``sample_id`` int[batch].

    Raises:
        ConfigError: another process found bad rows.
        DataError: a row has no label, a label has no class, or there are no rows.
        NonFiniteError: an embedding is NaN or infinite.
    """
    classes = len(class_embeddings)
    twins = _lowest_equal(class_embeddings)
    counts = np.zeros((3 + 2 * classes,), np.int64)
    ids: list[np.ndarray] = [np.zeros((0,), np.int64)]
    predictions: list[np.ndarray] = [np.zeros((0, min(_RANKS, classes)), np.int32)]
    checked = taken_together(_with_valid_labels(batches, classes=classes), what="score its images")
    for embeddings, batch in _one_late(encode_image, checked):
        mask = batch["mask"].astype(bool)
        labels = _labels(batch)
        images = local_rows(embeddings, rows=len(mask))[mask]
        if not np.isfinite(images).all():
            raise NonFiniteError(f"zero-shot: embeddings of records {batch['sample_id'][mask][:3]}... are not finite")
        ranked = _rank(images, class_embeddings, twins=twins)
        counts += _count(ranked, labels, classes=classes)
        ids.append(batch["sample_id"][mask])
        predictions.append(ranked)
    totals = sum_processes(counts)
    if totals[0] == 0:
        raise DataError("zero-shot: the record folder has no images; nothing to score")
    return ZeroShotResult(
        count=int(totals[0]),
        correct_top1=int(totals[1]),
        correct_top5=int(totals[2]),
        per_class_count=totals[3 : 3 + classes],
        per_class_correct=totals[3 + classes :],
        sample_id=np.concatenate(ids),
        predictions=np.concatenate(predictions),
    )


def gather_predictions(result: ZeroShotResult) -> ZeroShotResult:
    """The result with the predictions of all processes, in the order of the records. All processes call it together."""
    ids = np.zeros(result.count, np.int64)
    predictions = np.zeros((result.count, result.predictions.shape[1]), np.int32)
    ids[result.sample_id] = result.sample_id
    predictions[result.sample_id] = result.predictions
    return dataclasses.replace(result, sample_id=sum_processes(ids), predictions=sum_processes(predictions))


def _one_late(encode_image: EncodeImages, batches: Iterable[Batch]) -> Iterator[tuple[Array | np.ndarray, Batch]]:
    """Each batch with its embeddings, after the next one was dispatched: the host ranks while the devices encode."""
    pending: tuple[Array | np.ndarray, Batch] | None = None
    for batch in batches:
        encoded = encode_image(batch["image"])
        if pending is not None:
            yield pending
        pending = (encoded, batch)
    if pending is not None:
        yield pending


def _lowest_equal(class_embeddings: Float[np.ndarray, "classes embed"]) -> Int[np.ndarray, " classes"]:
    """For each class, the lowest class with the same embedding."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(row.tobytes(), at) for at, row in enumerate(class_embeddings)], np.int64)


def _rank(
    images: Float[np.ndarray, "rows embed"],
    class_embeddings: Float[np.ndarray, "classes embed"],
    *,
    twins: Int[np.ndarray, " classes"],
) -> Int32[np.ndarray, "rows ranks"]:
    # A matrix product may round equal columns differently, so equal classes share one column: ties stay ties.
    similarity = (images @ class_embeddings.T)[:, twins]
    return np.argsort(-similarity, axis=1, kind="stable")[:, :_RANKS].astype(np.int32)


def _count(
    ranked: Int32[np.ndarray, "rows ranks"], labels: Int[np.ndarray, "rows labels"], *, classes: int
) -> Int[np.ndarray, " counts"]:
    """Rows, right at rank 1, right within rank 5, then rows per class, then right rows per class."""
    hits = (ranked[:, :, None] == labels[:, None, :]).any(axis=2)
    carries = np.zeros((len(labels), classes), bool)
    row, column = np.nonzero(labels >= 0)
    carries[row, labels[row, column]] = True
    first = hits[:, 0]
    totals = [len(labels), first.sum(), hits.any(axis=1).sum()]
    return np.concatenate([totals, carries.sum(axis=0), carries[first].sum(axis=0)])


def _with_valid_labels(batches: Iterable[Batch], *, classes: int) -> Iterator[Batch]:
    """The batches, each checked before it is used."""
    for batch in batches:
        for sample, row in zip(batch["sample_id"][batch["mask"].astype(bool)], _labels(batch), strict=True):
            if (row < 0).all():
                raise DataError(f"zero-shot: record {sample} has no label; score labeled records only")
            if row.max() >= classes or row.min() < -1:
                raise DataError(
                    f"zero-shot: record {sample} has labels {row.tolist()} but there are {classes} class names; "
                    "give the class names that the labels index"
                )
        yield batch


def _labels(batch: Batch) -> Int[np.ndarray, "rows labels"]:
    """The labels of the rows that are not padding."""
    return batch["label"].reshape(len(batch["mask"]), -1)[batch["mask"].astype(bool)]
