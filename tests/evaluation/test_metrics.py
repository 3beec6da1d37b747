"""Figures equal scikit-learn's and scipy's; the bootstrap's short cuts equal the figures of explicit resamples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from biometro.errors import UserError
from biometro.evaluation import resampling
from biometro.evaluation.flat import lay_flat
from biometro.evaluation.metrics import (
    FIGURES,
    PER_GROUP,
    SELECT,
    bootstrap,
    check_metric,
    confusion,
    known_residues,
    larger_is_better,
    measure,
    per_class,
)

Task = tuple[Any, Any, list[str]]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits)
    return (p / p.sum(-1, keepdims=True)).astype(np.float32)


def classes(N: int = 120, K: int = 5, seed: int = 0) -> Task:
    """A classifier that is right half the time, with ties among its scores; the last class is in no truth."""
    random = np.random.default_rng(seed)
    truth = random.integers(max(K - 1, 2), size=N)
    logits = np.round(random.normal(size=(N, K)) + 1.5 * np.eye(K)[truth], 1)
    return truth, softmax(logits), [f"class {k}" for k in range(K)]


def labels(N: int = 120, K: int = 4, seed: int = 0) -> Task:
    """A third unknown; the last label is never there, and the one before it wholly unknown."""
    random = np.random.default_rng(seed)
    truth = (random.random((N, K)) < 0.3).astype(np.float32)
    p = np.round(np.clip(0.3 * truth + 0.7 * random.random((N, K)), 0, 1), 2).astype(np.float32)
    truth[random.random((N, K)) < 0.3] = np.nan
    truth[:, -1] = 0
    truth[:, -2] = np.nan
    truth[3] = np.nan
    return truth, p, [f"label {k}" for k in range(K)]


def values(N: int = 120, K: int = 3, seed: int = 0) -> Task:
    """With ties and unknowns; the last column of many is constant."""
    random = np.random.default_rng(seed)
    truth = np.round(random.normal(5, 2, size=(N, K)), 1).astype(np.float32)
    predicted = np.round(truth + random.normal(size=(N, K)), 1).astype(np.float32)
    truth[random.random((N, K)) < 0.2] = np.nan
    if K > 1:
        truth[:, -1] = 1.5
    return truth, predicted, [f"column {k}" for k in range(K)]


def residues(kind: str, N: int = 30, seed: int = 0, letters: str = "HGIEBTSC") -> Task:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 30, size=N)
    flat = classes(lengths.sum(), len(letters), seed) if kind == "residue_classification" else values(lengths.sum(), 1)
    ends = np.cumsum(lengths)[:-1]
    truth = flat[0] if kind == "residue_classification" else flat[0][:, 0]
    if kind == "residue_classification":
        truth = np.where(random.random(len(truth)) < 0.2, -1, truth)
    return np.split(truth, ends), np.split(flat[1], ends), list(letters)


TASKS: dict[str, tuple[str, Task]] = {
    "classes": ("classification", classes()),
    "binary": ("classification", classes(K=2)),
    "labels": ("multilabel", labels()),
    "column": ("regression", values(K=1)),
    "columns": ("regression", values()),
    "states": ("residue_classification", residues("residue_classification")),
    "residues": ("residue_regression", residues("residue_regression")),
}


def test_classification_is_scikit_learns() -> None:
    truth, p, names = classes()
    found, answer, hot = measure("classification", truth, p, names), p.argmax(1), np.eye(5)[truth]
    assert tuple(found) == FIGURES["classification"]
    present = np.unique(truth)
    p64 = p / p.sum(1, keepdims=True, dtype=np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = {
            "accuracy": sk.accuracy_score(truth, answer),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, answer),
            "macro_f1": sk.f1_score(truth, answer, average="macro"),
            "weighted_f1": sk.f1_score(truth, answer, average="weighted"),
            "mcc": sk.matthews_corrcoef(truth, answer),
            "auroc": sk.roc_auc_score(hot[:, present], p[:, present], average="macro"),
            "auc01": np.mean([sk.roc_auc_score(hot[:, k], p[:, k], max_fpr=0.1) for k in present]),
            "auprc": sk.average_precision_score(hot[:, present], p[:, present], average="macro"),
            "log_loss": sk.log_loss(truth, p64, labels=range(5)),
            "brier": sk.brier_score_loss(truth, p64, labels=range(5)),
        }
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name


def test_binary_classification_is_scikit_learns() -> None:
    truth, p, names = classes(K=2)
    found = measure("classification", truth, p, names)
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(truth, p[:, 1]))
    assert found["auprc"] == pytest.approx(sk.average_precision_score(truth, p[:, 1]))
    assert found["brier"] == pytest.approx(sk.brier_score_loss(truth, p[:, 1]), rel=1e-5)


def test_multilabel_scores_what_is_known() -> None:
    truth, p, names = labels()
    found = measure("multilabel", truth, p, names)
    assert tuple(found) == FIGURES["multilabel"]
    known = np.isfinite(truth)
    pairs = [(truth[known[:, k], k], p[known[:, k], k]) for k in (0, 1)]
    assert found["auroc"] == pytest.approx(np.mean([sk.roc_auc_score(*pair) for pair in pairs]))
    assert found["auprc"] == pytest.approx(np.mean([sk.average_precision_score(*pair) for pair in pairs]))
    f1s = [sk.f1_score(t, s >= 0.5) for t, s in pairs]
    assert (p[:, 3] >= 0.5).any()  # so the label that is never there has F1 0
    assert found["macro_f1"] == pytest.approx(sum(f1s) / 3)
    assert found["micro_f1"] == pytest.approx(sk.f1_score(truth[known], p[known] >= 0.5))
    assert found["log_loss"] == pytest.approx(sk.log_loss(truth[known], p[known].astype(float)), rel=1e-6)
    exact = [((p[i] >= 0.5) == truth[i])[known[i]].all() for i in range(len(p)) if known[i].any()]
    assert found["exact_match"] == pytest.approx(np.mean(exact))


def test_regression_is_scipys() -> None:
    truth, predicted, names = values()
    found = measure("regression", truth, predicted, names)
    per_column: dict[str, list[float]] = {}
    for k, name in enumerate(names):
        known = np.isfinite(truth[:, k])
        x, y = truth[known, k].astype(float), predicted[known, k].astype(float)
        wanted = {"rmse": sk.root_mean_squared_error(x, y), "mae": sk.mean_absolute_error(x, y)}
        if k < 2:
            wanted |= {"pearson": np.corrcoef(x, y)[0, 1], "spearman": stats.spearmanr(x, y)[0]}
            wanted["r2"] = sk.r2_score(x, y)
        for figure, value in wanted.items():
            assert found[f"{figure}/{name}"] == pytest.approx(value)
            per_column.setdefault(figure, []).append(value)
    for figure, column in per_column.items():
        assert found[figure] == pytest.approx(np.mean(column))
    assert math.isnan(found["spearman/column 2"])
    assert tuple(measure("regression", truth[:, :1], predicted[:, :1], names[:1])) == FIGURES["regression"]


def test_a_constant_prediction_spoils_the_mean_of_columns_and_is_not_left_out() -> None:
    truth, predicted, names = values(K=3)
    predicted[:, 1] = 2
    found = measure("regression", truth, predicted, names)
    assert math.isnan(found["spearman"])
    assert math.isfinite(found["spearman/column 0"])
    assert math.isfinite(found["rmse"])


def test_residues_are_laid_flat_and_reduced_to_three_states() -> None:
    truth, p, names = residues("residue_classification")
    found = measure("residue_classification", truth, p, names)
    assert tuple(found) == FIGURES["residue_classification"]
    t, s = np.concatenate(truth), np.concatenate(p)
    t, s = t[t >= 0], s[t >= 0]
    flat = measure("classification", t, s, names)
    assert {name: found[name] for name in flat} == flat
    assert found["q8"] == found["accuracy"]
    reduce = dict(zip("HGIEBTSC", "HHHEECCC", strict=True))
    three = [reduce[names[a]] == reduce[names[b]] for a, b in zip(t, s.argmax(1), strict=True)]
    assert found["q3"] == pytest.approx(np.mean(three))
    assert found["q3"] > found["q8"]


@pytest.mark.parametrize(
    ("letters", "figures"),
    [("HEC", {"q3"}), ("HGIEBTS-", {"q3", "q8"}), ("HEGL", {"q3", "q8"}), ("ST", set()), ("HEX", set()), ("HE", set())],
)
def test_q3_is_for_secondary_structure_alone(letters: str, figures: set[str]) -> None:
    task = residues("residue_classification", letters=letters)
    assert set(measure("residue_classification", *task)) & {"q3", "q8"} == figures
    for name in ("q3", "q8"):
        if name in figures:
            check_metric("residue_classification", name, letters)
        else:
            with pytest.raises(UserError, match="macro_f1"):
                check_metric("residue_classification", name, letters)


def test_residue_regression_within_and_across_sequences() -> None:
    truth, predicted, names = residues("residue_regression")
    truth[0], predicted[1] = np.full_like(truth[0], 2), np.full_like(predicted[1], 2)
    assert len(truth[1]) > 3
    found = measure("residue_regression", truth, predicted, names)
    t, s, sequence = known_residues(truth, predicted)
    assert found["spearman"] == pytest.approx(stats.spearmanr(t, s[:, 0])[0])
    each = []
    for i in range(len(truth)):
        x, y = t[sequence == i], s[sequence == i, 0]
        if len(x) >= 3 and len(set(x)) > 1:
            each.append(stats.spearmanr(x, y)[0] if len(set(y)) > 1 else 0.0)
    assert found["spearman_per_sequence"] == pytest.approx(np.mean(each))
    flat = measure("residue_regression", truth, [p[:, 0] for p in predicted], [])
    assert flat == found


def undefined() -> Iterator[tuple[str, Any, Any, Sequence[str], set[str]]]:
    """Tasks whose figures are NaN, but for those named."""
    p = softmax(np.random.default_rng(0).normal(size=(6, 3)))
    threshold = {"accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "log_loss", "brier", "ece"}
    yield "classification", np.zeros(6, int), p, "abc", threshold
    yield "classification", np.empty(0, int), p[:0], "abc", set()
    yield "classification", np.arange(6) % 3, np.full((6, 3), np.nan), "abc", set()
    unknown = np.full((6, 3), np.nan, np.float32)
    yield "multilabel", unknown, p, "abc", set()
    yield "multilabel", unknown[:0], p[:0], "abc", set()
    yield "multilabel", np.zeros((6, 3)), 0.1 * p, "abc", {"exact_match", "log_loss", "ece"}
    yield "regression", unknown, p, "abc", set()
    x = np.arange(6.0)[:, None]
    yield "regression", x, np.ones((6, 1)), "a", {"rmse", "mae", "r2"}
    yield "regression", np.ones((6, 1)), x, "a", {"rmse", "mae"}
    yield "regression", x, x + np.inf, "a", set()
    yield "regression", x[:1], x[:1], "a", {"rmse", "mae"}
    yield "residue_regression", [x[:2, 0]], [x[:2, 0]], [], {"rmse", "mae", "pearson", "spearman", "r2"}
    yield "residue_regression", [], [], [], set()
    yield "residue_regression", [unknown[:, 0]], [x[:, 0]], [], set()
    yield "residue_classification", [np.full(6, -1)], [p], "abc", set()
    yield "residue_classification", [], [], "abc", set()


@pytest.mark.parametrize("case", list(undefined()), ids=lambda case: f"{case[0]} {np.shape(case[1])}")
def test_what_is_undefined_is_nan_and_silent(case: Any, capfd: Any) -> None:
    kind, truth, predicted, names, defined = case
    found = measure(kind, truth, predicted, list(names))
    assert {name for name, value in found.items() if math.isfinite(value)} - {
        f"{a}/{b}" for a in found for b in names
    } == defined
    intervals = bootstrap(kind, truth, predicted, list(names), list(found), samples=20)
    assert {name for name in intervals if "/" not in name and math.isfinite(intervals[name][0])} == defined
    assert capfd.readouterr() == ("", "")


def test_constant_answers_have_no_correlation_with_the_truth() -> None:
    p = np.tile(np.float32([0.7, 0.2, 0.1]), (6, 1))
    found = measure("classification", np.arange(6) % 3, p, list("abc"))
    assert found["mcc"] == 0
    assert found["auroc"] == 0.5


def explicit(kind: str, task: Task, weights_G: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """The figures of the resample itself: every sequence as often as its family was drawn."""
    times = weights_G.astype(int)[groups]
    if kind.startswith("residue_"):
        again = [i for i, n in enumerate(times) for _ in range(n)]
        return measure(kind, [task[0][i] for i in again], [task[1][i] for i in again], task[2])
    return measure(kind, np.repeat(task[0], times, 0), np.repeat(task[1], times, 0), task[2])


@pytest.mark.parametrize("families", [False, True], ids=["sequences", "families"])
@pytest.mark.parametrize("name", TASKS)
def test_the_bootstrap_equals_measures_of_explicit_resamples(name: str, families: bool) -> None:
    kind, task = TASKS[name]
    N = len(task[0])
    groups = np.random.default_rng(1).integers(8, size=N) if families else np.arange(N)
    flat = lay_flat(kind, *task, groups if families else None)
    weights_SG = next(resampling.draws(flat.units, 12, seed=3))
    found: dict[str, np.ndarray] = {}
    for family in resampling.families(flat):
        values_of = family.values(weights_SG)
        found |= {figure: values_of[figure] for figure in family.figures}
    for s, weights_G in enumerate(weights_SG):
        wanted = explicit(kind, task, weights_G, groups)
        assert set(found) == set(wanted)
        for figure, value in wanted.items():
            assert found[figure][s] == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), figure


def test_intervals_are_percentiles_of_the_resamples() -> None:
    truth, predicted, names = values(N=40, K=1)
    found = bootstrap("regression", truth, predicted, names, ["rmse", "spearman"], samples=300, seed=5, share=0.8)
    random = np.random.default_rng(5)
    drawn = [random.integers(40, size=40) for _ in range(300)]
    each = [measure("regression", truth[rows], predicted[rows], names) for rows in drawn]
    for name in ("rmse", "spearman"):
        assert found[name] == pytest.approx(tuple(np.quantile([row[name] for row in each], (0.1, 0.9))))
    assert found == bootstrap("regression", truth, predicted, names, ["rmse", "spearman"], 300, 5, 0.8)
    assert found != bootstrap("regression", truth, predicted, names, ["rmse", "spearman"], 300, 6, 0.8)


def test_intervals_hold_the_value_of_the_population_as_often_as_they_say() -> None:
    held = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        x = random.normal(size=(150, 1))
        y = 0.6 * x + 0.8 * random.normal(size=(150, 1))
        low, high = bootstrap("regression", x, y, ["x"], ["pearson"], samples=200)["pearson"]
        held += low <= 0.6 <= high
    assert 180 <= held <= 199


def test_copies_within_families_do_not_narrow_an_interval_when_families_are_drawn() -> None:
    truth, p, names = classes(N=60)
    copies = np.repeat(np.arange(60), 9)
    args = ("classification", truth[copies], p[copies], names, ["accuracy"])
    once = bootstrap("classification", truth, p, names, ["accuracy"])["accuracy"]
    assert bootstrap(*args, families=copies * 7)["accuracy"] == pytest.approx(once)
    low, high = bootstrap(*args)["accuracy"]
    assert high - low < 0.5 * (once[1] - once[0])


def test_a_large_ranking_takes_fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, p, names = classes(N=50, K=2)
    asked = []
    draws = resampling.draws
    monkeypatch.setattr(
        resampling, "draws", lambda units, samples, seed: asked.append(samples) or draws(units, 3, seed)
    )
    monkeypatch.setattr("biometro.evaluation.metrics._RANKED", 50 * 300)
    bootstrap("classification", truth, p, names, ["accuracy", "auroc"])
    assert asked == [1000, 300]


def test_per_class_and_confusion_are_scikit_learns() -> None:
    truth, p, names = classes()
    rows = per_class(truth, p, names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precision, recall, f1, support = sk.precision_recall_fscore_support(
            truth, p.argmax(1), labels=range(5), zero_division=np.nan
        )
    for k, row in enumerate(rows):
        assert row["name"] == names[k]
        assert row["support"] == support[k]
        shown = (row["precision"], row["recall"], row["f1"])
        assert shown == pytest.approx((precision[k], recall[k], f1[k]), nan_ok=True)
        area = sk.roc_auc_score(truth == k, p[:, k]) if k < 4 else math.nan
        assert row["auroc"] == pytest.approx(area, nan_ok=True)
    matrix = confusion(truth, p, 5)
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(truth, p.argmax(1), labels=range(5)))
    assert matrix.dtype == np.int64


def test_per_label_rows_leave_out_the_unknown() -> None:
    truth, p, names = labels()
    known = np.isfinite(truth[:, 0])
    row = per_class(truth, p, names)[0]
    assert row["support"] == truth[known, 0].sum()
    assert row["f1"] == pytest.approx(sk.f1_score(truth[known, 0], p[known, 0] >= 0.5))
    assert row["auroc"] == pytest.approx(sk.roc_auc_score(truth[known, 0], p[known, 0]))
    assert math.isnan(per_class(truth, p, names)[2]["recall"])


def test_names_of_figures() -> None:
    for kind, name in SELECT.items():
        check_metric(kind, name)
        assert larger_is_better(name)
    for name in ("rmse", "mae", "log_loss", "brier", "ece", "loss", "rmse/pKd"):
        assert not larger_is_better(name)
    assert larger_is_better("spearman/pKd")
    with pytest.raises(UserError, match="no figure 'auc'; choose from pearson, spearman, rmse, mae, r2"):
        check_metric("regression", "auc")
    with pytest.raises(UserError, match="no kind of task 'ranking'; choose from classification"):
        measure("ranking", [], [], [])
    with pytest.raises(UserError, match="choose from"):
        bootstrap("classification", *classes(), ["rmse"])


def test_what_does_not_fit_is_refused() -> None:
    truth, p, names = classes()
    with pytest.raises(ValueError, match="119 truths but 120"):
        measure("classification", truth[1:], p, names)
    with pytest.raises(ValueError, match="4 names"):
        measure("classification", np.full(3, 4), p[:3, :4], names[:4])
    with pytest.raises(ValueError, match="residues of one"):
        measure("residue_regression", [np.zeros(3)], [np.zeros(4)], [])


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
@pytest.mark.parametrize("families", [False, True], ids=["sequences", "families"])
def test_figures_per_group_are_means_over_those_with_both_outcomes(kind: str, families: bool) -> None:
    truth, p, names = classes(N=150, K=2, seed=4) if kind == "classification" else labels(N=150, seed=4)
    groups = np.random.default_rng(0).integers(-1, 7, size=150)
    groups[:6] = [7, 7, 7, 8, 8, 9]
    truth[:6] = 0  # three groups of one outcome
    found = measure(kind, truth, p, names, groups)
    assert found["groups_left_out"] == 3
    for figure, most in (("auroc", None), ("auc01", 0.1)):
        own = []
        for g in range(7):
            rows = groups == g
            columns = [(truth[rows], p[rows, 1])]
            if kind == "multilabel":
                known = [np.isfinite(truth[:, k]) & rows for k in range(4)]
                columns = [(truth[known[k], k], p[known[k], k]) for k in range(4)]
            both = [sk.roc_auc_score(t, score, max_fpr=most) for t, score in columns if len(np.unique(t)) == 2]
            own.append(np.mean(both))
        assert found[f"{figure}_per_group"] == pytest.approx(np.mean(own)), figure
    drawn = np.random.default_rng(1).integers(12, size=150) if families else np.arange(150)
    flat = lay_flat(kind, truth, p, names, drawn if families else None, groups)
    weights_SG = next(resampling.draws(flat.units, 6, seed=3))
    made = {name: family for family in resampling.families(flat) for name in family.figures}
    for figure in PER_GROUP:
        for value, weights_G in zip(made[figure].values(weights_SG)[figure], weights_SG, strict=True):
            again = np.repeat(np.arange(150), weights_G.astype(int)[drawn])
            wanted = measure(kind, truth[again], p[again], names, groups[again])[figure]
            assert value == pytest.approx(wanted, nan_ok=True)
    assert set(bootstrap(kind, truth, p, names, PER_GROUP, 50, groups=groups)) == {*PER_GROUP}


def test_figures_per_group_need_groups() -> None:
    check_metric("classification", "auc01_per_group", grouped=True)
    with pytest.raises(UserError, match=r"needs groups; name their column with labels\.group"):
        check_metric("classification", "auroc_per_group")
    with pytest.raises(UserError, match="has no figure"):
        check_metric("regression", "auroc_per_group", grouped=True)
    truth, p, names = classes(N=10, K=2)
    nothing = measure("classification", truth, p, names, np.full(10, -1))
    assert math.isnan(nothing["auroc_per_group"]) and nothing["groups_left_out"] == 0
    with pytest.raises(ValueError, match="10 sequences but 3 groups"):
        measure("classification", truth, p, names, np.zeros(3, int))
