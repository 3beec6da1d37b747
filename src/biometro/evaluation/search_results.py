"""What a search found: rows of points with mean, deviation and a test against the best, and what a wider model will do.

Shapes: N points, S seeds.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from biometro.evaluation.paired import holm


@dataclass(frozen=True)
class Tried:
    """A point that was tried.

    Fields:
        point: value by option.
        values: of each seed, in their order; empty where there is none.
        state: complete, pruned, or failed.
        note: why it failed.
        number: of the trial.
    """

    point: Mapping[str, Any]
    values: Sequence[float]
    state: str = "complete"
    note: str = ""
    number: int = 0

    @property
    def mean(self) -> float:
        return float(np.mean(self.values)) if len(self.values) else math.nan

    @property
    def deviation(self) -> float:
        """Over seeds; NaN of one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Ranked:
    """A point's place among all: p says how likely so large a difference to the best is by the seeds' chance alone."""

    tried: Tried
    p: float = field(default=math.nan)


def rank(tried: Sequence[Tried], smaller: bool) -> list[Ranked]:
    """Complete points, best first, then the others in their order.

    p is that of a paired t-test over the seeds that both have, two or more, corrected for as many comparisons as there
    are (Holm 1979); NaN where it cannot be had.
    """
    from scipy.stats import ttest_rel

    whole = sorted(
        (one for one in tried if one.state == "complete"), key=lambda one: one.mean if smaller else -one.mean
    )
    raw = []
    for one in whole[1:]:
        count = min(len(one.values), len(whole[0].values))
        differs = count > 1 and np.ptp(np.subtract(one.values[:count], whole[0].values[:count])) > 0
        raw.append(float(ttest_rel(one.values[:count], whole[0].values[:count]).pvalue) if differs else math.nan)
    corrected = holm(raw)
    ranked = [Ranked(whole[0]), *(Ranked(one, p) for one, p in zip(whole[1:], corrected, strict=True))] if whole else []
    return ranked + [Ranked(one) for one in tried if one.state != "complete"]


def table(ranked: Sequence[Ranked], metric: str) -> str:
    """CSV: a row for each point: its options, every seed's figure, mean, deviation, p."""
    options = list(dict.fromkeys(key for one in ranked for key in one.tried.point))
    seeds = max((len(one.tried.values) for one in ranked), default=0)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            *options,
            *(f"{metric}, seed {n}" for n in range(seeds)),
            "mean",
            "deviation",
            "p to the best",
            "state",
            "note",
        ]
    )
    for one in ranked:
        tried = one.tried
        values = [f"{value:.6g}" for value in tried.values] + [""] * (seeds - len(tried.values))
        figures = ["" if math.isnan(x) else f"{x:.6g}" for x in (tried.mean, tried.deviation, one.p)]
        writer.writerow([*(_cell(tried.point.get(key)) for key in options), *values, *figures, tried.state, tried.note])
    return text.getvalue()


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.6g}" if isinstance(value, float) else json.dumps(value)


def importance(tried: Sequence[Tried]) -> dict[str, float]:
    """Share of the variance over points that each option explains, by a forest's impurity (of 4 points or more that
    differ in it); figures beyond three deviations from the median count as three, so that one run that diverged does
    not explain everything."""
    from sklearn.ensemble import RandomForestRegressor

    whole = [one for one in tried if one.state == "complete"]
    keys = [key for key in (whole[0].point if whole else ()) if len({str(one.point[key]) for one in whole}) > 1]
    y_N = np.array([one.mean for one in whole])
    if len(whole) < 4 or not keys or np.ptp(y_N) == 0:
        return {}
    spread = 3 * 1.4826 * float(np.median(np.abs(y_N - np.median(y_N)))) or float(np.ptp(y_N))
    y_N = np.clip(y_N, np.median(y_N) - spread, np.median(y_N) + spread)
    x_NK = np.array([coordinates([one.point[key] for one in whole]) for key in keys]).T
    forest = RandomForestRegressor(200, random_state=0, max_features=1.0, n_jobs=1).fit(x_NK, y_N)
    return dict(sorted(zip(keys, forest.feature_importances_.tolist(), strict=True), key=lambda kv: -kv[1]))


def coordinates(values: Sequence[Any]) -> np.ndarray:
    """(N,) places on an axis: numbers as they are (logarithms, where they span more than ten to one), others in order
    of their first appearance."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        x = np.array(values, float)
        return np.log10(x) if is_log(values) else x
    order = {str(v): place for place, v in enumerate(dict.fromkeys(values))}
    return np.array([order[str(v)] for v in values], float)


def is_log(values: Sequence[Any]) -> bool:
    """Whether values are numbers above 0 that span more than ten to one."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return numbers and min(values) > 0 and max(values) > 10 * min(values)


@dataclass(frozen=True)
class Predicted:
    """What the best point will reach at another width, and by what that is said."""

    value: float | None
    said: str


def predict(tried: Sequence[Tried], best: Tried, width_key: str, width: int, smaller: bool) -> Predicted:
    """From the best figure at each width that was searched, a straight line of the figure against log width; of one
    width, that a wider model is no worse under muP (Yang et al. 2022, section 8)."""
    found: dict[int, float] = {}
    for one in tried:
        place = one.point.get(width_key)
        if one.state == "complete" and isinstance(place, int):
            better = min if smaller else max
            found[place] = better(found.get(place, one.mean), one.mean)
    if len(found) < 2:
        word = "at most" if smaller else "at least"
        return Predicted(None, f"{word} {best.mean:.4g}, that of the width that was searched: wider is no worse")
    widths = sorted(found)
    slope, start = np.polyfit(np.log2(widths), [found[w] for w in widths], 1)
    value = float(slope * math.log2(width) + start)
    return Predicted(value, f"{value:.4g}, by {slope:+.3g} for each doubling over {len(widths)} widths")
