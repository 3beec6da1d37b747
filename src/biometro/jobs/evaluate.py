"""`biometro evaluate`: models and tasks -> one table, with intervals and what differs clearly.

models, tasks ─▶ Harness ─▶ parts/ ─▶ results.json, table.md, report.html
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import biometro
from biometro.device import pick_device
from biometro.errors import UserError
from biometro.evaluation import harness as harnesses
from biometro.evaluation import harness_results
from biometro.evaluation.harness import Candidate, Harness, Settings
from biometro.evaluation.harness_report import write_harness_report
from biometro.evaluation.overlap import Corpora, Mode
from biometro.evaluation.protocol import RESAMPLES, Score
from biometro.evaluation.tasks import find
from biometro.files import locked, saying, write_file
from biometro.model.load import fingerprint

_FEWEST = 100


@dataclass(frozen=True)
class Evaluated:
    """What results.json holds, and how many parts were computed for it; the others were there."""

    results: dict[str, Any]
    computed: int


def evaluate(
    model: str | list[str],
    out: str,
    tasks: str | list[str] = "protein",
    data: str | None = None,
    corpus: str | list[str] | None = None,
    overlap: Mode = "exact",
    resamples: int = RESAMPLES,
    seed: int = 0,
    base: str | None = None,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    device: str = "auto",
    batch_tokens: int | None = None,
    report: bool = True,
) -> Evaluated:
    """Examine any number of models by the same tasks; the same command goes on where it stopped.

    Leaves in the folder `out`: results.json, table.md, report.html, and parts/ with what was computed, which is not
    computed again as long as model, data and options are the same: with a model or task more, only that is computed.
    The table holds what the last command names. Beside every model stand baselines that know letters
    and alignments only. A model that a task is not for has a dash there, and below the table why.

    Args:
        model: model folders of biometro, Hugging Face folders of ESM-2 or other encoders, fair-esm checkpoints (.pt).
        out: folder; made, or gone on with.
        tasks: names of suites (protein, or example, which needs no data), of their tasks, or YAML files of your own.
        data: folder of the tasks' data; default $BIOMETRO_DATA. Tasks whose data are not there are listed as not run.
        corpus: corpus folders that models may have been trained on, to count the test sequences in them; those that
            models name are looked at where they still are.
        overlap: what is counted there: exact copies, or homology (sequences with an alignment of at least 50 % identity
            over 80 % of the shorter too, by MMseqs2, which takes long), or none.
        resamples: of each test set, for intervals and comparisons.
        seed: of splits, of what is drawn, and of the resamples.
        base: folder of the base model, where an adapter's is no longer where it was.
        precision: of the arithmetic; auto is bfloat16 on CUDA and float32 elsewhere.
        device: auto, cpu, cuda, ...
        batch_tokens: tokens read at once; more takes more memory and does not change results.
        report: write report.html.

    Returns what results.json holds. Raises UserError for a model that cannot be read, a task file that is wrong, data
    that are not the task's, and where no task can be run.
    """
    if resamples < _FEWEST or not 0 <= seed < 2**32:
        raise UserError(f"resamples must be at least {_FEWEST}, seed between 0 and {2**32 - 1}")
    if batch_tokens is not None and batch_tokens < 1:
        raise UserError(f"batch_tokens is {batch_tokens}; it must be at least 1")
    chosen = find([tasks] if isinstance(tasks, str) else tasks)
    folder = data or os.environ.get("BIOMETRO_DATA")
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"{folder}: there is no such folder of data (--data, or $BIOMETRO_DATA)")
    models = _candidates([model] if isinstance(model, str) else model)
    ready, left_out = harnesses.ready(chosen, None if folder is None else Path(folder))
    place = Path(out)
    where = pick_device(device)
    settings = Settings(seed, resamples, where, precision, batch_tokens, overlap, base)
    corpora = Corpora([corpus] if isinstance(corpus, str) else corpus or [])
    with saying(place):
        place.mkdir(parents=True, exist_ok=True)
    with locked(place):
        console = Console(stderr=True)
        harness = Harness(place, settings, corpora)
        with Progress(
            TextColumn("{task.completed}/{task.total}"), BarColumn(20), TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False), console=console, transient=True,
        ) as progress:  # fmt: skip
            bar = progress.add_task("", total=len(ready) * (len(models) + 1))

            def say(text: str) -> None:
                progress.update(bar, description=text)

            def done(task: str, method: str, found: Score | str) -> None:
                metric = next(each.task.head.metric for each in ready if each.task.name == task)
                text = found if isinstance(found, str) else f"{metric} {found.figures.get(metric, float('nan')):.3f}"
                console.print(f"{task}: {method}: {text}", highlight=False, markup=False, soft_wrap=True)

            run = harness.run(ready, models, say, done)
        run.left_out = left_out + run.left_out
        options = {
            "model": [each.path for each in models], "tasks": [task.name for task in chosen], "seed": seed,
            "resamples": resamples, "precision": precision, "device": str(where), "overlap": overlap,
        }  # fmt: skip
        facts = {
            "models": ", ".join(each.name for each in models),
            "tasks": f"{len(run.examined)} of {len(chosen)}",
            "resamples": f"{resamples:,} of each test set",
            "seed": str(seed),
            "device": str(where),
            "made with": f"biometro {biometro.__version__}",
        }
        said = harness_results.assemble(run, options, facts)
        write_file(place / "results.json", json.dumps(said, indent=1))
        write_file(place / "table.md", harness_results.table(said))
        if report:
            write_harness_report(place / "report.html", place.name, said)
        console.print(Markdown(harness_results.table(said, intervals=False)))
        console.print(f"results: {place / 'results.json'}", highlight=False, soft_wrap=True)
    return Evaluated(said, run.computed)


def _candidates(paths: Sequence[str]) -> list[Candidate]:
    """Models by name: the folder's, or that of the run it is in; by path where two have one name."""
    once: dict[Path, str] = {}
    for text in paths:
        once.setdefault(Path(text).resolve(), text)
    paths = list(once.values())
    if not paths:
        raise UserError("no model was named")
    names = []
    for text in paths:
        path = Path(text).absolute()
        names.append(path.stem if path.suffix == ".pt" else path.parent.name if path.name == "model" else path.name)
    names = [name if names.count(name) == 1 else text for name, text in zip(names, paths, strict=True)]
    return [Candidate(name, text, fingerprint(text)) for name, text in zip(names, paths, strict=True)]
