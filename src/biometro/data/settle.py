"""Several measurements of one pair, settled: one value, one label, or a conflict.

    values, some of them bounds ─▶ exact ones first ─▶ mean | median | best ─▶ (value, bound or not)

A bound says nothing where an exact value is known, unless it contradicts it. Of bounds alone the tightest counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np


def settle_values(
    values: Sequence[tuple[float, int]], how: Literal["mean", "median", "best", "drop", "keep"], spread: float
) -> tuple[float, int] | None:
    """One value and its censoring; None where values conflict.

    Args:
        values: at least one value, each with -1 where the truth lies below it, 1 above, and 0 where it is the value.
        how: mean, median, or best (the largest); drop: any difference is a conflict.
        spread: how far apart values may lie, and a bound beyond a value it contradicts.
    """
    first = values[0]
    if how == "drop":
        return first if all(value == first for value in values) else None
    exact = np.array([value for value, censored in values if not censored])
    above = max((value for value, censored in values if censored > 0), default=-np.inf)  # the truth is at least this
    below = min((value for value, censored in values if censored < 0), default=np.inf)  # and at most this
    if not len(exact):
        if np.isinf(above) or np.isinf(below):
            return (float(below), -1) if np.isinf(above) else (float(above), 1)
        return (float(above + below) / 2, 0) if abs(below - above) <= spread else None
    if np.ptp(exact) > spread or above - exact.max() > spread or exact.min() - below > spread:
        return None
    return float(exact.max() if how == "best" else np.median(exact) if how == "median" else exact.mean()), 0


def settle_label(labels: Sequence[int], merge: bool) -> int | None:
    """1, 0, or -1 where none is known; None where known ones differ, unless the more frequent counts (1 of equals)."""
    known = [label for label in labels if label >= 0]
    if not known:
        return -1
    if len(set(known)) > 1 and not merge:
        return None
    return int(2 * sum(known) >= len(known))
