"""Temperatures are found again, errors of calibration counted by hand, and conformal sets hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit
from scipy.special import softmax as scipy_softmax
from sklearn.calibration import calibration_curve

from biometro.evaluation.calibration import (
    abstains,
    conformal_radius,
    conformal_radius_summary,
    conformal_sets,
    conformal_summary,
    conformal_threshold,
    ece,
    reliability,
    sigmoid,
    softmax,
    temperature,
)


def drawn(p_NK: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return (p_NK.cumsum(1) < random.random((len(p_NK), 1))).sum(1).clip(max=p_NK.shape[1] - 1)


def task(N: int, K: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes drawn from their own softmax: perfectly calibrated at temperature 1."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(N, K)) * 2
    return logits, drawn(scipy_softmax(logits, 1), random)


def test_softmax_and_sigmoid_are_scipys_at_any_size() -> None:
    logits = np.random.default_rng(0).normal(size=(7, 3, 4)) * 400
    np.testing.assert_allclose(softmax(logits, 2.5), scipy_softmax(logits / 2.5, -1), rtol=1e-12)
    np.testing.assert_allclose(sigmoid(logits, 2.5), expit(logits / 2.5), rtol=1e-12)
    assert softmax(logits.astype(np.float32)).dtype == sigmoid(logits.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("T", [0.4, 1.0, 3.0])
def test_a_temperature_is_found_again(T: float) -> None:
    logits, truth = task(20_000)
    assert temperature("classification", logits * T, truth) == pytest.approx(T, rel=0.03)
    random = np.random.default_rng(1)
    labels = (random.random(logits.shape) < expit(logits)).astype(np.float32)
    labels[random.random(labels.shape) < 0.3] = np.nan
    assert temperature("multilabel", logits * T, labels) == pytest.approx(T, rel=0.03)
    truth[::3] = -1
    ends = [0, 100, 100, 5000]
    fitted = temperature("residue_classification", np.split(logits * T, ends), np.split(truth, ends))
    assert fitted == pytest.approx(T, rel=0.03)


def test_no_other_temperature_has_a_smaller_loss() -> None:
    logits, truth = task(300)
    logits *= 2

    def loss(T: float) -> float:
        return -float(np.log(scipy_softmax(logits / T, 1)[np.arange(300), truth]).mean())

    best = temperature("classification", logits, truth)
    assert all(loss(best) <= loss(T) for T in np.geomspace(0.1, 10, 2000))


def test_a_temperature_that_cannot_be_fitted_is_one() -> None:
    logits, truth = task(200)
    assert temperature("classification", logits[:19], truth[:19]) == 1
    assert temperature("classification", logits, logits.argmax(1)) == 1
    assert temperature("classification", logits * np.nan, truth) == 1
    assert temperature("multilabel", logits, np.full(logits.shape, np.nan)) == 1
    assert temperature("multilabel", logits, logits > 0) == 1
    assert temperature("residue_classification", [logits], [np.full(200, -1)]) == 1
    assert temperature("residue_classification", [], []) == 1
    with pytest.raises(ValueError, match="regression has none"):
        temperature("regression", logits, logits)


def test_reliability_is_scikit_learns_curve() -> None:
    logits, truth = task(3000, 2)
    p = scipy_softmax(logits, 1)
    rows = [row for row in reliability(p, (truth[:, None] == [0, 1]).astype(float), 10) if row["count"]]
    accuracy, confidence = calibration_curve(np.concatenate([truth == 0, truth == 1]), p.T.ravel(), n_bins=10)
    np.testing.assert_allclose([row["accuracy"] for row in rows], accuracy)
    np.testing.assert_allclose([row["confidence"] for row in rows], confidence)
    assert sum(row["count"] for row in rows) == 6000


def test_ece_by_hand() -> None:
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.45, 0.55]])
    truth = np.array([0, 1, 1, 0])
    # bins of a fifth: 0.55 alone and wrong; 0.8 in (0.6, 0.8] and right; twice 0.9, right once
    assert ece(p, truth, 5) == pytest.approx((0.55 + 0.2 + 2 * 0.4) / 4)
    labels = np.array([[1, np.nan], [np.nan, 0], [np.nan, np.nan], [np.nan, 1]])
    assert ece(p, labels, 5) == pytest.approx((0.1 + 0.1 + 0.45) / 3)
    assert math.isnan(ece(p[:0], truth[:0]))
    empty = reliability(p, truth, 5)[0]
    assert (empty["low"], empty["high"], empty["count"]) == (0, 0.2, 0)
    assert math.isnan(empty["accuracy"])


def test_a_calibrated_model_has_a_small_ece_and_a_boastful_one_not() -> None:
    logits, truth = task(20_000)
    assert ece(scipy_softmax(logits, 1), truth) < 0.02
    assert ece(scipy_softmax(3 * logits, 1), truth) > 0.1


def test_the_threshold_is_the_finite_sample_quantile() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1, 110) / 128)  # 109 exact scores: 0.9 * 110 is 99
    p = np.stack([1 - scores, scores], 1)
    truth = np.zeros(109, int)
    assert conformal_threshold(p, truth, 0.9) == 99 / 128
    sets = conformal_sets(p, 99 / 128)
    np.testing.assert_array_equal(sets[:, 0], scores <= 99 / 128)
    assert sets[:, 0].sum() == 99
    assert 100 * 0.55 > 55  # which is rounding, and no reason for the 56th
    assert conformal_threshold(p[np.argsort(scores)[:99]], truth[:99], 0.55) == 55 / 128


@pytest.mark.parametrize("N", [0, 5, 8])
def test_too_few_sequences_to_calibrate_on_give_all_classes(N: int) -> None:
    logits, truth = task(N)
    p = scipy_softmax(logits, 1) if N else logits
    assert conformal_threshold(p, truth) == 1
    assert conformal_sets(np.float32([[1, 0, 0]]), 1.0).all()
    assert conformal_radius(np.arange(float(N)), np.zeros(N)) == math.inf
    assert math.isfinite(conformal_radius(np.arange(9.0), np.zeros(9)))


def test_sets_hold_the_truth_at_the_rate_promised_in_small_samples() -> None:
    """Over many draws of 30 + 30 the mean coverage is ceil(31 * 0.8) / 31 (exact for scores without ties)."""
    held, within = [], []
    for seed in range(600):
        logits, truth = task(60, 4, seed)
        p = softmax((logits * 3).astype(np.float32))  # overconfident, so that calibration matters
        q = conformal_threshold(p[:30], truth[:30], 0.8)
        held.append(conformal_summary(p[30:], truth[30:], q)["coverage"])
        radius = conformal_radius(logits[:30, 0], logits[:30, 1], 0.8)
        within.append(conformal_radius_summary(logits[30:, 0], logits[30:, 1], radius)["coverage"])
    assert np.mean(held) == pytest.approx(25 / 31, abs=0.015)
    assert np.mean(within) == pytest.approx(25 / 31, abs=0.015)


def test_abstaining_and_the_summary() -> None:
    p = np.array([[0.9, 0.1, 0], [0.5, 0.5, 0], [0.4, 0.3, 0.3], [0.1, 0.8, 0.1]])
    np.testing.assert_array_equal(abstains(p, 0.5), [False, True, True, False])
    found = conformal_summary(p, np.array([0, 0, 0, 2]), 0.5)
    assert found == {"coverage": 0.5, "set_size": 1.0, "answered": 0.5, "accuracy_answered": 0.5}
    nobody = conformal_summary(p, np.array([0, 0, 0, 2]), 1.0)
    assert nobody["answered"] == 0
    assert math.isnan(nobody["accuracy_answered"])


def test_a_radius_leaves_out_the_unknown() -> None:
    truth = np.concatenate([np.arange(19.0), [np.nan] * 5])
    assert conformal_radius(truth, np.zeros(24), 0.5) == 9
    assert conformal_radius_summary(truth, np.zeros(24), 9.0) == {"coverage": 10 / 19, "width": 18.0}
    with pytest.raises(ValueError, match="coverage is 1"):
        conformal_radius(truth, np.zeros(24), 1)
