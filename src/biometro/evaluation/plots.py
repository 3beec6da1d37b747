"""Pictures of a run as SVG texts that can stand inside an HTML page.

Every picture is one small panel, so that a page can lay panels side by side on a desk and one below the
other on a phone without shrinking their text. Names and legends are left to the page, where they wrap, scale
and can be searched. Text and frame take the page's text colour, so one SVG serves light and dark.

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
Category = tuple[str, str, str, int]  # label, colour, marker, count

# Okabe and Ito's colour-blind-safe palette, less yellow (too pale on white) and black (invisible on black).
BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7"
GREY = "#8a9099"
INK = "#010203"  # stands for the page's text colour: `to_svg` turns it into currentColor
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
    exact: bool = False  # set by a rule, not measured: smoothing would bend it

    def trend(self) -> Points:
        """The training rows as drawn: see `running_quantiles`."""
        return running_quantiles(*self.train, 0.0 if self.exact else 0.04)


def running_quantiles(x_N: np.ndarray, y_N: np.ndarray, share: float) -> Points:
    """At 200 places or fewer x (P,), and the 10th, 50th and 90th percentile (3, P) there.

    A window spans that share of all rows; it grows from the first row on, so that a steep start stays.
    """
    half = int(len(y_N) * share / 2)
    centres_P = _evenly(len(y_N), 200)
    reach_P = np.minimum(centres_P, half)
    spans = zip(centres_P - reach_P, centres_P + reach_P + 1, strict=True)
    return x_N[centres_P], np.array([np.quantile(y_N[a:b], (0.1, 0.5, 0.9)) for a, b in spans]).T


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
        end = max(x_N.max() for curve in curves for x_N, _ in (curve.train, curve.valid) if len(x_N))
        axes.set_xlim(0, 1.02 * end or 1)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(SI if end >= 1e3 else "{x:g}")
        if log and (shown_N > 0).any():
            low, high = shown_N[shown_N > 0].min() / 1.3, shown_N.max() * 1.3
            axes.set_yscale("log")
            axes.set_ylim(low, high)
            # Powers of ten alone would leave a range within one decade without a label.
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            low, high = min(shown_N.min(), 0 if from_zero else np.inf), shown_N.max()
            margin = 0.07 * (high - low) or 0.1 * abs(high) or 1.0
            axes.set_ylim(0 if from_zero and low == 0 else low - margin, high + margin)
        # The usual formatter would put a factor such as 1e-6 beside the axis, on top of the step ticks.
        axes.yaxis.set_major_formatter(SI if shown_N.max() >= 1e4 else "{x:g}")
        if top_ticks is not None:
            axes.secondary_xaxis("top").set_xticks(*top_ticks)
        return to_svg(figure)


def _draw_curve(axes: Axes, curve: Curve) -> np.ndarray:
    """Draws one series and returns the values that the y axis has to show."""
    shown = [np.empty(0)]
    # The fall from a random start would flatten all that follows: the first 4 % may leave the frame.
    if len(curve.train[0]):
        x_P, quantiles_3P = curve.trend()
        axes.plot(x_P, quantiles_3P[1], "--" if curve.dashed else "-", color=curve.colour, linewidth=1.5)
        if len(x_P) == 1:  # one point makes no line
            axes.plot(x_P, quantiles_3P[1], "s", color=curve.colour, markersize=4)
        if curve.dashed or curve.exact:
            quantiles_3P = quantiles_3P[1:2]
        elif len(curve.train[0]) <= 400:
            axes.plot(*curve.train, color=curve.colour, linewidth=0.7, alpha=0.35)
        else:
            low_P, _, high_P = quantiles_3P
            axes.fill_between(x_P, low_P, high_P, color=curve.colour, alpha=0.22, linewidth=0)
        shown.append(quantiles_3P[:, len(x_P) // 25 :].ravel())
    if len(curve.valid[0]):
        keep_P = _evenly(len(curve.valid[0]), 60)
        x_P, y_P = curve.valid[0][keep_P], curve.valid[1][keep_P]
        size = 4.5 if len(keep_P) <= 30 else 3.2
        axes.plot(x_P, y_P, "o", color=curve.colour, markersize=size, mec=INK, mew=0.6)
        shown.append(y_P[len(y_P) // 25 :])
    return np.concatenate(shown)


def project(embeddings_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Lays embeddings (N, D) out in the plane: the rows shown (P,), their places (P, 2), the method's name.

    Rows that are not finite are left out, more than `MAX_PLACES` are thinned evenly; a handful gets a PCA.
    """
    # scikit-learn takes a second to import, and only a report with embeddings needs it.
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    usable_N = np.flatnonzero(np.isfinite(embeddings_ND).all(1))
    shown_P = usable_N[_evenly(len(usable_N), MAX_PLACES)]
    if len(shown_P) < 2:
        return shown_P, np.zeros((len(shown_P), 2)), "PCA"
    components = min(50, len(shown_P), embeddings_ND.shape[1])
    with np.errstate(invalid="ignore"):  # equal rows have no variance to explain shares of
        reduced = PCA(components, random_state=0).fit_transform(embeddings_ND[shown_P].astype(np.float64))
    reduced = np.pad(reduced, ((0, 0), (0, max(0, 2 - components))))
    # t-SNE starts from the first two components divided by their spread: without one it would return NaN.
    if len(reduced) < 10 or reduced[:, :2].std(0).min() < 1e-9:
        return shown_P, reduced[:, :2], "PCA"
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    # Its threads meet at every step and wait by spinning: on a busy machine one thread is ten times faster.
    with threadpool_limits(1):
        places = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced)
    return shown_P, places, "t-SNE"


def draw_map(places_N2: np.ndarray, values_N: np.ndarray, method: str) -> tuple[str, list[Category]]:
    """A map coloured by numbers, with a colour bar, or by category labels, which come back as a legend.

    The most frequent label is first; with more labels than `LOOKS`, looks repeat. Numbers that are not finite
    are grey.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.6), layout="constrained")
        axes = figure.add_subplot(xticks=[], yticks=[])
        axes.set(xlabel=f"{method} 1 (arbitrary unit)", ylabel=f"{method} 2 (arbitrary unit)")
        axes.set_aspect("equal", adjustable="datalim")  # turning a map changes nothing, stretching it does
        legend: list[Category] = []
        if values_N.dtype.kind in "iuf":
            known_N = np.isfinite(values_N)
            _scatter(axes, places_N2[~known_N], GREY, "o")
            if known_N.any():
                # The ends of viridis would vanish on a dark and on a white page.
                ramp = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.18, 0.92, 256)))
                norm = Normalize(values_N[known_N].min(), values_N[known_N].max())
                _scatter(axes, places_N2[known_N], ramp(norm(values_N[known_N])), "o")
                figure.colorbar(ScalarMappable(norm, ramp), ax=axes, shrink=0.85, aspect=25, pad=0.02)
        else:
            labels_N = values_N.astype(str)
            for label, count in Counter(labels_N.tolist()).most_common():
                legend.append((label, *LOOKS[len(legend) % len(LOOKS)], count))
                _scatter(axes, places_N2[labels_N == label], *legend[-1][1:3])
        return to_svg(figure), legend


def _scatter(axes: Axes, places_N2: np.ndarray, colour: Any, marker: str) -> None:
    x_N, y_N = places_N2.T
    # Thousands of vector points would make a page of megabytes; the axes around them stay vectors.
    axes.scatter(x_N, y_N, s=15, c=colour, marker=marker, alpha=0.8, linewidths=0, rasterized=True)


def _evenly(count: int, limit: int) -> np.ndarray:
    """At most `limit` of `count` indices, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).astype(int))


def to_svg(figure: Figure) -> str:
    """The figure as an <svg> element to be placed in a page beside others."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, dpi=220, metadata=nothing)
    _, box, body = re.split(r'<svg [^>]*(viewBox="[^"]*")[^>]*>', buffer.getvalue())
    # Names such as "axes_1" come back in every figure. Those that are referred to are digests of what they
    # name, so that they may come back.
    body = re.sub(r' id="[\w.]+_\d+"', "", body)
    return f"<svg {box}>{body}".replace(INK, "currentColor")
