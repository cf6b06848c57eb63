"""Multinomial logistic regression in float64: one fit, and the best of several strengths of regularization."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int

from clipa_eqx.errors import DataError, NonFiniteError
from clipa_eqx.progress import progress_bar

_CHUNK = 8192  # rows of float64 logits at once
_MOST_STEPS = 1000
_TOLERANCE = 1e-9  # largest entry of the scaled gradient at the end, relative to that of weights of zero

SWEEP = tuple(10.0**power for power in range(-6, 3))
"""Strengths of the regularization that are tried by default."""

_log = logging.getLogger(__name__)


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

    def predict(self, features: Float[np.ndarray, "rows dim"]) -> Int[np.ndarray, " rows"]:
        """The class with the highest logit for each row, the lower one of equal ones. Memory is O(chunk * classes)."""
        found = [self.scores(rows).argmax(axis=1) for rows in _chunks(features)]
        return np.concatenate(found) if found else np.zeros(0, np.int64)


def fit_probe(
    features: Float[np.ndarray, "rows dim"],
    labels: Int[np.ndarray, " rows"],
    *,
    classes: int,
    regularization: float,
    start: Probe | None = None,
) -> Probe:
    """Fit a classifier by L-BFGS in float64: mean cross-entropy + regularization / 2 * squared norm of the weights.

    Features are taken as they are, and the biases are not regularized. For more than two classes, scikit-learn's
    ``LogisticRegression(C=1 / (rows * regularization))`` minimizes the same. Memory is O(chunk * classes + dim**2) in
    addition to the features.

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
    scaling = _scaling(features, classes=classes, regularization=regularization)

    def objective(flat: Float64[np.ndarray, " parameters"]) -> tuple[float, Float64[np.ndarray, " parameters"]]:
        weight, bias = scaling.to_weights(flat.reshape(classes, -1))
        loss, by_weight, by_bias = _cross_entropy(features, labels, weight, bias)
        loss += regularization / 2 * float(np.sum(weight**2))
        return loss, scaling.gradient(by_weight + regularization * weight, by_bias).ravel()

    zero = np.zeros(classes * (features.shape[1] + 1))
    point = zero if start is None else scaling.from_weights(start.weight, start.bias).ravel()
    options = {
        "maxiter": _MOST_STEPS,
        "gtol": _TOLERANCE * np.abs(objective(zero)[1]).max(),
        "ftol": 0.0,
        "maxcor": 20,
    }
    with progress_bar(what=f"fitting with regularization {regularization:g}", total=None, unit="step") as bar:
        found: Any = minimize(
            objective, point, jac=True, method="L-BFGS-B", options=options, callback=lambda _: bar.update()
        )
    if found.nit >= _MOST_STEPS:
        _log.warning("linear probe: not converged after %d steps with regularization %g", _MOST_STEPS, regularization)
    weight, bias = scaling.to_weights(np.asarray(found.x).reshape(classes, -1))
    return Probe(weight=weight, bias=bias, regularization=regularization)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scaling:
    """Coordinates in which all directions of the objective have a similar curvature; the minimum stays the same.

    ``weight = (point * scale) @ basis.T`` and ``bias = point_bias * bias_scale - weight @ mean``. Vectors of images
    have a large mean and directions of very different variance: without this, L-BFGS needs many times more steps.

    Attributes:
        mean: of the features.
        basis: the principal directions of the features, one per column.
        scale: for each direction 1 / square root of its curvature at weights of zero.
        bias_scale: the same for the biases.
    """

    mean: Float64[np.ndarray, " dim"]
    basis: Float64[np.ndarray, "dim dim"]
    scale: Float64[np.ndarray, " dim"]
    bias_scale: float

    def to_weights(
        self, point: Float64[np.ndarray, "classes dim_and_1"]
    ) -> tuple[Float64[np.ndarray, "classes dim"], Float64[np.ndarray, " classes"]]:
        """The weights and biases at a point."""
        weight = (point[:, :-1] * self.scale) @ self.basis.T
        return weight, point[:, -1] * self.bias_scale - weight @ self.mean

    def from_weights(
        self, weight: Float64[np.ndarray, "classes dim"], bias: Float64[np.ndarray, " classes"]
    ) -> Float64[np.ndarray, "classes dim_and_1"]:
        """The point of weights and biases."""
        centered = (bias + weight @ self.mean) / self.bias_scale
        return np.column_stack([(weight @ self.basis) / self.scale, centered])

    def gradient(
        self, by_weight: Float64[np.ndarray, "classes dim"], by_bias: Float64[np.ndarray, " classes"]
    ) -> Float64[np.ndarray, "classes dim_and_1"]:
        """The gradient by the point, from that by weights and biases."""
        by_weight = by_weight - by_bias[:, None] * self.mean
        return np.column_stack([(by_weight @ self.basis) * self.scale, by_bias * self.bias_scale])


def _scaling(features: Float[np.ndarray, "rows dim"], *, classes: int, regularization: float) -> _Scaling:
    mean = features.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((len(mean), len(mean)))
    for rows in _chunks(features):
        centered = rows - mean
        covariance += centered.T @ centered
    variance, basis = np.linalg.eigh(covariance / len(features))
    # The second derivative of the softmax of equal logits is p (1 - p) = (classes - 1) / classes**2.
    curvature = max(classes - 1, 1) / classes**2
    scale = 1 / np.sqrt(curvature * variance.clip(min=0) + regularization)
    return _Scaling(mean=mean, basis=basis, scale=scale, bias_scale=curvature**-0.5)


def _chunks(features: Float[np.ndarray, "rows dim"]) -> Iterator[Float64[np.ndarray, "chunk dim"]]:
    """Consecutive rows in float64, so that no second copy of all features is made."""
    return (features[start : start + _CHUNK].astype(np.float64) for start in range(0, len(features), _CHUNK))


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
        accuracy[strength] = float(np.mean(probe.predict(validation_features) == validation_labels))
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
    features: Float[np.ndarray, "rows dim"],
    labels: Int[np.ndarray, " rows"],
    weight: Float64[np.ndarray, "classes dim"],
    bias: Float64[np.ndarray, " classes"],
) -> tuple[float, Float64[np.ndarray, "classes dim"], Float64[np.ndarray, " classes"]]:
    """The mean cross-entropy and its gradients by weights and biases."""
    loss, by_weight, by_bias, start = 0.0, np.zeros_like(weight), np.zeros_like(bias), 0
    for rows in _chunks(features):
        own = labels[start : start + len(rows)]
        start += len(rows)
        logits = rows @ weight.T + bias
        logits -= logits.max(axis=1, keepdims=True)
        picked = logits[np.arange(len(own)), own]
        np.exp(logits, out=logits)
        total = logits.sum(axis=1)
        loss += float(np.sum(np.log(total) - picked))
        logits /= total[:, None]
        logits[np.arange(len(own)), own] -= 1
        by_weight += logits.T @ rows
        by_bias += logits.sum(axis=0)
    return loss / len(features), by_weight / len(features), by_bias / len(features)


def _check(features: Float[np.ndarray, "rows dim"], labels: Int[np.ndarray, " rows"], *, classes: int) -> None:
    if not len(features):
        raise DataError("linear probe: there are no images")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"linear probe: labels are {labels.min()} to {labels.max()}, but there are {classes} classes")
    if not np.isfinite(features).all():
        raise NonFiniteError("linear probe: a feature is not finite; is the model damaged?")
