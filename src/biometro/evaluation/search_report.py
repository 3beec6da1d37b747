"""The page of a search: the figure against each option, points as lines across all options, what matters, the table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from biometro.evaluation import plots
from biometro.evaluation.page import card, fact_list, frame, swatch, warning_box
from biometro.evaluation.plots import BLUE, GREY, INK, LOOKS
from biometro.evaluation.search_results import Ranked, Tried, coordinates, importance, is_log
from biometro.files import write_file

_SHOWN = 40  # rows of the table
_STYLE = ".wide { overflow-x: auto; } .wide td, .wide th { width: auto; padding: 0 .8rem 0 0; text-indent: 0; }"


def write_search_report(
    path: Path, title: str, facts: Mapping[str, str], ranked: Sequence[Ranked], metric: str, smaller: bool, note: str
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        title: of the page.
        facts: shown at its top.
        ranked: points, best first.
        metric: what the figure is.
        smaller: whether less of it is better.
        note: shown in a box; may be empty.
    """
    tried = [one.tried for one in ranked]
    whole = [one for one in tried if one.state == "complete"]
    cards = []
    if whole:
        keys = [key for key in whole[0].point if len({str(one.point[key]) for one in whole}) > 1]
        series = next((key for key in keys if key.endswith("width")), None)
        for key in keys:
            if key != series:
                text, legend = _against(whole, key, series, metric, smaller)
                cards.append(card(f"{metric} against {key}", text, _how(series, whole), legend))
        if len(keys) > 1:
            cards.append(
                card("All options of each point", _parallel(whole, keys, smaller), "One line for each point, dark for "
                     "the best tenth. Where dark lines meet, the option matters.")
            )  # fmt: skip
        found = importance(tried)
        if len(found) > 1:
            cards.append(card("What matters", _bars(found), "Share of the variance of the figure over the points that "
                              "were tried that each option explains, in a random forest."))  # fmt: skip
        if len(whole) > 2:
            cards.append(card("The search", _history(tried, smaller, metric), "Points in the order in which they were "
                              "tried, and the best so far."))  # fmt: skip
    body = warning_box(note) + fact_list(facts) + f"<section>{''.join(cards)}</section>" + _table(ranked, metric)
    write_file(path, frame(title, body, _STYLE))


def _how(series: str | None, whole: Sequence[Tried]) -> str:
    text = "Mean over seeds; bars are deviations. " if any(len(one.values) > 1 for one in whole) else ""
    text += "A line joins the best point at each value"
    return f"{text}, for each {series}." if series else f"{text}."


def _against(whole: Sequence[Tried], key: str, series: str | None, metric: str, smaller: bool) -> tuple[str, str]:
    """The figure against one option, a colour for each value of `series`; the picture and its legend."""
    groups: dict[str, list[Tried]] = {}
    for one in whole:
        groups.setdefault("" if series is None else str(one.point[series]), []).append(one)
    values = [one.point[key] for one in whole]
    places = dict(zip(map(str, values), coordinates(values).tolist(), strict=True))
    legend = []
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        axes = figure.add_subplot(xlabel=key, ylabel=metric)
        names = sorted(groups, key=lambda name: float(name) if name.isdigit() else math.inf)
        for name, (colour, marker) in zip(names, LOOKS * len(groups), strict=False):
            x_N = np.array([places[str(one.point[key])] for one in groups[name]])
            y_N = np.array([one.mean for one in groups[name]])
            bars = np.nan_to_num([one.deviation for one in groups[name]])
            axes.errorbar(x_N, y_N, bars, fmt=marker, markersize=4, color=colour, elinewidth=1, alpha=0.8)
            best = {x: (y_N[x_N == x].min() if smaller else y_N[x_N == x].max()) for x in np.unique(x_N)}
            axes.plot(list(best), list(best.values()), color=colour, linewidth=1.2)
            legend.append(f"<li>{swatch(colour, '-')}{escape(f'{series} {name}')}</li>" if series else "")
        _name_ticks(axes, values, places)
        low, high = np.quantile([one.mean for one in whole], (0, 1))
        if high > low:  # a run that diverged would press all others together
            middle = float(np.median([one.mean for one in whole]))
            best_value = low if smaller else high
            reach = 3 * abs(middle - best_value) or high - low
            axes.set_ylim(*((low - 0.1 * reach, min(high + 0.1 * reach, low + 1.6 * reach)) if smaller else
                            (max(low - 0.1 * reach, high - 1.6 * reach), high + 0.1 * reach)))  # fmt: skip
        return plots.to_svg(figure), f"<ul>{''.join(legend)}</ul>"


def _name_ticks(axes: Any, values: Sequence[Any], places: Mapping[str, float]) -> None:
    distinct = dict(sorted(places.items(), key=lambda kv: kv[1]))
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if numbers and not is_log(values):
        return
    if numbers and len(distinct) > 7:
        low, high = math.floor(min(places.values())), math.ceil(max(places.values()))
        axes.set_xticks(range(low, high + 1), [f"{10.0**p:g}" for p in range(low, high + 1)])
        return
    axes.set_xticks(list(distinct.values()), [f"{float(n):.3g}" if numbers else n[:12] for n in distinct])
    if len(distinct) > 5:
        axes.tick_params(axis="x", rotation=45)


def _parallel(whole: Sequence[Tried], keys: Sequence[str], smaller: bool) -> str:
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        axes = figure.add_subplot()
        worth_N = np.argsort(np.argsort([one.mean if smaller else -one.mean for one in whole])) / max(len(whole) - 1, 1)
        rows = []
        for key in keys:
            x_N = coordinates([one.point[key] for one in whole])
            rows.append((x_N - x_N.min()) / (np.ptp(x_N) or 1))
        ramp = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.1, 0.92, 256)))
        norm = Normalize(0, 1)
        for place in np.argsort(-worth_N):
            top = worth_N[place] <= 0.1
            axes.plot([row[place] for row in rows], color=ramp(norm(worth_N[place])), linewidth=2 if top else 0.8,
                      alpha=1 if top else 0.45)  # fmt: skip
        axes.set_xticks(range(len(keys)), [key.rpartition(".")[2] for key in keys])
        axes.set_yticks([0, 1], ["least", "most"])
        return plots.to_svg(figure)


def _bars(found: Mapping[str, float]) -> str:
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(4.6, 0.5 + 0.35 * len(found)), layout="constrained")
        axes = figure.add_subplot(xlabel="share")
        axes.barh(range(len(found)), list(found.values())[::-1], color=BLUE, height=0.6)
        axes.set_yticks(range(len(found)), list(found)[::-1])
        return plots.to_svg(figure)


def _history(tried: Sequence[Tried], smaller: bool, metric: str) -> str:
    order = sorted((one for one in tried if one.state == "complete"), key=lambda one: one.number)
    y_N = np.array([one.mean for one in order])
    best_N = np.minimum.accumulate(y_N) if smaller else np.maximum.accumulate(y_N)
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(4.6, 2.6), layout="constrained")
        axes = figure.add_subplot(xlabel="trial", ylabel=metric)
        axes.plot([one.number for one in order], y_N, "o", color=GREY, markersize=3.5)
        axes.step([one.number for one in order], best_N, where="post", color=INK, linewidth=1.2)
        low, high = best_N.min(), best_N.max()
        reach = max(high - low, np.quantile(np.abs(y_N - np.median(y_N)), 0.7)) or 1.0
        axes.set_ylim(low - 0.3 * reach, high + 0.6 * reach) if smaller else axes.set_ylim(
            low - 0.6 * reach, high + 0.3 * reach
        )
        return plots.to_svg(figure)


def _table(ranked: Sequence[Ranked], metric: str) -> str:
    """The best rows; p is that of the difference to the first."""
    if not ranked:
        return ""
    keys = list(dict.fromkeys(key for one in ranked for key in one.tried.point))
    head = "".join(f"<td>{escape(key)}</td>" for key in (*keys, metric, "deviation", "seeds", "p to the best", ""))
    rows = [f"<tr>{head}</tr>"]
    for one in ranked[:_SHOWN]:
        tried = one.tried
        cells = [_short(tried.point.get(key)) for key in keys]
        cells += ["" if math.isnan(x) else f"{x:.4g}" for x in (tried.mean, tried.deviation)]
        cells += [str(len(tried.values)), "" if math.isnan(one.p) else f"{one.p:.2g}"]
        cells.append("" if tried.state == "complete" else f"{tried.state} {tried.note}"[:90])
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    more = f"<p>{len(ranked) - _SHOWN:,} more rows are in table.csv.</p>" if len(ranked) > _SHOWN else ""
    return f'<div class="wide"><table>{"".join(rows)}</table></div>{more}'


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
