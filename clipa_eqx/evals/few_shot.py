"""Few-shot classification: regularized least squares on features of a few images per class, in closed form."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from clipa_eqx.errors import DataError

_BIAS = 100.0  # the constant feature; so large that its weight is hardly regularized
_EPSILON = 1e-5


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
