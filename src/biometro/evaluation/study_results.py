"""What a study found: every seed's figure, and arms against a reference at equal compute.

rows (model, task, figure) ─▶ cells: corpus, size, budget ─▶ paired differences over seeds

Figures of tasks whose smaller values are better change their sign in differences, so that above 0 is always better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from biometro.evaluation.paired import holm

FEWEST = 3
"""Blocks, such as seeds, from which anything is called clear."""
_LEVEL = 0.05


@dataclass(frozen=True)
class Measured:
    """One figure of one model, or of a baseline, which has no budget, and no size and seed unless it is an untrained
    model."""

    corpus: str
    size: str
    flops: float
    arm: str
    seed: int
    task: str
    metric: str
    value: float
    larger_is_better: bool = True
    baseline: bool = False


@dataclass(frozen=True)
class Trained:
    """What one run of training came to: steps, tokens read, and its figures on held-out data at the end, by name.

    Objectives cannot be compared by these, but they say why one is ahead: what its auxiliary knew, how much it read.
    """

    corpus: str
    size: str
    flops: float
    arm: str
    seed: int
    steps: int
    tokens: int
    held_out: Mapping[str, float]


@dataclass(frozen=True)
class Difference:
    """An arm against the reference in one cell, on one task or ("") on the mean of all; or ("" for corpus and size) at
    one budget over all corpora.

    mean, deviation: of the differences block by block, over so many `blocks`: seeds; over all corpora, corpora.
        Deviation NaN of one.
    p: two-sided, that the mean is 0. Of seeds by the analysis of variance with these blocks (R. A. Fisher): the
        variance of a difference is taken from all arms of three seeds or more, which three seeds of two arms could not
        tell, or from these two where theirs is larger (arms whose training wavers would pass for steady ones); NaN of
        an arm of fewer, and where the others have fewer than three seeds in common. Of corpora by the paired t-test,
        since an arm far from the reference is farther in one corpus than in another, and those near it know nothing of
        that; NaN of fewer than three. Corrected (Holm) for all arms of the cell and its tasks, or for the arms alone
        where the task is "".
    """

    corpus: str
    size: str
    flops: float
    arm: str
    task: str
    mean: float
    deviation: float
    blocks: int
    p: float = math.nan

    @property
    def clear(self) -> bool:
        return math.isfinite(self.p) and self.p < _LEVEL


Cell = tuple[str, str, float]
Figures = dict[str, dict[Any, float]]  # of each arm, by block


def cells(rows: Sequence[Measured]) -> dict[Cell, list[Measured]]:
    """Rows of models by corpus, size and budget, in their order."""
    found: dict[Cell, list[Measured]] = {}
    for row in rows:
        if not row.baseline:
            found.setdefault((row.corpus, row.size, row.flops), []).append(row)
    return found


def by_baseline(rows: Iterable[Measured]) -> dict[str, list[Measured]]:
    """Baselines by name; an untrained model's has its size."""
    found: dict[str, list[Measured]] = {}
    for row in rows:
        if row.baseline:
            found.setdefault(f"{row.arm}, {row.size}" if row.size else row.arm, []).append(row)
    return found


def differences(rows: Sequence[Measured], reference: str) -> list[Difference]:
    """Every arm against the reference, in every cell, on every task and on their mean.

    The mean is over tasks that all arms have, of figures as they are: tasks of a corpus should have like metrics.
    """
    found: list[Difference] = []
    for cell, here in cells(rows).items():
        tasks = list(dict.fromkeys(r.task for r in here))
        for group in ([""], tasks):
            made = [
                one
                for task in group
                for one in _against(_figures(here, [task] if task else tasks), reference, cell, task)
            ]
            found += _corrected(made)
    return found


def overall(rows: Sequence[Measured], reference: str) -> list[Difference]:
    """Every arm against the reference at every budget, over the corpora that all arms have; none of one corpus.

    The blocks are corpora, each with the mean of its tasks over the sizes and seeds that all arms have: an arm that is
    better here and worse there is not clearly better, whatever the number of seeds.
    """
    found: list[Difference] = []
    for flops in sorted({row.flops for row in rows if not row.baseline}):
        per_corpus: dict[str, Figures] = {}
        for (corpus, size, budget), here in cells(rows).items():
            if budget == flops:
                tasks = list(dict.fromkeys(r.task for r in here))
                for arm, known in _figures(here, tasks).items():
                    of_arm = per_corpus.setdefault(corpus, {}).setdefault(arm, {})
                    of_arm |= {(size, seed): value for seed, value in known.items()}
        arms = list(dict.fromkeys(arm for figures in per_corpus.values() for arm in figures))
        means: Figures = {arm: {} for arm in arms}
        for corpus, figures in per_corpus.items():
            shared = set.intersection(*({*figures.get(arm, {})} for arm in arms))
            for arm in arms if shared else ():
                means[arm][corpus] = float(np.mean([figures[arm][block] for block in shared]))
        if all(len(known) > 1 for known in means.values()):
            found += _corrected(_against(means, reference, ("", "", flops), "", pooled=False))
    return found


def untrained(rows: Sequence[Measured], reference: str) -> tuple[list[Difference], list[Difference]]:
    """As of `differences` and `overall`, models that nothing has trained as the only arm beside the reference: what is
    not behind it says that training gave nothing that these tasks see."""
    budgets = sorted({row.flops for row in rows if not row.baseline})
    beside = [row for row in rows if not row.baseline and row.arm == reference]
    beside += [replace(row, flops=one, baseline=False) for row in rows if row.baseline and row.size for one in budgets]
    return differences(beside, reference), overall(beside, reference)


def _figures(rows: Sequence[Measured], tasks: Sequence[str]) -> Figures:
    """Of each arm, by seed, the mean over tasks, where it has them all; above is better."""
    known = {(r.arm, r.task, r.seed): signed(r) for r in rows}
    seeds = sorted({r.seed for r in rows})
    return {
        arm: {s: float(np.mean([known[arm, t, s] for t in tasks])) for s in seeds
              if all((arm, t, s) in known for t in tasks)}
        for arm in dict.fromkeys(r.arm for r in rows)
    }  # fmt: skip


def signed(row: Measured) -> float:
    """Above is better."""
    return row.value if row.larger_is_better else -row.value


def _against(
    figures: Figures, reference: str, cell: Cell, task: str, *, pooled: bool = True
) -> list[Difference]:  # fmt: skip
    """Every other arm against the reference; p as it is, not corrected. `pooled`: of the variance of all arms where an
    arm's own is not larger, otherwise of its own."""
    error, freedom = _error({arm: known for arm, known in figures.items() if len(known) >= FEWEST})
    found = []
    for arm, known in figures.items():
        both = [block for block in known if block in figures.get(reference, {})]
        if arm == reference or not both:
            continue
        gap = [known[block] - figures[reference][block] for block in both]
        mean, deviation = float(np.mean(gap)), float(np.std(gap, ddof=1)) if len(gap) > 1 else math.nan
        own = deviation**2 / 2
        if not freedom or len(both) < FEWEST:
            p = math.nan
        elif pooled:
            p = _p(mean, max(error, own), freedom, len(gap))
        else:
            p = _p(mean, own, len(gap) - 1, len(gap))
        found.append(Difference(*cell, arm, task, mean, deviation, len(gap), p))
    return found


def _corrected(found: Sequence[Difference]) -> list[Difference]:
    return [replace(one, p=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]


def _error(figures: Figures) -> tuple[float, int]:
    """Residual mean square of arms by blocks without their interaction, over the blocks that all arms have, and its
    degrees of freedom; NaN and 0 of too few."""
    blocks = sorted(set.intersection(*({*known} for known in figures.values()))) if figures else []
    if len(figures) < 2 or len(blocks) < FEWEST:
        return math.nan, 0
    table_AS = np.array([[known[s] for s in blocks] for known in figures.values()])
    freedom = (len(figures) - 1) * (len(blocks) - 1)
    rest_AS = table_AS - table_AS.mean(1, keepdims=True) - table_AS.mean(0) + table_AS.mean()
    return float((rest_AS**2).sum()) / freedom, freedom


def _p(mean: float, error: float, freedom: int, blocks: int) -> float:
    """Two-sided, of a difference of two arms' means over so many blocks; 1 where nothing varies, which proves none."""
    from scipy.stats import t

    if error == 0:
        return 1.0
    return float(2 * t.sf(abs(mean) / math.sqrt(2 * error / blocks), freedom))
