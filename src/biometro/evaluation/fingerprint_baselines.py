"""What the fingerprint of a molecule gives away: linear models and forests of ECFP4.

SMILES ─▶ ECFP4, 2,048 bits ─▶ logistic or ridge regression | random forest ─▶ probabilities, values

Shapes: N molecules to learn from, M to predict, F bits, K classes, labels or columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from biometro.data.fingerprints import fingerprints
from biometro.errors import UserError
from biometro.evaluation import linear
from biometro.evaluation.metrics import check_kind

TREES = 300
_LOGISTIC = 0.1  # C: bits are 0 or 1, and some fifty are set


class FingerprintBaseline:
    """A linear model, or a random forest, of ECFP4.

    - linear: logistic regression with C = 0.1 (unweighted; one for each label, on the molecules where it is known), or
      ridge regression, its penalty chosen as `linear.columns` does.
    - forest: 300 trees; at each split the square root of the bits is tried for classes and labels, a third for
      columns, as Svetnik et al. 2003 (doi:10.1021/ci034160g) have it. One for each label or column.

    A class absent from training has probability 0, a label of one known outcome the rate (1 + positives) / (2 + known),
    and a column without a known value is predicted as NaN.

    Args:
        kind: see `metrics`; not of residues.
        names: of the K classes, labels or columns.
        model: linear or forest.
        seed: of what is drawn.

    Raises:
        UserError: for a kind that does not exist, or is of residues, and where RDKit is missing.
    """

    def __init__(self, kind: str, names: Sequence[str], model: Literal["linear", "forest"], seed: int = 0):
        check_kind(kind)
        if kind.startswith("residue_"):
            raise UserError(f"molecules have no residues, so there is no fingerprint baseline of a {kind} task")
        self.kind, self.names, self.model, self.seed = kind, tuple(names), model, seed
        self._answer: linear.Model

    def fit(self, letters: Sequence[bytes], truth: Any) -> FingerprintBaseline:
        """Fits to N molecules and their truth; returns itself. Raises ValueError where these differ in length."""
        if len(letters) != len(truth):
            raise ValueError(f"{len(letters)} sequences but {len(truth)} truths")
        features, values = self._features(letters), np.asarray(truth)
        if self.model == "forest":
            self._answer = _forest(self.kind, features, values, len(self.names), self.seed)
        elif self.kind == "classification":
            self._answer = linear.classes(features, values, len(self.names), C=_LOGISTIC, balanced=False)
        elif self.kind == "multilabel":
            self._answer = linear.labels(features, values, C=_LOGISTIC)
        else:
            self._answer = linear.columns(features, values.reshape(features.shape[0], -1), self.seed)
        return self

    def predict(self, letters: Sequence[bytes]) -> np.ndarray:
        """(N, K) float32 probabilities or values."""
        return self._answer(self._features(letters)) if letters else np.empty((0, len(self.names)), np.float32)

    def _features(self, letters: Sequence[bytes]) -> Any:
        from scipy.sparse import csr_array

        bits_NF = np.unpackbits(fingerprints(letters), axis=1)
        return bits_NF.astype(np.float32) if self.model == "forest" else csr_array(bits_NF.astype(np.float64))


def _forest(kind: str, bits_NF: np.ndarray, truth: np.ndarray, K: int, seed: int) -> linear.Model:
    if kind == "classification":
        return _classes(bits_NF, truth, K, seed)
    one = _column if kind == "regression" else _label
    models = [one(bits_NF, truth_N, seed) for truth_N in truth.reshape(len(bits_NF), K).T]
    return lambda bits_MF: np.stack([model(bits_MF) for model in models], 1).astype(np.float32)


def _classes(bits_NF: np.ndarray, truth_N: np.ndarray, K: int, seed: int) -> linear.Model:
    from sklearn.ensemble import RandomForestClassifier

    if not len(truth_N):
        raise ValueError("no truth is known, so that there is nothing to learn from")
    forest = RandomForestClassifier(TREES, random_state=seed, n_jobs=-1).fit(bits_NF, truth_N)

    def predict(bits_MF: np.ndarray) -> np.ndarray:
        p_MK = np.zeros((len(bits_MF), K), np.float32)
        p_MK[:, forest.classes_] = forest.predict_proba(bits_MF)
        return p_MK

    return predict


_One = Callable[[np.ndarray], np.ndarray]  # (M, F) -> (M,)


def _label(bits_NF: np.ndarray, truth_N: np.ndarray, seed: int) -> _One:
    rows = np.flatnonzero(np.isfinite(truth_N))
    true_N = (truth_N[rows] > 0.5).astype(np.int64)
    if true_N.any() and not true_N.all():
        model = _classes(bits_NF[rows], true_N, 2, seed)
        return lambda bits_MF: model(bits_MF)[:, 1]
    rate = (1 + true_N.sum()) / (2 + len(rows))
    return lambda bits_MF: np.full(len(bits_MF), rate)


def _column(bits_NF: np.ndarray, truth_N: np.ndarray, seed: int) -> _One:
    from sklearn.ensemble import RandomForestRegressor

    rows = np.flatnonzero(np.isfinite(truth_N))
    if not len(rows):
        return lambda bits_MF: np.full(len(bits_MF), np.nan)
    forest = RandomForestRegressor(TREES, max_features=1 / 3, random_state=seed, n_jobs=-1)
    predict: _One = forest.fit(bits_NF[rows], truth_N[rows]).predict
    return predict
