"""Few-shot classification: regularized least squares on features of a few images per class, in closed form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.evals.features import FittedLabels, PrepareImage, image_features
from clipa_eqx.models.clip import CLIP
from clipa_eqx.progress import progress_bar

_BIAS = 100.0  # the constant feature; so large that its weight is hardly regularized
_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class FewShotConfig:
    """Two folders of labeled records with the same classes, and how a classifier is fitted to the features of a model.

    Attributes:
        data: record folder that the classifier is scored on.
        train: record folder that the images per class are taken from.
        shots: numbers of images per class.
        seeds: how many choices of images are scored for each number.
        regularization: strength of the regularization, see ``least_squares_scores``.
        batch_size: images at once over all devices; it changes no score.
        every_steps: period of scoring in the training loop, in steps; None scores at its end only.

    Raises:
        ConfigError: a field is out of range.
    """

    data: str
    train: str
    shots: tuple[int, ...] = (1, 5, 10)
    seeds: int = 3
    regularization: float = 1024.0
    batch_size: int = 256
    every_steps: int | None = None

    def __post_init__(self) -> None:
        if not self.shots or min(*self.shots, self.seeds, self.batch_size) < 1 or self.regularization <= 0:
            raise ConfigError(
                f"few-shot: shots, seeds, batch_size and regularization must be positive, got {self.shots}, "
                f"{self.seeds}, {self.batch_size} and {self.regularization}"
            )


@dataclass(frozen=True, kw_only=True)
class FewShotResult:
    """Counts for each number of shots and each choice of images.

    Attributes:
        count: images scored.
        correct: for (shots, seed) the images whose class has the highest score.
    """

    count: int
    correct: Mapping[tuple[int, int], int]

    def scores(self) -> dict[str, float]:
        """For each number of shots the mean over the seeds, as ``5_shot``; then each, as ``5_shot/seed_0``."""
        each = {f"{shots}_shot/seed_{seed}": right / self.count for (shots, seed), right in self.correct.items()}
        means: dict[str, float] = {}
        for shots in dict.fromkeys(shots for shots, _ in self.correct):
            found = [right / self.count for (other, _), right in self.correct.items() if other == shots]
            means[f"{shots}_shot"] = sum(found) / len(found)
        return {**means, **each}

    def to_json(self) -> dict[str, Any]:
        """The scores and the number of images."""
        return {**self.scores(), "count": self.count}


def evaluate_few_shot(
    model: CLIP,
    config: FewShotConfig,
    train: RecordSource,
    test: RecordSource,
    *,
    labels: FittedLabels,
    prepare_image: PrepareImage,
    stream: StreamConfig,
    mesh: Mesh | None = None,
) -> FewShotResult:
    """Fit classifiers to the vectors of a few images before the projection, and score them.

    Args:
        train, test: the opened folders ``config.train`` and ``config.data``.
        labels: what ``read_fitted_labels`` returned for these folders.
        prepare_image: from encoded bytes to pixels at the size of the model.
        stream: how batches are prepared ahead.

    Raises:
        DataError: an image is damaged, or a class has too few training images.

    Source: ``evaluators/fewshot_lsr.py`` of the reference.
    """
    chosen = choose_all_shots(config, labels.train)
    needed = np.unique(np.concatenate(list(chosen.values())))
    features_of = partial(
        image_features, model, prepare_image=prepare_image, batch_size=config.batch_size, stream=stream, mesh=mesh
    )
    features, test_features = features_of(train, indices=needed.tolist()), features_of(test)
    correct: dict[tuple[int, int], int] = {}
    for case in progress_bar(chosen, what="fitting few-shot classifiers", total=len(chosen), unit="classifier"):
        indices = chosen[case]
        scores = least_squares_scores(
            features[np.searchsorted(needed, indices)],
            labels.train[indices],
            test_features,
            classes=labels.classes,
            regularization=config.regularization,
        )
        correct[case] = int(np.count_nonzero(scores.argmax(axis=1) == labels.test))
    return FewShotResult(count=len(labels.test), correct=correct)


def choose_all_shots(
    config: FewShotConfig, labels: Int[np.ndarray, " train"]
) -> dict[tuple[int, int], Int[np.ndarray, " n"]]:
    """``choose_shots`` for each number of shots and each seed.

    Raises:
        DataError: a class has too few images.
    """
    try:
        return {
            (shots, seed): choose_shots(labels, shots=shots, seed=seed)
            for shots in config.shots
            for seed in range(config.seeds)
        }
    except DataError as error:
        raise DataError(f"data folder {config.train}: {error}") from error


def least_squares_scores(
    features: Float[np.ndarray, "train dim"],
    labels: Int[np.ndarray, " train"],
    test_features: Float[np.ndarray, "test dim"],
    *,
    classes: int,
    regularization: float,
) -> Float[np.ndarray, "test classes"]:
    """The scores of test images by a linear model that is fitted to few images.

    Features are shifted and scaled by the mean and the standard deviation of the training features (plus 1e-5), and get
    a constant feature of 100. The targets are 1 for the class and -1 for the others. The weights minimize the squared
    error plus ``regularization`` times their squared norm. All in float64.

    Raises:
        DataError: no training images, a label beyond the classes, or a feature that is not finite.

    Source: ``evaluators/fewshot_lsr.py`` of the reference, which solves the same by eigenvalues in float32.
    """
    _check(features, labels, test_features, classes=classes)
    mean = features.mean(axis=0, dtype=np.float64)
    scale = features.std(axis=0, dtype=np.float64) + _EPSILON
    train, test = (_with_constant((rows - mean) / scale) for rows in (features, test_features))
    targets = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    if len(train) >= train.shape[1]:
        weights = np.linalg.solve(train.T @ train + regularization * np.eye(train.shape[1]), train.T @ targets)
    else:
        weights = train.T @ np.linalg.solve(train @ train.T + regularization * np.eye(len(train)), targets)
    return test @ weights


def choose_shots(labels: Sequence[int] | Int[np.ndarray, " train"], *, shots: int, seed: int) -> Int[np.ndarray, " n"]:
    """Indices of ``shots`` images of each class, sampled by NumPy's default generator of ``seed``, class by class.

    Raises:
        DataError: a class has fewer images.

    Source: ``evaluators/fewshot_lsr.py`` of the reference.
    """
    held = np.asarray(labels)
    random = np.random.default_rng(seed)
    chosen: list[np.ndarray] = []
    for label in np.unique(held):
        of_class = np.flatnonzero(held == label)
        if len(of_class) < shots:
            raise DataError(
                f"class {label} has {len(of_class)} training images, fewer than {shots} shots; choose fewer shots, or "
                "give more images"
            )
        chosen.append(random.permutation(of_class)[:shots])
    return np.concatenate(chosen)


def _with_constant(rows: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim_and_1"]:
    return np.pad(rows, ((0, 0), (0, 1)), constant_values=_BIAS)


def _check(
    features: Float[np.ndarray, "train dim"],
    labels: Int[np.ndarray, " train"],
    test_features: Float[np.ndarray, "test dim"],
    *,
    classes: int,
) -> None:
    if not len(features):
        raise DataError("few-shot: there are no training images")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"few-shot: labels are {labels.min()} to {labels.max()}, but there are {classes} classes")
    for name, rows in (("training", features), ("test", test_features)):
        if not np.isfinite(rows).all():
            raise DataError(f"few-shot: a {name} feature is not finite; is the model damaged?")
