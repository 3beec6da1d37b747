"""Pictures of a run as SVG texts that can stand inside an HTML page.

Every picture is one small panel, so that a page can lay panels side by side on a desk and one below the other on a
phone without shrinking their text. Names and legends are left to the page, where they wrap, scale and can be
searched. Text and frame take the page's text colour, so one SVG serves light and dark.

Shapes: N observations or sequences, P points drawn, D embedding width.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

Points = tuple[np.ndarray, np.ndarray]  # x (N,), y (N,)

# Okabe and Ito's palette, safe for the colour-blind, less yellow (too pale on white) and black (invisible on black).
BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7"
GREY = "#8a9099"
INK = "#010203"  # stands for the page's text colour: `_svg` turns it into currentColor
# A second shape doubles the categories that can be told apart.
LOOKS = [(colour, shape) for shape in "o^" for colour in (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION)]
MAX_PLACES = 2000

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # real text: sharp, searchable, small, and set in the reader's own font
    "svg.hashsalt": "biometro",  # the same data give the same bytes
    "font.size": 8.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), GREY),
    **dict.fromkeys(("axes.linewidth", "grid.linewidth"), 0.7),
}
SI = EngFormatter(sep="")  # "10M" without a space is one word in every font


@dataclass(frozen=True)
class Curve:
    """One series of finite values: training rows, drawn as a line, and held-out values, drawn as markers."""

    label: str
    colour: str
    train: Points
    valid: Points
    dashed: bool = False  # a level to compare with: chance, a base rate, an entropy


def running_quantiles(x_N: np.ndarray, y_N: np.ndarray, points: int = 200) -> Points:
    """x (P,) at no more than `points` rows and, there, the 10th, 50th and 90th percentile (3, P) over 4 % of all rows.

    Fewer than 50 rows are returned as they are, three times.
    """
    half = len(y_N) // 50
    centres_P = np.unique(np.linspace(0, len(y_N) - 1, min(points, len(y_N))).astype(int))
    windows = (y_N[max(centre - half, 0) : centre + half + 1] for centre in centres_P)
    return x_N[centres_P], np.array([np.quantile(window, (0.1, 0.5, 0.9)) for window in windows]).T


def draw_curves(
    curves: Sequence[Curve],
    *,
    xlabel: str,
    ylabel: str,
    log: bool = False,
    from_zero: bool = False,
    top_ticks: tuple[Sequence[float], Sequence[str]] | None = None,
) -> str:
    """One panel of curves. `top_ticks` are places on the x axis and their names, shown along the top."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.6), layout="constrained")
        axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
        shown_N = np.concatenate([_draw_curve(axes, curve) for curve in curves])
        ends = [x_N.max() for curve in curves for x_N, _ in (curve.train, curve.valid) if len(x_N)]
        axes.set_xlim(0, 1.02 * max(ends) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(SI)
        if log and (shown_N > 0).any():
            axes.set_yscale("log")
            axes.set_ylim(shown_N[shown_N > 0].min() / 1.3, shown_N.max() * 1.3)
            # Powers of ten alone would leave a range within one decade without a label.
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            low, high = min(shown_N.min(), 0 if from_zero else np.inf), shown_N.max()
            margin = 0.07 * (high - low) or 0.1 * abs(high) or 1.0
            axes.set_ylim(0 if from_zero and low == 0 else low - margin, high + margin)
            if high >= 1e4:
                axes.yaxis.set_major_formatter(SI)
        if top_ticks is not None:
            axes.secondary_xaxis("top").set_xticks(*top_ticks)
        return _svg(figure)


def _draw_curve(axes: Axes, curve: Curve) -> np.ndarray:
    """Draws one series and returns the values that the y axis has to show."""
    shown = [np.empty(0)]
    # The fall from a random start would flatten all that follows: the first 2 % may leave the frame.
    if len(curve.train[0]):
        x_P, quantiles_3P = running_quantiles(*curve.train)
        axes.plot(x_P, quantiles_3P[1], "--" if curve.dashed else "-", color=curve.colour, linewidth=1.5)
        if len(x_P) == 1:  # one point makes no line
            axes.plot(x_P, quantiles_3P[1], "s", color=curve.colour, markersize=4)
        if curve.dashed:
            quantiles_3P = quantiles_3P[1:2]
        elif len(curve.train[0]) <= 400:
            axes.plot(*curve.train, color=curve.colour, linewidth=0.7, alpha=0.35)
        else:
            axes.fill_between(x_P, quantiles_3P[0], quantiles_3P[2], color=curve.colour, alpha=0.22, linewidth=0)
        shown.append(quantiles_3P[:, len(x_P) // 50 :].ravel())
    if len(curve.valid[0]):
        keep_P = _evenly(len(curve.valid[0]), 60)
        x_P, y_P = curve.valid[0][keep_P], curve.valid[1][keep_P]
        size = 4.5 if len(keep_P) <= 30 else 3.2
        axes.plot(x_P, y_P, "o", color=curve.colour, markersize=size, markeredgecolor=INK, markeredgewidth=0.6)
        shown.append(y_P[len(y_P) // 50 :])
    return np.concatenate(shown)


def project(embeddings_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Lays embeddings (N, D) out in the plane: the rows shown (P,), their places (P, 2), and the method's name.

    Rows that are not finite are left out, more than `MAX_PLACES` are thinned evenly, and a handful gets a plain PCA.
    """
    # scikit-learn takes a second to import, and only a report with embeddings needs it.
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    usable_N = np.flatnonzero(np.isfinite(embeddings_ND).all(1))
    shown_P = usable_N[_evenly(len(usable_N), MAX_PLACES)]
    if not len(shown_P):
        return shown_P, np.empty((0, 2)), "PCA"
    if len(shown_P) == 1:
        return shown_P, np.zeros((1, 2)), "PCA"
    components = min(50, len(shown_P), embeddings_ND.shape[1])
    reduced = PCA(components, random_state=0).fit_transform(embeddings_ND[shown_P].astype(np.float64))
    reduced = np.pad(reduced, ((0, 0), (0, max(0, 2 - components))))
    # t-SNE starts from the first two components divided by their spread: without a spread it would return NaN.
    if len(reduced) < 10 or reduced[:, :2].std(0).min() < 1e-9:
        return shown_P, reduced[:, :2], "PCA"
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    return shown_P, TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced), "t-SNE"


def draw_map(places_N2: np.ndarray, values_N: np.ndarray, method: str) -> tuple[str, list[tuple[str, str, str, int]]]:
    """A map coloured by numbers, with a colour bar, or by category labels, which come back as a legend.

    The legend is (label, colour, marker, count), most frequent first; looks repeat when there are more labels than
    `LOOKS`. Numbers that are not finite are grey.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.6), layout="constrained")
        axes = figure.add_subplot(xlabel=f"{method} 1 (arbitrary unit)", ylabel=f"{method} 2 (arbitrary unit)")
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")  # turning a map changes nothing, stretching it does
        legend: list[tuple[str, str, str, int]] = []
        if values_N.dtype.kind in "iuf":
            known_N = np.isfinite(values_N)
            _scatter(axes, places_N2[~known_N], GREY, "o")
            # The ends of viridis would vanish on a dark and on a white page.
            ramp = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.18, 0.92, 256)))
            norm = Normalize(values_N[known_N].min(initial=np.inf), values_N[known_N].max(initial=-np.inf))
            if known_N.any():
                _scatter(axes, places_N2[known_N], ramp(norm(values_N[known_N])), "o")
                figure.colorbar(ScalarMappable(norm, ramp), ax=axes, shrink=0.85, aspect=25, pad=0.02)
        else:
            labels_N = values_N.astype(str)
            for label, count in Counter(labels_N.tolist()).most_common():
                legend.append((label, *LOOKS[len(legend) % len(LOOKS)], count))
                _scatter(axes, places_N2[labels_N == label], *legend[-1][1:3])
        return _svg(figure), legend


def _scatter(axes: Axes, places_N2: np.ndarray, colour: Any, marker: str) -> None:
    x_N, y_N = places_N2.T
    # Thousands of vector points would make a page of megabytes; the axes around them stay vectors.
    axes.scatter(x_N, y_N, s=15, c=colour, marker=marker, alpha=0.8, linewidths=0, rasterized=True)


def _evenly(count: int, limit: int) -> np.ndarray:
    """At most `limit` of `count` indices, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).astype(int))


def _svg(figure: Figure) -> str:
    """The figure as an <svg> element to be placed in a page beside others."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, dpi=220, metadata=nothing)
    _, box, body = re.split(r'<svg [^>]*(viewBox="[^"]*")[^>]*>', buffer.getvalue())
    # Names such as "axes_1" come back in every figure; those referred to are digests of their content and may stay.
    body = re.sub(r' id="[\w.]+_\d+"', "", body)
    return f"<svg {box}>{body}".replace(INK, "currentColor")
