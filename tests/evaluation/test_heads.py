"""Linear heads against scikit-learn's own models and grid searches."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from biometro.evaluation import heads
from biometro.evaluation.probes import one_hot


def data(N: int = 150, F: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    features = random.normal(size=(N, F)) * random.uniform(0.1, 10, F) + random.normal(size=F)
    features[:, -1] = 3.0  # a constant says nothing and must not divide by zero
    return features.astype(np.float32), random.normal(size=F) / 5


@pytest.mark.parametrize("penalty", heads.PENALTIES)
def test_ridge_is_scikit_learns(penalty: float) -> None:
    features, weights = data()
    truth = features @ weights + np.random.default_rng(1).normal(size=len(features))
    truth[::7] = np.nan
    known = np.isfinite(truth)
    expected = Ridge(alpha=penalty).fit(features[known].astype(np.float64), truth[known]).predict(features)
    expected = np.clip(expected, truth[known].min(), truth[known].max())
    np.testing.assert_allclose(heads.Ridge.of(features, truth).model(penalty)(features), expected, rtol=1e-4, atol=1e-4)


def test_the_penalty_is_the_best_on_validation() -> None:
    train, weights = data(40, seed=2)
    valid, _ = data(300, seed=3)
    random = np.random.default_rng(4)
    truth, wanted = (x @ weights + 3 * random.normal(size=len(x)) for x in (train, valid))
    scaler = StandardScaler().fit(train)
    errors = {}
    for alpha in heads.PENALTIES:
        model = Ridge(alpha=alpha).fit(scaler.transform(train).astype(np.float64), truth)
        predicted = np.clip(model.predict(scaler.transform(valid)), truth.min(), truth.max())
        errors[alpha] = ((predicted - wanted) ** 2).mean()
    found = heads.fit("regression", 1, train, truth[:, None], valid, lambda p: -((p[:, 0] - wanted) ** 2).mean())
    assert found.penalty == min(errors, key=errors.__getitem__)


def test_classes_are_those_of_a_standardised_logistic_regression() -> None:
    train, weights = data(300, seed=5)
    valid, _ = data(200, seed=6)
    random = np.random.default_rng(7)

    def classes(features: np.ndarray) -> np.ndarray:
        return np.digitize(features @ weights + 0.3 * random.normal(size=len(features)), [-1, 1])

    truth, wanted = classes(train), classes(valid)
    found = heads.fit("classification", 4, train, truth, valid, lambda p: accuracy_score(wanted, p.argmax(1)))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=found.penalty, max_iter=2000, tol=1e-8)).fit(
        train, truth
    )
    predicted = found.predict(valid)
    assert predicted.shape == (200, 4) and not predicted[:, 3].any()
    np.testing.assert_allclose(predicted[:, :3], model.predict_proba(valid), atol=1e-3)


def test_without_an_opinion_the_strongest_penalty_is_taken() -> None:
    train, _ = data()
    truth = (train[:, 0] > 0).astype(np.int64)
    assert heads.fit("classification", 2, train, truth, train, lambda p: float("nan")).penalty == heads.STRENGTHS[0]


def test_labels_and_columns_keep_their_places() -> None:
    train, _ = data(200, seed=8)
    labels = np.stack([train[:, 0] > train[:, 0].mean(), train[:, 1] > train[:, 1].mean()], 1).astype(np.float32)
    labels[::5, 0] = np.nan
    found = heads.fit("multilabel", 2, train, labels, train, lambda p: -float(np.nanmean((p - labels) ** 2)))
    known = np.isfinite(labels)
    assert ((found.predict(train) > 0.5) == (labels > 0.5))[known].mean() > 0.95
    columns = np.stack([train[:, 0], np.full(200, np.nan), -train[:, 1]], 1)
    predicted = heads.fit("regression", 3, train, columns, train, lambda p: 0.0).predict(train)
    assert np.isnan(predicted[:, 1]).all()
    assert np.corrcoef(predicted[:, 0], train[:, 0])[0, 1] > 0.9
    assert np.corrcoef(predicted[:, 2], train[:, 1])[0, 1] < -0.9


def test_one_hot_is_a_column_for_each_residue_that_varies() -> None:
    train = [b"MKA", b"MRA", b"MKC"]
    vectors = one_hot(train)
    assert vectors is not None
    # place 1: K, R; place 2: A, C; place 0 never changes
    np.testing.assert_array_equal(
        np.stack(vectors([*train, b"MWA"])), [[1, 0, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 1, 0]]
    )
    assert one_hot(train, [b"MK"]) is None and one_hot([b"MK", b"MK"]) is None
