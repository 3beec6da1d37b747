"""Figures of binding against plain counts, RDKit, SciPy and scikit-learn; and of retrieval against loops."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from biometro.evaluation import binding, pair_retrieval
from biometro.evaluation.binding import affinity_figures, bedroc, class_figures, concordance, enrichment, replicates


def plain_concordance(truth: np.ndarray, predicted: np.ndarray) -> float:
    above = good = 0.0
    for i, j in itertools.permutations(range(len(truth)), 2):
        if truth[i] > truth[j]:
            above += 1
            good += 1.0 if predicted[i] > predicted[j] else 0.5 if predicted[i] == predicted[j] else 0.0
    return good / above if above else math.nan


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=30))
def test_concordance_counts_pairs(rows: list[tuple[int, int]]) -> None:
    truth, predicted = np.array(rows, np.float64).reshape(-1, 2).T
    assert concordance(truth, predicted) == pytest.approx(plain_concordance(truth, predicted), nan_ok=True, abs=1e-12)


def test_concordance_of_many() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 50, 700).astype(float)
    predicted = np.round(truth / 20 + random.normal(0, 1, 700), 1)
    assert concordance(truth, predicted) == pytest.approx(plain_concordance(truth, predicted), abs=1e-12)
    assert math.isnan(concordance(truth, np.full(700, np.nan)))


def noisy(pairs: int = 300, targets: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(2)
    target = random.integers(0, targets, pairs)
    truth = random.normal(0, 1, pairs) + target
    return truth, np.round(truth + random.normal(0, 1, pairs), 1), target


def test_affinities_over_all_and_per_target() -> None:
    truth, predicted, target = noisy()
    target[:5] = 99  # too few to count
    truth[10], censored = np.nan, np.zeros(300, np.int8)
    censored[11:14] = -1
    found = affinity_figures(truth, predicted, target, censored)
    rows = np.setdiff1d(np.arange(300), [10, 11, 12, 13])
    assert (found.pairs, found.left_out, found.targets) == (296, 3, 13)
    assert found.values["pearson"] == pytest.approx(stats.pearsonr(truth[rows], predicted[rows]).statistic)
    assert found.values["spearman"] == pytest.approx(stats.spearmanr(truth[rows], predicted[rows]).statistic)
    assert found.values["mse"] == pytest.approx(metrics.mean_squared_error(truth[rows], predicted[rows]))
    assert found.values["rmse"] == pytest.approx(found.values["mse"] ** 0.5)
    parts = [rows[target[rows] == t] for t in range(12)]
    assert found.counted == dict.fromkeys(binding.AFFINITY, 12)
    for name, figure in (
        ("ci", plain_concordance),
        ("spearman", lambda t, p: stats.spearmanr(t, p).statistic),
        ("rmse", lambda t, p: metrics.mean_squared_error(t, p) ** 0.5),
    ):
        mean = np.mean([figure(truth[own], predicted[own]) for own in parts])
        assert found.values[f"{name}_per_target"] == pytest.approx(mean)
    with pytest.raises(ValueError, match="299 predictions"):
        affinity_figures(truth, predicted[1:], target)


def test_knowing_the_targets_alone_is_told_apart() -> None:
    truth, _, target = noisy()
    found = affinity_figures(truth, target.astype(float), target).values
    assert found["pearson"] > 0.9 and found["ci"] > 0.8
    assert found["pearson_per_target"] == found["spearman_per_target"] == 0 and found["ci_per_target"] == 0.5


def test_undefined_figures_are_nan() -> None:
    nothing = affinity_figures(np.full(3, np.nan), np.zeros(3), np.zeros(3, int), samples=10)
    assert nothing.pairs == 0 and all(math.isnan(value) for value in nothing.values.values())
    constant = affinity_figures(np.ones(20), np.arange(20.0), np.zeros(20, int)).values
    assert math.isnan(constant["ci"]) and math.isnan(constant["spearman_per_target"]) and constant["mse"] > 0
    one = class_figures(np.ones(20, int), np.arange(20.0), np.zeros(20, int)).values
    assert all(math.isnan(value) for value in one.values())
    lost = class_figures(np.arange(20) % 2, np.full(20, np.nan), np.zeros(20, int), samples=10)
    assert all(math.isnan(value) for value in lost.values.values())


def sorted_rows(label: np.ndarray, score: np.ndarray) -> list[list[float]]:
    return [[score[i], label[i]] for i in np.argsort(-score, kind="stable")]


@pytest.mark.parametrize("pairs", [20, 333, 2000])
def test_early_recognition_is_rdkits(pairs: int) -> None:
    scoring = pytest.importorskip("rdkit.ML.Scoring.Scoring")
    random = np.random.default_rng(pairs)
    label = (random.random(pairs) < 0.15).astype(int)
    label[0] = 1
    score = random.permutation(pairs) + (0.4 * pairs + 0.5) * label
    rows = sorted_rows(label, score)
    assert bedroc(label, score) == pytest.approx(scoring.CalcBEDROC(rows, 1, 20.0))
    for fraction in (0.005, 0.01, 0.05):
        assert enrichment(label, score, fraction) == pytest.approx(scoring.CalcEnrichment(rows, 1, [fraction])[0])


def test_ties_are_the_mean_of_their_orders() -> None:
    label, score = np.array([1, 0, 1, 0, 0, 1]), np.array([2.0, 1, 1, 1, 0, 0])
    orders = [(first, last) for first in itertools.permutations((1, 2, 3)) for last in itertools.permutations((4, 5))]
    for figure in (bedroc, lambda label, score: enrichment(label, score, 0.34)):
        each = []
        for first, last in orders:
            ranked = np.empty(6)
            ranked[[0, *first, *last]] = np.arange(6, 0, -1)
            each.append(figure(label, ranked))
        assert figure(label, score) == pytest.approx(np.mean(each))


def test_classes_over_all_and_per_target() -> None:
    truth, predicted, target = noisy()
    label = (truth > target + 0.5).astype(np.int8)
    label[:7] = -1
    found = class_figures(label, predicted, target)
    known = label >= 0
    assert found.pairs == 293 and found.rate == pytest.approx(label[known].mean())
    assert found.values["auroc"] == pytest.approx(metrics.roc_auc_score(label[known], predicted[known]))
    assert found.values["auprc"] == pytest.approx(metrics.average_precision_score(label[known], predicted[known]))
    parts = [np.flatnonzero(known & (target == t)) for t in range(12)]
    mean = np.mean([metrics.roc_auc_score(label[own], predicted[own]) for own in parts])
    assert found.values["auroc_per_target"] == pytest.approx(mean)


@pytest.mark.parametrize("kind", ["affinity", "classes"])
def test_resamples_are_those_of_whole_targets(kind: str) -> None:
    truth, predicted, target = noisy(120, 6)
    singles: dict[str, Any] = binding._AFFINITY
    if kind == "classes":
        truth, singles = (truth > target).astype(float), binding._CLASSES
    names = [*singles, *(f"{name}_per_target" for name in singles)]
    found = replicates(kind, truth, predicted, target, names, samples=20, seed=3)
    draws = next(binding.resampling.draws(6, 20, 3))
    for s, weights in enumerate(draws):
        rows = np.concatenate([np.flatnonzero(target == t) for t in range(6) for _ in range(int(weights[t]))])
        for name, single in singles.items():
            assert found[name][s] == pytest.approx(single(truth[rows], predicted[rows]), nan_ok=True)
            each = [single(truth[target == t], predicted[target == t]) for t in range(6)]
            assert found[f"{name}_per_target"][s] == pytest.approx(np.average(each, weights=weights))


def test_intervals_hold_the_figure() -> None:
    truth, predicted, target = noisy()
    found = affinity_figures(truth, predicted, target, samples=200)
    assert set(found.intervals) == set(found.values)
    for name, (low, high) in found.intervals.items():
        assert low < found.values[name] < high


# Retrieval -----------------------------------------------------------------------------------------------------------


def unit_rows(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, 5))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_ranks_of_first_partners_against_a_loop() -> None:
    a, b = unit_rows(12, 0), unit_rows(30, 1)
    random = np.random.default_rng(2)
    true = np.unique(np.stack([random.integers(0, 9, 25), random.integers(0, 20, 25)], 1), axis=0)
    known = np.stack([random.integers(0, 12, 40), random.integers(0, 30, 40)], 1)
    pool = np.arange(25)[::-1]
    found = pair_retrieval.both_ways(a, b, true, known, pool_b=pool, samples=50)
    one = found["a to b"]
    assert one.pool == 25 and found["b to a"].pool == len(np.unique(true[:, 0]))
    for way, pairs, others, places, scores in (
        ("a to b", true, known, pool, a @ b.T),
        ("b to a", true[:, ::-1], known[:, ::-1], np.unique(true[:, 0]), b @ a.T),
    ):
        ranks = []
        for query in np.unique(pairs[:, 0]):
            mine = {p for q, p in pairs.tolist() if q == query}
            rest = [p for p in places.tolist() if p not in mine and (query, p) not in {*map(tuple, others.tolist())}]
            best = max(scores[query, p] for p in mine)
            ranks.append(1 + sum(scores[query, p] >= best for p in rest))
        assert found[way].rank.tolist() == ranks
        assert found[way].values["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
        assert found[way].values["median_rank"] == np.median(ranks)
        for k in (1, 5, 10, 50):
            assert found[way].values[f"recall@{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]))
    low, high = one.intervals["mrr"]
    assert low < one.values["mrr"] < high


def test_no_opinion_ranks_last_and_a_perfect_one_first() -> None:
    true = np.array([[0, 0], [0, 1], [1, 2], [2, 3]])
    flat = pair_retrieval.retrieve(lambda q: np.zeros((len(q), 4)), np.arange(4), true, np.empty((0, 2), int))
    assert flat.rank.tolist() == [3, 4, 4]
    lost = pair_retrieval.retrieve(lambda q: np.full((len(q), 4), np.nan), np.arange(4), true, np.empty((0, 2), int))
    assert lost.rank.tolist() == [3, 4, 4]
    eye = np.eye(4)
    assert pair_retrieval.both_ways(eye, eye, np.array([[i, i] for i in range(4)]))["a to b"].values["mrr"] == 1
    with pytest.raises(ValueError, match="not in the pool"):
        pair_retrieval.both_ways(eye, eye, true, pool_b=np.array([0, 1]))


def test_one_list_is_searched_without_the_query_itself() -> None:
    rows = unit_rows(8, 4)
    found = pair_retrieval.both_ways(rows, rows, np.array([[0, 1], [2, 3]]), shared=True, pool_b=np.arange(8))
    assert list(found) == ["a to b"] and found["a to b"].queries == 4
    scores = rows @ rows.T
    assert found["a to b"].rank[0] == 1 + sum(scores[0, p] >= scores[0, 1] for p in range(2, 8))


def test_chance_is_the_mean_of_random_orders() -> None:
    size, partners = np.array([9, 9, 30]), np.array([1, 4, 2])
    expected = pair_retrieval.chance(size, partners)
    random = np.random.default_rng(0)
    ranks = np.array(
        [
            [1 + int(np.argmax(random.permutation(n + t) < t)) for n, t in zip(size, partners, strict=True)]
            for _ in range(4000)
        ]
    ).ravel()
    assert expected["mrr"] == pytest.approx((1 / ranks).mean(), abs=0.01)
    assert expected["median_rank"] == np.median(ranks)
    for k in (1, 5, 10):
        assert expected[f"recall@{k}"] == pytest.approx((ranks <= k).mean(), abs=0.02)
    assert expected["recall@50"] == 1
