"""Figures of how well binding is predicted: affinities and classes of pairs, over all and as means over targets.

    value, predicted, target ─▶ known exact ones ─┬─▶ over all pairs ───────────────┬─▶ Figures, with intervals
    label, score, target ─────▶ known ones ───────┴─▶ within each target ─▶ mean ───┘   (whole targets are drawn)

A figure over all pairs rewards knowing which targets bind most things, and which molecules bind everywhere. What a
chemist asks, which of these molecules binds this target better, is the mean over targets; a model can be good at the
first and of no use for the second.

A figure that is undefined is NaN: of constant truths, of one outcome only, of predictions that are not finite. Within a
target, a constant prediction ranks nothing: correlations count as 0 and not as undefined, which would reward it.

Shapes: N pairs, T targets, G targets that count, S resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from biometro.evaluation import resampling
from biometro.evaluation.metrics import interval

AFFINITY = ("pearson", "spearman", "ci", "rmse", "mse")
CLASSES = ("auroc", "auprc", "bedroc", "ef0.5", "ef1", "ef5")
ALPHA = 20.0
"""Of BEDROC: the first 8 % of the list make 80 % of the score (Truchon & Bayly 2007, doi:10.1021/ci600426e)."""
FRACTIONS = {"ef0.5": 0.005, "ef1": 0.01, "ef5": 0.05}
LEAST_PAIRS = 10
"""Pairs that a target needs to count in means over targets."""
_RANKED = 20_000_000  # scores ranked over all resamples together; beyond, they take fewer
_FEWEST = 100

Figure = Callable[[np.ndarray, np.ndarray], float]  # truth (N,), predicted (N,) -> value


@dataclass(frozen=True)
class Figures:
    """Figures of one set of predictions.

    Fields:
        values: by name; "NAME_per_target" is the mean over the targets that count.
        intervals: (low, high) of each, 95 % of the resamples; empty where none were asked for.
        pairs: that were scored. left_out: known ones that were not, since they are bounds.
        targets: of the scored pairs. counted: how many of them each mean per target is over.
        rate: share of binding pairs, what auprc is by chance; NaN of affinities.
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    pairs: int
    left_out: int
    targets: int
    counted: dict[str, int]
    rate: float = math.nan


def affinity_figures(
    value: np.ndarray, predicted: np.ndarray, target: np.ndarray, censored: np.ndarray | None = None, *,
    least: int = LEAST_PAIRS, samples: int = 0, seed: int = 0,
) -> Figures:  # fmt: skip
    """Pearson's and Spearman's correlation, concordance index, RMSE and MSE.

    Args:
        value: (N,) NaN where unknown.
        predicted: (N,) on the same scale; only rmse and mse mind the scale.
        target: (N,) int64.
        censored: (N,) not 0 where a value is a bound: such pairs are left out, counted.
        least: pairs that a target needs to count.
        samples: bootstrap resamples of whole targets; figures of ranks of many pairs take fewer, at least 100. 0: no
            intervals.
        seed: same seed, same resamples, so that differences of two models can be taken one by one (`replicates`).

    Raises ValueError where lengths differ.
    """
    known = np.isfinite(np.asarray(value, np.float64))
    exact = known if censored is None else known & (np.asarray(censored) == 0)
    return _figures(_AFFINITY, value, predicted, target, exact, int((known & ~exact).sum()), least, samples, seed)


def class_figures(
    label: np.ndarray, score: np.ndarray, target: np.ndarray, *, least: int = LEAST_PAIRS, samples: int = 0,
    seed: int = 0,
) -> Figures:  # fmt: skip
    """AUROC, AUPRC (average precision), BEDROC (alpha 20) and enrichment in the first 0.5, 1 and 5 %.

    Args:
        label: (N,) 1 binds, 0 does not, -1 unknown.
        score: (N,) more binds better.
        target, least, samples, seed: as for `affinity_figures`. A target counts where both outcomes are known.

    Raises ValueError where lengths differ.
    """
    label = np.asarray(label)
    found = _figures(_CLASSES, label, score, target, label >= 0, 0, least, samples, seed)
    rate = float(label[label >= 0].mean()) if (label >= 0).any() else math.nan
    return Figures(found.values, found.intervals, found.pairs, found.left_out, found.targets, found.counted, rate=rate)


def replicates(
    kind: str, truth: np.ndarray, predicted: np.ndarray, target: np.ndarray, names: Sequence[str], *,
    least: int = LEAST_PAIRS, samples: int = 1000, seed: int = 0,
) -> dict[str, np.ndarray]:  # fmt: skip
    """(S,) of each figure over resamples of targets; of two predictions of one truth, S and the draws are the same.

    Args:
        kind: affinity or classes.
        truth: values, NaN unknown (of bounds too, where they are not to count); or labels, -1 unknown.
        names: of figures, "NAME_per_target" among them.
        predicted, target, least, samples, seed: as above.
    """
    singles = _AFFINITY if kind == "affinity" else _CLASSES
    truth = np.asarray(truth)
    known = np.isfinite(truth) if kind == "affinity" else truth >= 0
    return _replicates(
        singles, truth[known], np.asarray(predicted)[known], np.asarray(target)[known], names, least, samples, seed
    )


def _figures(
    singles: Mapping[str, Figure], truth: np.ndarray, predicted: np.ndarray, target: np.ndarray, chosen: np.ndarray,
    left_out: int, least: int, samples: int, seed: int,
) -> Figures:  # fmt: skip
    if not len(truth) == len(predicted) == len(target):
        raise ValueError(f"{len(truth)} truths, {len(predicted)} predictions and {len(target)} targets")
    truth_N = np.asarray(truth, np.float64)[chosen]
    predicted_N = np.asarray(predicted, np.float64)[chosen]
    target_N = np.asarray(target)[chosen]
    values = {name: single(truth_N, predicted_N) for name, single in singles.items()}
    tables = _per_target(singles, truth_N, predicted_N, target_N, least)
    counted = {}
    for name, values_T in tables.items():
        defined = np.isfinite(values_T)
        counted[name] = int(defined.sum())
        values[f"{name}_per_target"] = float(values_T[defined].mean()) if defined.any() else math.nan
    intervals = {}
    if samples:
        found = _replicates(singles, truth_N, predicted_N, target_N, list(values), least, samples, seed)
        intervals = {name: interval(values_S) for name, values_S in found.items()}
    return Figures(values, intervals, len(truth_N), left_out, len(np.unique(target_N)), counted)


def _rows_of(target_N: np.ndarray) -> list[np.ndarray]:
    """The pairs of each target, targets by rising number."""
    order = np.argsort(target_N, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(target_N[order])) + 1) if len(order) else []


def _per_target(
    singles: Mapping[str, Figure], truth_N: np.ndarray, predicted_N: np.ndarray, target_N: np.ndarray, least: int
) -> dict[str, np.ndarray]:
    """(T,) of each figure, NaN for targets that do not count."""
    rows = _rows_of(target_N)
    found = {name: np.full(len(rows), np.nan) for name in singles}
    for place, own in enumerate(rows):
        if len(own) < least:
            continue
        truth, predicted = truth_N[own], predicted_N[own]
        constant = np.isfinite(predicted).all() and np.ptp(predicted) == 0 and np.ptp(truth) > 0
        for name, single in singles.items():
            found[name][place] = 0.0 if constant and name in ("pearson", "spearman") else single(truth, predicted)
    return found


def _replicates(
    singles: Mapping[str, Figure], truth_N: np.ndarray, predicted_N: np.ndarray, target_N: np.ndarray,
    names: Sequence[str], least: int, samples: int, seed: int,
) -> dict[str, np.ndarray]:  # fmt: skip
    units, unit_N = np.unique(target_N, return_inverse=True)
    if not len(units):
        return {name: np.full(samples, np.nan) for name in names}
    families, direct = [], []
    for name in names:
        if name.endswith("_per_target"):
            continue
        family = _FAMILIES.get(name)
        if family is None:
            direct.append(name)
        else:
            families.append((name, family(truth_N, predicted_N, unit_N, len(units))))
    wanted = {name.removesuffix("_per_target") for name in names if name.endswith("_per_target")}
    tables = _per_target({k: v for k, v in singles.items() if k in wanted}, truth_N, predicted_N, target_N, least)
    finite = bool(np.isfinite(predicted_N).all())
    fewer = min(samples, max(_FEWEST, _RANKED // max(len(truth_N), 1)))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    done = 0
    for weights_SG in resampling.draws(len(units), samples, seed):
        for name, values_T in tables.items():
            defined = np.isfinite(values_T)
            total_S = weights_SG[:, defined] @ values_T[defined]
            count_S = weights_SG[:, defined].sum(1)
            parts[f"{name}_per_target"].append(
                np.divide(total_S, count_S, out=np.full(len(total_S), np.nan), where=count_S > 0)
            )
        some_SG = weights_SG[: max(fewer - done, 0)]
        for name, make in families:
            values_S = make(some_SG if name in _OF_RANKS else weights_SG)
            parts[name].append(values_S if finite else np.full(len(values_S), np.nan))
        for name in direct:  # a resample is made: each pair as often as its target was drawn
            parts[name].append(np.array([_drawn(singles[name], truth_N, predicted_N, w_G[unit_N]) for w_G in some_SG]))
        done += len(weights_SG)
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}


def _drawn(single: Figure, truth_N: np.ndarray, predicted_N: np.ndarray, times_N: np.ndarray) -> float:
    row = np.repeat(np.arange(len(truth_N)), times_N.astype(np.int64))
    return single(truth_N[row], predicted_N[row])


_Make = Callable[[np.ndarray, np.ndarray, np.ndarray, int], Callable[[np.ndarray], np.ndarray]]


def _moment(name: str) -> _Make:
    def make(t_N: np.ndarray, p_N: np.ndarray, unit_N: np.ndarray, units: int) -> Callable[[np.ndarray], np.ndarray]:
        family = resampling.moments(t_N, p_N, unit_N, units)
        return lambda w_SG: family.values(w_SG)["rmse" if name == "mse" else name] ** (2 if name == "mse" else 1)

    return make


def _area(name: str) -> _Make:
    def make(t_N: np.ndarray, p_N: np.ndarray, unit_N: np.ndarray, units: int) -> Callable[[np.ndarray], np.ndarray]:
        family = resampling.ranking([(p_N, t_N > 0.5, unit_N)])
        return lambda w_SG: family.values(w_SG)[name]

    return make


def _ranks(t_N: np.ndarray, p_N: np.ndarray, unit_N: np.ndarray, units: int) -> Callable[[np.ndarray], np.ndarray]:
    family = resampling.rank_correlation(t_N, p_N, unit_N, units)
    return lambda w_SG: family.values(w_SG)["spearman"]


_FAMILIES: dict[str, _Make] = {
    **{name: _moment(name) for name in ("pearson", "rmse", "mse")}, "spearman": _ranks,
    **{name: _area(name) for name in ("auroc", "auprc")},
}  # fmt: skip
_OF_RANKS = ("spearman", "auroc", "auprc")


# Single figures ------------------------------------------------------------------------------------------------------


def concordance(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The share of pairs of different truth that are predicted in their order, half of those predicted alike.

    As lifelines and DeepDTA (Öztürk et al. 2018, doi:10.1093/bioinformatics/bty593) have it, exact: it is (1 + D) / 2
    of Somers' D, and its numerator is Kendall's, which is counted in N log N steps. NaN where all truths are equal.
    """
    from scipy.stats import kendalltau

    if len(truth) < 2 or not (np.isfinite(truth).all() and np.isfinite(predicted).all()):
        return math.nan
    every = len(truth) * (len(truth) - 1) // 2
    alike_t, alike_p = (_pairs_alike(values) for values in (truth, predicted))
    if every == alike_t:
        return math.nan
    if every == alike_p:
        return 0.5
    tau = float(kendalltau(truth, predicted).statistic)
    surplus = round(tau * math.sqrt(every - alike_t) * math.sqrt(every - alike_p))  # concordant less discordant
    return (1 + surplus / (every - alike_t)) / 2


def _pairs_alike(values: np.ndarray) -> int:
    counts = np.unique(values, return_counts=True)[1].astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


def _correlation(name: str) -> Figure:
    def single(truth: np.ndarray, predicted: np.ndarray) -> float:
        from scipy.stats import rankdata

        if len(truth) < 2 or not (np.isfinite(truth).all() and np.isfinite(predicted).all()):
            return math.nan
        x, y = (rankdata(truth), rankdata(predicted)) if name == "spearman" else (truth, predicted)
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            return math.nan
        return float(np.corrcoef(x, y)[0, 1])

    return single


def _squared(truth: np.ndarray, predicted: np.ndarray) -> float:
    return float(((truth - predicted) ** 2).mean()) if len(truth) else math.nan


def _levels(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Of each level of score, highest first, how many pairs have it and how many of these bind; None where figures of a
    ranking are undefined."""
    if not len(label) or not np.isfinite(score).all() or label.min() == label.max():
        return None
    _, level, count = np.unique(-score, return_inverse=True, return_counts=True)
    return count, np.bincount(level, weights=label, minlength=len(count))


def bedroc(label: np.ndarray, score: np.ndarray, alpha: float = ALPHA) -> float:
    """Boltzmann-enhanced discrimination of ROC, 0 to 1; pairs of one score stand for the mean of all their orders.

    Truchon & Bayly 2007, doi:10.1021/ci600426e, as RDKit has it. NaN with one outcome.
    """
    levels = _levels(label, score)
    if levels is None:
        return math.nan
    count, binding = levels
    total, actives = int(count.sum()), float(binding.sum())
    weight = np.exp(-alpha * np.arange(1, total + 1) / total)
    mean = np.add.reduceat(weight, np.append(0, np.cumsum(count)[:-1])) / count
    rate = actives / total
    rie = (binding @ mean) / actives / ((1 - math.exp(-alpha)) / (math.exp(alpha / total) - 1) / total)
    least = (1 - math.exp(alpha * rate)) / (rate * (1 - math.exp(alpha)))
    most = (1 - math.exp(-alpha * rate)) / (rate * (1 - math.exp(-alpha)))
    return float((rie - least) / (most - least))


def enrichment(label: np.ndarray, score: np.ndarray, fraction: float) -> float:
    """How many times more of the first `fraction` of pairs (rounded up) bind than of all; 1 is chance.

    Of pairs of one score at the border, the share that their random order would bring. NaN with one outcome.
    """
    levels = _levels(label, score)
    if levels is None:
        return math.nan
    count, binding = levels
    total = int(count.sum())
    first = math.ceil(total * fraction)
    taken = np.clip(first - np.append(0, np.cumsum(count)[:-1]), 0, count)
    return float((binding * taken / count).sum() * total / (first * binding.sum()))


def _sklearn(name: str) -> Figure:
    def single(label: np.ndarray, score: np.ndarray) -> float:
        from sklearn import metrics

        if _levels(label, score) is None:
            return math.nan
        return float(
            (metrics.roc_auc_score if name == "auroc" else metrics.average_precision_score)(label > 0.5, score)
        )

    return single


def _enriched(fraction: float) -> Figure:
    return lambda label, score: enrichment(label, score, fraction)


_AFFINITY: dict[str, Figure] = {
    "pearson": _correlation("pearson"), "spearman": _correlation("spearman"), "ci": concordance,
    "rmse": lambda truth, predicted: math.sqrt(_squared(truth, predicted)), "mse": _squared,
}  # fmt: skip
_CLASSES: dict[str, Figure] = {
    "auroc": _sklearn("auroc"), "auprc": _sklearn("auprc"), "bedroc": bedroc,
    **{name: _enriched(fraction) for name, fraction in FRACTIONS.items()},
}  # fmt: skip
