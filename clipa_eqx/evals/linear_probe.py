"""Linear probe: multinomial logistic regression on frozen features, with the regularization chosen by validation."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Float64, Int

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.errors import ConfigError, DataError, NonFiniteError
from clipa_eqx.evals.features import FittedLabels, PrepareImage, image_features
from clipa_eqx.models.clip import CLIP
from clipa_eqx.progress import progress_bar

_CHUNK = 8192  # rows of float64 logits at once
_MOST_STEPS = 1000
_TOLERANCE = 1e-9  # largest gradient entry of the mean loss at the end, relative to that at the start

SWEEP = tuple(10.0**power for power in range(-6, 3))
"""Strengths of the regularization that are tried by default."""

_log = logging.getLogger(__name__)


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
                f"linear probe: batch_size and strengths must be positive, validation between 0 and 1, got {self}"
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
    right = probe.scores(test_features).argmax(axis=1) == labels.test
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """A fitted linear classifier of features.

    Attributes:
        weight: one row per class.
        bias: one number per class.
        regularization: the strength that it was fitted with.
    """

    weight: Float64[np.ndarray, "classes dim"]
    bias: Float64[np.ndarray, " classes"]
    regularization: float

    def scores(self, features: Float[np.ndarray, "rows dim"]) -> Float64[np.ndarray, "rows classes"]:
        """The logits of features."""
        return features.astype(np.float64) @ self.weight.T + self.bias


def fit_probe(
    features: Float[np.ndarray, "rows dim"],
    labels: Int[np.ndarray, " rows"],
    *,
    classes: int,
    regularization: float,
    start: Probe | None = None,
) -> Probe:
    """Fit a classifier by L-BFGS in float64: mean cross-entropy + regularization / 2 * squared norm of the weights.

    The biases are not regularized. scikit-learn's ``LogisticRegression(C=1 / (rows * regularization))`` minimizes the
    same for more than two classes. Memory is O(chunk * classes) in addition to the features.

    Args:
        regularization: strength; greater than 0.
        start: a classifier to start from, such as one of another strength.

    Raises:
        DataError: no rows, or a label beyond the classes.
        NonFiniteError: a feature is NaN or infinite.
    """
    # SciPy takes half a second to import.
    from scipy.optimize import minimize

    _check(features, labels, classes=classes)
    dim = features.shape[1]
    point = np.zeros((classes, dim + 1)) if start is None else np.column_stack([start.weight, start.bias])

    def objective(flat: Float64[np.ndarray, " parameters"]) -> tuple[float, Float64[np.ndarray, " parameters"]]:
        weight = flat.reshape(classes, dim + 1)
        loss, gradient = _cross_entropy(features, labels, weight)
        loss += regularization / 2 * float(np.sum(weight[:, :-1] ** 2))
        gradient[:, :-1] += regularization * weight[:, :-1]
        return loss, gradient.ravel()

    _, first = objective(np.zeros(classes * (dim + 1)))
    options = {"maxiter": _MOST_STEPS, "gtol": _TOLERANCE * np.abs(first).max(), "ftol": 0.0, "maxcor": 20}
    found: Any = minimize(objective, point.ravel(), jac=True, method="L-BFGS-B", options=options)
    if found.nit >= _MOST_STEPS:
        _log.warning("linear probe: not converged after %d steps with regularization %g", _MOST_STEPS, regularization)
    weight = np.asarray(found.x).reshape(classes, dim + 1)
    return Probe(weight=weight[:, :-1].copy(), bias=weight[:, -1].copy(), regularization=regularization)


def sweep_probe(
    features: Float[np.ndarray, "rows dim"],
    labels: Int[np.ndarray, " rows"],
    *,
    validation_features: Float[np.ndarray, "held dim"],
    validation_labels: Int[np.ndarray, " held"],
    classes: int,
    strengths: Sequence[float] = SWEEP,
) -> tuple[Probe, dict[float, float]]:
    """Fit one classifier per strength, from the strongest on, each started at the one before it.

    Returns:
        The classifier with the best top-1 on the validation rows, the stronger of equal ones; and top-1 by strength.

    Raises:
        DataError: no rows or strengths, or a label beyond the classes.
        NonFiniteError: a feature is NaN or infinite.
    """
    _check(validation_features, validation_labels, classes=classes)
    best: Probe | None = None
    probe: Probe | None = None
    accuracy: dict[float, float] = {}
    ordered = sorted(set(strengths), reverse=True)
    for strength in progress_bar(ordered, what="fitting linear probes", total=len(ordered), unit="probe"):
        probe = fit_probe(features, labels, classes=classes, regularization=strength, start=probe)
        right = probe.scores(validation_features).argmax(axis=1) == validation_labels
        accuracy[strength] = float(np.mean(right))
        if best is None or accuracy[strength] > accuracy[best.regularization]:
            best = probe
    if best is None:
        raise DataError("linear probe: no strength of regularization to try")
    if len(ordered) > 1 and best.regularization in (ordered[0], ordered[-1]):
        _log.warning(
            "linear probe: the best regularization, %g, is at an end of the sweep; widen it", best.regularization
        )
    return best, accuracy


def _cross_entropy(
    features: Float[np.ndarray, "rows dim"], labels: Int[np.ndarray, " rows"], weight: Float64[np.ndarray, "classes n"]
) -> tuple[float, Float64[np.ndarray, "classes n"]]:
    """The mean cross-entropy and its gradient; the last column of ``weight`` is the bias."""
    loss, gradient = 0.0, np.zeros_like(weight)
    for start in range(0, len(features), _CHUNK):
        rows = features[start : start + _CHUNK].astype(np.float64)
        own = labels[start : start + _CHUNK]
        logits = rows @ weight[:, :-1].T + weight[:, -1]
        logits -= logits.max(axis=1, keepdims=True)
        picked = logits[np.arange(len(own)), own]
        np.exp(logits, out=logits)
        total = logits.sum(axis=1)
        loss += float(np.sum(np.log(total) - picked))
        logits /= total[:, None]
        logits[np.arange(len(own)), own] -= 1
        gradient[:, :-1] += logits.T @ rows
        gradient[:, -1] += logits.sum(axis=0)
    return loss / len(features), gradient / len(features)


def _check(features: Float[np.ndarray, "rows dim"], labels: Int[np.ndarray, " rows"], *, classes: int) -> None:
    if not len(features):
        raise DataError("linear probe: there are no images")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"linear probe: labels are {labels.min()} to {labels.max()}, but there are {classes} classes")
    if not np.isfinite(features).all():
        raise NonFiniteError("linear probe: a feature is not finite; is the model damaged?")
