"""Pictures of a study: quality against FLOPs; of one budget, arms below one another.

rows of one corpus ─▶ means over tasks, by arm, size, budget and seed ─▶ SVG
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from biometro.evaluation import plots
from biometro.evaluation.plots import GREY, LOOKS
from biometro.evaluation.study_results import Measured, by_baseline, signed

# A picture that stands alone says what its names mean.
_FILE = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" style="color:#555" '
_COLOURS = list(dict.fromkeys(colour for colour, _ in LOOKS))
_WHAT = "mean over tasks"


def picture(rows: Sequence[Measured]) -> str:
    """SVG of one corpus, a file of its own. Means over tasks with deviations over seeds, signed so that more is better;
    in grey the mean of each task's best baseline, and untrained models."""
    one_budget = len({row.flops for row in rows if not row.baseline}) == 1
    with matplotlib.rc_context(plots.STYLE):
        return plots.to_svg(dots(rows) if one_budget else curves(rows)).replace("<svg ", _FILE, 1)


def curves(rows: Sequence[Measured]) -> Figure:
    """Against FLOPs, a line for each arm (colour) and size (style and mark). Lines stand a little apart; marks are
    hollow where colours come again."""
    models = [row for row in rows if not row.baseline]
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    axes = figure.add_subplot(xlabel="training FLOPs", ylabel=_WHAT, xscale="log")
    arms, sizes = (list(dict.fromkeys(getattr(row, name) for row in models)) for name in ("arm", "size"))
    for number, (arm, colour) in enumerate(zip(arms, _COLOURS * len(arms), strict=False)):
        inside = "white" if number // len(_COLOURS) % 2 else colour
        for size, style in zip(sizes, ("o-", "s--", "^:", "D-.") * len(sizes), strict=False):
            x, y, bars = [], [], []
            for flops in sorted({row.flops for row in models}):
                each = _means(rows, arm, size, flops)
                if each:
                    x.append(flops * 1.015 ** (len(axes.containers) - len(arms) * len(sizes) / 2))
                    y.append(float(np.mean(each)))
                    bars.append(_deviation(each))
            if x:
                axes.errorbar(x, y, bars, fmt=style, color=colour, markersize=3.5, linewidth=1.3, elinewidth=0.8,
                              markerfacecolor=inside, label=f"{arm}, {size}")  # fmt: skip
    _draw_grey(rows, axes.axhline)
    budgets = [row.flops for row in models]
    axes.set_xlim(min(budgets) / 1.5, max(budgets) * 1.5)
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    return figure


def dots(rows: Sequence[Measured]) -> Figure:
    """At one budget, a line of the picture for each arm, a colour and mark for each size."""
    models = [row for row in rows if not row.baseline]
    (flops,) = {row.flops for row in models}
    arms, sizes = (list(dict.fromkeys(getattr(row, name) for row in models)) for name in ("arm", "size"))
    figure = Figure(figsize=(7.6, 1.2 + 0.2 * len(arms) * max(1, len(sizes) / 2)), layout="constrained")
    axes = figure.add_subplot(xlabel=f"{_WHAT}, at {flops:.3g} FLOPs")
    for number, (size, look) in enumerate(zip(sizes, LOOKS * len(sizes), strict=False)):
        apart = (number - (len(sizes) - 1) / 2) * 0.6 / len(sizes)
        each = [_means(rows, arm, size, flops) for arm in arms]
        known = [place for place, values in enumerate(each) if values]
        axes.errorbar([float(np.mean(each[place])) for place in known], [place + apart for place in known],
                      xerr=[_deviation(each[place]) for place in known], linestyle="none", color=look[0],
                      marker=look[1], markersize=4.5, elinewidth=1, label=size)  # fmt: skip
    _draw_grey(rows, axes.axvline)
    axes.set_yticks(range(len(arms)), arms)
    axes.set_ylim(len(arms) - 0.4, -0.6)  # the first on top
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    return figure


def _draw_grey(rows: Sequence[Measured], line: Callable[..., Any]) -> None:
    """What stands beside the arms: the mean of each task's best baseline, and untrained models."""
    tasks = {row.task for row in rows if not row.baseline}
    letters = [row for row in rows if row.baseline and not row.size]
    best = [max((signed(row) for row in letters if row.task == task), default=math.nan) for task in tasks]
    grey = {"best baselines": [] if np.isnan(best).any() else [float(np.mean(best))]}
    for name, here in by_baseline(row for row in rows if row.size).items():
        grey[name] = _over_tasks(here, tasks)
    for (name, values), style in zip(grey.items(), ("--", ":", "-.") * len(grey), strict=False):
        if values:
            line(float(np.mean(values)), color=GREY, linestyle=style, linewidth=1, label=name)


def _means(rows: Sequence[Measured], arm: str, size: str, flops: float) -> list[float]:
    """Of an arm's models of one size and budget, by seed."""
    tasks = {row.task for row in rows if not row.baseline}
    here = (row for row in rows if not row.baseline and (row.arm, row.size, row.flops) == (arm, size, flops))
    return _over_tasks(here, tasks)


def _over_tasks(rows: Iterable[Measured], tasks: set[str]) -> list[float]:
    """Of each seed that has all tasks, the mean of its signed figures."""
    seeds: dict[int, dict[str, float]] = {}
    for row in rows:
        seeds.setdefault(row.seed, {})[row.task] = signed(row)
    return [float(np.mean(list(found.values()))) for found in seeds.values() if {*found} == tasks]


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
