"""Figures of merit of classifiers, regressors and per-residue models, and how far each can be trusted.

truth, predictions ─▶ known rows ─┬─▶ measure    {figure: value}
                                  ├─▶ replicates ─▶ bootstrap  {figure: (low, high)}, resampling whole sequences or
                                  │                            families
                                  └─▶ per_class, confusion

| kind | truth | predictions | unknown |
|---|---|---|---|
| classification | (N,) int64 class numbers | (N, K) probabilities | |
| multilabel | (N, K) float32 of 0 and 1 | (N, K) probabilities | NaN |
| regression | (N, K) float32 | (N, K) values | NaN |
| residue_classification | N arrays (L,) int64 class numbers | N arrays (L, K) probabilities | -1 |
| residue_regression | N arrays (L,) float32 | N arrays (L,) or (L, 1) values | NaN |

A figure that is undefined is NaN: a ranking with one outcome only, a correlation with a constant, anything of no known
truth, and every figure of predictions that are not finite. Nothing is raised or printed for it.

Shapes: N sequences, L residues of one, M known rows (sequences or residues), K classes, labels or columns.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from biometro.errors import UserError
from biometro.evaluation import resampling
from biometro.evaluation.calibration import ece
from biometro.evaluation.flat import (
    Flat,
    class_scores,
    columns,
    each_label,
    exact_matches,
    known_residues,
    label_losses,
    lay_flat,
    ranked_labels,
    rho_per_sequence,
    structure_figures,
)

Figures = dict[str, float]
__all__ = [
    "FIGURES",
    "PER_GROUP",
    "SELECT",
    "bootstrap",
    "check_kind",
    "check_metric",
    "confusion",
    "interval",
    "known_residues",
    "larger_is_better",
    "measure",
    "per_class",
    "replicates",
]

_CLASSES = (
    *("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "mcc"),
    *("auroc", "auc01", "auprc", "log_loss", "brier", "ece"),
)
_VALUES = ("pearson", "spearman", "rmse", "mae", "r2")
FIGURES: dict[str, tuple[str, ...]] = {
    "classification": _CLASSES,
    "multilabel": ("macro_f1", "micro_f1", "exact_match", "auroc", "auc01", "auprc", "log_loss", "ece"),
    "regression": _VALUES,
    "residue_classification": (*_CLASSES, "q8", "q3"),
    "residue_regression": (*_VALUES, "spearman_per_sequence"),
}
PER_GROUP = ("auroc_per_group", "auc01_per_group")
"""Figures that classification and multilabel tasks have besides, where sequences have groups."""
# The figure by which checkpoints are chosen unless another is asked for.
SELECT = {
    "classification": "macro_f1",
    "multilabel": "auroc",
    "regression": "spearman",
    "residue_classification": "macro_f1",
    "residue_regression": "spearman",
}
_SMALLER_IS_BETTER = {"rmse", "mse", "mae", "log_loss", "brier", "ece", "loss", "perplexity"}

# Scores ranked over all resamples together: some five seconds on one core. Beyond, they take fewer resamples.
_RANKED = 1_000_000_000
_FEWEST_RESAMPLES = 200


def larger_is_better(name: str) -> bool:
    """Whether a model with more of this figure is better; a figure of one part ("rmse/COLUMN") is as that of all."""
    return name.split("/")[0] not in _SMALLER_IS_BETTER


def check_kind(kind: str) -> None:
    """Raises UserError, with the kinds there are, unless `kind` is one."""
    if kind not in FIGURES:
        raise UserError(f"there is no kind of task {kind!r}; choose from {', '.join(FIGURES)}")


def check_metric(kind: str, name: str, names: Sequence[str] | None = None, grouped: bool = False) -> None:
    """Raises UserError, with the figures there are, unless `measure` gives the figure `name` for tasks of this kind.

    With the classes' names, q8 and q3 are refused where the classes are not states of secondary structure. grouped:
    whether sequences have groups, without which there are no figures per group.
    """
    check_kind(kind)
    there_are = FIGURES[kind]
    if kind in ("classification", "multilabel"):
        if name in PER_GROUP and not grouped:
            raise UserError(f"{name} needs groups; name their column with labels.group")
        there_are += PER_GROUP if grouped else ()
    if kind == "residue_classification" and names is not None:
        there_are = (*_CLASSES, *structure_figures(names))
    if name not in there_are:
        raise UserError(f"a {kind} task has no figure {name!r}; choose from {', '.join(there_are)}")


def measure(kind: str, truth: Any, predicted: Any, names: Sequence[str], groups: np.ndarray | None = None) -> Figures:
    """All figures of one task; see this module's docstring for the kinds and FIGURES for the names.

    - A classifier's answer is its most probable class, a label is given from a probability of 0.5 up.
    - macro_f1 is the mean over classes (labels) that are in the truth or among the answers; of an absent class nobody
      named there is nothing to say. balanced_accuracy is the mean recall of the classes in the truth.
    - mcc is 0 for constant answers, the limit, and NaN where the truth has one class.
    - auroc and auprc (average precision) are those of the second of two classes; of more, the mean over the classes in
      the truth, each against the rest; of labels, the mean over those with both outcomes known.
    - auc01 is the AUROC up to a false-positive rate of 0.1, standardised so that chance is 0.5 (McClish 1989, Medical
      Decision Making 9, 190), and averaged as auroc is.
    - With groups: auroc_per_group and auc01_per_group, means over the groups of the figure within each, and
      groups_left_out, how many groups have one outcome only and do not count.
    - log_loss is in nats per sequence or residue, or per known label. brier is the mean squared error of the second of
      two classes' probability (0 to 1), and of more classes the sum over all of them (0 to 2), as in Brier 1950.
    - ece: see `calibration.ece`.
    - q8 and q3 (classes named by DSSP's letters, with H, E and a coil among them) are the accuracy over states as they
      are, where there are more than three, and after the usual reduction HGI -> H, EB -> E, rest -> C.
    - Of several columns, each has figures "spearman/NAME", and "spearman" is the mean over columns whose truth varies
      (rmse, mae: over columns with a known truth).
    - spearman_per_sequence is the mean over sequences with at least three known residues whose truth varies. A sequence
      with a constant prediction counts as 0: leaving it out would reward it.

    Args:
        kind: one of FIGURES.
        truth: as tabled above.
        predicted: as tabled above.
        names: of the K classes, labels or columns; not used by residue_regression.
        groups: (N,) int64, the group of each sequence, -1 where it has none; of classification and multilabel tasks.

    Raises:
        UserError: for a kind that does not exist.
        ValueError: where truth, predictions, names and groups do not fit one another.
    """
    check_kind(kind)
    flat = lay_flat(kind, truth, predicted, names, groups=groups)
    with _silence():
        if not flat.classes and kind != "multilabel":
            return _measure_columns(flat)
        figures = _measure_classes(flat) if flat.classes else _measure_labels(flat)
        return figures | (_measure_groups(flat) if flat.groups is not None else {})


def bootstrap(
    kind: str,
    truth: Any,
    predicted: Any,
    names: Sequence[str],
    figures: Sequence[str],
    samples: int = 1000,
    seed: int = 0,
    share: float = 0.95,
    families: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals (Efron 1979, Annals of Statistics 7, 1) of figures of `measure`.

    Whole sequences are drawn, a sequence with all its residues: residues of one are not independent, and an interval
    that took them so would be too narrow. The same holds for homologues: with `families`, whole ones are drawn.
    An ece of few sequences is too large by chance, and that of a resample more so: its interval leans upwards.

    Args:
        kind, truth, predicted, names: as for `measure`.
        figures: which; a column's own too ("spearman/NAME").
        samples: resamples. Figures of ranks (auroc, auc01, auprc, spearman) of more than about a million scores take
            fewer, at least 200, so that they end within about five seconds.
        seed: same seed, same intervals.
        share: of the resamples that lies within the interval.
        families: (N,) int64 family numbers of the sequences.
        groups: as for `measure`.

    Returns:
        (low, high) of each figure, over the resamples where it is defined; NaN where that is fewer than half.

    Raises:
        UserError: for a figure that `measure` does not give.
        ValueError: as for `measure`.
    """
    found = replicates(kind, truth, predicted, names, figures, samples, seed, families, groups)
    return {name: interval(values_S, share) for name, values_S in found.items()}


def replicates(
    kind: str,
    truth: Any,
    predicted: Any,
    names: Sequence[str],
    figures: Sequence[str],
    samples: int = 1000,
    seed: int = 0,
    families: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """(S,) float64 of each figure over the resamples that `bootstrap` takes percentiles of; NaN where undefined.

    Two predictions of one truth see the same resamples under one seed, so that the difference of their replicates, one
    by one, is that of the two. Arguments and errors as for `bootstrap`; figures of ranks may take fewer resamples.
    """
    for name in figures:
        check_metric(kind, name.split("/")[0] if kind == "regression" else name, names, groups is not None)
    flat = lay_flat(kind, truth, predicted, names, families, groups)
    found = {name: np.full(samples, np.nan) for name in figures}
    with _silence():
        for family in resampling.families(flat) if flat.units else []:
            wanted = [name for name in figures if name in family.figures]
            if wanted:
                most = max(_FEWEST_RESAMPLES, _RANKED // family.ranked) if family.ranked else samples
                blocks = [family.values(draw_SG) for draw_SG in resampling.draws(flat.units, min(samples, most), seed)]
                found |= {name: np.concatenate([b[name] for b in blocks]) for name in wanted}
    return found


def interval(values_S: np.ndarray, share: float = 0.95) -> tuple[float, float]:
    """The percentiles that leave (1 - share) / 2 of the defined values (S,) on either side; NaN where fewer than half
    are defined."""
    defined_S = values_S[np.isfinite(values_S)]
    if not len(defined_S) or len(defined_S) < len(values_S) / 2:
        return math.nan, math.nan
    low, high = np.quantile(defined_S, ((1 - share) / 2, (1 + share) / 2))
    return float(low), float(high)


def per_class(truth: np.ndarray, probabilities: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """For each class or label: name, support (its sequences or residues), precision, recall, f1 and auroc.

    Args:
        truth: (M,) class numbers, or (M, K) labels of 0, 1 and NaN; per-residue lists first pass `known_residues`.
        probabilities: (M, K).
        names: of the K classes.

    Returns:
        K rows. NaN where a figure is undefined: precision without an answer, recall without support.
    """
    from sklearn.metrics import precision_recall_fscore_support

    rows = []
    for k, (score_M, true_M, known_M) in enumerate(each_label(truth, probabilities)):
        answer_M = score_M >= 0.5 if truth.ndim == 2 else probabilities.argmax(1)[known_M] == k
        shown = [math.nan] * 3
        if len(true_M):
            with _silence():
                shown = precision_recall_fscore_support(true_M, answer_M, labels=[True], zero_division=np.nan)[:3]
        precision, recall, f1 = (float(np.squeeze(value)) for value in shown)
        row = {"name": names[k], "support": int(true_M.sum()), "precision": precision, "recall": recall, "f1": f1}
        rows.append(row | {"auroc": _areas(score_M, true_M)[0]})
    return rows


def confusion(truth: np.ndarray, probabilities: np.ndarray, K: int) -> np.ndarray:
    """(K, K) int64: row is the true class, column the most probable one, of (M,) truths and (M, K) probabilities."""
    cells = truth.astype(np.int64) * K + probabilities.argmax(1)
    return np.bincount(cells, minlength=K * K).reshape(K, K)


def _measure_classes(flat: Flat) -> Figures:
    from sklearn import metrics

    names: tuple[str, ...] = _CLASSES
    if flat.kind == "residue_classification":
        names = (*_CLASSES, *structure_figures(flat.names))
    if not flat.finite():
        return dict.fromkeys(names, math.nan)
    truth_M, answer_M = flat.truth, flat.predicted.argmax(1)
    figures = {
        "accuracy": metrics.accuracy_score(truth_M, answer_M),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth_M, answer_M),
        "macro_f1": metrics.f1_score(truth_M, answer_M, average="macro", zero_division=0),
        "weighted_f1": metrics.f1_score(truth_M, answer_M, average="weighted", zero_division=0),
        "mcc": metrics.matthews_corrcoef(truth_M, answer_M) if np.ptp(truth_M) else math.nan,
        "ece": ece(flat.predicted, truth_M),
        **{name: value_M.mean() for name, value_M in class_scores(flat).items()},
        **_mean_areas(flat),
    }
    return {name: float(figures[name]) for name in names}


def _measure_labels(flat: Flat) -> Figures:
    from sklearn.metrics import f1_score

    if not flat.finite():
        return dict.fromkeys(FIGURES["multilabel"], math.nan)
    labels = [(true_M, score_M >= 0.5) for score_M, true_M, _ in each_label(flat.truth, flat.predicted)]
    f1s = [f1_score(*label, zero_division=np.nan) if len(label[0]) else math.nan for label in labels]
    every_true, every_answer = (np.concatenate(parts) for parts in zip(*labels, strict=True))
    figures = {
        "macro_f1": np.nanmean(f1s),
        "micro_f1": f1_score(every_true, every_answer, zero_division=np.nan),
        "exact_match": exact_matches(flat)[0].mean(),
        "log_loss": label_losses(flat)[0].mean(),
        "ece": ece(flat.predicted, flat.truth),
        **_mean_areas(flat),
    }
    return {name: float(figures[name]) for name in FIGURES["multilabel"]}


def _measure_columns(flat: Flat) -> Figures:
    # A column counts in the mean where its truth allows the figure; what the model answers may not take it out.
    known, varied, single = [], [], []
    for truth_M, predicted_M, _ in columns(flat):
        known.append(len(truth_M) > 0)
        varied.append(len(truth_M) > 0 and np.ptp(truth_M) > 0)
        single.append(_measure_column(truth_M, predicted_M))
    figures: Figures = {}
    for name in _VALUES:
        scored = known if name in ("rmse", "mae") else varied
        values = [column[name] for column, counts in zip(single, scored, strict=True) if counts]
        figures[name] = float(np.mean(values)) if values else math.nan
    if len(single) > 1:
        for column, own in zip(flat.names, single, strict=True):
            figures |= {f"{name}/{column}": value for name, value in own.items()}
    if flat.kind == "residue_regression":
        rho_G, _ = rho_per_sequence(flat)
        figures["spearman_per_sequence"] = float(rho_G.mean()) if len(rho_G) else math.nan
    return figures


def _measure_column(truth_M: np.ndarray, predicted_M: np.ndarray) -> Figures:
    from scipy.stats import pearsonr, spearmanr
    from sklearn import metrics

    figures = dict.fromkeys(_VALUES, math.nan)
    if not len(truth_M) or not np.isfinite(predicted_M).all():
        return figures
    figures["rmse"] = math.sqrt(metrics.mean_squared_error(truth_M, predicted_M))
    figures["mae"] = float(metrics.mean_absolute_error(truth_M, predicted_M))
    if np.ptp(truth_M) > 0:
        figures["r2"] = float(metrics.r2_score(truth_M, predicted_M))
        if np.ptp(predicted_M) > 0:
            figures["pearson"] = float(pearsonr(truth_M, predicted_M).statistic)
            figures["spearman"] = float(spearmanr(truth_M, predicted_M).statistic)
    return figures


def _measure_groups(flat: Flat) -> Figures:
    groups = list(flat.by_group())
    areas = [_mean_areas(group) for group in groups]
    areas = [found for found in areas if math.isfinite(found["auroc"])]
    figures = {f"{name}_per_group": _mean([found[name] for found in areas]) for name in ("auroc", "auc01")}
    return figures | {"groups_left_out": float(len(groups) - len(areas))}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _mean_areas(flat: Flat) -> Figures:
    areas = [_areas(score_M, true_M) for score_M, true_M, _ in ranked_labels(flat)]
    defined = [found for found in areas if math.isfinite(found[0])]
    return {name: _mean([found[place] for found in defined]) for place, name in enumerate(("auroc", "auprc", "auc01"))}


def _areas(score_M: np.ndarray, true_M: np.ndarray) -> tuple[float, float, float]:
    """AUROC, average precision, AUC0.1 of scores (M,) for outcomes (M,) bool; NaN where there is one outcome only."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    if true_M.all() or not true_M.any() or not np.isfinite(score_M).all():
        return math.nan, math.nan, math.nan
    early = roc_auc_score(true_M, score_M, max_fpr=resampling.EARLY)
    return float(roc_auc_score(true_M, score_M)), float(average_precision_score(true_M, score_M)), float(early)


@contextmanager
def _silence() -> Iterator[None]:
    """Libraries warn of what is undefined; here it is NaN, which says it."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
