"""The linear probe and few-shot regression against scikit-learn, and the choice of the regularization."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from clipa_eqx.errors import DataError, NonFiniteError
from clipa_eqx.evals import logistic_regression
from clipa_eqx.evals.few_shot import choose_shots, least_squares_scores
from clipa_eqx.evals.logistic_regression import fit_probe, sweep_probe


def blobs(*, rows, dim, classes, seed, spread=1.0):
    """Features around one center per class, in float32."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    centers = random.standard_normal((classes, dim))
    return (centers[labels] + spread * random.standard_normal((rows, dim))).astype(np.float32), labels


@pytest.mark.parametrize("strength", [1e-3, 1e-1, 10.0])
@pytest.mark.parametrize(("rows", "dim", "classes"), [(120, 16, 5), (40, 64, 3), (301, 7, 2)])
def test_the_probe_equals_logistic_regression(rows, dim, classes, strength):
    features, labels = blobs(rows=rows, dim=dim, classes=classes, seed=dim)
    probe = fit_probe(features, labels, classes=classes, regularization=strength)
    theirs = LogisticRegression(C=1 / (rows * strength), tol=1e-10, max_iter=10_000)
    theirs.fit(features.astype(np.float64), labels)
    weight = theirs.coef_ if classes > 2 else np.concatenate([-theirs.coef_, theirs.coef_]) / 2
    if classes == 2:  # theirs is a sigmoid of one weight, whose square counts once
        theirs = LogisticRegression(C=2 / (rows * strength), tol=1e-10, max_iter=10_000)
        theirs.fit(features.astype(np.float64), labels)
        weight = np.concatenate([-theirs.coef_, theirs.coef_]) / 2
    scale = np.abs(weight).max()
    np.testing.assert_allclose(probe.weight / scale, weight / scale, rtol=0, atol=1e-4)
    ours = probe.scores(features)
    ours = np.exp(ours - np.logaddexp.reduce(ours, axis=1, keepdims=True))
    np.testing.assert_allclose(ours, theirs.predict_proba(features), rtol=0, atol=1e-4)


def test_features_like_those_of_a_tower_converge_to_logistic_regression(monkeypatch, caplog):
    """Vectors of images have a large mean and directions of very different variance."""
    monkeypatch.setattr(logistic_regression, "_MOST_STEPS", 200)  # unscaled features take more
    features, labels = blobs(rows=600, dim=64, classes=10, seed=7, spread=2.0)
    basis, _ = np.linalg.qr(np.random.default_rng(8).standard_normal((64, 64)))
    features = ((features * 10.0 ** np.linspace(0, -1.5, 64)) @ basis + 8 * basis[0]).astype(np.float32)
    probe = fit_probe(features, labels, classes=10, regularization=1e-4)
    assert "not converged" not in caplog.text
    theirs = LogisticRegression(C=1 / (600 * 1e-4), tol=1e-12, solver="newton-cholesky", max_iter=500)
    theirs.fit(features.astype(np.float64), labels)
    np.testing.assert_allclose(probe.weight, theirs.coef_, rtol=0, atol=1e-4 * np.abs(theirs.coef_).max())
    np.testing.assert_allclose(
        np.exp(probe.scores(features) - np.logaddexp.reduce(probe.scores(features), axis=1, keepdims=True)),
        theirs.predict_proba(features.astype(np.float64)),
        rtol=0,
        atol=1e-4,
    )


def test_predictions_in_chunks_are_those_of_the_scores(monkeypatch):
    features, labels = blobs(rows=50, dim=6, classes=4, seed=9)
    probe = fit_probe(features, labels, classes=4, regularization=0.1)
    monkeypatch.setattr(logistic_regression, "_CHUNK", 7)
    assert probe.predict(features).tolist() == probe.scores(features).argmax(axis=1).tolist()
    again = fit_probe(features, labels, classes=4, regularization=0.1)
    np.testing.assert_allclose(again.weight, probe.weight, rtol=0, atol=1e-7)


@pytest.mark.parametrize("regularization", [1024.0, 1.0, 0.03125])
@pytest.mark.parametrize(("rows", "dim"), [(30, 50), (80, 24)])
def test_few_shot_scores_equal_ridge_regression(rows, dim, regularization):
    features, labels = blobs(rows=rows, dim=dim, classes=4, seed=1)
    test, _ = blobs(rows=25, dim=dim, classes=4, seed=2)
    scores = least_squares_scores(features, labels, test, classes=4, regularization=regularization)

    def scale(x):
        return np.pad((x - features.mean(0)) / (features.std(0) + 1e-5), ((0, 0), (0, 1)), constant_values=100)

    theirs = Ridge(alpha=regularization, fit_intercept=False, solver="svd")
    theirs.fit(scale(features.astype(np.float64)), 2.0 * np.eye(4)[labels] - 1)
    np.testing.assert_allclose(scores, theirs.predict(scale(test.astype(np.float64))), rtol=1e-4, atol=1e-4)


def test_the_sweep_takes_the_strength_that_is_best_on_validation():
    every, every_label = blobs(rows=360, dim=40, classes=3, seed=3, spread=3.0)
    features, held, labels, held_labels = every[:60], every[60:], every_label[:60], every_label[60:]
    best, accuracy = sweep_probe(
        features, labels, validation_features=held, validation_labels=held_labels, classes=3, strengths=(1e-4, 1.0, 1e4)
    )
    assert list(accuracy) == [1e4, 1.0, 1e-4]
    assert accuracy[best.regularization] == max(accuracy.values())
    alone = fit_probe(features, labels, classes=3, regularization=best.regularization)
    np.testing.assert_allclose(best.weight, alone.weight, rtol=0, atol=1e-4 * np.abs(alone.weight).max())


def test_the_start_does_not_change_the_fit():
    features, labels = blobs(rows=90, dim=10, classes=3, seed=5)
    cold = fit_probe(features, labels, classes=3, regularization=0.01)
    warm = fit_probe(
        features,
        labels,
        classes=3,
        regularization=0.01,
        start=fit_probe(features, labels, classes=3, regularization=10.0),
    )
    np.testing.assert_allclose(warm.weight, cold.weight, rtol=0, atol=1e-4 * np.abs(cold.weight).max())


def test_shots_are_as_many_of_each_class():
    labels = np.repeat([3, 1, 2], [4, 6, 5])
    chosen = choose_shots(labels, shots=4, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [0, 4, 4, 4]
    assert len(set(chosen.tolist())) == 12
    with pytest.raises(DataError, match="class 3 has 4 training images, fewer than 5 shots"):
        choose_shots(labels, shots=5, seed=0)


def test_mistakes_are_named():
    features, labels = blobs(rows=9, dim=4, classes=3, seed=0)
    with pytest.raises(DataError, match="labels are 0 to 2, but there are 2 classes"):
        fit_probe(features, labels, classes=2, regularization=1.0)
    with pytest.raises(DataError, match="no images"):
        fit_probe(features[:0], labels[:0], classes=3, regularization=1.0)
    features[1, 1] = np.inf
    with pytest.raises(NonFiniteError, match="a feature is not finite"):
        fit_probe(features, labels, classes=3, regularization=1.0)
