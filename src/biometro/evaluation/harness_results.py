"""What is said of models after all tasks: results.json and the table.

Run ─▶ of each task: methods with intervals, all pairs ─▶ of each model: rank, wins ─▶ plain values for JSON
                                                                                   └─▶ table in Markdown
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from biometro.evaluation import paired
from biometro.evaluation.harness import Examined, Run
from biometro.evaluation.metrics import interval, larger_is_better
from biometro.evaluation.paired import Placed
from biometro.evaluation.protocol import Score
from biometro.evaluation.results import plain

VERDICTS = {
    "above": "better than every baseline",
    "within": "not clearly better than every baseline",
    "below": "worse than a baseline",
}


def assemble(run: Run, options: Mapping[str, Any], facts: Mapping[str, str]) -> dict[str, Any]:
    """The content of results.json: plain values, None where a figure is undefined.

    Args:
        run: what was found.
        options: of the command, as they are recorded.
        facts: lines for the head of the report.
    """
    tasks, placed = [], []
    for each in run.examined:
        entry, place = _task(each)
        tasks.append(entry)
        placed.append(place)
    names = list(run.about)
    standings = [dataclasses.asdict(standing) for standing in paired.standings(names, placed)]
    said = {
        "facts": dict(facts),
        "options": dict(options),
        "models": {name: dict(about) for name, about in run.about.items()},
        "tasks": tasks,
        "standings": standings,
        "left_out": [
            {"task": task.name, "title": task.head.title, "url": task.head.url, "reason": reason}
            for task, reason in run.left_out
        ],
    }
    found = plain(said)
    assert isinstance(found, dict)
    return found


def _task(each: Examined) -> tuple[dict[str, Any], Placed]:
    head = each.ready.task.head
    methods: dict[str, dict[str, Any]] = {}
    replicates = {}
    main: dict[str, str] = {}  # of each model, the name of its first method, which is the one that stands in the table
    for name, score in each.baselines.items():
        methods[name] = _method(head.metric, score, None, name)
        replicates[name] = score.replicates
    for model, scores in each.models.items():
        for method, score in scores.items():
            label = _free(model if len(scores) == 1 else f"{model}, {method}", methods)
            main.setdefault(model, label)
            methods[label] = _method(head.metric, score, model, method)
            replicates[label] = score.replicates
    pairs = paired.pairs(replicates)
    larger = larger_is_better(head.metric)
    values = {name: method["value"] for name, method in methods.items()}
    place = Placed(values, main, list(each.baselines), pairs, larger)
    facts = {"source": head.url, "licence": head.licence, "citation": head.citation}
    entry = {
        "task": each.ready.task.name,
        "suite": each.ready.task.suite,
        "kind": head.kind,
        "title": head.title,
        "metric": head.metric,
        "larger_is_better": larger,
        "data": head.files,
        "sha256": each.ready.sha256,
        "facts": {name: text for name, text in facts.items() if text} | each.facts,
        "methods": methods,
        "main": main,
        "refused": each.refused,
        "overlap": each.overlaps,
        "pairs": [dataclasses.asdict(pair) for pair in pairs],
        "verdicts": {model: place.verdict(model) for model in main},
        "resamples": max((len(values) for values in replicates.values()), default=0),
    }
    return entry, place


def _method(metric: str, score: Score, model: str | None, method: str) -> dict[str, Any]:
    low, high = interval(score.replicates)
    return {
        "model": model,
        "method": method,
        "value": score.figures.get(metric, math.nan),
        "low": low,
        "high": high,
        "figures": dict(score.figures),
        "details": dict(score.details),
        "seconds": score.seconds,
        "note": score.note,
    }


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """A name that no baseline has."""
    return _free(f"{name} (model)", taken) if name in taken else name


def columns(said: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Models, and baselines, as they stand in the table: each baseline of any task once."""
    found = (name for task in said["tasks"] for name, method in task["methods"].items() if method["model"] is None)
    return list(said["models"]), list(dict.fromkeys(found))


def cell(task: Mapping[str, Any], column: str) -> Mapping[str, Any] | None:
    """What a model or baseline reaches on a task; None where there is nothing."""
    label = task["main"].get(column)
    if label is None:
        label = column if task["methods"].get(column, {}).get("model", "") is None else None
    return None if label is None else task["methods"][label]


def best_columns(task: Mapping[str, Any], names: Sequence[str]) -> set[str]:
    """Those of these columns with the best figure."""
    known = {name: found["value"] for name in names if (found := cell(task, name)) and found["value"] is not None}
    if not known:
        return set()
    top = (max if task["larger_is_better"] else min)(known.values())
    return {name for name, value in known.items() if value == top}


def table(said: Mapping[str, Any], intervals: bool = True) -> str:
    """All tasks and methods in Markdown: figures with 95 % intervals, the best of a row bold, and below it what a dash
    means, what was not run, and who stands where."""
    models, baselines = columns(said)
    names = [*models, *baselines]
    lines = [f"| task | metric | {' | '.join(map(_escape, names))} |", f"|---|---|{'---|' * len(names)}"]
    for task in said["tasks"]:
        best = best_columns(task, names)
        cells = [_cell(task, name, name in best, intervals) for name in names]
        arrow = "" if task["larger_is_better"] else " (less is better)"
        lines.append(f"| {task['task']} | {task['metric']}{arrow} | {' | '.join(cells)} |")
    lines += [
        "",
        ("95 % bootstrap intervals. " if intervals else "")
        + "= not clearly better than every baseline; < a baseline is clearly better (paired "
        f"bootstrap, Holm-corrected p < {paired.LEVEL}).",
        "",
    ]
    if len(models) > 1:
        lines += [
            "| model | tasks | mean rank | clear wins | clear losses | above all baselines |",
            "|---|---|---|---|---|---|",
        ]
        for row in said["standings"]:
            rank = "" if row["rank"] is None else f"{row['rank']:.2f}"
            counts = f"{row['wins']} | {row['losses']} | {row['above']}"
            lines.append(f"| {_escape(row['model'])} | {row['tasks']} | {rank} | {counts} |")
        lines.append("")
    for task in said["tasks"]:
        lines += [
            f"- {task['task']}: {_escape(model)} was not examined: {why}" for model, why in task["refused"].items()
        ]
        if not _has_several(task):  # else notes stand beside each
            lines += [
                f"- {task['task']}, {_escape(name)}: {method['note']}"
                for name, method in task["methods"].items()
                if method["model"] is not None and method["note"]
            ]
        if (note := short_of(task)) is not None:
            lines.append(f"- {task['task']}: {note}")
    lines += [f"- seen in training, {_escape(model)}: {text}" for model in models for text in _seen(said, model)]
    lines += [f"- {task['task']} was not run: {task['reason']}" for task in said["left_out"]]
    if intervals:
        lines += [line for task in said["tasks"] for line in _in_full(task)]
    return "\n".join(lines).rstrip() + "\n"


def parts(task: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """What a task consists of (assays): the names of columns, and a row for each part: its name, the metric of each
    method, and whatever stands beside it (published figures). No rows where a task has no parts."""
    kept = {name: method["details"].get("parts") or {} for name, method in task["methods"].items()}
    kept = {name: found for name, found in kept.items() if found}
    if not kept:
        return [], []
    first = next(iter(kept.values()))
    beside = list(dict.fromkeys(key for part in first.values() for key in part.get("beside", {})))
    head = [*next(iter(first.values()))["facts"], *kept, *(f"published: {key}" for key in beside)]
    rows = [
        [name, *part["facts"].values(), *(found.get(name, {}).get("value") for found in kept.values())]
        + [part.get("beside", {}).get(key) for key in beside]
        for name, part in first.items()
    ]
    return head, rows


def _has_several(task: Mapping[str, Any]) -> bool:
    """Whether a model has several methods."""
    return any(sum(method["model"] == model for method in task["methods"].values()) > 1 for model in task["main"])


def _in_full(task: Mapping[str, Any]) -> list[str]:
    """All methods of a task in which a model has several, and its parts."""
    lines: list[str] = []
    if _has_several(task):
        lines += [
            "",
            f"**{task['task']}: every method**",
            "",
            f"| | {task['metric']} | seconds | |",
            "|---|---|---|---|",
        ]
        for name, method in task["methods"].items():
            value = "-" if method["value"] is None else f"{method['value']:.3f}"
            if method["value"] is not None and method["low"] is not None:
                value += f" ({method['low']:.3f} to {method['high']:.3f})"
            lines.append(f"| {_escape(name)} | {value} | {method['seconds']:.1f} | {_escape(method['note'])} |")
    head, rows = parts(task)
    if rows:
        lines += ["", f"| | {' | '.join(map(_escape, head))} |", f"|---|{'---|' * len(head)}"]
        for name, *cells in rows:
            texts = ["" if c is None else f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells]
            lines.append(f"| {_escape(name)} | {' | '.join(texts)} |")
    return lines


def _seen(said: Mapping[str, Any], model: str) -> list[str]:
    """How many test sequences a model has seen, task by task; once where all say the same."""
    texts = {task["task"]: task["overlap"][model]["text"] for task in said["tasks"]}
    same = {*texts.values()}
    return [*same] if len(same) == 1 else [f"{name}: {text}" for name, text in texts.items()]


def short_of(task: Mapping[str, Any]) -> str | None:
    """What to say where too few resamples were drawn for any pair to differ clearly."""
    tests = sum(pair["p"] is not None for pair in task["pairs"])
    least = paired.least_p(tests, task["resamples"])
    if not tests or least < paired.LEVEL:
        return None
    return (
        f"with {tests} pairs and {task['resamples']:,} resamples no corrected p lies below {least:.2g}, so that "
        f"nothing can differ clearly; ask for more than {paired.enough(tests):,} resamples"
    )


def _cell(task: Mapping[str, Any], name: str, best: bool, intervals: bool) -> str:
    found = cell(task, name)
    if found is None or found["value"] is None:
        return "-"
    text = f"**{found['value']:.3f}**" if best else f"{found['value']:.3f}"
    if intervals and found["low"] is not None:
        text += f" ({found['low']:.3f} to {found['high']:.3f})"
    return text + {"within": " =", "below": " <"}.get(task["verdicts"].get(name, ""), "")


def _escape(name: str) -> str:
    return name.replace("|", "\\|")
