"""The page that a fine-tuning run leaves behind: one HTML file, no network, no script.

results.json ─▶ of each split: verdict ─▶ table, leak, dot plot ─▶ the best model's classes, calibration, abstention

The best model of a split is the one that was best on validation: choosing it on test would flatter it. What is
undefined is left empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from biometro.evaluation import label_examples, label_plots, molecule_plots
from biometro.evaluation.label_plots import Entry, Estimate
from biometro.evaluation.label_tables import (
    NAMED,
    beside,
    called,
    classes_table,
    columns_table,
    confusion_table,
    finite,
    fits_table,
    interval_of,
    mean_of,
    mistakes,
    per_class_table,
    percent,
    results_table,
    row_shares,
    shown,
)
from biometro.evaluation.metrics import larger_is_better
from biometro.evaluation.page import card, fact_list, frame, swatch, warning_box
from biometro.evaluation.plots import BLUE, GREY
from biometro.files import write_file

LEAKY = 0.05
"""Share of test sequences with a relative in train above which the page warns."""
COUNTED = 20
"""Classes up to which a confusion matrix shows its counts; above, it is a picture."""
LONG = 40
"""Classes above which the table of their counts is folded away."""
_SCATTERS = 12
WIDE, OWN = "wide", "own"
"""Looks of cards with a table: over the whole row, or beside a picture without taking its height."""


@dataclass(frozen=True)
class Best:
    """The run that was best on validation: its method, its place among that method's runs, and the run."""

    name: str
    place: int
    run: Mapping[str, Any]
    colour: str


def write_labels_report(out: Path, said: Mapping[str, Any]) -> None:
    """Writes the page of a fine-tuning run to the file `out`, whole or not at all.

    Args:
        out: the HTML file.
        said: what results.json holds.

    Raises:
        UserError: for whatever the file system refuses.
    """
    parts = [
        *(f'<p class="verdict">{escape(_verdict(said, by))}</p>' for by in said["splits"]),
        fact_list({str(name): str(value) for name, value in (said.get("facts") or {}).items()}),
        _classes(said),
    ]
    for by in said["splits"]:
        parts += _split(said, by)
    write_file(out, frame(str(said["title"]), "\n".join(part for part in parts if part), STYLE + molecule_plots.STYLE))


def _best(split: Mapping[str, Any], metric: str) -> Best | None:
    """None where there are no models; among models without a figure on validation, the first."""
    colours = _colours(split)
    sign = 1 if larger_is_better(metric) else -1
    found: tuple[float, Best] | None = None
    for name, method in split["methods"].items():
        for place, run in enumerate([] if method["baseline"] else method["runs"]):
            value = finite((run.get("valid") or {}).get(metric))
            score = -np.inf if value is None else sign * value
            if found is None or score > found[0]:
                found = score, Best(name, place, run, colours[name])
    return found[1] if found else None


def _colours(split: Mapping[str, Any]) -> dict[str, str]:
    """Of each method: grey for baselines."""
    models = [name for name, method in split["methods"].items() if not method["baseline"]]
    palette = label_plots.MODELS
    own = {name: palette[number % len(palette)] for number, name in enumerate(models)}
    return {name: own.get(name, GREY) for name in split["methods"]}


def _stronger_baseline(split: Mapping[str, Any], metric: str) -> tuple[str, float] | None:
    sign = 1 if larger_is_better(metric) else -1
    known = [(n, mean_of(m, metric)) for n, m in split["methods"].items() if m["baseline"]]
    defined = [(name, value) for name, value in known if value is not None]
    return max(defined, key=lambda pair: sign * pair[1]) if defined else None


def _verdict(said: Mapping[str, Any], by: str) -> str:
    """What the best model reaches on this split, and whether that is more than the stronger baseline does."""
    metric, split = said["metric"], said["splits"][by]
    best, base, where = _best(split, metric), _stronger_baseline(split, metric), f"Split by {by}: "
    rival = f"{base[0]} ({shown(base[1])})" if base else ""
    if best is None:
        return where + (f"no model was fitted; the stronger baseline is {rival}." if base else "nothing was run.")
    value, ends = finite(best.run["figures"].get(metric)), interval_of(best.run, metric)
    who = best.name if len(split["methods"][best.name]["runs"]) == 1 else f"{best.name} (seed {best.run.get('seed')})"
    if value is None:
        return f"{where}{who} was best on validation, but its {called(metric)} on test is not defined."
    of = finite((split.get("sizes") or {}).get("test"))
    on = "test" if of is None else f"{int(of):,} test sequences"
    around = f" (95 % interval {shown(ends[0])} to {shown(ends[1])})" if ends else ""
    text = f"{where}{who}, the best on validation, reaches {called(metric)} {shown(value)}{around} on {on}."
    summary = split["methods"][best.name]["summary"].get(metric) or {}
    if finite(summary.get("sd")) is not None and finite(summary.get("mean")) is not None:
        text += f" Its seeds reach {shown(summary['mean'])} ± {beside(summary['sd'], summary['mean'])}."
    if base is None:
        return text + " No baseline was run, so it is open how much of that is easy to reach."
    better = value > base[1] if larger_is_better(metric) else value < base[1]
    if ends is None:
        return f"{text} The stronger baseline is {rival}; without an interval, chance is not ruled out."
    if ends[0] <= base[1] <= ends[1]:
        lead = "better" if better else "not better" if value == base[1] else "worse"
        return f"{text} The stronger baseline, {rival}, lies within that interval: {lead} here, but not clearly so."
    if not better:
        return f"{text} That is worse than the stronger baseline, {rival}."
    theirs = interval_of(split["methods"][base[0]]["runs"][0], metric)
    touch = theirs is not None and theirs[0] <= ends[1] and ends[0] <= theirs[1]
    return f"{text} That is better than the stronger baseline, {rival}{', though their intervals overlap' * touch}."


def _classes(said: Mapping[str, Any]) -> str:
    table = classes_table(said)
    if not table:
        return ""
    unit = "residues" if said["task"]["kind"].startswith("residue") else "sequences"
    note = f"Counts of {unit}. An empty cell: none, or the class was left out or merged with another there."
    body = f"{table}<p class=note>{escape(note)}</p>"
    if table.count("<tr>") > LONG:
        body = f"<details><summary>Counts of {table.count('<tr>') - 1:,} classes</summary>{body}</details>"
    return f"<h2>Classes</h2>{body}"


def _split(said: Mapping[str, Any], by: str) -> Iterator[str]:
    """The part of the page about one split."""
    metric, split, kind = said["metric"], said["splits"][by], said["task"]["kind"]
    best, colours, methods = _best(split, metric), _colours(split), split["methods"]
    sizes = ", ".join(f"{int(count):,} {side}" for side, count in (split.get("sizes") or {}).items())
    yield f"<h2>Split by {escape(by)}</h2>"
    yield f"<p>{escape(f'Sequences: {sizes}. ' if sizes else '')}{escape(_leak(split))}</p>"
    yield warning_box(_warning(said, split))
    yield results_table(kind, metric, methods, colours)
    yield f"<p class=note>{escape(RESULTS_NOTE)}</p>"
    cards = [_dots_card(split, metric, colours), _nearest_card(split)]
    if best is not None:
        cards += [
            _history_card(said, split, best),
            *_classification_cards(said, split, best),
            *_number_cards(said, best),
        ]
        fits = fits_table(metric, methods, (best.name, best.place))
        cards.append(card("Fits", fits, FITS_NOTE, heading="h3", look=WIDE))
    cards += label_examples.cdr3_cards(split.get("cdr3s") or {})
    yield f"<section>{''.join(cards)}</section>"
    if best is not None:
        yield label_examples.structure_cards(best.run.get("examples") or [], best.name)


def _leak(split: Mapping[str, Any]) -> str:
    """The leak in words."""
    leaks, relatives = split.get("leaks") or {}, split.get("relatives")
    texts = [
        f"{percent(leak.get('share'))} of {name} sequences ({leak['count']:,} of {leak['of']:,})"
        for side, name in (("test", "test"), ("valid", "validation"))
        if (leak := leaks.get(side)) and leak.get("of")
    ]
    if not texts:
        return "Whether test sequences have relatives in train was not measured."
    least = f" ({str(relatives).replace(' %', chr(0xA0) + '%')})" if relatives else ""
    text = f"{' and '.join(texts)} have a relative in train{least}."
    shares = [percent(example[2]) for example in (leaks.get("test") or {}).get("examples") or [] if len(example) > 2]
    return text + (f" Similarities of the first of these pairs in test: {', '.join(shares)}." if shares else "")


def _other_families(split: Mapping[str, Any]) -> str:
    """Ways to split that keep relatives together, in words; none where one of those that measure them was taken."""
    by = split.get("by")
    if by in ("homology", "cdr3", "butina"):
        return ""
    return "butina, whose clusters are similar molecules" if by == "scaffold" else "homology, cdr3, scaffold or butina"


def _warning(said: Mapping[str, Any], split: Mapping[str, Any]) -> str:
    texts = []
    share = finite(((split.get("leaks") or {}).get("test") or {}).get("share"))
    if share is not None and share > LEAKY:
        texts.append(
            f"{percent(share)} of these test sequences have a relative in train: the figures below say how well the "
            "model does on sequences like those it knows, and too little about new families. Look at the nearest "
            "neighbour, which lives on such relatives"
            + (f", and split by families: {others}." if (others := _other_families(split)) else ".")
        )
    counts = split.get("classes") or {}
    for side, lack in (("train", "cannot be learnt"), ("test", "are not judged")):
        missing = [name for name in said["task"]["names"] if counts.get(side) and not counts[side].get(name)]
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            texts.append(f"Classes without a {side} sequence {lack}: {', '.join(missing[:5])}{more}.")
    return " ".join(texts)


def _dots_card(split: Mapping[str, Any], metric: str, colours: Mapping[str, str]) -> str:
    entries = []
    for name, method in split["methods"].items():
        runs = []
        for run in method["runs"]:
            low, high = interval_of(run, metric) or (None, None)
            runs.append(Estimate(finite((run.get("figures") or {}).get(metric)), low, high))
        mean = mean_of(method, metric)
        entries.append(Entry(name, colours[name], mean, runs, shown(mean) or "not defined"))
    if all(entry.mean is None for entry in entries):
        return ""
    base = _stronger_baseline(split, metric)
    direction = "higher" if larger_is_better(metric) else "lower"
    svg = label_plots.draw_dots(entries, f"{called(metric)} on test ({direction} is better)", base[1] if base else None)
    title = called(metric)
    return card(f"{title[0].upper()}{title[1:]} of all methods", svg, DOTS_NOTE, heading="h3")


def _nearest_card(split: Mapping[str, Any]) -> str:
    nearest = split.get("nearest") or {}
    edges_B, counts_B, related_B = (
        np.array(nearest.get(key) or [], float) for key in ("low edges", "counts", "related")
    )
    edges_B, related_B = edges_B[: len(counts_B)], np.resize(related_B, len(counts_B))
    if not len(edges_B) or not counts_B.sum() > 0:
        return ""
    counts_B, related_B = counts_B[: len(edges_B)], related_B[: len(edges_B)]
    measure, threshold = str(nearest.get("measure") or "similarity"), finite(nearest.get("threshold"))
    svg = label_plots.draw_nearest(edges_B, counts_B, related_B, measure, threshold)
    return card("How near test is to train", svg, NEAREST_NOTE, heading="h3")


def _classification_cards(said: Mapping[str, Any], split: Mapping[str, Any], best: Best) -> Iterator[str]:
    run, names = best.run, list(said["task"]["names"])
    yield _reliability_card(best)
    if isinstance(run.get("conformal"), Mapping):
        yield _abstention_card(said, best)
    yield _confusion_card(names, best)
    if rows := run.get("per_class"):
        table = per_class_table(rows, (split.get("classes") or {}).get("train") or {})
        yield card(f"Classes: {best.name}", table, PER_CLASS_NOTE, heading="h3", look=WIDE)


def _confusion_card(names: Sequence[str], best: Best) -> str:
    counts_KK = np.array(best.run.get("confusion") or [], dtype=np.int64)
    if not len(counts_KK) or not counts_KK.sum():
        return ""
    common = mistakes(counts_KK, names) if len(names) > 2 else ""
    title, note = f"Confusion matrix: {best.name}", f"{CONFUSION_NOTE} {common}"
    if len(names) <= COUNTED:
        table = confusion_table(counts_KK, names)
        return card(title, table, note, heading="h3", look=WIDE if len(names) > NAMED else OWN)
    picture = label_plots.draw_confusion(row_shares(counts_KK))
    return card(title, picture, f"{SHADES_NOTE} {common}", heading="h3", look=WIDE)


def _reliability_card(best: Best) -> str:
    run = best.run
    after, before = run.get("reliability") or [], run.get("reliability_raw") or []
    if not any(row.get("count") for row in after):
        return ""
    temperature = shown(run.get("temperature"))
    entries = [(BLUE, "-", f"after temperature{f' {temperature}' if temperature else ''}", run["figures"].get("ece"))]
    curves = [(BLUE, False, after)]
    if any(row.get("count") for row in before):
        entries.insert(0, (GREY, "--", "before temperature", run.get("ece_raw")))
        curves.insert(0, (GREY, True, before))
    items = (
        f"<li>{swatch(colour, line)}{escape(name)} <small>ECE {shown(error) or 'not defined'}</small>"
        for colour, line, name, error in entries
    )
    svg = label_plots.draw_reliability(curves)
    return card(f"Calibration: {best.name}", svg, RELIABILITY_NOTE, f"<ul>{''.join(items)}</ul>", heading="h3")


def _abstention_card(said: Mapping[str, Any], best: Best) -> str:
    found = best.run["conformal"]
    lines = [
        ("sets that hold the truth, asked for", said.get("coverage")),
        ("sets that hold the truth, on test", found.get("coverage")),
        ("answered: exactly one class in the set", found.get("answered")),
        ("right, of those answered", found.get("accuracy_answered")),
        ("right, if it always answers", best.run["figures"].get("accuracy")),
    ]
    rows = []
    for name, value in lines:
        share = finite(value)
        bar = "<td>" if share is None else f'<td class="bar" style="--share:{100 * share:.1f}%">{percent(share)}'
        rows.append(f"<tr><th scope=row>{escape(name)}{bar}")
    rows.append(f"<tr><th scope=row>classes in a set, mean<td>{shown(found.get('set_size'))}")
    table = f'<div class="scroll"><table class="grid">{"".join(rows)}</table></div>'
    return card(f"When it does not know: {best.name}", table, ABSTENTION_NOTE, heading="h3", look=OWN)


def _number_cards(said: Mapping[str, Any], best: Best) -> Iterator[str]:
    """Of tasks that predict numbers: a scatter plot of each column, and their figures."""
    run, points = best.run, best.run.get("points") or {}
    spans: Sequence[Mapping[str, Any]] = run["conformal"] if isinstance(run.get("conformal"), list) else []
    for place, (name, values) in enumerate(points.items()):
        truth_P, predicted_P = label_plots.pairs(*values)
        if not len(truth_P) or place >= _SCATTERS:
            continue
        width = finite(spans[place].get("width")) if place < len(spans) else None
        svg = label_plots.draw_scatter(truth_P, predicted_P, width, best.colour)
        note = SCATTER_NOTE + (f" Dashed: the interval of conformal prediction. {INTERVAL_NOTE}" if width else "")
        yield card(f"{name}: {best.name}", svg, f"{len(truth_P):,} points. {note}", heading="h3")
    if not points:
        return
    if table := columns_table(said["task"]["kind"], list(points), run, spans):
        asked = percent(said.get("coverage"))
        note = f"Intervals that hold the truth in {asked} of cases were asked for. {INTERVAL_NOTE}" if spans else ""
        more = f" Only the first {_SCATTERS} columns have a picture." if len(points) > _SCATTERS else ""
        yield card(f"Columns: {best.name}", table, note + more, heading="h3", look=WIDE if len(points) > 1 else OWN)


def _history_card(said: Mapping[str, Any], split: Mapping[str, Any], best: Best) -> str:
    runs = split["methods"][best.name]["runs"]
    histories = [run.get("history") or {} for run in runs]
    if not any(len(label_plots.pairs(h.get("epoch"), h.get("valid"))[0]) for h in histories):
        return ""
    arguments = finite(best.run.get("epoch")), called(said["metric"]), best.colour
    svg = label_plots.draw_history(histories, best.place, *arguments)
    note = HISTORY_NOTE + (" Pale lines are the other seeds." if len(runs) > 1 else "")
    return card(f"Learning: {best.name}", svg, note, heading="h3")


RESULTS_NOTE = (
    "Figures on test; bold is the best of its column, an arrow says whether more or less is better. Small: ± the "
    "standard deviation over seeds, or with one seed the 95 % interval of a bootstrap over test sequences (whole "
    "families, where the split knows them). Grey methods are baselines."
)
DOTS_NOTE = (
    "A dot is one fit, its line the 95 % interval; the upright bar is the mean over seeds. Baselines are grey, and the "
    "stronger one is drawn on as the dashed line: a model whose interval reaches it has not been shown to be better."
)
NEAREST_NOTE = (
    "For each test sequence the most similar training sequence; the bar at 0 has those without any hit. Red are those "
    "with a relative in train (from the dashed line on, where there is one): what stands there can be answered by "
    "looking it up."
)
RELIABILITY_NOTE = (
    "Where the curve lies on the diagonal, 80 % sure means right in 80 % of cases; below it the model is too sure. "
    "Larger dots hold more predictions. ECE is the mean distance from the diagonal; the temperature, fitted on "
    "validation, changes no answer."
)
ABSTENTION_NOTE = (
    "Conformal prediction gives a set of classes; where it has not exactly one, the model abstains. The promise holds "
    "on average over sequences like those of validation, not for each class and not for new families."
)
PER_CLASS_NOTE = (
    "Recall: of this class, how many were found. Precision: of those called so, how many are. Figures of a class with "
    "few test sequences mean little; an empty cell is undefined."
)
CONFUSION_NOTE = (
    "Rows are true classes, columns what the model answered; the shade is the share of the row. A perfect model has "
    "only the diagonal."
)
SHADES_NOTE = (
    "Rows are true classes in the order of the table of classes, columns what the model answered; the shade is the "
    "share of the row. A perfect model has only the diagonal."
)
SCATTER_NOTE = "Perfect answers lie on the line. A cloud flatter than it: extremes are drawn towards the mean."
INTERVAL_NOTE = (
    "The same width for every sequence; the promise holds on average over sequences like those of validation."
)
HISTORY_NOTE = (
    "The dashed line marks the epoch whose weights were kept. Loss that falls on while validation gets worse is "
    "overfitting."
)
FITS_NOTE = (
    "Bold is the best on validation, which the pictures are of. A gap between validation and test is chance, or "
    "sequences of another kind."
)
STYLE = """
h2 { font-size: 1.3rem; margin: 2.4rem 0 .6rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
p.verdict { color: var(--ink); font-size: 1.08rem; overflow-wrap: anywhere; }
p.warning, p { overflow-wrap: anywhere; }
p.note { font-size: .87rem; margin-top: .2rem; }
section { margin-top: 1.6rem; }
figure.wide { grid-column: 1 / -1; }
figure.wide, figure.own { grid-template-rows: auto auto auto 1fr; }
figure .grid:not(.heat) { width: 100%; }
figure > svg, figure > .scroll { align-self: start; }
figure.wide > svg { max-width: 44rem; }
figcaption { max-width: 60rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; min-width: 0; max-width: 100%; }
table.grid { width: auto; min-width: min(100%, 22rem); margin: 0 0 .3rem; }
.grid th, .grid td { padding: .22rem .5rem; text-indent: 0; border-bottom: 1px solid var(--line); width: auto;
                     vertical-align: baseline; }
.grid thead th { text-align: right; vertical-align: bottom; color: var(--soft); min-width: 3.2rem; max-width: 9rem; }
.grid thead th:first-child { text-align: left; }
.grid th:first-child { position: sticky; left: 0; background: var(--paper); padding-left: 0; min-width: 6.5rem;
                       max-width: 18rem; overflow-wrap: anywhere; color: var(--ink); }
.grid th:has(.swatch):first-child { padding-left: 28px; text-indent: -28px; min-width: 8.5rem; }
.grid tr:first-child { color: inherit; }
.grid td small { display: block; line-height: 1.2; }
.grid td.bar { min-width: 5rem; background: linear-gradient(to right, rgb(0 114 178 / .28) var(--share), transparent 0);
               background-clip: content-box; padding-left: 0; }
.grid .bar, .heat td { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.heat th, .heat td { border: 0; }
.heat thead th { text-align: center; min-width: 2.6rem; overflow-wrap: anywhere; }
.heat td { text-align: center; min-width: 2.6rem; background: rgb(0 114 178 / var(--share)); padding: .35rem .25rem; }
.heat td.dark { color: #fff; }
details summary { cursor: pointer; }
@media (max-width: 40rem) { .grid th:first-child { max-width: 9rem; } }
@media print {
  .scroll { overflow: visible; }
  .grid th:first-child { position: static; }
  figure.wide { break-inside: auto; }
  tr { break-inside: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; } /* folded tables unfold on paper */
}
"""
