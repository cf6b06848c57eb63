"""Features and labels of labeled records, for evaluations that fit a classifier."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

from clipa_eqx.agreement import refused_together
from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.data.stream import eval_stream
from clipa_eqx.errors import DataError
from clipa_eqx.evals.embeddings import ImageTransform, image_embeddings
from clipa_eqx.evals.encode import encode_features
from clipa_eqx.evals.gathering import sum_processes
from clipa_eqx.evals.labels import labels_of
from clipa_eqx.models.clip import CLIP
from clipa_eqx.progress import progress_bar

_AT_ONCE = 64  # records in memory

PrepareImage = Callable[[bytes], UInt8[np.ndarray, "height width 3"]]


class FittedLabels(NamedTuple):
    """The labels of two folders with the same classes, one per record.

    Attributes:
        train: labels of the images that a classifier is fitted to.
        test: labels of the images that it is scored on.
        classes: number of classes.
    """

    train: Int[np.ndarray, " train"]
    test: Int[np.ndarray, " test"]
    classes: int


def read_fitted_labels(train: RecordSource, test: RecordSource) -> FittedLabels:
    """Read the labels of both folders, on each process.

    Raises:
        ConfigError: another process found a bad record.
        DataError: the folders have other classes, or a record is damaged or has not one label.
    """
    classes = common_classes(train, test)
    return FittedLabels(read_labels(train, classes=classes), read_labels(test, classes=classes), classes)


def common_classes(train: RecordSource, test: RecordSource) -> int:
    """The number of classes of two folders that have the same.

    Raises:
        DataError: a folder has no class names, or they differ.
    """
    names = [source.manifest.class_names for source in (train, test)]
    for source, own in zip((train, test), names, strict=True):
        if not own:
            raise DataError(f"data folder {source.folder} has no class names; convert it with --class-names")
    if names[0] != names[1] or names[0] is None:
        raise DataError(
            f"data folders {train.folder} and {test.folder} have other class names, so the labels of one mean nothing "
            "in the other; convert both with the same --class-names"
        )
    return len(names[0])


def read_labels(source: RecordSource, *, classes: int) -> Int[np.ndarray, " records"]:
    """The label of each record, on each process. Processes share the reading.

    Args:
        classes: number of classes.

    Raises:
        ConfigError: another process found a bad record.
        DataError: there are no records; a record is damaged, or has no label, several, or one beyond the classes.
    """
    if not len(source):
        raise DataError(f"data folder {source.folder} has no records; there is nothing to score")
    mine = range(jax.process_index(), len(source), jax.process_count())
    found = np.zeros(len(source), np.int64)
    starts = range(0, len(mine), _AT_ONCE)
    with refused_together(f"score {source.folder}"):
        for start in progress_bar(starts, what=f"reading labels of {source.folder}", total=len(starts), unit="chunk"):
            chunk = mine[start : start + _AT_ONCE]
            for index, record in zip(chunk, source.read(chunk), strict=True):
                try:
                    labels = labels_of(record)
                except DataError as error:
                    raise DataError(f"data folder {source.folder}: {error}") from error
                if len(labels) != 1 or not 0 <= labels[0] < classes:
                    raise DataError(
                        f"data folder {source.folder}: record {record.key!r} has labels {list(labels)}; a classifier "
                        f"is fitted to one label per image, from 0 to {classes - 1}"
                    )
                found[index] = labels[0]
    return sum_processes(found)


def image_features(
    model: CLIP,
    source: RecordSource,
    *,
    indices: Sequence[int] | None = None,
    prepare_image: PrepareImage,
    batch_size: int,
    stream: StreamConfig,
    mesh: Mesh | None = None,
) -> Float[np.ndarray, "rows dim"]:
    """The vectors of images before the projection, in order, on each process.

    Args:
        indices: positions of the records; None takes all.
        prepare_image: from encoded bytes to pixels at the size of the model.
        batch_size: images at once over all processes; it changes no value.
        stream: how batches are prepared ahead.

    Raises:
        DataError: an image is damaged, or there are none.
    """
    transform = ImageTransform(prepare_image=prepare_image)
    with eval_stream(
        source,
        transform,
        batch_size=batch_size,
        indices=indices,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        config=stream,
    ) as batches:
        count = len(source) if indices is None else len(indices)
        return image_embeddings(partial(encode_features, model, mesh=mesh), batches, records=count)
