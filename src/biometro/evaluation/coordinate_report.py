"""The page of a coordinate check: size and movement of activations against width, muP beside the standard one.

Shapes: W widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from biometro.evaluation import plots
from biometro.evaluation.page import card, fact_list, frame, swatch, warning_box
from biometro.evaluation.plots import BLUE, GREEN, GREY, ORANGE, VERMILION
from biometro.files import write_file

KINDS = {
    "logits": ("answers of the heads", VERMILION), "stream": ("stream after a layer", BLUE),
    "attention": ("what attention adds", ORANGE), "feed-forward": ("what the feed-forward adds", GREEN),
    "embedding": ("token vectors", GREY),
}  # fmt: skip
Series = Mapping[str, Sequence[float]]  # of each activation, W values


def draw(widths: Sequence[int], series: Series, limits: tuple[float, float], ylabel: str) -> str:
    """One panel, both axes logarithmic; lines of the auxiliary are dashed."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        axes = figure.add_subplot(xlabel="width", ylabel=ylabel, xscale="log", yscale="log", ylim=limits)
        for name, values in series.items():
            dashed = "--" if name.startswith("auxiliary") else "-"
            axes.plot(widths, values, dashed, marker="o", markersize=2.5, linewidth=1.2, color=KINDS[_kind(name)][1])
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        return plots.to_svg(figure)


def _kind(name: str) -> str:
    return next(kind for kind in KINDS if name.endswith(kind))


def write_coordinate_report(
    path: Path, title: str, facts: Mapping[str, str], widths: Sequence[int], found: Mapping[str, Mapping[str, Series]],
    powers: Mapping[str, Mapping[str, tuple[float, float]]], warning: str,
) -> None:  # fmt: skip
    """Write the page.

    Args:
        path: the HTML file.
        title: of the page.
        facts: shown at its top.
        widths: W of them.
        found: by parametrisation (muP, standard): of `size` and `moved`, the series after the last step.
        powers: by parametrisation and activation, the power of the width with which size and movement grow.
        warning: what is wrong; empty where nothing is.
    """
    texts = {
        "moved": ("how far the steps moved them", "Root mean square of the difference to the start. Flat: one "
                  "learning rate suits all widths. Rising: it becomes too high with the width."),
        "size": ("size after the steps", "Root mean square over tokens and coordinates."),
    }  # fmt: skip
    legend = "".join(f"<li>{swatch(colour, '-')}{escape(text)}</li>" for text, colour in KINDS.values())
    if any(name.startswith("auxiliary") for name in powers["muP"]):
        legend += f"<li>{swatch(plots.INK, '--')}of the auxiliary</li>"
    cards = []
    for what, (text, note) in texts.items():
        values = np.array([list(v) for series in found.values() for v in series[what].values()])
        values = values[values > 0]
        limits = (values.min() / 1.5, values.max() * 1.5) if len(values) else (0.1, 10.0)
        for name, series in found.items():
            cards.append(card(f"{name}: {text}", draw(widths, series[what], limits, text), note, f"<ul>{legend}</ul>"))
    body = warning_box(warning) + fact_list(facts) + f"<section>{''.join(cards)}</section>" + _table(powers)
    write_file(path, frame(title, body, "table { max-width: 60rem; } td { width: 9rem; }"))


def _table(powers: Mapping[str, Mapping[str, tuple[float, float]]]) -> str:
    """Powers of the width, of each activation."""
    head = "".join(f"<td>{name}, moved</td><td>{name}, size</td>" for name in powers)
    rows = [f"<tr><th>grows with the width to the power of</th>{head}</tr>"]
    for activation in powers["muP"]:
        cells = "".join(
            f"<td>{moved:+.2f}</td><td>{size:+.2f}</td>" for size, moved in (powers[p][activation] for p in powers)
        )
        rows.append(f"<tr><th>{escape(activation)}</th>{cells}</tr>")
    return f"<table>{''.join(rows)}</table>"
