"""The page that `evaluate` leaves behind: one HTML file, no network, no script.

results.json ─▶ the table of all tasks ─▶ standings ─▶ of each task: dots with intervals, all pairs, facts, overlap
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from biometro.evaluation import label_plots, paired
from biometro.evaluation.harness_results import VERDICTS, best_columns, cell, columns, parts, short_of
from biometro.evaluation.label_plots import Entry, Estimate
from biometro.evaluation.label_tables import FIGURES, finite, grid, shown
from biometro.evaluation.labels_report import STYLE as LABELS_STYLE
from biometro.evaluation.page import card, fact_list, frame, swatch, warning_box
from biometro.evaluation.plots import GREY
from biometro.files import write_file

_OWN_FIGURES = {
    "top1": "top-1 accuracy", "mrr": "mean reciprocal rank", "map": "mean average precision",
    "precision_at_k": "precision among the highest",
}  # fmt: skip
_MARKS = {"within": "=", "below": "<"}


def write_harness_report(out: Path, title: str, said: Mapping[str, Any]) -> None:
    """Writes the page to the file `out`, whole or not at all.

    Args:
        out: the HTML file.
        title: of the page.
        said: what results.json holds.

    Raises:
        UserError: for whatever the file system refuses.
    """
    models, baselines = columns(said)
    palette = label_plots.MODELS
    colours = {model: palette[number % len(palette)] for number, model in enumerate(models)}
    body = [
        *(f'<p class="verdict">{escape(line)}</p>' for line in _verdicts(said)),
        fact_list({str(name): str(value) for name, value in said["facts"].items()}),
        "<h2>All tasks</h2>",
        _table(said, models, baselines, colours),
        _reading(),
        _standings(said, colours),
        _left_out(said),
    ]
    for task in said["tasks"]:
        body += _task(task, colours)
    write_file(out, frame(title, "\n".join(part for part in body if part), LABELS_STYLE + STYLE))


def _verdicts(said: Mapping[str, Any]) -> list[str]:
    """Each model in one line, the best mean rank first."""
    lines = []
    for row in said["standings"]:
        if not row["tasks"]:
            lines.append(f"{row['model']}: no task could be done.")
            continue
        counts = [f"{VERDICTS[word]} on {row[word]}" for word in ("above", "within", "below") if row[word]] or [
            "no baseline to compare with"
        ]
        rank = f"mean rank {row['rank']:.2f} of {len(said['models'])}, " if len(said["models"]) > 1 else ""
        lines.append(f"{row['model']}: {row['tasks']} task{'s' * (row['tasks'] != 1)}; {rank}{', '.join(counts)}.")
    return lines


def _table(said: Mapping[str, Any], models: Sequence[str], baselines: Sequence[str], colours: Mapping[str, str]) -> str:
    names = [*models, *baselines]
    rows = []
    for task in said["tasks"]:
        best = best_columns(task, names)
        arrow = "↑" if task["larger_is_better"] else "↓"
        link = f'<a href="#{escape(task["task"])}">{escape(task["task"])}</a>'
        cells = [f"<th scope=row>{link}<small>{escape(called(task['metric']))} {arrow}</small>"]
        for name in names:
            found = cell(task, name)
            if found is None or found["value"] is None:
                why = task["refused"].get(name, "")
                cells.append(f'<td title="{escape(why)}">-')
                continue
            text = f"<b>{shown(found['value'])}</b>" if name in best else shown(found["value"])
            mark = _MARKS.get(task["verdicts"].get(name, ""), "")
            mark = f" <i>{escape(mark)}</i>" if mark else ""
            ends = "" if found["low"] is None else f"{found['low']:.3f} to {found['high']:.3f}"
            cells.append(f"<td>{text}{mark}<small>{ends}</small>")
        rows.append("".join(cells))
    body = grid(["", *names], rows)
    for model in models:  # a swatch beside a model's name, as in the pictures
        body = body.replace(
            f"<th scope=col>{escape(model)}", f"<th scope=col>{swatch(colours[model], 'o')}{escape(model)}", 1
        )
    return body


def _reading() -> str:
    return (
        '<p class="note">Figures on test sets with 95 % bootstrap intervals; bold is the best of a row. Baselines know '
        "letters and alignments only, and stand right of the models. = the model is not clearly better than every "
        "baseline, &lt; a baseline is clearly better. Clearly means: the difference on the same resamples of the test "
        f"set has a p below {paired.LEVEL}, corrected for all pairs of the task (Holm). Intervals of two methods may "
        "overlap although their difference is clear, since a resample that is hard is hard for both. Probes are "
        "linear, with a penalty chosen on validation; they tell what vectors hold, not what fine-tuning would "
        "reach.</p>"
    )


def _standings(said: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    if len(said["models"]) < 2:
        return ""
    rows = []
    for row in said["standings"]:
        cells = [f"<th scope=row>{swatch(colours[row['model']], 'o')}{escape(row['model'])}", f"<td>{row['tasks']}"]
        cells.append("<td>" if row["rank"] is None else f"<td>{row['rank']:.2f}")
        cells += [f"<td>{row[key]}" for key in ("wins", "losses", "above", "within", "below")]
        rows.append("".join(cells))
    head = ["", "tasks", "mean rank", "clear wins", "clear losses", "above baselines", "level", "below"]
    note = (
        "Ranks are among the models that did a task, 1 the best. Wins and losses are clear differences from other "
        "models, over all tasks. The last three columns count tasks by how the model stands to the baselines."
    )
    return f'<h2>Models over all tasks</h2>{grid(head, rows)}<p class="note">{note}</p>'


def _left_out(said: Mapping[str, Any]) -> str:
    if not said["left_out"]:
        return ""
    items = "".join(f"<div><dt>{escape(each['task'])}<dd>{escape(each['reason'])}</div>" for each in said["left_out"])
    return f"<h2>Tasks that were not run</h2><dl>{items}</dl>"


def _task(task: Mapping[str, Any], colours: Mapping[str, str]) -> list[str]:
    facts = {**task["facts"], "kind": task["kind"].replace("_", " "), "data": ", ".join(task["data"])}
    facts |= {f"seen in training, {model}": found["text"] for model, found in task["overlap"].items()}
    facts |= {f"not examined, {model}": why for model, why in task["refused"].items()}
    facts |= {f"note, {name}": method["note"] for name, method in task["methods"].items() if method["note"]}
    panels = [_dots(task, colours), _matrix(task)]
    return [
        f'<h2 id="{escape(task["task"])}">{escape(task["task"])}: {escape(task["title"])}</h2>',
        warning_box(f"On this task {found}." if (found := short_of(task)) else ""),
        f"<section>{''.join(panel for panel in panels if panel)}</section>",
        fact_list({str(name): str(value) for name, value in facts.items()}),
        _parts(task),
        _figures(task),
    ]


def _dots(task: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    entries = []
    for name, method in task["methods"].items():
        value = finite(method["value"])
        runs = [Estimate(value, finite(method["low"]), finite(method["high"]))]
        entries.append(Entry(name, colours.get(method["model"] or "", GREY), value, runs, shown(value)))
    entries.sort(key=lambda entry: entry.colour == GREY)
    levels = [e.mean for e in entries if e.colour == GREY and e.mean is not None]
    level = (max if task["larger_is_better"] else min)(levels) if levels else None
    picture = label_plots.draw_dots(entries, called(task["metric"]), level)
    better = "Further right is better" if task["larger_is_better"] else "Further left is better"
    note = f"{better}. Lines are 95 % intervals; grey are baselines, dashed the best of them."
    return card(called(task["metric"]), picture, note, heading="h3")


def _matrix(task: Mapping[str, Any]) -> str:
    """Differences of all pairs, row minus column, shaded where they are clear."""
    names = sorted(task["methods"], key=lambda name: task["methods"][name]["model"] is None)  # models first
    if len(names) < 2:
        return ""
    better = 1 if task["larger_is_better"] else -1
    found: dict[tuple[str, str], str] = {}
    for pair in task["pairs"]:
        if pair["mean"] is None:
            continue
        for row, column, sign in ((pair["a"], pair["b"], 1), (pair["b"], pair["a"], -1)):
            mean = sign * pair["mean"]
            ends = sorted((sign * pair["low"], sign * pair["high"]))
            look = ("" if pair["holm"] >= paired.LEVEL else "up" if better * mean > 0 else "down") or "even"
            title = f"{ends[0]:+.3f} to {ends[1]:+.3f}, p {pair['p']:.2g}, corrected {pair['holm']:.2g}"
            found[row, column] = f'<td class={look} title="{escape(title)}">{mean + 0.0:+.3f}'
    rows = []
    for number, row in enumerate(names, 1):
        cells = [found.get((row, column), "<td>·" if row == column else "<td>") for column in names]
        rows.append(f"<th scope=row><small>{number}</small> {escape(row)}" + "".join(cells))
    table = grid(["row minus column", *(str(number) for number in range(1, len(names) + 1))], rows)
    note = (
        "Blue: the row is clearly better than the column, orange: clearly worse, pale: no clear difference. Intervals "
        "and p stand in the cells' titles and in results.json."
    )
    return card(
        "Differences", table.replace('class="grid"', 'class="grid heat signs"', 1), note, heading="h3", look="own"
    )


def _parts(task: Mapping[str, Any]) -> str:
    """The metric of every part of the task by every method."""
    head, found = parts(task)
    rows = [
        f"<th scope=row>{escape(name)}"
        + "".join(f"<td>{shown(c) if isinstance(c, float) else escape('' if c is None else str(c))}" for c in cells)
        for name, *cells in found
    ]
    return f"<h3>{escape(called(task['metric']))} of each part</h3>{grid(['', *head], rows)}" if rows else ""


def _figures(task: Mapping[str, Any]) -> str:
    """All figures of all methods, folded away: those that every method has, without those of single columns."""
    names = [n for n in dict.fromkeys(f for m in task["methods"].values() for f in m["figures"]) if "/" not in n]
    rows = []
    for name, method in task["methods"].items():
        cells = [f"<td>{shown(method['figures'].get(figure))}" for figure in names]
        seconds = finite(method["seconds"])
        rows.append(f"<th scope=row>{escape(name)}" + "".join(cells) + f"<td>{shown(seconds)}")
    table = grid(["", *map(called, names), "seconds"], rows)
    return f"<details><summary>All figures</summary>{table}</details>"


def called(figure: str) -> str:
    """What a figure is called in print."""
    return {**FIGURES, **_OWN_FIGURES}.get(figure, figure.replace("_", " "))


STYLE = """
.grid th small { display: block; color: var(--soft); }
.grid td i { font-style: normal; color: var(--soft); }
.grid a { color: inherit; }
.signs th small { display: inline; margin-right: .3rem; }
.signs td.up { background: rgb(0 114 178 / .35); }
.signs td.down { background: rgb(230 159 0 / .4); }
.signs td.even { background: none; color: var(--soft); }
.signs td { background: none; min-width: 3.6rem; }
"""
