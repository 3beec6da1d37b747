"""Whether one method is better than another on the same test set, and who stands where over several tasks.

    replicates of two methods, draw by draw ─▶ Difference: mean, interval, p ─▶ Holm over all pairs of a task
    pairs of every task ─▶ Standing: mean rank, wins, losses

Both methods saw the same resamples, so what makes a test set easy for both drops out of their difference, which is
known better than either figure. Shapes: S resamples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from biometro.evaluation.metrics import interval

LEVEL = 0.05
"""Corrected p below which two methods count as different."""


@dataclass(frozen=True)
class Difference:
    """Of method `a` minus method `b`, in the task's metric. NaN where fewer than half of the resamples define it.

    Fields:
        mean, low, high: of the replicates of the difference; the interval holds 95 % of them.
        p: two-sided, of the null hypothesis that the difference is zero.
        holm: p corrected for all pairs of the task.
        resamples: in which both are defined.
    """

    a: str
    b: str
    mean: float
    low: float
    high: float
    p: float
    holm: float
    resamples: int

    @property
    def clear(self) -> bool:
        return self.holm < LEVEL


def p_value(difference_S: np.ndarray) -> float:
    """Two-sided bootstrap p of a difference from its replicates (S,).

    Twice the smaller share of replicates on either side of zero, those at zero on both, with one added to count and
    total, so that no number of resamples makes it 0 (Davison and Hinkley 1997, Bootstrap Methods and their Application,
    section 4.2). NaN without replicates.
    """
    if not len(difference_S):
        return math.nan
    below, above = int((difference_S <= 0).sum()), int((difference_S >= 0).sum())
    return min(1.0, 2 * (1 + min(below, above)) / (1 + len(difference_S)))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979, Scandinavian Journal of Statistics 6, 65): each p times the number of those
    not smaller, rising and at most 1. A NaN is no test: it stays NaN and does not count."""
    known = sorted((value, place) for place, value in enumerate(p) if not math.isnan(value))
    corrected, highest = [math.nan] * len(p), 0.0
    for rank, (value, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * value))
        corrected[place] = highest
    return corrected


def pairs(replicates: Mapping[str, np.ndarray]) -> list[Difference]:
    """All pairs of methods of one task, in their order, from each one's replicates (S,).

    Where one has fewer, these are the first draws of the other (`resampling.draws`), and the rest is left out.
    """
    found = []
    for a, b in itertools.combinations(replicates, 2):
        both = min(len(replicates[a]), len(replicates[b]))
        difference_S = replicates[a][:both] - replicates[b][:both]
        low, high = interval(difference_S)
        defined_S = difference_S[np.isfinite(difference_S)]
        known = math.isfinite(low)
        mean = float(defined_S.mean()) if known else math.nan
        found.append((a, b, mean, low, high, p_value(defined_S) if known else math.nan, len(defined_S)))
    corrected = holm([row[5] for row in found])
    return [Difference(*row[:6], each, row[6]) for row, each in zip(found, corrected, strict=True)]


def least_p(tests: int, resamples: int) -> float:
    """The smallest corrected p that so many pairs and resamples can give."""
    return min(1.0, tests * 2 / (1 + resamples))


def enough(tests: int) -> int:
    """Resamples from which the smallest corrected p of so many pairs lies below `LEVEL`."""
    return math.floor(2 * tests / LEVEL)


@dataclass(frozen=True)
class Standing:
    """One model over several tasks.

    Fields:
        tasks: on which it has a figure.
        rank: mean over those tasks of its rank among the models that have one there, 1 the best; ties share theirs.
        wins, losses: over all tasks, other models from which it differs clearly (corrected p < 0.05).
        above: tasks on which it is clearly better than every baseline.
        within: tasks on which no baseline is clearly better, but not all are clearly worse.
        below: tasks on which a baseline is clearly better.
    """

    model: str
    tasks: int
    rank: float
    wins: int
    losses: int
    above: int
    within: int
    below: int


@dataclass(frozen=True)
class Placed:
    """What a task says for the standings.

    values: figure of each method. models: of each model, the method that stands for it. baselines: methods that are.
    pairs: all of them. larger: whether more of the metric is better.
    """

    values: Mapping[str, float]
    models: Mapping[str, str]
    baselines: Sequence[str]
    pairs: Sequence[Difference]
    larger: bool

    def verdict(self, model: str) -> str:
        """`above`, `within` or `below` the baselines; empty where there is none, or no figure."""
        method = self.models.get(model)
        if method is None or not self.baselines or not math.isfinite(self.values[method]):
            return ""
        signs = [self.sign(method, name) for name in self.baselines]
        return "below" if -1 in signs else "above" if all(sign == 1 for sign in signs) else "within"

    def sign(self, method: str, other: str) -> int:
        """1 where a method is clearly better than another, -1 where it is clearly worse, else 0."""
        for pair in self.pairs:
            if {pair.a, pair.b} == {method, other} and pair.clear:
                larger = (pair.mean > 0) == (pair.a == method)
                return 1 if larger == self.larger else -1
        return 0


def standings(models: Sequence[str], tasks: Sequence[Placed]) -> list[Standing]:
    """Every model over all tasks, the best mean rank first; those without a figure last."""
    found = []
    for model in models:
        ranks, verdicts = [], []
        wins = losses = 0
        for task in tasks:
            mine = task.models.get(model)
            if mine is None or not math.isfinite(task.values[mine]):
                continue
            sign = 1 if task.larger else -1
            value, others = task.values[mine], [name for name in task.models.values() if name != mine]
            ahead = sum(sign * task.values[name] > sign * value for name in others)
            level = sum(task.values[name] == value for name in others)
            ranks.append(1 + ahead + level / 2)
            signs = [task.sign(mine, name) for name in others]
            wins, losses = wins + signs.count(1), losses + signs.count(-1)
            verdicts.append(task.verdict(model))
        rank = sum(ranks) / len(ranks) if ranks else math.nan
        counts = (verdicts.count(word) for word in ("above", "within", "below"))
        found.append(Standing(model, len(ranks), rank, wins, losses, *counts))
    return sorted(found, key=lambda standing: (math.isnan(standing.rank), standing.rank))
