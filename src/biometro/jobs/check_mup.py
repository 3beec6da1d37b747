"""`biometro check-mup`: does one learning rate suit all widths? A few steps at each, muP beside the standard one.

recipe ─▶ the same model at every width, twice ─▶ a few steps ─▶ how far activations moved ─▶ page, table, verdict
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from biometro.data.corpus import Corpus
from biometro.data.loader import Loader, PackingConfig
from biometro.errors import UserError
from biometro.evaluation.coordinate_report import write_coordinate_report
from biometro.files import write_file
from biometro.model import mup
from biometro.model.encoder import EncoderConfig
from biometro.objectives.metro import MetroConfig
from biometro.objectives.mlm import MLMConfig
from biometro.objectives.objective import Objective
from biometro.objectives.pretraining import Pretraining, for_alphabet, pretraining
from biometro.training.coordinates import Coordinates, coordinates, slopes
from biometro.training.trainer import TrainingConfig

MUP, STANDARD = "muP", "standard"


def check_mup(
    data: str,
    run: str,
    widths: list[int] | None = None,
    steps: int = 8,
    tokens: int = 1024,
    seeds: int = 3,
    tolerance: float = 0.25,
    objective: Pretraining = "metro",
    encoder: EncoderConfig = EncoderConfig(),
    metro: MetroConfig = MetroConfig(),
    mlm: MLMConfig = MLMConfig(),
    packing: PackingConfig = PackingConfig(),
    training: TrainingConfig = TrainingConfig(),
    seed: int = 0,
    device: str = "auto",
    report: bool = True,
) -> dict[str, Any]:
    """Check that activations neither grow nor shrink with the width: `biometro check-mup recipe.yaml --run runs/check`.

    Reads the options of `pretrain`, so that a recipe is read as it is. Leaves mup.json and mup.html in the run folder;
    ends with exit status 1 where muP drifts.

    Args:
        data: corpus folder.
        run: folder; made, or written into.
        widths: of the models; multiples of the head size, the widest at least eight times the narrowest. Default: 64,
            128, 256, 512, 1024.
        steps: after which activations are compared, at the recipe's peak learning rate, without warm-up or clipping.
        tokens: of a batch.
        seeds: over which sizes are averaged; those of one differ between widths by chance.
        tolerance: an activation drifts where it, or how far it moved, goes with the width to more than this power.
            Over an eightfold span and three seeds, chance gives 0.15; a learning rate of hidden matrices, or of those
            that write to the stream, that is wrong by a root of the width gives 0.3 and 0.5; one of the heads is not
            seen.
        objective: as in `pretrain`.
        encoder: as in `pretrain`; its width is left out, its base width is kept.
        metro: as in `pretrain`.
        mlm: as in `pretrain`.
        packing: as in `pretrain`.
        training: as in `pretrain`; only the optimizer is used.
        seed: the first, of weights, order and corruption.
        device: not used: it runs on the CPU.
        report: write mup.html.

    Returns what mup.json holds. Raises UserError where an activation drifts under muP.
    """
    widths = [64, 128, 256, 512, 1024] if widths is None else sorted({*widths})
    if widths[-1] < 8 * widths[0] or min(steps, seeds) < 1 or not tolerance > 0:
        raise UserError(
            "check-mup needs widths of which the last is eight times the first or more (less is told from chance by "
            "nothing), a step and a seed or more, and a tolerance above 0"
        )
    fixed = {"encoder.ffn_width": encoder.ffn_width, "metro.auxiliary_width": metro.auxiliary_width}
    mup.check_growth({"encoder.mup": True, **fixed}, {"encoder.width"})
    corpus = Corpus.open(data)
    alphabet = corpus.alphabet
    packing = dataclasses.replace(
        packing, batch_tokens=tokens, crop=min(packing.crop, max(tokens // 2 - 2, 1)), reverse=0.0
    )
    loader = Loader(corpus.split("train"), alphabet, packing, seed)
    encoder = for_alphabet(encoder, alphabet)

    def one(width: int, scaled: bool) -> Coordinates:
        shape = dataclasses.replace(encoder, width=width, mup=scaled)

        def build(number: int) -> Objective:
            torch.manual_seed(number)
            return pretraining(objective, shape, alphabet, metro, mlm)

        return Coordinates.mean([
            coordinates(partial(build, number), loader.batch, training.optimizer, steps, number)
            for number in range(seed, seed + seeds)
        ])  # fmt: skip

    console = Console(stderr=True)
    found: dict[str, list[Coordinates]] = {MUP: [], STANDARD: []}
    for width in widths:
        console.print(f"width {width} ...", highlight=False)
        found[MUP].append(one(width, True))
        found[STANDARD].append(one(width, False))
    said = _figures(widths, found)
    drifts = {name: _drifting(said[name]["powers"], tolerance) for name in found}
    said |= {"steps": steps, "seeds": seeds, "lr": training.optimizer.lr, "tolerance": tolerance, "drifts": drifts}
    warning = _verdict(drifts)
    folder = Path(run)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "mup.json", json.dumps(said, indent=1))
    _show(said, tolerance)
    if report:
        facts = {
            "objective": objective, "depth": f"{encoder.depth} layers", "base width": str(encoder.base_width),
            "optimizer": f"{training.optimizer.name}, learning rate {training.optimizer.lr:g}",
            "steps": f"{steps}, of {tokens:,} tokens", "seeds": str(seeds), "data": Path(data).name,
        }  # fmt: skip
        write_coordinate_report(
            folder / "mup.html", "Coordinate check", facts, widths,
            {name: said[name]["series"] for name in found}, {name: said[name]["powers"] for name in found}, warning,
        )  # fmt: skip
        console.print(f"page: {folder / 'mup.html'}", highlight=False, soft_wrap=True)
    if drifts[MUP]:
        raise UserError(warning)
    if warning:
        console.print(warning, highlight=False, soft_wrap=True)
    return said


def _figures(widths: list[int], found: Mapping[str, list[Coordinates]]) -> dict[str, Any]:
    """By parametrisation: the series after the last step, and the powers of the width (size, moved)."""
    said: dict[str, Any] = {"widths": widths}
    for name, each in found.items():
        series = {
            what: {a: [float(getattr(one, what)[a][-1]) for one in each] for a in each[0].size}
            for what in ("size", "moved")
        }
        powers = {a: tuple(slopes(widths, series[what][a]) for what in ("size", "moved")) for a in each[0].size}
        said[name] = {"series": series, "powers": powers}
    return said


def _drifting(powers: Mapping[str, tuple[float, float]], tolerance: float) -> list[str]:
    """Activations whose size or movement goes with the width; what is not a number does."""
    return [name for name, both in powers.items() if not all(abs(power) <= tolerance for power in both)]


def _verdict(drifts: Mapping[str, list[str]]) -> str:
    """What is wrong; empty where nothing is."""
    if drifts[MUP]:
        return f"drift under muP: {', '.join(drifts[MUP])}"
    if not drifts[STANDARD]:
        return (
            "nothing drifts in the standard parametrisation either, so that this proves nothing: take wider models, "
            "more steps or a higher learning rate"
        )
    return ""


def _show(said: Mapping[str, Any], tolerance: float) -> None:
    table = Table(title="goes with the width to the power of", title_justify="left")
    table.add_column("activation", no_wrap=True)
    for name in (MUP, STANDARD):
        for what in ("moved", "size"):
            table.add_column(f"{name}, {what}", justify="right")
    for activation in said[MUP]["powers"]:
        cells = []
        for name in (MUP, STANDARD):
            size, moved = said[name]["powers"][activation]
            cells += [f"{power:+.2f}{' !' if not abs(power) <= tolerance else ''}" for power in (moved, size)]
        table.add_row(activation, *cells)
    Console(stderr=True).print(table)
