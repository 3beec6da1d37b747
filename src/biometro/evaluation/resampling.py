"""Figures of many bootstrap resamples at once, without making one.

A resample is a row of weights: how often each unit (a sequence, or a family of them) was drawn. Figures made of sums
are products of the weights with a table of sums for each unit; figures made of ranks need the scores sorted once, since
weights change how many lie above a score and not their order.

truth, predictions ─▶ Family (tables or orders, prepared once) ┐
units ─▶ weights (S, G) ───────────────────────────────────────┴─▶ values (S,) of each figure

An undefined figure is NaN in that resample, by the rules of `metrics.measure`, and each formula here is tested against
`measure` of the resample itself.

Shapes: S resamples, G units, N sequences or residues, K classes, labels or columns, C columns of a table, P positives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from biometro.evaluation.calibration import BINS, bin_of, outcomes
from biometro.evaluation.flat import (
    Flat,
    class_scores,
    columns,
    exact_matches,
    label_losses,
    ranked_labels,
    rho_per_sequence,
)

Values = dict[str, np.ndarray]  # figure -> (S,) float64
Label = tuple[np.ndarray, np.ndarray, np.ndarray]  # scores (N,), outcomes (N,) bool and units (N,)
EARLY = 0.1
"""The false-positive rate up to which AUC0.1 looks."""
_BLOCK = 20_000_000  # weights held at once


@dataclass(frozen=True)
class Family:
    """Figures that share their work: `values` maps weights (S, G) to them; `ranked` scores are passed per resample."""

    figures: tuple[str, ...]
    values: Callable[[np.ndarray], Values]
    ranked: int = 0


def draws(units: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks (S, G) float64 of `samples` rows of weights in all; each row adds up to `units`."""
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // units)
    for start in range(0, samples, rows):
        drawn = (generator.integers(units, size=units) for _ in range(min(rows, samples - start)))
        yield np.stack([np.bincount(row, minlength=units) for row in drawn]).astype(np.float64)


def families(flat: Flat) -> list[Family]:
    """All figures that `metrics.measure` gives of a task; none of classes or labels that cannot be scored."""
    if not flat.classes and flat.kind != "multilabel":
        return _column_families(flat)
    if not flat.finite():
        return []
    unit_M, units = flat.unit_M, flat.units
    confidence_M, true_M = outcomes(flat.predicted, flat.truth)
    shared = ranked(flat)
    if flat.classes:
        return [
            confusions(flat.truth, flat.predicted.argmax(1), unit_M, units, len(flat.names)),
            means({name: (value_M, unit_M) for name, value_M in class_scores(flat).items()}, units),
            calibration_error(confidence_M, true_M, unit_M, units),
            *shared,
        ]
    rows = {"log_loss": label_losses(flat), "exact_match": exact_matches(flat)}
    return [
        label_confusions(flat.truth, flat.predicted >= 0.5, unit_M, units),
        means({name: (value_M, unit_M[row_M]) for name, (value_M, row_M) in rows.items()}, units),
        calibration_error(confidence_M, true_M, unit_M[np.nonzero(np.isfinite(flat.truth))[0]], units),
        *shared,
    ]


def ranked(flat: Flat) -> list[Family]:
    """Figures of rankings, of all rows and within groups."""
    found = [ranking(_labels(flat)), early_ranking(_labels(flat))]
    if flat.groups is not None:
        parts = [_labels(part) for part in flat.by_group()]
        found += [_over_groups(ranking, parts, "auroc"), _over_groups(early_ranking, parts, "auc01")]
    return found


def _labels(flat: Flat) -> list[Label]:
    return [(score_M, true_M, flat.unit_M[row_M]) for score_M, true_M, row_M in ranked_labels(flat)]


def _over_groups(make: Callable[[list[Label]], Family], parts: list[list[Label]], figure: str) -> Family:
    """The mean of a figure over the groups that have both outcomes in the resample."""
    own = [make(labels) for labels in parts]

    def values(weights_SG: np.ndarray) -> Values:
        none = np.empty((len(weights_SG), 0))
        values_SK = np.stack([family.values(weights_SG)[figure] for family in own], 1) if own else none
        return {f"{figure}_per_group": _mean_of_defined(values_SK)}

    return Family((f"{figure}_per_group",), values, ranked=sum(family.ranked for family in own))


def _column_families(flat: Flat) -> list[Family]:
    known = [(truth_M, predicted_M, flat.unit_M[row_M]) for truth_M, predicted_M, row_M in columns(flat)]
    found = [
        _over_columns([moments(*column, flat.units) for column in known], flat.names),
        _over_columns([rank_correlation(*column, flat.units) for column in known], flat.names),
    ]
    if flat.kind == "residue_regression":
        found.append(means({"spearman_per_sequence": rho_per_sequence(flat)}, flat.units))
    return found


def _over_columns(single: list[Family], names: tuple[str, ...]) -> Family:
    """Figures of columns as means over those whose truth allows them, and each by itself where there are several."""
    shared = single[0].figures
    own = [f"{figure}/{name}" for name in names for figure in shared] if len(names) > 1 else []

    def values(weights_SG: np.ndarray) -> Values:
        columns = [family.values(weights_SG) for family in single]
        found = {}
        for figure in shared:
            scored = "known" if figure in ("rmse", "mae") else "varied"
            values_SK, scored_SK = (np.stack([column[key] for column in columns], 1) for key in (figure, scored))
            found[figure] = _ratio(np.where(scored_SK, values_SK, 0).sum(1), scored_SK.sum(1))
            found |= {f"{figure}/{name}": values_SK[:, k] for k, name in enumerate(names)}
        return found

    return Family((*shared, *own), values, sum(family.ranked for family in single))


def means(named: Mapping[str, tuple[np.ndarray, np.ndarray]], units: int) -> Family:
    """Means of values (N,) that belong to units (N,), each figure with its own."""
    tables = {
        name: (_table(unit_N, None, value_N, units, 1), _table(unit_N, None, None, units, 1))
        for name, (value_N, unit_N) in named.items()
    }

    def values(weights_SG: np.ndarray) -> Values:
        return {name: _ratio(total(weights_SG), count(weights_SG))[:, 0] for name, (total, count) in tables.items()}

    return Family(tuple(named), values)


def confusions(truth_N: np.ndarray, answer_N: np.ndarray, unit_N: np.ndarray, units: int, K: int) -> Family:
    """What needs of a confusion matrix only the diagonal and the margins."""
    truth = _table(unit_N, truth_N, None, units, K)
    answer = _table(unit_N, answer_N, None, units, K)
    right_N = truth_N == answer_N
    hits = _table(unit_N[right_N], truth_N[right_N], None, units, K)

    def values(weights_SG: np.ndarray) -> Values:
        truth_SK, answer_SK, hits_SK = truth(weights_SG), answer(weights_SG), hits(weights_SG)
        total_S, right_S = truth_SK.sum(1), hits_SK.sum(1)
        f1_SK = _ratio(2 * hits_SK, truth_SK + answer_SK)
        # Gorodkin 2004, Computational Biology and Chemistry 28, 367: the correlation of K classes.
        covariance_S = right_S * total_S - (truth_SK * answer_SK).sum(1)
        spread_S = total_S**2 - (truth_SK**2).sum(1)
        guess_S = total_S**2 - (answer_SK**2).sum(1)
        mcc_S = _ratio(covariance_S, np.sqrt(spread_S * guess_S))
        mcc_S[(guess_S <= 0) & (spread_S > 0)] = 0.0
        return {
            "accuracy": _ratio(right_S, total_S),
            "balanced_accuracy": _mean_of_defined(_ratio(hits_SK, truth_SK)),
            "macro_f1": _mean_of_defined(f1_SK),
            "weighted_f1": _ratio((truth_SK * np.nan_to_num(f1_SK)).sum(1), total_S),
            "mcc": mcc_S,
        }

    return Family(("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "mcc"), values)


def label_confusions(truth_NK: np.ndarray, answer_NK: np.ndarray, unit_N: np.ndarray, units: int) -> Family:
    """F1 of labels (N, K) of 0, 1 or NaN for unknown, and answers (N, K) bool."""
    known_NK = np.isfinite(truth_NK)
    truth_NK = np.where(known_NK, truth_NK, 0) > 0.5
    tables = []
    for chosen_NK in (truth_NK, answer_NK & known_NK, truth_NK & answer_NK):
        row_M, label_M = np.nonzero(chosen_NK)
        tables.append(_table(unit_N[row_M], label_M, None, units, truth_NK.shape[1]))

    def values(weights_SG: np.ndarray) -> Values:
        truth_SK, answer_SK, hits_SK = (table(weights_SG) for table in tables)
        return {
            "macro_f1": _mean_of_defined(_ratio(2 * hits_SK, truth_SK + answer_SK)),
            "micro_f1": _ratio(2 * hits_SK.sum(1), truth_SK.sum(1) + answer_SK.sum(1)),
        }

    return Family(("macro_f1", "micro_f1"), values)


def calibration_error(confidence_M: np.ndarray, true_M: np.ndarray, unit_M: np.ndarray, units: int) -> Family:
    """`calibration.ece` of claims (M,) and what came true (M,)."""
    # A bin's count times |mean confidence - accuracy| is |sum of confidence - number that came true|.
    gap = _table(unit_M, bin_of(confidence_M, BINS), confidence_M - true_M, units, BINS)
    count = _table(unit_M, None, None, units, 1)

    def values(weights_SG: np.ndarray) -> Values:
        return {"ece": _ratio(np.abs(gap(weights_SG)).sum(1), count(weights_SG)[:, 0])}

    return Family(("ece",), values)


def moments(truth_N: np.ndarray, predicted_N: np.ndarray, unit_N: np.ndarray, units: int) -> Family:
    """Pearson's correlation, RMSE, MAE and R² of one column of known values; and whether the truth is known, varies."""
    # Sums of squares keep their digits when the values lie about zero.
    x_N, y_N = (values - (values.mean() if len(values) else 0) for values in (truth_N, predicted_N))
    error_N = truth_N - predicted_N
    columns = (np.ones(len(x_N)), x_N, y_N, x_N**2, y_N**2, x_N * y_N, error_N**2, np.abs(error_N))
    tables = [_table(unit_N, None, column_N, units, 1) for column_N in columns]

    def values(weights_SG: np.ndarray) -> Values:
        n_S, x_S, y_S, xx_S, yy_S, xy_S, squared_S, absolute_S = (table(weights_SG)[:, 0] for table in tables)
        x_spread_S = _variation(xx_S, x_S, n_S)
        y_spread_S = _variation(yy_S, y_S, n_S)
        return {
            "pearson": _ratio(xy_S - _ratio(x_S * y_S, n_S), np.sqrt(x_spread_S * y_spread_S)),
            "rmse": np.sqrt(_ratio(squared_S, n_S)),
            "mae": _ratio(absolute_S, n_S),
            "r2": 1 - _ratio(squared_S, x_spread_S),
            "known": n_S > 0,
            "varied": x_spread_S > 0,
        }

    return Family(("pearson", "rmse", "mae", "r2"), values)


def rank_correlation(truth_N: np.ndarray, predicted_N: np.ndarray, unit_N: np.ndarray, units: int) -> Family:
    """Spearman's correlation of one column of known values (Pearson's of mid-ranks); and whether the truth varies."""
    finite = bool(np.isfinite(predicted_N).all())
    orders = []
    for values_N in (truth_N, predicted_N):
        order_N, start_N, end_N = _sort(values_N)
        place_N = np.argsort(order_N, kind="stable")
        orders.append((unit_N[order_N], start_N[place_N], end_N[place_N]))

    def one(weights_G: np.ndarray) -> tuple[float, bool]:
        weights_N = weights_G[unit_N]
        ranks = []
        for ordered_N, start_N, end_N in orders:
            below_N = _cumulative(weights_G[ordered_N])
            ranks.append((below_N[start_N] + below_N[end_N] - below_N[-1]) / 2)  # about its mean, which is zero
        x_N, y_N = ranks
        x_spread, y_spread = weights_N @ x_N**2, weights_N @ y_N**2
        defined = finite and x_spread > 0 and y_spread > 0
        return (weights_N @ (x_N * y_N)) / np.sqrt(x_spread * y_spread) if defined else np.nan, x_spread > 0

    def values(weights_SG: np.ndarray) -> Values:
        rho_S, varied_S = np.array([one(weights_G) for weights_G in weights_SG]).T
        return {"spearman": rho_S, "varied": varied_S > 0}

    return Family(("spearman",), values, ranked=2 * len(truth_N))


def ranking(scores: list[Label]) -> Family:
    """AUROC and AUPRC (average precision), mean over the labels where both outcomes are in the resample.

    Args:
        scores: for each label its known scores (N,), outcomes (N,) bool and units (N,).
    """
    orders = [_Ranking.of(*label) for label in scores]

    def values(weights_SG: np.ndarray) -> Values:
        areas_S2K = np.array([[order.areas(weights_G) for order in orders] for weights_G in weights_SG])
        areas_SK2 = areas_S2K.reshape(len(weights_SG), len(orders), 2)
        return {
            "auroc": _mean_of_defined(areas_SK2[:, :, 0]),
            "auprc": _mean_of_defined(areas_SK2[:, :, 1]),
        }

    return Family(("auroc", "auprc"), values, ranked=sum(len(score_N) for score_N, _, _ in scores))


def early_ranking(scores: list[Label]) -> Family:
    """AUC0.1, mean as in `ranking`; apart from it, since it costs more."""
    orders = [_Early.of(*label) for label in scores]

    def values(weights_SG: np.ndarray) -> Values:
        areas_SK = np.array([[order.area(weights_G) for order in orders] for weights_G in weights_SG])
        return {"auc01": _mean_of_defined(areas_SK.reshape(len(weights_SG), len(orders)))}

    return Family(("auc01",), values, ranked=sum(len(score_N) for score_N, _, _ in scores))


@dataclass(frozen=True)
class _Early:
    """One label's scores, highest first: units and outcomes (N,), and the last place of each level of score."""

    units_N: np.ndarray
    true_N: np.ndarray
    last_L: np.ndarray

    @staticmethod
    def of(score_N: np.ndarray, true_N: np.ndarray, unit_N: np.ndarray) -> _Early:
        order_N, _, end_N = _sort(-score_N)
        return _Early(unit_N[order_N], true_N[order_N].astype(np.float64), np.unique(end_N))

    def area(self, weights_G: np.ndarray) -> float:
        """Under the curve of true against false positives up to `EARLY`, 0.5 for chance and 1 for the most there is."""
        weights_N = weights_G[self.units_N]
        true_L = np.append(0, _cumulative(weights_N * self.true_N)[self.last_L])
        false_L = np.append(0, _cumulative(weights_N)[self.last_L]) - true_L
        if not (true_L[-1] > 0 and false_L[-1] > 0):
            return np.nan
        y_L, x_L = true_L / true_L[-1], false_L / false_L[-1]
        inside = np.searchsorted(x_L, EARLY, side="right")  # the first level beyond
        share = (EARLY - x_L[inside - 1]) / (x_L[inside] - x_L[inside - 1])
        y_L = np.append(y_L[:inside], y_L[inside - 1] + share * (y_L[inside] - y_L[inside - 1]))
        area = np.diff(np.append(x_L[:inside], EARLY)) @ (y_L[1:] + y_L[:-1]) / 2
        least = EARLY**2 / 2
        return float((1 + (area - least) / (EARLY - least)) / 2)


@dataclass(frozen=True)
class _Ranking:
    """One label's scores, highest first: units (N,), and for each positive (P,) its unit and its place.

    `start_P` scores lie strictly above a positive, `end_P` above or level, of which `level_P` are positive.
    """

    units_N: np.ndarray
    units_P: np.ndarray
    start_P: np.ndarray
    end_P: np.ndarray
    level_P: np.ndarray

    @staticmethod
    def of(score_N: np.ndarray, true_N: np.ndarray, unit_N: np.ndarray) -> _Ranking:
        order_N, start_N, end_N = _sort(-score_N)
        places_P = np.flatnonzero(true_N[order_N])
        end_P = end_N[places_P]
        units_N = unit_N[order_N]
        return _Ranking(units_N, units_N[places_P], start_N[places_P], end_P, np.searchsorted(places_P, end_P))

    def areas(self, weights_G: np.ndarray) -> tuple[float, float]:
        weights_P = weights_G[self.units_P]
        above_N = _cumulative(weights_G[self.units_N])
        positives, total = weights_P.sum(), above_N[-1]
        if positives == 0 or positives == total:
            return np.nan, np.nan
        end_P = above_N[self.end_P]
        # Weight below each positive, half of what is level with it; pairs of two positives make half their square.
        below = weights_P @ (total - (above_N[self.start_P] + end_P) / 2) - positives**2 / 2
        precision_P = _cumulative(weights_P)[self.level_P] / np.maximum(end_P, 1)
        return below / (positives * (total - positives)), weights_P @ precision_P / positives


def _sort(values_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The order (N,) of rising values; at each place the number of smaller ones (N,) and of those not larger (N,)."""
    order_N = np.argsort(values_N, kind="stable")
    sorted_N = values_N[order_N]
    return order_N, np.searchsorted(sorted_N, sorted_N, "left"), np.searchsorted(sorted_N, sorted_N, "right")


def _cumulative(weights_N: np.ndarray) -> np.ndarray:
    """(N + 1,): the sum of the first i weights at i."""
    sums = np.empty(len(weights_N) + 1)
    sums[0] = 0
    np.cumsum(weights_N, out=sums[1:])
    return sums


def _table(
    unit_N: np.ndarray, column_N: np.ndarray | None, value_N: np.ndarray | None, units: int, columns: int
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from weights (S, G) to weighted sums (S, C) of values (or 1) that stand in columns (or column 0)."""
    from scipy.sparse import coo_array

    value_N = np.ones(len(unit_N)) if value_N is None else value_N.astype(np.float64)
    column_N = np.zeros(len(unit_N), np.int64) if column_N is None else column_N
    table_CG = coo_array((value_N, (column_N, unit_N)), shape=(columns, units)).tocsr()
    return lambda weights_SG: np.asarray((table_CG @ weights_SG.T).T)


def _variation(squares_S: np.ndarray, sum_S: np.ndarray, n_S: np.ndarray) -> np.ndarray:
    """Sums of squares about the mean; NaN where that is nothing but rounding, as for a constant."""
    spread_S = squares_S - _ratio(sum_S**2, n_S)
    return np.where(spread_S > 1e-12 * squares_S, spread_S, np.nan)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is zero."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


def _mean_of_defined(values_SK: np.ndarray) -> np.ndarray:
    """(S,) means over K without NaN; NaN where nothing is left."""
    defined_SK = np.isfinite(values_SK)
    return _ratio(np.where(defined_SK, values_SK, 0).sum(1), defined_SK.sum(1))
