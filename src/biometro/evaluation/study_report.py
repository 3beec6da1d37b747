"""A study's page: sentences, tables, curves, and the tables of every seed and run.

rows, runs ─▶ differences (`study_results`) ─▶ study.md, study.csv, study-runs.csv, a picture of each corpus
"""

from __future__ import annotations

import csv
import io
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from biometro.evaluation.study_pictures import picture
from biometro.evaluation.study_results import (
    FEWEST,
    Difference,
    Measured,
    Trained,
    by_baseline,
    cells,
    differences,
    overall,
    untrained,
)  # fmt: skip
from biometro.files import write_file

_TOLD = ("mlm_masked_loss", "aux_loss", "aux_masked_loss", "replaced", "rtd_gain", "rtd_ap", "clm_loss",
         "clm_masked_loss", "clm_accuracy_replaced", "clm_accuracy_kept")  # fmt: skip


@dataclass(frozen=True)
class About:
    """What a page says of a study beside its figures.

    Args:
        title: of the page.
        reference: the arm that others are compared with.
        arms: options by name.
        sizes: options by name.
        rates: learning rate of each corpus and arm, where they were searched.
        entropy: nats, of the letters of each corpus' held-out sequences: what a model that knows frequencies reaches.
        diverged: runs that came to no model, in words.
        complete: whether all runs are through.
    """

    title: str
    reference: str
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rates: Mapping[tuple[str, str], float] = field(default_factory=dict)
    entropy: Mapping[str, float] = field(default_factory=dict)
    diverged: Sequence[str] = ()
    complete: bool = True


def table(rows: Sequence[Measured]) -> str:
    """CSV with every figure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([one.name for one in fields(Measured)])
    for row in rows:
        said = replace(row, flops=_budget(row.flops), value=f"{row.value:.6g}")  # type: ignore[arg-type]
        writer.writerow(astuple(said))
    return text.getvalue()


def runs_table(trained: Sequence[Trained]) -> str:
    """CSV of every run."""
    names = list(dict.fromkeys(name for one in trained for name in one.held_out))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["corpus", "size", "flops", "arm", "seed", "steps", "tokens", *names])
    for one in trained:
        figures = [f"{one.held_out[name]:.6g}" if name in one.held_out else "" for name in names]
        writer.writerow([one.corpus, one.size, _budget(one.flops), one.arm, one.seed, one.steps, one.tokens, *figures])
    return text.getvalue()


def _budget(flops: float) -> str:
    """In six digits, or in as many as name it: what is published is found again by it."""
    return short if float(short := f"{flops:.6g}") == flops else repr(flops)


def sentences(found: Sequence[Difference], over_all: Sequence[Difference], reference: str) -> list[str]:
    """What follows, plainly: for each budget over all corpora; where an arm is clearly better or worse than the
    reference in one; and that nothing else is clear.

    found, over_all: of `differences` and `overall`.
    """
    said = []
    for one in over_all:
        how = f"{_verdict(one)} than" if one.clear else "not clearly different from"
        p = f", p {one.p:.2g}" if math.isfinite(one.p) else ""
        said.append(
            f"At {one.flops:.3g} FLOPs, over {one.blocks} corpora, {one.arm} is {how} {reference} ({_gap(one)}{p})"
        )
    means = [one for one in found if one.task == ""]
    for corpus, size, arm in dict.fromkeys((one.corpus, one.size, one.arm) for one in means):
        here = [one for one in means if (one.corpus, one.size, one.arm) == (corpus, size, arm)]
        parts = [f"{_verdict(one)} at {one.flops:.3g} FLOPs ({_gap(one)}, p {one.p:.2g})" for one in here if one.clear]
        if parts:
            said.append(f"{corpus}, {size}: {arm} is {'; '.join(parts)} than {reference}")
    rest = [one for one in means if not one.clear]
    few = [one for one in rest if math.isnan(one.p)]
    if len(few) < len(rest):
        what = "nothing else" if len(rest) < len(means) else "nothing"
        said.append(f"On the mean of a corpus' tasks {what} differs clearly from {reference}")
    if few:
        said.append(f"{len(few)} of {len(means)} comparisons on one corpus have too few seeds for a verdict "
                    f"({FEWEST})")  # fmt: skip
    return said


def _verdict(one: Difference) -> str:
    return f"clearly {'better' if one.mean > 0 else 'worse'}"


def _overview(found: Sequence[Difference], over_all: Sequence[Difference], reference: str) -> list[str]:
    """One table: arms by corpora, sizes and budgets, on the mean of tasks."""
    means = [one for one in (*found, *over_all) if one.task == ""]
    arms = list(dict.fromkeys(one.arm for one in means))
    known = {(one.corpus, one.size, one.flops, one.arm): one for one in means}
    lines = ["", "## Mean over tasks", "",
             f"Differences to {reference} over seeds, mean ± standard deviation (of all corpora: over corpora); above "
             "0 is better (▲ clearly better, ▼ clearly worse).", "",
             f"| | {' | '.join(arms)} |", "|---" * (len(arms) + 1) + "|"]  # fmt: skip
    for corpus, size, flops in dict.fromkeys(key[:3] for key in known):
        here = [known.get((corpus, size, flops, arm)) for arm in arms]
        shown = ["-" if one is None else _gap(one) + _mark(one) for one in here]
        where = f"{corpus}, {size}" if corpus else "**all corpora**"
        lines.append(f"| {where}, {flops:.3g} | {' | '.join(shown)} |")
    return lines


def _mark(one: Difference | None) -> str:
    return "" if one is None or not one.clear else " ▲" if one.mean > 0 else " ▼"


def _compared(rows: Sequence[Measured], reference: str) -> tuple[list[Difference], list[Difference]]:
    """Of arms, then of untrained models: in each cell, and over all corpora."""
    (found, over_all), (nothing, over_nothing) = (
        (differences(rows, reference), overall(rows, reference)),
        untrained(rows, reference),
    )
    return found + [one for one in nothing if one.task == ""], over_all + over_nothing


def document(about: About, rows: Sequence[Measured], trained: Sequence[Trained]) -> str:
    """The Markdown page."""
    reference, rates = about.reference, about.rates
    found, over_all = _compared(rows, reference)
    lines = [f"# {about.title}", ""]
    if not about.complete:
        lines += ["*The study is under way: what stands here is what has been run so far.*", ""]
    lines += [f"- {text}." for text in sentences(found, over_all, reference)] or ["Nothing has been run yet."]
    lines += [f"- No figures, for they diverged: {'; '.join(about.diverged)}."] if about.diverged else []
    lines += _overview(found, over_all, reference) if found else []
    if about.arms:
        named = {**about.arms, **about.sizes}
        lines += ["", "## Arms and sizes", "", "Options of `pretrain`, beside those of each corpus' recipe.", ""]
        lines += [f"- {name}: {', '.join(f'`{k} {v}`' for k, v in options.items()) or 'the recipe as it stands'}"
                  for name, options in named.items()]  # fmt: skip
    if rates:
        lines += ["", "## Learning rates", "",
                  "Searched on each corpus at the smallest size, carried to the others by muP.", ""]  # fmt: skip
        arms = list(dict.fromkeys(arm for _, arm in rates))
        lines += [f"| | {' | '.join(arms)} |", "|---" * (len(arms) + 1) + "|"]
        for corpus in dict.fromkeys(corpus for corpus, _ in rates):
            cells_ = [f"{rates[corpus, arm]:.3g}" if (corpus, arm) in rates else "-" for arm in arms]
            lines.append(f"| {corpus} | {' | '.join(cells_)} |")
    for corpus in dict.fromkeys(row.corpus for row in rows):
        lines += ["", f"## {corpus}", "", f"![quality at equal FLOPs](study-{corpus}.svg)"]
        lines += _corpus_tables([row for row in rows if row.corpus == corpus], found, reference)
        lines += _training_table([one for one in trained if one.corpus == corpus], about.entropy.get(corpus))
    return "\n".join(lines) + "\n"


def _training_table(trained: Sequence[Trained], entropy: float | None) -> list[str]:
    """What the runs of a corpus read and learnt, means over seeds."""
    if not trained:
        return []
    names = list(dict.fromkeys(name for one in trained for name in one.held_out if name in _TOLD))
    cells_ = dict.fromkeys((one.size, one.flops, one.arm) for one in trained)
    seeds = _numbers([sum((o.size, o.flops, o.arm) == cell for o in trained) for cell in cells_])
    level = "" if not entropy else f"; unigram entropy {entropy:.3f} nats"
    lines = ["", f"What they read, and their own held-out figures (means over {seeds}{level}; all runs: "
             "`study-runs.csv`):", "",
             f"| | steps | tokens (M) | {' | '.join(names)} |", "|---" * (len(names) + 3) + "|"]  # fmt: skip
    for cell in cells_:
        here = [one for one in trained if (one.size, one.flops, one.arm) == cell]
        told = [[one.held_out[name] for one in here if name in one.held_out] for name in names]
        shown = " | ".join(f"{np.mean(values):.3f}" if values else "-" for values in told)
        size, flops, arm = cell
        steps, tokens = (float(np.mean([getattr(one, what) for one in here])) for what in ("steps", "tokens"))
        lines.append(f"| {size}, {flops:.3g}, {arm} | {steps:,.0f} | {tokens / 1e6:.2f} | {shown} |")
    return lines


def _corpus_tables(rows: Sequence[Measured], found: Sequence[Difference], reference: str) -> list[str]:
    """One table for each size and budget: arms by tasks, mean and deviation over seeds; what is clear is marked."""
    lines = []
    known = {(o.corpus, o.size, o.flops, o.arm, o.task): o for o in found}
    tasks = list(dict.fromkeys(row.task for row in rows))
    metric = {row.task: row.metric for row in rows}
    for cell, here in cells(rows).items():
        corpus, size, flops = cell
        seeds = _numbers([len({r.seed for r in here if r.arm == arm}) for arm in {r.arm for r in here}])
        lines += ["", f"**{size}, {flops:.3g} FLOPs** (mean ± standard deviation over {seeds}; ▲ clearly better, "
                  f"▼ clearly worse than {reference})", ""]  # fmt: skip
        lines += [
            f"| | {' | '.join(f'{t} ({metric[t]})' for t in tasks)} | mean difference |",
            "|---" * (len(tasks) + 2) + "|",
        ]
        for arm in dict.fromkeys(row.arm for row in here):
            row_cells = []
            for task in tasks:
                values = [r.value for r in here if (r.arm, r.task) == (arm, task)]
                row_cells.append(_cell(values) + _mark(known.get((corpus, size, flops, arm, task))))
            whole = known.get((*cell, arm, ""))
            last = "" if whole is None else _gap(whole) + _mark(whole)
            lines.append(f"| {arm} | {' | '.join(row_cells)} | {last} |")
    baselines = [row for row in rows if row.baseline]
    if baselines:
        lines += ["", "Baselines, which know letters alone, and models that nothing has trained:", "",
                  f"| | {' | '.join(tasks)} |", "|---" * (len(tasks) + 1) + "|"]  # fmt: skip
        for name, here in by_baseline(baselines).items():
            shown = [_cell([row.value for row in here if row.task == task]) for task in tasks]
            lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


def _numbers(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low} seed{'s' * (low > 1)}" if low == high else f"{low} to {high} seeds"


def _gap(one: Difference) -> str:
    return f"{one.mean:+.3f}" + (f" ± {one.deviation:.3f}" if math.isfinite(one.deviation) else "")


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def write(folder: Path, about: About, rows: Sequence[Measured], trained: Sequence[Trained]) -> str:
    """study.csv, study-runs.csv, study.md and a picture of each corpus; gives the sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "study.csv", table(rows))
    write_file(folder / "study-runs.csv", runs_table(trained))
    for corpus in dict.fromkeys(row.corpus for row in rows if not row.baseline):
        write_file(folder / f"study-{corpus}.svg", picture([row for row in rows if row.corpus == corpus]))
    write_file(folder / "study.md", document(about, rows, trained))
    said = sentences(*_compared(rows, about.reference), about.reference)
    return "\n".join(said) or "nothing to compare yet"


def publish(folder: Path, out: Path) -> None:
    """Copy the page to `out`, and tables, pictures and the options beside it, under its name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    text = (folder / "study.md").read_text(encoding="utf-8")
    write_file(out, text.replace("](study-", f"]({out.stem}-").replace("`study-runs.csv`", f"`{out.stem}-runs.csv`"))
    for path in (*folder.glob("study*.csv"), *folder.glob("study.yaml"), *folder.glob("study-*.svg")):
        shutil.copyfile(path, out.with_name(path.name.replace("study", out.stem, 1)))
