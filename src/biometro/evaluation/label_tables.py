"""Tables of a fine-tuning run's page. Text from files is escaped; what is undefined is an empty cell.

The content of results.json ─▶ rows ─▶ HTML
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from biometro.evaluation.metrics import larger_is_better
from biometro.evaluation.page import number, swatch
from biometro.evaluation.results import MAIN

FIGURES = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1", "micro_f1": "micro F1",
    "weighted_f1": "weighted F1", "mcc": "MCC", "auroc": "AUROC", "auc01": "AUC0.1",
    "auroc_per_group": "AUROC per group", "auc01_per_group": "AUC0.1 per group", "auprc": "AUPRC",
    "log_loss": "log loss", "brier": "Brier score", "ece": "ECE", "exact_match": "exact match", "q3": "Q3", "q8": "Q8",
    "spearman": "Spearman's rho", "spearman_per_sequence": "Spearman's rho per sequence", "pearson": "Pearson's r",
    "rmse": "RMSE", "mae": "MAE", "r2": "R²",
}  # fmt: skip
"""What figures are called in print."""
GRID = """
.scroll { overflow-x: auto; max-width: 100%; margin-bottom: 1.6rem; }
table.grid { width: auto; }
.grid th, .grid td { padding: .22rem .6rem; text-indent: 0; width: auto; border-bottom: 1px solid var(--line); }
.grid thead th { color: var(--soft); text-align: right; vertical-align: bottom; }
.grid thead th:first-child { text-align: left; }
.grid tr:first-child { color: inherit; }
.grid td { white-space: normal; overflow-wrap: anywhere; }
"""
"""The look of `grid` on a page that has nothing else to say about tables."""
SIDES = ("train", "valid", "test")
NAMED = 6
"""Classes up to which a confusion matrix names its columns; above, it numbers them."""


def finite(value: Any) -> float | None:
    """The number, or None for whatever is not a finite one."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def shown(value: Any) -> str:
    """A figure in three decimals, or four digits where it is large or tiny; empty where undefined."""
    found = finite(value)
    if found is None:
        return ""
    return f"{found:.3f}" if found == 0 or 0.01 <= abs(found) < 100 else number(found)


def beside(value: float, mean: float | None) -> str:
    """A deviation, or an end of an interval, to the decimals of its mean."""
    return f"{value:.3f}" if mean is not None and 0.01 <= abs(mean) < 100 else shown(value)


def percent(value: Any) -> str:
    """A share in per cent, on one line; empty where undefined."""
    found = finite(value)
    return "" if found is None else f"{100 * found:.1f}\u00a0%"


def called(figure: str) -> str:
    """What a figure is called; "rmse/pH" is one column's."""
    base, _, column = figure.partition("/")
    return FIGURES.get(base, base.replace("_", " ")) + (f" of {column}" if column else "")


def mean_of(method: Mapping[str, Any], figure: str) -> float | None:
    """A method's figure: the mean over its runs."""
    return finite((method["summary"].get(figure) or {}).get("mean"))


def interval_of(run: Mapping[str, Any], figure: str) -> tuple[float, float] | None:
    """The 95 % interval of a run's figure."""
    low, high = (run.get("intervals") or {}).get(figure) or (None, None)
    ends = finite(low), finite(high)
    return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])


def grid(head: Sequence[str], rows: Sequence[str]) -> str:
    """A table that scrolls sideways where it is too wide. `head` are plain names, `rows` HTML cells."""
    names = "".join(f"<th scope=col>{escape(name)}" for name in head)
    body = "".join(f"<tr>{row}" for row in rows)
    return f'<div class="scroll" tabindex="0"><table class="grid"><thead><tr>{names}<tbody>{body}</table></div>'


def results_table(kind: str, metric: str, methods: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    """Methods x figures, the task's metric first: the mean, and below it the deviation over runs or the interval."""
    figures = [metric, *(name for name in MAIN.get(kind, ()) if name != metric)]
    means = {name: {key: mean_of(method, name) for key, method in methods.items()} for name in figures}
    figures = [name for name in figures if any(value is not None for value in means[name].values())]
    best = {name: _best(list(means[name].values()), larger_is_better(name)) for name in figures}
    rows = []
    for key, method in methods.items():
        cells = [f"<th scope=row>{swatch(colours[key], 'o')}{escape(key)}"]
        for name in figures:
            mean, sd = means[name][key], finite((method["summary"].get(name) or {}).get("sd"))
            ends = interval_of(method["runs"][0], name) if len(method["runs"]) == 1 else None
            more = f"± {beside(sd, mean)}" if sd is not None else ""
            if ends and not more:
                more = " to ".join(beside(end, mean) for end in ends)
            strong = len(methods) > 1 and mean is not None and mean == best[name]
            text = f"<b>{shown(mean)}</b>" if strong else shown(mean)
            cells.append(f"<td>{text}<small>{more}</small>")
        rows.append("".join(cells))
    arrows = [f"{called(name)} {'↑' if larger_is_better(name) else '↓'}" for name in figures]
    return grid(["", *arrows], rows)


def _best(values: Sequence[float | None], larger: bool) -> float | None:
    known = [value for value in values if value is not None]
    return (max if larger else min)(known) if known else None


def fits_table(metric: str, methods: Mapping[str, Any], chosen: tuple[str, int] | None) -> str:
    """Every fit of a model: how it was trained and what it reached; empty without models."""
    rows = []
    for key, method in methods.items():
        for place, run in enumerate([] if method["baseline"] else method["runs"]):
            bold = ("<b>", "</b>") if (key, place) == chosen else ("", "")
            figures = (run.get("valid") or {}).get(metric), (run.get("figures") or {}).get(metric)
            trained, epoch = finite(run.get("trained_parameters")), finite(run.get("epoch"))
            cells = [
                *map(shown, figures), "" if epoch is None else f"{epoch:.4g}",
                "" if trained is None else number(trained), shown(run.get("temperature")), _span(run.get("seconds")),
            ]  # fmt: skip
            name = f"{bold[0]}{escape(key)}, seed {escape(str(run.get('seed', '')))}{bold[1]}"
            rows.append(f"<th scope=row>{name}" + "".join(f"<td>{cell}" for cell in cells))
    name = called(metric)
    head = ["", f"{name}, validation", f"{name}, test", "best epoch", "trained parameters", "temperature", "time"]
    return grid(head, rows) if rows else ""


def _span(seconds: Any) -> str:
    found = finite(seconds)
    if found is None:
        return ""
    unit, size = ("h", 3600) if found >= 7200 else ("min", 60) if found >= 120 else ("s", 1)
    return f"{found / size:.3g} {unit}"


def classes_table(said: Mapping[str, Any]) -> str:
    """How many sequences (or residues) each class has in the files, after grouping, and on each side; may be empty."""
    classes = said.get("classes") or {}
    columns: list[tuple[str, Mapping[str, Any]]] = []
    for side, name in (("before", "in the files"), ("after", "used")):
        columns.append((name, classes.get(side) or {}))
    for by, split in said["splits"].items():
        counts = split.get("classes") or {}
        several = f"{by}: " if len(said["splits"]) > 1 else ""
        columns += [(several + side, counts[side]) for side in SIDES if counts.get(side)]
    names = dict.fromkeys([name for _, counts in reversed(columns) for name in counts])
    order = [name for name in dict.fromkeys(said["task"]["names"]) if name in names]
    order += [name for name in names if name not in order]
    rows = []
    for name in order:
        cells = (f"<td>{_count(counts.get(name))}" for _, counts in columns)
        rows.append(f"<th scope=row>{escape(name)}" + "".join(cells))
    return grid(["class", *(name for name, _ in columns)], rows) if rows else ""


def _count(value: Any) -> str:
    found = finite(value)
    return "" if found is None else f"{int(found):,}"


def per_class_table(rows: Sequence[Mapping[str, Any]], trained: Mapping[str, Any]) -> str:
    """Of every class its counts in train and test, and its figures as bars from 0 to 1."""
    lines = []
    for row in rows:
        name = str(row.get("name", ""))
        counts = [_count(trained.get(name))] if trained else []
        cells = [f"<th scope=row>{escape(name)}", *(f"<td>{text}" for text in (*counts, _count(row.get("support"))))]
        cells += [_bar(row.get(figure)) for figure in ("precision", "recall", "f1", "auroc")]
        lines.append("".join(cells))
    return grid(["class", *(["train"] if trained else []), "test", "precision", "recall", "F1", "AUROC"], lines)


def _bar(value: Any) -> str:
    found = finite(value)
    if found is None:
        return "<td>"
    return f'<td class="bar" style="--share:{100 * min(1.0, max(0.0, found)):.1f}%">{shown(found)}'


def confusion_table(counts_KK: np.ndarray, names: Sequence[str]) -> str:
    """Counts, shaded by the share of their row: true classes down, answers across."""
    shares_KK = row_shares(counts_KK)
    lines = []
    for k, name in enumerate(names):
        cells = []
        for count, share in zip(counts_KK[k], shares_KK[k], strict=True):
            text = f"{count:,}" if count < 1e4 else number(float(count))
            dark = " class=dark" if share > 0.55 else ""
            cells.append(f'<td{dark} style="--share:{share:.2f}" title="{100 * share:.0f} %">{text if count else "·"}')
        title = escape(name) if len(names) <= NAMED else f"<small>{k + 1}</small> {escape(name)}"
        lines.append(f"<th scope=row>{title}" + "".join(cells))
    head = list(names) if len(names) <= NAMED else [str(k + 1) for k in range(len(names))]
    return grid(["true ↓ answered →", *head], lines).replace('class="grid"', 'class="grid heat"', 1)


def row_shares(counts_KK: np.ndarray) -> np.ndarray:
    """Rows divided by their sums, (K, K) float64; zeros for a class that is not there."""
    sums_K1 = counts_KK.sum(1, keepdims=True)
    shares_KK: np.ndarray = counts_KK / np.maximum(sums_K1, 1)
    return shares_KK


def mistakes(counts_KK: np.ndarray, names: Sequence[str], most: int = 5) -> str:
    """The most frequent wrong answers, in words; empty where there are none."""
    wrong_KK = counts_KK - np.diag(np.diag(counts_KK))
    places = np.argsort(-wrong_KK, axis=None, kind="stable")[:most]
    found = [(*divmod(int(place), len(names)), int(wrong_KK.flat[place])) for place in places]
    said = [f"{names[i]} taken for {names[j]} ({count:,})" for i, j, count in found if count]
    return f"Most frequent: {'; '.join(said)}." if said else ""


def columns_table(kind: str, names: Sequence[str], run: Mapping[str, Any], spans: Sequence[Mapping[str, Any]]) -> str:
    """The figures of each predicted column, and the interval that conformal prediction gives it."""
    several = names if len(names) > 1 else ()  # the figures of a single column stand in the table of methods
    figures = [name for name in MAIN.get(kind, ()) if any(f"{name}/{column}" in run["figures"] for column in several)]
    lines = []
    for place, column in enumerate(names):
        cells = [shown(run["figures"].get(f"{name}/{column}")) for name in figures]
        if spans:
            span = spans[place] if place < len(spans) else {}
            width = finite(span.get("width"))
            cells += [percent(span.get("coverage")), "" if width is None else f"± {shown(width / 2)}"]
        lines.append(f"<th scope=row>{escape(column)}" + "".join(f"<td>{cell}" for cell in cells))
    head = ["", *map(called, figures), *(["held the truth", "interval"] if spans else [])]
    return grid(head, lines) if len(head) > 1 else ""
