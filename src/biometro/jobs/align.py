"""`biometro align`: pairs and one or two models -> towers whose space brings partners together, and how well it does.

pairs ─▶ split, overlap ─▶ controls ───────────────────┐
                └─▶ fits: losses x seeds ─▶ best by validation ─▶ figures on test ─▶ results.json, report.html, model/
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from biometro.alphabet import MoleculePolicy, Reading, ResiduePolicy, kind_of
from biometro.data.pair_config import PairConfig
from biometro.data.pair_splits import PairSplitConfig, divide_pairs
from biometro.data.pairs import Pairs, read_pairs
from biometro.data.sources import Format, ReadOptions
from biometro.errors import UserError
from biometro.evaluation import pair_results
from biometro.evaluation.pair_report import write_pair_report
from biometro.files import write_file
from biometro.jobs.alignment import Alignment
from biometro.model.bundle import Bundle
from biometro.model.load import load, merged
from biometro.model.towers import fingerprint_of, is_towers, load_towers
from biometro.objectives.pair_losses import MEASURES, LossConfig
from biometro.training import parallel, runs
from biometro.training.alignment import AlignTraining, TowerConfig
from biometro.training.signals import StopRequest

_FREE = {
    "data", "run", "device", "report", "seeds", "split.by", "controls", "losses", "compare",
    *(f"training.{name}" for name in ("max_minutes", "track")),
    *(f"training.parallel.{name}" for name in ("sharding", "reshard", "recompute", "timeout_minutes")),
}  # fmt: skip


@dataclass(frozen=True)
class DataSet:
    """Further pairs that are trained on, and never tested on.

    Args:
        data: tables, as `data`.
        pairs: where pairs stand in them.
        share: of the pairs of a batch, beside that of the data set in question.
    """

    data: str | list[str]
    pairs: PairConfig = field(default_factory=PairConfig)
    share: float = 1.0

    def __post_init__(self) -> None:
        if not self.share > 0:
            raise UserError(f"also: share is {self.share}; it must be above 0")


@dataclass(frozen=True)
class Aligned:
    """How it ended. `stopped` says why it ended early; `results` is what results.json holds."""

    results: dict[str, Any]
    stopped: str | None = None


def align(
    model: str,
    data: str | list[str],
    run: str,
    ligand: str | None = None,
    pairs: PairConfig = PairConfig(),
    also: list[DataSet] | None = None,
    share: float = 1.0,
    split: PairSplitConfig = PairSplitConfig(),
    losses: LossConfig = LossConfig(clip=1.0),
    compare: dict[str, dict[str, float]] | None = None,
    width: int = 128,
    tower: TowerConfig = TowerConfig(),
    ligand_tower: TowerConfig | None = None,
    training: AlignTraining = AlignTraining(),
    controls: bool = True,
    pool: int = 1000,
    partners: int = 1,
    others: int = 0,
    residues: ResiduePolicy = "as_is",
    molecules: MoleculePolicy = MoleculePolicy(),
    format: Format = "auto",
    seeds: int = 1,
    seed: int = 0,
    device: str = "auto",
    report: bool = True,
) -> Aligned:
    """Bring partners near one another in one space, and say how good that is; the same command goes on where it was.

    Leaves in the run folder: results.json, results.md and report.html (figures on test pairs, beside controls that know
    one side only, that look at neighbours, or that were given shuffled partners), and model/, the towers that were best
    on validation, for `index`, `screen`, `embed`. Several losses, splits and seeds make one table. Fits that are done
    are not done again.

    Args:
        model: of the first sequence of a pair, and of both where no `ligand` is given: a model folder of biometro, a
            Hugging Face folder of an encoder, a fair-esm checkpoint, or towers, to go on from.
        data: CSV, TSV or Parquet tables of pairs: a path, a pattern, a URL or a list of these.
        run: run folder; made, or gone on with.
        ligand: model of the second sequence of a pair.
        pairs: where pairs stand, and what becomes of doubtful ones.
        also: further data sets that are trained on; pairs that would tell of held-out ones are left out.
        share: of the pairs of a batch that are of `data`, beside the shares of `also`.
        split: which pairs are held out.
        losses: weights of what is minimised.
        compare: several such by name, in place of `losses`, as in {clip: {clip: 1}, both: {clip: 1, affinity: 1}}.
        width: dimensions of the common space.
        tower: how the first model learns.
        ligand_tower: how the second one does; default: alike.
        training: the fit.
        controls: run what needs no pairs of towers, on the same split.
        pool: sequences among which partners are looked for in retrieval, the same for all methods.
        partners: where pairs are made of sequences with classes, so many of each sequence.
        others: there, so many of each sequence with sequences of other classes, too; their value is 0 and that of
            partners 1, which `cosent`, `angle`, `ranking`, `affinity` learn from.
        residues: what to do with non-standard residues.
        molecules: what to do with salts, stereochemistry and molecules that cannot be read.
        format: of the files; auto goes by their names.
        seeds: fits of each kind, with seed, seed + 1, ...: fresh weights, order, dropout. The split stays.
        seed: the first; also of the split.
        device: auto, cpu, cuda, ...
        report: write report.html.

    Returns what results.json holds. Raises UserError for input that cannot be read, and options that do not go
    together.
    """
    with (
        StopRequest(training.max_minutes) as request,
        parallel.join(device, training.parallel.timeout_minutes) as world,
    ):
        chosen = {"+".join(losses.weights): losses} if compare is None else _compared(compare)
        _check_options(chosen, width, seeds, pool, partners, others, world.size, controls)
        console = Console(stderr=True, quiet=not world.leads)
        bundles, fingerprints = _models(model, ligand, pairs)
        reading_a, reading_b = _readings(bundles, pairs, residues, molecules)
        sets = [(data, pairs), *((one.data, one.pairs) for one in also or ())]
        found = _read(sets, bundles, reading_a, reading_b, ReadOptions(format))
        _check_losses(chosen, found, others)
        towers = [tower, tower if ligand_tower is None else ligand_tower][: len(bundles)]
        recipe = _recipe(
            {"model": model, "data": data, "run": run, "ligand": ligand, "share": share, "width": width,
             "controls": controls, "pool": pool, "partners": partners, "others": others, "residues": residues,
             "format": format, "seeds": seeds, "seed": seed, "device": device, "report": report},
            {"pairs": pairs, "split": split, "tower": tower, "molecules": molecules, "training": training},
            {"losses": dataclasses.asdict(losses), "compare": compare,
             "ligand_tower": None if ligand_tower is None else dataclasses.asdict(ligand_tower),
             "also": None if also is None else [dataclasses.asdict(one) for one in also]},
        )  # fmt: skip
        folder = Path(run)
        with ExitStack() as held:
            digest = hashlib.sha256(f"{fingerprints} {_digest(found)}".encode()).hexdigest()
            world.first(lambda: runs.begin(folder, recipe, "pairs or models", digest, _FREE, held))
            weights = None if also is None else [share, *(one.share for one in also)]
            job = Alignment(
                folder, found, bundles, fingerprints, towers, width, training, weights, pool, seed, world,
                request, console, recipe, model if ligand is None else f"{model} and {ligand}",
            )  # fmt: skip
            said = job.describe()
            own = np.flatnonzero(found.source == 0)
            for by in split.methods:
                division = world.first(partial(divide_pairs, found.take(own), by, split, seed))
                entry = job.begin_split(division, partners, others)
                said["splits"][by] = entry
                if controls:
                    world.first(partial(job.run_controls, division, entry))
                for name, one in chosen.items():
                    for number in range(seed, seed + seeds):
                        stopped = job.run_fit(division, entry, name, one, number)
                        if stopped is not None:
                            return Aligned(said, stopped)
                entry["verdicts"] = pair_results.verdicts(entry["methods"])
                world.first(partial(_write, folder, pair_results.without_resamples(said), report))
            console.print(Markdown(pair_results.table(said, intervals=False, only=pair_results.SHORT)))
            console.print(f"model: {folder / 'model'}, results: {folder / 'results.json'}", highlight=False)
    return Aligned(pair_results.without_resamples(said))


def _check_options(
    losses: dict[str, LossConfig],
    width: int,
    seeds: int,
    pool: int,
    partners: int,
    others: int,
    ranks: int,
    controls: bool,
) -> None:
    """Raises UserError where they do not make sense, or do not go together."""
    if not losses:
        raise UserError("losses names nothing to minimise, for example losses.clip: 1")
    if seeds < 1 or pool < 2 or partners < 1 or not 2 <= width <= 1 << 14 or width % 2:
        raise UserError("seeds and partners must be at least 1, pool at least 2, width an even number up to 16,384")
    if others < 0:
        raise UserError(f"others is {others}; it must be at least 0")
    if ranks > 1 and controls:
        raise UserError("several ranks train one model: run controls in a process of its own (controls: false here)")
    for name in losses:
        if not name.isprintable() or "/" in name or name.startswith("."):
            raise UserError(f"losses: {name!r} is no name of a folder")


def _compared(named: dict[str, dict[str, float]]) -> dict[str, LossConfig]:
    """Losses by name. Raises UserError for what is none."""
    known = {field.name for field in dataclasses.fields(LossConfig)}
    for name, weights in named.items():
        unknown = sorted({*weights} - known)
        if unknown:
            raise UserError(f"compare.{name}: there is no loss {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return {name: LossConfig(**weights) for name, weights in named.items()}


def _check_losses(losses: dict[str, LossConfig], pairs: Pairs, others: int) -> None:
    """Raises UserError where a loss needs what no pair has."""
    if others and pairs.classes is None:
        raise UserError("others goes with sequences that have classes (pairs.b: null), and these are pairs")
    known = bool(np.isfinite(pairs.value).any()) or others > 0
    hint = "name pairs.value" if pairs.classes is None else "make pairs across classes with others: 1"
    for one in losses.values():
        lacking = [name for name in one.weights if name in MEASURES]
        if lacking and not known:
            raise UserError(f"losses.{lacking[0]} learns from measured values, and no pair has one: {hint}")
        if one.contrasts and not (pairs.label != 0).any():
            raise UserError(
                "losses: no pair binds, so that there is no partner to pick (pairs.label, pairs.binds_from)"
            )


def _models(model: str, ligand: str | None, pairs: PairConfig) -> tuple[dict[str, Bundle], dict[str, tuple[str, str]]]:
    """Bundles by tower, whole, and the path and fingerprint of each."""
    if is_towers(model):
        if ligand is not None:
            raise UserError(f"{model} holds both towers; leave `ligand` out")
        bundles = load_towers(model).towers
        return (
            {name: merged(bundle) for name, bundle in bundles.items()},
            {name: (str(Path(model) / name), fingerprint_of(Path(model) / name)) for name in bundles},
        )
    paths = {"shared": model} if ligand is None else {"protein": model, "ligand": ligand}
    if ligand is None and pairs.kind_a != pairs.kind_b:
        raise UserError(
            f"pairs of {pairs.kind_a} and {pairs.kind_b} need two models: name the second one with `ligand` (or say "
            "with pairs.kind_b, or pairs.b, that both are of one kind)"
        )
    named = {name: (path, fingerprint_of(path)) for name, path in paths.items()}  # which says first what is no model
    return {name: merged(load(path)) for name, path in paths.items()}, named


def _both(bundles: dict[str, Bundle]) -> tuple[Bundle, Bundle]:
    first, *rest = bundles.values()
    return first, rest[0] if rest else first


def _readings(
    bundles: dict[str, Bundle], pairs: PairConfig, residues: ResiduePolicy, molecules: MoleculePolicy
) -> tuple[Reading, Reading]:
    """How both sequences are read; raises UserError where a model does not read its kind."""
    one, two = _both(bundles)
    made = [
        Reading(kind_of(bundle.alphabet, kind, side), residues, molecules)
        for bundle, kind, side in ((one, pairs.kind_a, "model"), (two, pairs.kind_b, "ligand"))
    ]
    return made[0], made[1]


def _read(
    sets: list[tuple[str | list[str], PairConfig]], bundles: dict[str, Bundle], reading_a: Reading, reading_b: Reading,
    options: ReadOptions,
) -> Pairs:  # fmt: skip
    """All data sets as one, each with its number."""
    alphabets = [bundle.alphabet for bundle in _both(bundles)]
    found = [read_pairs(files, config, reading_a, reading_b, options, *alphabets) for files, config in sets]
    if len(found) > 1 and found[0].classes is not None:
        raise UserError("also: further data sets go with pairs, not with sequences that have classes")
    return Pairs.join(found) if len(found) > 1 else found[0]


def _recipe(plain: dict[str, Any], parts: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    return plain | {name: dataclasses.asdict(part) for name, part in parts.items()} | rest


def _digest(pairs: Pairs) -> str:
    """Of sequences, values, labels and sides."""
    digest = hashlib.sha256(repr((pairs.unit, pairs.sides)).encode())
    for letters in (*pairs.a_letters, b"", *pairs.b_letters):
        digest.update(letters + b" ")
    for array in (pairs.a, pairs.b, pairs.value, pairs.censored, pairs.label, pairs.source, pairs.group):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write(folder: Path, said: dict[str, Any], report: bool) -> None:
    write_file(folder / "results.json", json.dumps(said, indent=1))
    write_file(folder / "results.md", pair_results.table(said))
    if report:
        write_pair_report(folder / "report.html", said)
