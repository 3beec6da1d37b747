"""The page that an `align` run leaves behind: one HTML file, no network, no script.

results ─▶ facts ─▶ of each split: verdicts ─▶ table, what is seen in train, dots beside controls, curves of validation
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from biometro.evaluation import pair_results, plots
from biometro.evaluation.page import card, fact_list, frame, warning_box
from biometro.evaluation.plots import BLUE, GREY
from biometro.files import write_file

_STYLE = """
table.figures{border-collapse:collapse;font-size:.85rem;display:block;overflow-x:auto;max-width:100%}
.figures th,.figures td{padding:.25rem .6rem;text-align:right;white-space:nowrap}
.figures th:first-child,.figures td:first-child{text-align:left}
.figures tr.control td{opacity:.75}
h2{margin-top:2.2rem}
figure.wide{grid-column:1/-1}
"""
_NOTES = {
    "dots": "Models (dark) as mean over seeds, controls (light) with the 95 % interval over resamples of targets.",
    "curve": "What decides which weights are kept, after each validation. A training loss of a small batch is a lower "
    "number for no better model, so it is drawn less the log of the number of candidates (what chance would lose).",
    "seen": "Share of test pairs whose sequences, scaffold or relatives stand in training pairs. The higher, the more "
    "a look at neighbours or at one side alone can answer.",
}


def write_pair_report(path: Path, said: Mapping[str, Any]) -> None:
    """Write the page. said: as results.json holds it."""
    body = [fact_list(said["facts"])]
    for by, entry in said["splits"].items():
        body.append(f"<h2>Split by {escape(by.replace('_', ' '))}</h2>")
        for text, won in pair_results.told(entry.get("verdicts", [])):
            body.append(f"<p>{escape(text)}</p>" if won else warning_box(text))
        cards = [card("Test pairs", _table(entry), _sizes(entry), look="wide", heading="h3")]
        for name in [n for n in pair_results.JUDGED if n in pair_results.columns(entry)]:
            cards.append(card(name.replace("_", " "), _dots(entry, name), _NOTES["dots"], heading="h3"))
        cards.append(card("Seen in train", _seen(entry), _NOTES["seen"], heading="h3"))
        curves = _curves(entry)
        if curves:
            cards.append(card("Validation", curves, _NOTES["curve"], heading="h3"))
        body.append(f'<section class="cards">{"".join(cards)}</section>')
    write_file(path, frame(f"{said['title']}: pairs", "".join(body), _STYLE))


def _sizes(entry: Mapping[str, Any]) -> str:
    sizes = entry["sizes"]
    text = f"{sizes['train']:,} training, {sizes['valid']:,} validation, {sizes['test']:,} test pairs"
    if sizes.get("left_out"):
        text += f", {sizes['left_out']:,} on no side"
    if entry.get("added"):
        text += f"; {entry['added']['trained on']:,} further pairs trained on"
    about: Mapping[str, Any] = next(
        (run["about"] for m in entry["methods"].values() if not m["control"] for run in m["runs"]), {}
    )
    for name, way in (("a_to_b", "from the first side"), ("b_to_a", "from the second")):
        if name in about:
            one = about[name]
            text += (
                f"; partners {way}: {one['queries']:,} queries, {one['pool']:,} to choose from, by chance mrr "
                f"{one['chance']['mrr']:.3f}, recall@10 {one['chance']['recall@10']:.3f}"
            )
    if about.get("targets counted"):
        text += f"; means per target over {about['targets counted']:,} of {about['targets']:,} targets"
    return (
        f"{text}. Models: mean ± deviation over seeds; controls: 95 % interval over resamples of targets. Partners "
        "shuffled: the same model, asked about test pairs whose second sequences were dealt anew. ci: share of couples "
        "of pairs in their right order; bedroc, ef1: how many that bind come first (ef1: in the first 1 %, as "
        "multiples of chance)."
    )


def _table(entry: Mapping[str, Any]) -> str:
    names = pair_results.columns(entry)
    rows = []
    for name, method in entry["methods"].items():
        cells = "".join(f"<td>{escape(cell)}" for cell in pair_results.cells(method, names, True))
        rows.append(f'<tr class="{"control" if method["control"] else "model"}"><td>{escape(name)}{cells}')
        if not method["control"]:
            dealt = pair_results.cells(pair_results.with_shuffled(method), names, False)
            inner = "".join(f"<td>{escape(cell)}" for cell in dealt)
            rows.append(f'<tr class="control"><td>{escape(name)}, {pair_results.SHUFFLED}{inner}')
    head = "".join(f"<th>{escape(name.replace('_', ' '))}" for name in names)
    return f'<table class="figures"><tr><th>{head}{"".join(rows)}</table>'


def _dots(entry: Mapping[str, Any], name: str) -> str:
    """Each method on a line: mean and deviation, or value and interval."""
    found = []
    for method, said in entry["methods"].items():
        mean, deviation = pair_results.summarise(said["runs"]).get(name, (math.nan, math.nan))
        if not math.isfinite(mean):
            continue
        low, high = mean - deviation, mean + deviation
        if not math.isfinite(deviation):
            between = said["runs"][0]["intervals"].get(name) or [None, None]
            low, high = (mean if edge is None else edge for edge in between)
        found.append((method, mean, low, high, said["control"]))
    figure = Figure(figsize=(5.2, 0.34 * len(found) + 0.8), layout="constrained")
    axes = figure.add_subplot()
    for place, (_, mean, low, high, control) in enumerate(reversed(found)):
        colour = GREY if control else BLUE
        axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
        axes.plot([mean], [place], "o", color=colour, markersize=7)
    axes.set_yticks(range(len(found)), [one[0] for one in reversed(found)])
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_xlabel(name.replace("_", " "))
    axes.axvline(0.5 if name.startswith("auroc") else 0.0, color=GREY, linewidth=0.8, linestyle=":")
    return plots.to_svg(figure)


def _seen(entry: Mapping[str, Any]) -> str:
    shares = entry["seen_in_train"]["test"]
    rows = "".join(
        f"<tr><td>{escape(pair_results.SEEN.get(name, name))}<td>{100 * share:.1f} %" for name, share in shares.items()
    )
    return f'<table class="figures">{rows}</table>'


def _curves(entry: Mapping[str, Any]) -> str:
    """The figure that decides, and the training loss, over the steps of each fit."""
    fits = [
        (f"{name}, seed {run['seed']}", run["history"], run["metric"])
        for name, method in entry["methods"].items() if not method["control"]
        for run in method["runs"] if run.get("history", {}).get("step")
    ]  # fmt: skip
    if not fits:
        return ""
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    names = list(dict.fromkeys(title.rsplit(", seed", 1)[0] for title, _, _ in fits))
    colours = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.VERMILION, plots.SKY, plots.PURPLE)
    for title, history, metric in fits:
        place = names.index(title.rsplit(", seed", 1)[0])
        style: dict[str, Any] = {"color": colours[place % len(colours)], "linewidth": 1.4, "alpha": 0.8}
        if len(history["step"]) == 1:
            style["marker"] = "o"
        above.plot(history["step"], _numbers(history["valid"]), **style)
        below.plot(history["step"], _numbers(history["loss"]), **style)
        above.set_ylabel(metric)
    for place, name in enumerate(names):
        above.plot([], [], color=colours[place % len(colours)], label=name)
    above.legend(frameon=False, fontsize=8)
    below.set_ylabel("training loss, over chance\nwhere there is one")
    below.set_xlabel("step")
    return plots.to_svg(figure)


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
