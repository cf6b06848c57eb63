"""Few-shot regression in float32 by eigenvalues, as the reference solves it, with each eigenvalue routine of LAPACK."""

from collections.abc import Iterator

import numpy as np
import scipy.linalg


def solutions(
    x: np.ndarray, y: np.ndarray, x_test: np.ndarray, *, classes: int, regularization: float
) -> Iterator[np.ndarray]:
    """Test scores float32[test classes], one array per routine and triangle of the matrix.

    All of them are equal in real numbers. Their distance from the exact solution is what rounding to float32 does.
    """
    x, x_test = np.asarray(x, np.float32), np.asarray(x_test, np.float32)
    mean, scale = x.mean(axis=0), x.std(axis=0) + np.float32(1e-5)
    x, x_test = (np.pad((rows - mean) / scale, ((0, 0), (0, 1)), constant_values=100) for rows in (x, x_test))
    targets = np.where(np.asarray(y)[:, None] == np.arange(classes), 1, -1).astype(np.float32)
    is_tall = len(x) >= x.shape[1]
    for routine in ("ev", "evd", "evr"):
        for lower in (True, False):
            values, vectors = scipy.linalg.eigh(x.T @ x if is_tall else x @ x.T, driver=routine, lower=lower)
            left = vectors if is_tall else x.T @ vectors
            right = vectors.T @ (x.T @ targets if is_tall else targets)
            scores = x_test @ ((left / (values + np.float32(regularization))) @ right)
            assert scores.dtype == np.float32
            yield scores
