"""Whether a model's probabilities mean what they say, and predictions that say when they do not know.

validation: logits ─▶ temperature T (one number) ─▶ softmax(logits / T) ─▶ conformal threshold q (one number)
test:       logits ─▶ softmax(logits / T) ─▶ sets {k : 1 - p_k <= q} ─▶ one class: an answer; none or several: abstains

Both numbers are fitted on sequences that the model was not trained on. The promise of conformal prediction (the truth
lies in the set at the rate asked) holds for sequences drawn like those of calibration, and on average over them: not
within a class, and not for families that calibration never saw.

Shapes: N sequences or residues, K classes, labels or columns, L residues of one sequence, B bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 15
_FEWEST = 20  # known truths below which a temperature would be fitted to chance
_TEMPERATURES = (0.05, 20.0)


def softmax(logits: np.ndarray, T: float = 1.0) -> np.ndarray:
    """(..., K) probabilities over the last axis of logits / T, in the dtype of the logits."""
    scaled = logits.astype(np.float64) / T
    scaled -= scaled.max(-1, keepdims=True)
    np.exp(scaled, out=scaled)
    return (scaled / scaled.sum(-1, keepdims=True)).astype(logits.dtype)


def sigmoid(logits: np.ndarray, T: float = 1.0) -> np.ndarray:
    """1 / (1 + exp(-logits / T)) for each logit alone, in the dtype of the logits."""
    from scipy.special import expit

    return expit(logits.astype(np.float64) / T).astype(logits.dtype)


def temperature(kind: str, logits: Any, truth: Any) -> float:
    """The T that makes the mean negative log-likelihood of softmax or sigmoid(logits / T) least.

    Temperature scaling (Guo et al. 2017, arXiv 1706.04599): it changes no answer, only how sure the model sounds. T
    lies between 0.05 and 20.

    Args:
        kind: classification (logits (N, K), truth (N,) class numbers), residue_classification (lists of (L, K) and of
            (L,), -1 for unknown) or multilabel ((N, K) both, truth 0, 1, or NaN for unknown; one T for all labels).
        logits: of sequences that the model was not trained on.
        truth: theirs.

    Returns:
        1.0, which changes nothing, where T cannot be fitted: fewer than 20 known truths, logits that are not finite,
        or no known answer wrong (the likelihood then grows for ever as T falls).

    Raises:
        ValueError: for a kind that has no probabilities.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    if kind == "multilabel":
        known = np.isfinite(truth)
        # A sigmoid is the softmax over (0, logit): both kinds are one problem.
        logits = np.stack([np.zeros(known.sum()), np.asarray(logits, np.float64)[known]], 1)
        truth = np.asarray(truth)[known].astype(np.int64)
    elif kind == "residue_classification":
        if not len(truth):
            return 1.0
        logits, truth = (np.concatenate([np.asarray(part) for part in parts]) for parts in (logits, truth))
    elif kind != "classification":
        raise ValueError(f"a temperature is fitted to probabilities, and {kind} has none")
    logits_NK, truth_N = np.asarray(logits, np.float64), np.asarray(truth)
    logits_NK, truth_N = logits_NK[truth_N >= 0], truth_N[truth_N >= 0]
    if len(truth_N) < _FEWEST or not np.isfinite(logits_NK).all() or (logits_NK.argmax(1) == truth_N).all():
        return 1.0
    of_truth_N = logits_NK[np.arange(len(truth_N)), truth_N]

    def loss(log_T: float) -> float:
        scale = math.exp(-log_T)
        return float((logsumexp(logits_NK * scale, axis=1) - of_truth_N * scale).mean())

    low, high = map(math.log, _TEMPERATURES)
    fitted = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    return math.exp(fitted.x) if fitted.fun < loss(0.0) else 1.0


def outcomes(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What was claimed and what came true: (M,) float64 confidences and (M,) bool.

    With truth (N,) class numbers the claim is the most probable class; with truth (N, K) of 0, 1 or NaN for unknown,
    every known label is a claim of its own.
    """
    if truth.ndim == 2:
        known = np.isfinite(truth)
        return probabilities[known].astype(np.float64), truth[known] > 0.5
    return probabilities.max(1).astype(np.float64), probabilities.argmax(1) == truth


def bin_of(confidence_M: np.ndarray, bins: int) -> np.ndarray:
    """(M,) int64: which of the bins (i / bins, (i + 1) / bins] holds each confidence; the first has 0 too."""
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, confidence_M, side="left") - 1, 0, bins - 1)


def reliability(probabilities: np.ndarray, truth: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """A reliability diagram as rows: low, high (the bin), count, confidence (mean) and accuracy (share that came true).

    Args:
        probabilities: (N, K).
        truth: (N,) class numbers, for the most probable class; or (N, K) of 0, 1 or NaN, for each label by itself.
        bins: of equal width; one without predictions has NaN for its means.
    """
    confidence_M, true_M = outcomes(probabilities, truth)
    place_M = bin_of(confidence_M, bins)
    counts_B = np.bincount(place_M, minlength=bins)
    with np.errstate(invalid="ignore"):
        means_B = np.bincount(place_M, confidence_M, bins) / counts_B
        rates_B = np.bincount(place_M, true_M, bins) / counts_B
    return [
        {
            "low": i / bins,
            "high": (i + 1) / bins,
            "count": int(counts_B[i]),
            "confidence": float(means_B[i]),
            "accuracy": float(rates_B[i]),
        }
        for i in range(bins)
    ]


def ece(probabilities: np.ndarray, truth: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error: the mean of |confidence - accuracy| over bins, weighted by their counts.

    Naeini et al. 2015, with the equally wide bins of Guo et al. 2017. Arguments as for `reliability`. NaN without a
    known truth. It is biased upwards in small sets: compare like with like.
    """
    rows = [row for row in reliability(probabilities, truth, bins) if row["count"]]
    total = sum(row["count"] for row in rows)
    if not total:
        return math.nan
    return sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / total


def conformal_threshold(probabilities: np.ndarray, truth: np.ndarray, coverage: float = 0.9) -> float:
    """The q for which sets {k : 1 - p_k <= q} hold the truth of new sequences at the rate `coverage`, or above it.

    Split conformal prediction (Vovk et al. 2005, Algorithmic Learning in a Random World; Angelopoulos & Bates 2021,
    arXiv 2107.07511) with the score of least ambiguous sets (LAC): 1 - p of the truth. q is the
    ceil((n + 1) coverage)-th smallest of the n scores.

    Args:
        probabilities: (N, K) of calibration sequences that the model was not trained on.
        truth: (N,) class numbers.
        coverage: between 0 and 1.

    Returns:
        1.0, with which every set holds every class, where n is too small: below coverage / (1 - coverage), 9 at 0.9.
    """
    if len(truth) == 0:
        return 1.0
    scores_N = 1.0 - probabilities[np.arange(len(truth)), truth].astype(np.float64)
    return min(_finite_sample_quantile(scores_N, coverage), 1.0)


def conformal_sets(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """(N, K) bool: the classes k with p_k >= 1 - threshold. A set may be empty."""
    # Written as scores, so that a probability equal to the one that set the threshold is on its right side.
    return (1.0 - probabilities.astype(np.float64) <= threshold) | (threshold >= 1)


def abstains(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """(N,) bool: whether the set has not exactly one class, so that the model should not answer."""
    return conformal_sets(probabilities, threshold).sum(1) != 1


def conformal_summary(probabilities: np.ndarray, truth: np.ndarray, threshold: float) -> dict[str, float]:
    """How the sets do on sequences (N, K) with truth (N,) that set neither weights nor threshold.

    Returns:
        coverage: share of sets with the truth in them; set_size: mean number of classes; answered: share of sets with
        exactly one class; accuracy_answered: share of those that are right. NaN where there is nothing to divide by.
    """
    sets_NK = conformal_sets(probabilities, threshold)
    holds_N = sets_NK[np.arange(len(truth)), truth]
    single_N = sets_NK.sum(1) == 1
    return {
        "coverage": _mean(holds_N),
        "set_size": _mean(sets_NK.sum(1)),
        "answered": _mean(single_N),
        "accuracy_answered": _mean(holds_N[single_N]),
    }


def conformal_radius(truth: np.ndarray, predicted: np.ndarray, coverage: float = 0.9) -> float:
    """The r for which predicted ± r holds the truth of new sequences at the rate `coverage`, or above it.

    Split conformal regression with the score |truth - predicted| (Angelopoulos & Bates 2021, arXiv 2107.07511).

    Args:
        truth: (N,) one column of calibration sequences, NaN for unknown.
        predicted: (N,) its predictions.
        coverage: between 0 and 1.

    Returns:
        In the unit of the truth; infinite where too few truths are known (9 are needed at 0.9).
    """
    known_N = np.isfinite(truth)
    errors_N = np.abs(truth[known_N].astype(np.float64) - predicted[known_N])
    return _finite_sample_quantile(errors_N, coverage)


def conformal_radius_summary(truth: np.ndarray, predicted: np.ndarray, radius: float) -> dict[str, float]:
    """coverage: share of the known truths (N,) within predicted (N,) ± radius; width: of the interval, 2 radius."""
    known_N = np.isfinite(truth)
    errors_N = np.abs(truth[known_N].astype(np.float64) - predicted[known_N])
    return {"coverage": _mean(errors_N <= radius), "width": 2 * radius}


def _finite_sample_quantile(scores_N: np.ndarray, coverage: float) -> float:
    """The ceil((n + 1) coverage)-th smallest score, infinite where there are not so many or one is not a number."""
    if not 0 < coverage < 1:
        raise ValueError(f"coverage is {coverage}; it must lie between 0 and 1")
    # Rounding must not push a product that is whole, such as 110 x 0.9, to the next rank.
    rank = math.ceil((len(scores_N) + 1) * coverage - 1e-9)
    if rank > len(scores_N) or not np.isfinite(scores_N).all():
        return math.inf
    return float(np.partition(scores_N, rank - 1)[rank - 1])


def _mean(values: Sequence[Any] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan
