"""Linear models of sparse features for the baselines, which know what to answer when there is nothing to learn.

features (N, F), truth with unknowns ─▶ scikit-learn ─▶ Model: features (M, F) ─▶ predictions (M, K)

Shapes: N rows to learn from, M to predict, F features, K classes, labels or columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

Model = Callable[[Any], np.ndarray]  # (M, F) sparse -> (M, K) float32
PENALTIES = (10.0, 100.0, 1_000.0, 10_000.0)
_ITERATIONS = 200
TOLERANCE = 1e-3
"""Of the gradient of the mean loss of a logistic regression, at which its solver stops."""
_FEWEST = 20  # known values below which there is no fifth to choose a penalty on


def classes(
    features: Any, truth_N: np.ndarray, K: int, C: float, balanced: bool, tolerance: float = TOLERANCE
) -> Model:
    """Multinomial logistic regression of class numbers (N,); classes that are not among them have probability 0.

    Raises:
        ValueError: without rows.
    """
    from sklearn.linear_model import LogisticRegression

    present = np.unique(truth_N)
    if not len(present):
        raise ValueError("no truth is known, so that there is nothing to learn from")
    if len(present) == 1:
        return _constant(np.eye(K)[present[0]])
    model = LogisticRegression(
        C=C, max_iter=_ITERATIONS, tol=tolerance, class_weight="balanced" if balanced else None, solver="lbfgs"
    )
    _fit(model, features, truth_N)

    def predict(features: Any) -> np.ndarray:
        p_MK = np.zeros((features.shape[0], K), np.float32)
        p_MK[:, present] = model.predict_proba(features)
        return p_MK

    return predict


def labels(features: Any, truth_NK: np.ndarray, C: float, tolerance: float = TOLERANCE) -> Model:
    """A logistic regression of each label (N, K) of 0, 1 and NaN for unknown, on the rows where it is known.

    A label of which one outcome was seen, or none, has the rate (1 + positives) / (2 + known).
    """
    models = []
    for truth_N in truth_NK.T:
        rows = np.flatnonzero(np.isfinite(truth_N))
        true_N = (truth_N[rows] > 0.5).astype(np.int64)
        if true_N.any() and not true_N.all():
            models.append(classes(features[rows], true_N, 2, C, balanced=False, tolerance=tolerance))
        else:
            models.append(_constant(np.array([0, (1 + true_N.sum()) / (2 + len(rows))])))
    return lambda features: np.stack([model(features)[:, 1] for model in models], 1)


def columns(features: Any, truth_NK: np.ndarray, seed: int) -> Model:
    """A ridge regression of each column (N, K) on the rows where it is not NaN.

    The penalty is the one of `PENALTIES` with the least error on a fifth of the rows, drawn under the
    seed; the largest where fewer than 20 are known. Predictions are kept within the range of the known values. A column
    without a known value is predicted as NaN.
    """
    models = [_column(features, truth_N.astype(np.float64), seed) for truth_N in truth_NK.T]
    return lambda features: np.concatenate([model(features) for model in models], 1)


def _column(features: Any, truth_N: np.ndarray, seed: int) -> Model:
    rows = np.flatnonzero(np.isfinite(truth_N))
    values_N = truth_N[rows]
    if not len(rows) or np.ptp(values_N) == 0:
        return _constant(values_N[:1] if len(rows) else np.array([np.nan]))
    features, middle, spread = features[rows], values_N.mean(), values_N.std()
    values_N = (values_N - middle) / spread  # so that one tolerance fits all units
    penalty = PENALTIES[-1]
    if len(rows) >= _FEWEST:
        order = np.random.default_rng(seed).permutation(len(rows))
        held, kept = np.split(order, [len(rows) // 5])
        errors = []
        for candidate in PENALTIES:
            model = _ridge(features[kept], values_N[kept], candidate)
            errors.append(((model.predict(features[held]) - values_N[held]) ** 2).mean())
        penalty = PENALTIES[int(np.argmin(errors))]
    model = _ridge(features, values_N, penalty)
    low, high = truth_N[rows].min(), truth_N[rows].max()
    # A row unlike all that was learnt from would be sent beyond anything ever measured.
    return lambda features: np.clip(model.predict(features)[:, None] * spread + middle, low, high).astype(np.float32)


def _ridge(features: Any, values_N: np.ndarray, penalty: float) -> Any:
    from sklearn.linear_model import Ridge

    return _fit(Ridge(alpha=penalty, solver="sparse_cg", tol=1e-4, max_iter=_ITERATIONS), features, values_N)


def _constant(values_K: np.ndarray) -> Model:
    return lambda features: np.tile(values_K.astype(np.float32), (features.shape[0], 1))


def _fit(model: Any, features: Any, truth_N: np.ndarray) -> Any:
    """Fits; that the last digits were not reached in the iterations given matters to no baseline."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(features, truth_N)
