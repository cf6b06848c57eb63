"""Linear probe: multinomial logistic regression on frozen features, with the regularization chosen by validation."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.evals.features import FittedLabels, PrepareImage, image_features
from clipa_eqx.evals.logistic_regression import SWEEP, fit_probe, sweep_probe
from clipa_eqx.models.clip import CLIP


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig:
    """Two folders of labeled records with the same classes, and how a linear classifier is fitted.

    Attributes:
        data: record folder that the classifier is scored on.
        train: record folder that it is fitted to.
        validation: share of the training images that choose the regularization; it is then fitted to all of them.
        strengths: strengths of the regularization that are tried.
        batch_size: images at once over all devices; it changes no score.
        every_steps: period of scoring in the training loop, in steps; None scores at its end only.

    Raises:
        ConfigError: a field is out of range.
    """

    data: str
    train: str
    validation: float = 0.1
    strengths: tuple[float, ...] = SWEEP
    batch_size: int = 256
    every_steps: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 < self.validation < 1 or not self.strengths or min(self.strengths) <= 0:
            raise ConfigError(
                "linear probe: batch_size and strengths must be positive, validation between 0 and 1, got "
                f"{self.batch_size}, {self.strengths} and {self.validation}"
            )


@dataclass(frozen=True, kw_only=True)
class LinearProbeResult:
    """Counts of a classifier whose regularization was chosen by validation.

    Attributes:
        count: images scored.
        correct: images whose class has the highest score.
        regularization: the strength that was chosen.
        validation: top-1 on the validation images by strength, from 0 to 1.
    """

    count: int
    correct: int
    regularization: float
    validation: Mapping[float, float]

    def scores(self) -> dict[str, float]:
        """Top-1 by its name, from 0 to 1."""
        return {"top1": self.correct / self.count}

    def to_json(self) -> dict[str, Any]:
        """Top-1, the number of images, and the sweep."""
        sweep = {f"{strength:g}": top1 for strength, top1 in self.validation.items()}
        return {**self.scores(), "count": self.count, "regularization": self.regularization, "validation_top1": sweep}


def evaluate_linear_probe(
    model: CLIP,
    config: LinearProbeConfig,
    train: RecordSource,
    test: RecordSource,
    *,
    labels: FittedLabels,
    prepare_image: PrepareImage,
    stream: StreamConfig,
    mesh: Mesh | None = None,
) -> LinearProbeResult:
    """Fit a classifier to the vectors of all training images before the projection, and score it.

    Args:
        train, test: the opened folders ``config.train`` and ``config.data``.
        labels: what ``read_fitted_labels`` returned for these folders.
        prepare_image: from encoded bytes to pixels at the size of the model.
        stream: how batches are prepared ahead.

    Raises:
        DataError: an image is damaged, or no class has two training images.
        NonFiniteError: a feature is NaN or infinite.
    """
    is_held = hold_out(config, labels.train)
    features_of = partial(
        image_features, model, prepare_image=prepare_image, batch_size=config.batch_size, stream=stream, mesh=mesh
    )
    features, test_features = features_of(train), features_of(test)
    best, accuracy = sweep_probe(
        features[~is_held],
        labels.train[~is_held],
        validation_features=features[is_held],
        validation_labels=labels.train[is_held],
        classes=labels.classes,
        strengths=config.strengths,
    )
    probe = fit_probe(features, labels.train, classes=labels.classes, regularization=best.regularization, start=best)
    right = probe.predict(test_features) == labels.test
    return LinearProbeResult(
        count=len(right),
        correct=int(np.count_nonzero(right)),
        regularization=best.regularization,
        validation=accuracy,
    )


def hold_out(config: LinearProbeConfig, labels: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
    """Mark the validation images: a share of each class, sampled with a fixed seed; at least one of a class of two.

    Raises:
        DataError: no class has two images.
    """
    random = np.random.default_rng(0)
    is_held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        of_class = random.permutation(np.flatnonzero(labels == label))
        is_held[of_class[: min(max(1, round(config.validation * len(of_class))), len(of_class) - 1)]] = True
    if not is_held.any():
        raise DataError(
            f"no class of data folder {config.train} has two images, so none can be held out to choose the "
            "regularization; give more images with train (--train)"
        )
    return is_held
