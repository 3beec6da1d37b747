"""Pictures of scores of variants: a heat map along the sequence, how sensitive each position is, distributions.

Figures of matplotlib, for notebooks; `svg` makes of one what can stand inside an HTML page (see `plots`).

Shapes: L residues, A letters, N variants.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from biometro.evaluation import plots
from biometro.evaluation.plots import BLUE, GREY, INK, LOOKS, VERMILION

ORDER = "GAVLIMFWYPSTCNQDEKRH"
"""Rows of a heat map: small, hydrophobic, aromatic, polar, charged, so that what is alike stands together."""
_LINE = 100  # residues beside one another; longer sequences go on in the next line
_STYLE = plots.STYLE | {"font.size": 8, "text.parse_math": False}


def svg(draw: Callable[..., Figure], *values: Any, **options: Any) -> str:
    """What `draw` makes of the values, as an <svg> element in the page's colours."""
    with matplotlib.rc_context(_STYLE):
        return plots.to_svg(draw(*values, **options))


def heat_map(wildtype: str, scores_LA: np.ndarray, letters: str, first: int = 1) -> Figure:
    """All single mutants: a column for each position, a row for each residue; blue is fitter, red is worse.

    A point marks the wild type's own residue; what has no score is grey. Colours end at the 98th percentile of the
    absolute scores, so that a few extremes do not make all others pale.

    Args:
        wildtype: L letters.
        scores_LA: NaN where there is no score.
        letters: names of the columns of `scores_LA`.
        first: number of the first residue.
    """
    rows = [*(letter for letter in ORDER if letter in letters), *(letter for letter in letters if letter not in ORDER)]
    scores_AL = substitutions(wildtype, scores_LA, letters)[:, [letters.index(letter) for letter in rows]].T
    known = np.abs(scores_AL[np.isfinite(scores_AL)])
    most = float(np.quantile(known, 0.98)) if len(known) and known.max() > 0 else 1.0
    lines, across = _lines(len(wildtype), _LINE)
    figure = Figure(figsize=(1.1 + 0.082 * max(across, 30), 0.5 + 2.15 * lines), layout="constrained")
    colours = matplotlib.colormaps["RdBu"].with_extremes(bad="#c9ced4")
    axes = None
    for line in range(lines):
        axes = figure.add_subplot(lines, 1, line + 1)
        start, end = line * across, min((line + 1) * across, len(wildtype))
        # One picture for each line: thousands of vector squares would make a page of megabytes.
        axes.imshow(
            scores_AL[:, start:end], aspect="auto", cmap=colours, vmin=-most, vmax=most, interpolation="nearest",
            extent=(start - 0.5, end - 0.5, len(rows) - 0.5, -0.5),
        )  # fmt: skip
        own = [(i, rows.index(a)) for i, a in enumerate(wildtype[start:end], start) if a in rows]
        if own:
            axes.plot(*zip(*own, strict=True), ".", color="#1d2228", markersize=2.6)
        axes.set_xlim(start - 0.5, start + across - 0.5)
        axes.set_yticks(range(len(rows)), rows, fontsize=5.5)
        ticks = [i for i in range(start, end) if (i + first) % 10 == 0 or i == start]
        axes.set_xticks(ticks, [f"{wildtype[i]}{i + first}" for i in ticks], fontsize=6.5)
        axes.grid(visible=False)
        axes.tick_params(length=2)
        for side in axes.spines.values():
            side.set_visible(False)
    bar = figure.colorbar(ScalarMappable(Normalize(-most, most), colours), ax=figure.axes, shrink=min(1.0, 1.5 / lines),
                          aspect=22, pad=0.015, extend="both")  # fmt: skip
    bar.set_label("score (wild type 0)", color=INK)
    return figure


def sensitivity(wildtype: str, scores_LA: np.ndarray, letters: str, first: int = 1) -> Figure:
    """How a position takes substitutions: their mean score, and between which scores eight of ten of them lie."""
    scores_LA = substitutions(wildtype, scores_LA, letters)
    mean_L = position_means(wildtype, scores_LA, letters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # positions without a score
        low_L, high_L = np.nanquantile(scores_LA, (0.1, 0.9), axis=1)
    lines, across = _lines(len(wildtype), 3 * _LINE)
    shown = np.concatenate([low_L, high_L, [0.0]])
    low, high = np.nanmin(shown), np.nanmax(shown)
    figure = Figure(
        figsize=(1.1 + 0.082 * max(_lines(len(wildtype), _LINE)[1], 30), 0.4 + 1.35 * lines), layout="constrained"
    )
    for line in range(lines):
        axes = figure.add_subplot(lines, 1, line + 1, ylabel="score")
        place_L = np.arange(line * across, min((line + 1) * across, len(wildtype)))
        axes.fill_between(place_L + first, low_L[place_L], high_L[place_L], color=BLUE, alpha=0.22, linewidth=0)
        axes.plot(place_L + first, mean_L[place_L], "-", color=BLUE, linewidth=1.1)
        axes.axhline(0, color=GREY, linewidth=0.8, linestyle="--")
        axes.set_xlim(place_L[0] + first - 1, place_L[0] + first + across)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    figure.axes[-1].set_xlabel("position")
    return figure


def _lines(length: int, most: int) -> tuple[int, int]:
    """Into how many lines a sequence is cut, and how many residues, at most `most`, each has, in tens."""
    lines = -(-length // most)
    return (1, length) if lines == 1 else (lines, min(most, -(-length // lines // 10) * 10))


def position_means(wildtype: str, scores_LA: np.ndarray, letters: str) -> np.ndarray:
    """(L,) mean score of a position's substitutions; NaN where none is known."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mean_L: np.ndarray = np.nanmean(substitutions(wildtype, scores_LA, letters), axis=1)
    return mean_L


def substitutions(wildtype: str, scores_LA: np.ndarray, letters: str) -> np.ndarray:
    """The same scores without those of the wild type's own letters, which are NaN."""
    scores_LA = scores_LA.copy()
    for place, letter in enumerate(wildtype):
        if letter in letters:
            scores_LA[place, letters.index(letter)] = np.nan
    return scores_LA


def distributions(
    scores: Mapping[str, np.ndarray], xlabel: str = "score", unit: str = "variants", dashed: float | None = 0
) -> Figure:  # fmt: skip
    """Histograms of several sets of numbers on one axis, as shares of each set; dashed: the wild type or start."""
    figure = Figure(figsize=(4.3, 2.4), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=f"share of {unit}")
    every = np.concatenate([values[np.isfinite(values)] for values in scores.values()])
    edges = np.histogram_bin_edges(every, bins=min(60, max(10, int(np.sqrt(len(every))))))
    for (colour, _), values in zip(LOOKS, scores.values(), strict=False):
        share, _ = np.histogram(values[np.isfinite(values)], edges)
        axes.stairs(share / max(1, share.sum()), edges, color=colour, linewidth=1.4, fill=len(scores) == 1, alpha=0.85)
    if dashed is not None:
        axes.axvline(dashed, color=GREY, linewidth=0.8, linestyle="--")
    return figure


def against(measured_N: np.ndarray, score_N: np.ndarray, xlabel: str = "measured", ylabel: str = "score") -> Figure:
    """A point for each variant, 2,000 at most."""
    known = np.flatnonzero(np.isfinite(measured_N) & np.isfinite(score_N))
    chosen = np.random.default_rng(0).permutation(known)[:2000]
    figure = Figure(figsize=(4.3, 3.0), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    axes.scatter(measured_N[chosen], score_N[chosen], s=7, color=VERMILION, alpha=0.4, linewidths=0, rasterized=True)
    return figure


def table_of_singles(length: int, letters: str, sites: Sequence[tuple[int, str]], score_N: np.ndarray) -> np.ndarray:
    """(L, A) of the scores of single substitutions (place, letter); NaN where there is none."""
    scores_LA = np.full((length, len(letters)), np.nan)
    for (place, letter), score in zip(sites, score_N.tolist(), strict=True):
        scores_LA[place, letters.index(letter)] = score
    return scores_LA
