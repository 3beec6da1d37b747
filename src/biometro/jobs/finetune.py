"""`biometro finetune`: labelled sequences and a model -> a model that answers, and figures that hold up.

labelled ─▶ split, leak ─▶ baselines ─┐
                 └─▶ fits: depths x seeds ─▶ calibration ─▶ figures on test ─▶ results.json, report.html, model/
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from biometro.alphabet import MoleculePolicy, Reading, ResiduePolicy, SequenceKind, kind_of
from biometro.data import sides
from biometro.data.labels import Labelled, read_labelled
from biometro.data.layouts import Region
from biometro.data.sides import SplitConfig
from biometro.data.sources import Format, ReadOptions
from biometro.data.task import LabelConfig, Task
from biometro.errors import UserError
from biometro.evaluation import metrics, results
from biometro.evaluation.labels_report import write_labels_report
from biometro.files import write_file
from biometro.jobs.comparison import Comparison
from biometro.model.adapters import LoraConfig
from biometro.model.bundle import Bundle
from biometro.model.load import fingerprint, load, merged
from biometro.training import parallel, runs
from biometro.training.finetuning import FROZEN, Depth, FitConfig, HeadConfig
from biometro.training.signals import StopRequest

_FREE = {
    "data", "run", "device", "report", "depth", "seeds", "split.by", "baselines",
    *(f"training.{name}" for name in ("checkpoint_epochs", "max_minutes", "track")),
    *(f"training.parallel.{name}" for name in ("sharding", "reshard", "recompute", "timeout_minutes")),
}  # fmt: skip


@dataclass(frozen=True)
class Finetuned:
    """How it ended. `stopped` says why it ended early; `results` is what results.json holds."""

    results: dict[str, Any]
    stopped: str | None = None


def finetune(
    model: str,
    data: str | list[str],
    run: str,
    labels: LabelConfig = LabelConfig(),
    split: SplitConfig = SplitConfig(),
    depth: Depth | list[Depth] = "probe",
    head: HeadConfig = HeadConfig(),
    lora: LoraConfig = LoraConfig(),
    training: FitConfig = FitConfig(),
    baselines: bool = True,
    coverage: float = 0.9,
    kind: SequenceKind | None = None,
    residues: ResiduePolicy = "as_is",
    molecules: MoleculePolicy = MoleculePolicy(),
    max_length: int = 1022,
    format: Format = "auto",
    column: str | dict[str, str] = "sequence",
    region: Region = "auto",
    id_column: str | None = None,
    seeds: int = 1,
    seed: int = 0,
    device: str = "auto",
    report: bool = True,
) -> Finetuned:
    """Fit a model to labelled sequences, and say how good it is; the same command goes on where it stopped.

    Leaves in the run folder: results.json, results.md and report.html (figures on the test sequences with intervals,
    beside two baselines on the same split), and model/, the model folder that was best on validation, for `predict`.
    Several depths, splits and seeds make one table. Fits that are done are not done again.

    Args:
        model: model folder of biometro, Hugging Face folder of ESM-2 or another encoder, or fair-esm checkpoint (.pt).
        data: FASTA, CSV, TSV, Parquet, SMILES or SDF files: a path, a pattern, a URL or a list of these.
        run: run folder; made, or gone on with.
        labels: where labels stand, and what is predicted.
        split: which sequences are held out.
        depth: probe (the encoder's vectors, computed once, and a head), lora_head (the same; the head learns by
            low-rank updates), lora (low-rank updates of the encoder, and a head), full (all weights); several are
            compared.
        head: what stands on the encoder.
        lora: the low-rank updates.
        training: the fit.
        baselines: run what answers without a model on the same split: nearest neighbours, by alignment, edits or
            fingerprints, and linear models of k-mers or fingerprints.
        coverage: of the sets, or intervals, that conformal prediction gives; a classifier abstains where its set has
            not exactly one class.
        kind: what the sequences are: protein, antibody, tcr, molecule, or text for what the model's own tokenizer reads
            as it stands. Left out, what the model reads.
        residues: what to do with non-standard residues.
        molecules: what to do with salts, stereochemistry and molecules that cannot be read.
        max_length: residues (tokens of molecules and text); longer sequences are cut to their first ones, counted.
        format: of the files; auto goes by their names.
        column: of tables, the one that holds the sequence; of receptors, columns by part, as in {heavy: VH, light: VL}.
            Tables of public sources are known by their columns.
        region: of such a table's chains: full (the V domain), cdr3, or cdrs (CDR1, CDR2, CDR3); auto is full for
            antibodies and cdr3 for T-cell receptors.
        id_column: of tables, the one that holds the identifier.
        seeds: fits of each depth, with seed, seed + 1, ...: fresh weights, order, dropout. The split stays.
        seed: the first; also of the split.
        device: auto, cpu, cuda, ...
        report: write report.html.

    Returns what results.json holds. Raises UserError for input that cannot be read, labels that are of no use, and
    options that do not go together.
    """
    with (
        StopRequest(training.max_minutes) as request,
        parallel.join(device, training.parallel.timeout_minutes) as world,
    ):
        depths: list[Depth] = list(dict.fromkeys(depth)) if isinstance(depth, list) else [depth]
        _check_options(depths, seeds, coverage, max_length, baselines, world.size)
        metric = training.metric or metrics.SELECT[labels.task]
        metrics.check_metric(labels.task, metric, grouped=labels.group is not None)
        weights = fingerprint(model)
        base = merged(load(model))  # an adapter becomes part of the encoder that is fitted
        reading = Reading(kind_of(base.alphabet, kind, model), residues, molecules)
        options = ReadOptions(format, column, id_column, split.column, kind=reading.kind, region=region)
        labelled = read_labelled(data, labels, options, reading, base.alphabet)
        console = Console(stderr=True, quiet=not world.leads)
        parts: dict[str, Any] = {"labels": labels, "split": split, "molecules": molecules}
        parts |= {"head": head, "lora": lora, "training": training}
        recipe: dict[str, Any] = {"model": model, "data": data, "run": run}
        recipe |= {name: dataclasses.asdict(part) for name, part in parts.items()}
        recipe |= {
            "depth": depth, "baselines": baselines, "coverage": coverage, "kind": reading.kind, "residues": residues,
            "max_length": max_length, "format": format, "column": column, "region": region, "id_column": id_column,
            "seeds": seeds, "seed": seed, "device": device, "report": report,
        }  # fmt: skip
        folder = Path(run)
        _check_reads(base, head, labelled.task, model)
        with ExitStack() as held:
            digest = hashlib.sha256(f"{weights} {_digest(labelled)}".encode()).hexdigest()
            world.first(lambda: runs.begin(folder, recipe, "labels or model", digest, _FREE, held))
            job = Comparison(
                folder, labelled, base, model, weights, head, lora, training, metric, coverage, max_length,
                reading, seed, world, request, console, recipe,
            )  # fmt: skip
            said = job.describe()
            for by in split.methods:
                place = folder / by / "split.parquet"
                division = world.first(partial(sides.kept, place, labelled, by, split, seed))
                entry = job.begin_split(division)
                said["splits"][by] = entry
                if baselines:
                    job.run_baselines(division, entry, split.identity > 0)
                for each in depths:
                    for number in range(seed, seed + seeds):
                        stopped = job.run_fit(division, entry, each, number)
                        if stopped is not None:
                            return Finetuned(said, stopped)
                world.first(partial(_write, folder, said, report))
            console.print(Markdown(results.table(said, intervals=False)))
            console.print(f"model: {folder / 'model'}, results: {folder / 'results.json'}", highlight=False)
    return Finetuned(said)


def _check_options(
    depths: list[Depth], seeds: int, coverage: float, max_length: int, baselines: bool, ranks: int
) -> None:
    """Raises UserError where they do not go together."""
    if seeds < 1 or not 0 < coverage < 1 or max_length < 2 or not depths:
        raise UserError("seeds must be at least 1, coverage between 0 and 1, max_length at least 2, depth not empty")
    if ranks > 1 and (baselines or {*depths} & {*FROZEN}):
        raise UserError("several ranks train one encoder: depth lora or full, with baselines: false")


def _check_reads(base: Bundle, head: HeadConfig, task: Task, model: str) -> None:
    """Raises UserError where residues have labels or weights, and the model has no token for each of them."""
    if base.alphabet.letter_is_token:
        return
    if task.per_residue:
        raise UserError(f"{model}: its tokens are not residues, so it cannot answer for each residue")
    if head.pooling == "attention":
        raise UserError(f"{model}: its tokens are not single letters; head.pooling must be mean or cls")


def _digest(labelled: Labelled) -> str:
    """Of sequences, labels and sides."""
    digest = hashlib.sha256(repr((labelled.task, labelled.sides)).encode())
    for letters, value in zip(labelled.letters, labelled.truth, strict=True):
        digest.update(letters + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _write(folder: Path, said: dict[str, Any], report: bool) -> None:
    write_file(folder / "results.json", json.dumps(said, indent=1))
    write_file(folder / "results.md", results.table(said))
    if report:
        write_labels_report(folder / "report.html", said)
