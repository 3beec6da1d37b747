"""The linear heads of probes: dense vectors, standardised, a logistic or ridge regression, its penalty by validation.

    train (N, F) ─▶ mean, deviation ─▶ one model for each penalty ─▶ the best on valid ─▶ Fitted: (M, F) ─▶ predictions

Shapes: N rows to learn from, M to predict, F features, K classes, labels or columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from biometro.evaluation import linear

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""scikit-learn's C of logistic regressions, tried from the strongest penalty on until two more bring nothing."""
PENALTIES = (1.0, 1e1, 1e2, 1e3, 1e4, 1e5)
"""Of ridge regressions of standardised features, on the sum of squares."""
TOLERANCE = 1e-5
"""Of the gradient: at the baselines' 1e-3, models of many classes stop so early that all penalties are one."""
_PATIENCE = 2

Score = Callable[[np.ndarray], float]  # predictions on validation -> larger is better; NaN where undefined


@dataclass(frozen=True)
class Fitted:
    """A head that was fitted. `predict` maps features (M, F) to (M, K) float32; `penalty` is what was chosen."""

    predict: linear.Model
    penalty: float


def fit(kind: str, K: int, train_NF: np.ndarray, truth: np.ndarray, valid_MF: np.ndarray, score: Score) -> Fitted:
    """The head of one task.

    Args:
        kind: as in `metrics`; heads of residues are those of rows.
        K: classes, labels or columns.
        train_NF: features, any float type.
        truth: (N,) int64 class numbers, or (N, K) numbers with NaN for unknown.
        valid_MF: features on which penalties are compared.
        score: of predictions on them.

    Logistic regressions weigh all sequences alike. A column's ridge regression predicts within the range it was fitted
    on, as the baselines' do. Where validation tells no penalty from another, the strongest is taken.
    """
    middle_F, spread_F = train_NF.mean(0), train_NF.std(0)
    spread_F = np.where(spread_F > 1e-6, spread_F, 1)

    def standard(features_MF: np.ndarray) -> np.ndarray:
        return ((features_MF - middle_F) / spread_F).astype(np.float32)

    inside_NF, outside_MF = standard(train_NF), standard(valid_MF)
    best: tuple[float, Fitted] | None = None
    since = 0
    for penalty, model in _candidates(kind, K, inside_NF, truth):
        value = score(model(outside_MF))
        value = -math.inf if math.isnan(value) else value
        if best is None or value > best[0]:
            best, since = (value, Fitted(lambda features_MF, m=model: m(standard(features_MF)), penalty)), 0  # type: ignore[misc]
        else:
            since += 1
            if since == _PATIENCE:
                break
    assert best is not None
    return best[1]


def _candidates(kind: str, K: int, train_NF: np.ndarray, truth: np.ndarray) -> Iterator[tuple[float, linear.Model]]:
    """Penalties, the strongest first, and what they make."""
    if kind.endswith("regression"):
        ridges = [Ridge.of(train_NF, truth_N.astype(np.float64)) for truth_N in truth.reshape(len(train_NF), -1).T]
        for penalty in reversed(PENALTIES):
            models = [ridge.model(penalty) for ridge in ridges]
            yield penalty, lambda features_MF, models=models: np.stack([m(features_MF) for m in models], 1)  # type: ignore[misc]
        return
    tolerance = TOLERANCE
    for strength in STRENGTHS:
        if kind == "multilabel":
            yield strength, linear.labels(train_NF, truth, C=strength, tolerance=tolerance)
        else:
            yield strength, linear.classes(train_NF, truth, K, C=strength, balanced=False, tolerance=tolerance)


@dataclass(frozen=True)
class Ridge:
    """Ridge regressions of one column for any penalty from one eigendecomposition of the Gram matrix of its features.

    values_F, vectors_FF: eigenvalues and vectors; target_F: features times centred target, in their basis; mean_F:
    of the features; mean, low, high: of the target.
    """

    values_F: np.ndarray
    vectors_FF: np.ndarray
    target_F: np.ndarray
    mean_F: np.ndarray
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, features_NF: np.ndarray, truth_N: np.ndarray) -> Ridge:
        """From the rows whose truth is known; without one, predictions are NaN."""
        known_N = np.isfinite(truth_N)
        F = features_NF.shape[1]
        if not known_N.any():
            return cls(np.ones(F), np.eye(F), np.zeros(F), np.zeros(F), math.nan, math.nan, math.nan)
        rows_NF, truth_N = features_NF[known_N].astype(np.float64), truth_N[known_N]
        mean_F, mean = rows_NF.mean(0), float(truth_N.mean())
        rows_NF -= mean_F
        values_F, vectors_FF = np.linalg.eigh(rows_NF.T @ rows_NF)
        target_F = vectors_FF.T @ (rows_NF.T @ (truth_N - mean))
        return cls(
            np.maximum(values_F, 0), vectors_FF, target_F, mean_F, mean, float(truth_N.min()), float(truth_N.max())
        )

    def model(self, penalty: float) -> linear.Model:
        """(M, F) -> (M,) float32: the minimum of the squared error plus `penalty` times the squared weights."""
        weights_F = self.vectors_FF @ (self.target_F / (self.values_F + penalty))

        def predict(features_MF: np.ndarray) -> np.ndarray:
            found_M = (features_MF - self.mean_F) @ weights_F + self.mean
            return np.clip(found_M, self.low, self.high).astype(np.float32)

        return predict
