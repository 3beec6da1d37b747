"""Pictures of a fine-tuned model's answers, as SVG texts that can stand inside an HTML page; see `plots`.

Names of classes and columns stay out of them: the page writes those, where they wrap and every script has a font.

Shapes: P points, B bins, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from biometro.evaluation import plots
from biometro.evaluation.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION

MODELS = (BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION)
"""Colours of models, in the order of the results; baselines are grey."""
# A name from outside is no formula, whatever dollars it holds.
STYLE = plots.STYLE | {"font.size": 9, "text.parse_math": False}
_WIDTH = 4.3  # inches


@dataclass(frozen=True)
class Estimate:
    """One run's figure on test and its interval; None where undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Entry:
    """One line of the dot plot: a method, its colour, its mean, and the estimate of each run."""

    name: str
    colour: str
    mean: float | None
    runs: Sequence[Estimate]
    text: str


def draw_dots(entries: Sequence[Entry], xlabel: str, level: float | None) -> str:
    """A line for each method: dots and intervals of its runs, a bar at their mean; dashed at `level`."""
    height = 0.8 + sum(0.3 + 0.09 * len(entry.runs) for entry in entries)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.add_subplot(xlabel=xlabel)
        if level is not None:
            axes.axvline(level, color=GREY, linestyle="--", linewidth=1.1)
        for line, entry in enumerate(entries):
            offsets = (np.arange(len(entry.runs)) - (len(entry.runs) - 1) / 2) * min(0.2, 0.6 / max(1, len(entry.runs)))
            for run, offset in zip(entry.runs, offsets, strict=True):
                if run.value is None:
                    continue
                if run.low is not None and run.high is not None:
                    axes.plot((run.low, run.high), (line + offset,) * 2, color=entry.colour, linewidth=1.6, alpha=0.8)
                axes.plot(run.value, line + offset, "o", color=entry.colour, markersize=5.5 if len(offsets) < 2 else 4)
            if entry.mean is not None and len(entry.runs) > 1:
                axes.plot((entry.mean,) * 2, (line - 0.38, line + 0.38), color=INK, linewidth=1.6, zorder=1.5)
            axes.annotate(
                entry.text, (1.02, line), xycoords=("axes fraction", "data"), va="center", color=INK,
                annotation_clip=False,
            )  # fmt: skip
        names = [shorten(entry.name, 24, placeholder="…") for entry in entries]
        axes.set_yticks(range(len(entries)), names)
        axes.set_ylim(len(entries) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.06)
        _plain_ticks(axes.xaxis, 5)
        return plots.to_svg(figure)


def draw_nearest(
    edges_B: np.ndarray, counts_B: np.ndarray, related_B: np.ndarray, measure: str, threshold: float | None
) -> str:
    """Test sequences by likeness to the nearest training sequence; red are the `related_B` of each bin's `counts_B`."""
    step = float(np.diff(edges_B).min()) if len(edges_B) > 1 else 1.0
    widths_B = np.diff(np.append(edges_B, max(1.0, edges_B[-1] + 1e-9) if edges_B[-1] < 1 else edges_B[-1] + step))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 2.4), layout="constrained")
        axes = figure.add_subplot(xlabel=f"{measure} to the nearest training sequence (%)", ylabel="test sequences")
        for bottom_B, top_B, colour in ((0 * related_B, related_B, VERMILION), (related_B, counts_B, BLUE)):
            axes.bar(100 * edges_B, top_B - bottom_B, 92 * widths_B, bottom_B, align="edge", color=colour)
        if threshold is not None:
            axes.axvline(100 * threshold, color=INK, linestyle="--", linewidth=1.1)
        axes.grid(axis="x", visible=False)
        _plain_ticks(axes.xaxis)
        _plain_ticks(axes.yaxis)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        return plots.to_svg(figure)


def draw_reliability(curves: Sequence[tuple[str, bool, Sequence[Mapping[str, Any]]]]) -> str:
    """Share that came true against what was claimed. A curve: colour, whether dashed, its bins; a dot's area: count."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.5), layout="constrained")
        axes = figure.add_subplot(xlabel="probability claimed", ylabel="share that came true")
        axes.plot((0, 1), (0, 1), color=GREY, linewidth=1.1, linestyle=":")
        for colour, dashed, bins in curves:
            rows = [b for b in bins if b.get("count") and b.get("accuracy") is not None]
            if not rows:
                continue
            x_B, y_B, count_B = (np.array([b[key] for b in rows], float) for key in ("confidence", "accuracy", "count"))
            axes.plot(x_B, y_B, "--" if dashed else "-", color=colour, linewidth=1.4)
            axes.scatter(x_B, y_B, 6 + 70 * count_B / count_B.sum(), color=colour, linewidths=0)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        _plain_ticks(axes.xaxis, 5)
        _plain_ticks(axes.yaxis, 5)
        return plots.to_svg(figure)


def draw_history(
    histories: Sequence[Mapping[str, Any]], chosen: int, epoch: float | None, metric: str, colour: str
) -> str:
    """The metric on validation and the training loss by epoch, one line a run; the chosen run's is strong.

    Args:
        histories: of each run, `epoch`, `valid` and `loss`, lists of equal length with None where undefined.
        chosen: which run's weights are the best.
        epoch: of those weights; marked.
        metric: what the upper axis is called.
        colour: of the lines.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.5), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, key, name in ((upper, "valid", f"{metric}, validation"), (lower, "loss", "training loss")):
            for number, history in enumerate(histories):
                x_P, y_P = pairs(history.get("epoch"), history.get(key))
                strong = number == chosen
                looks: dict[str, Any] = {"linewidth": 1.8, "zorder": 3} if strong else {"linewidth": 1.0, "alpha": 0.4}
                axes.plot(x_P, y_P, "-" if len(x_P) > 1 else "o", color=colour, markersize=4, **looks)
            if epoch is not None:
                axes.axvline(epoch, color=GREY, linestyle="--", linewidth=1.1)
            axes.set_title(name, loc="left", fontsize=9, color=INK)  # beside the axis it would be cut off
            _plain_ticks(axes.yaxis, 4)
        lower.set_xlabel("epoch")
        lower.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        return plots.to_svg(figure)


def draw_scatter(truth_P: np.ndarray, predicted_P: np.ndarray, width: float | None, colour: str) -> str:
    """Prediction against truth, with the line of perfect answers, and the interval of this `width` about it."""
    ends = np.concatenate([truth_P, predicted_P])
    margin = 0.04 * float(np.ptp(ends)) or 1.0
    low, high = float(ends.min()) - margin, float(ends.max()) + margin
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.7), layout="constrained")
        axes = figure.add_subplot(xlabel="true value", ylabel="predicted value")
        axes.plot((low, high), (low, high), color=GREY, linewidth=1.1)
        if width is not None:
            for side in (-width / 2, width / 2):
                axes.plot((low, high), (low + side, high + side), color=GREY, linewidth=1.1, linestyle="--")
        # Thousands of vector points would make a page of megabytes; the axes around them stay vectors.
        axes.scatter(truth_P, predicted_P, 9, color=colour, alpha=0.6, linewidths=0, rasterized=True)
        axes.set(xlim=(low, high), ylim=(low, high))
        _plain_ticks(axes.xaxis, 5)
        _plain_ticks(axes.yaxis, 5)
        return plots.to_svg(figure)


def draw_confusion(shares_KK: np.ndarray) -> str:
    """Rows that sum to one as shades: for so many classes that counts could not be read."""
    # White would end the scale on a light page and blind on a dark one: the empty cell is the page itself.
    red, green, blue = matplotlib.colors.to_rgb(BLUE)
    ramp = LinearSegmentedColormap.from_list("share", [(red, green, blue, 0.0), (red, green, blue, 1.0)])
    K = len(shares_KK)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 6.5), layout="constrained")
        axes = figure.add_subplot(xlabel="number of the class answered", ylabel="number of the true class")
        span = (0.5, K + 0.5)
        axes.imshow(shares_KK, cmap=ramp, vmin=0, vmax=1, extent=(*span, *span[::-1]), interpolation="nearest")
        axes.grid(False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(10, integer=True))
        return plots.to_svg(figure)


def pairs(x: Sequence[Any] | None, y: Sequence[Any] | None) -> tuple[np.ndarray, np.ndarray]:
    """Those places (P,), (P,) where both lists have a finite number; lists may be missing."""
    both = np.array(list(zip(x or (), y or (), strict=False)), dtype=np.float64).reshape(-1, 2)
    both = both[np.isfinite(both).all(1)]
    return both[:, 0], both[:, 1]


def _plain_ticks(axis: Axis, most: int | None = None) -> None:
    """Numbers without an offset beside the axis, in `most` steps or fewer."""
    if most is not None:
        axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(plots.SI if np.abs(axis.get_view_interval()).max() >= 1e4 else "{x:.6g}")
