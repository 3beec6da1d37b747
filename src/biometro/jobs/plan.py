"""`biometro plan`: a recipe -> what its pretraining takes: parameters, memory, hours, cost. Nothing is trained."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from biometro.alphabet import PROTEIN
from biometro.data.batch import frame
from biometro.data.corpus import Corpus, Shard, Split
from biometro.data.loader import Loader, PackingConfig
from biometro.errors import UserError
from biometro.model.encoder import EncoderConfig
from biometro.objectives.metro import Metro, MetroConfig
from biometro.objectives.mlm import MLMConfig
from biometro.objectives.objective import Objective
from biometro.objectives.pretraining import Pretraining, for_alphabet, pretraining
from biometro.training import parallel, planner
from biometro.training.parallel import Sharding
from biometro.training.planner import GPUS, Arithmetic, Memory
from biometro.training.trainer import TrainingConfig

GpuName = Literal["h100", "h200", "a100", "l40s", "a10g", "v100", "t4", "mi300x", "cpu"]
_SPREAD = 0.65  # of log length: 5 % below 100, 95 % below 840 residues where half are below 283, as in Swiss-Prot
_FROZEN = " (frozen)"
_ASSUMED = 200_000  # sequences that stand for a corpus that is not there


@dataclass(frozen=True)
class Layout:
    """One way to lay the run out over the GPUs. bytes: on one GPU. largest: `packing.batch_tokens` that still fits."""

    sharding: Sharding
    recompute: bool
    memory: Memory
    fits: bool
    largest: int


@dataclass(frozen=True)
class Plan:
    """What a run takes. Bytes, seconds, floating-point operations; `layouts[0]` is the one that the figures are for.

    parameters: by module, tied ones once. forward: operations per token, by part. training: all operations of the
    run (3 x forward). step_seconds: the larger of compute and communication. epochs, cost: None where unknown.
    """

    parameters: dict[str, int]
    forward: dict[str, float]
    training: float
    layouts: list[Layout]
    limit: float
    tokens_per_step: float
    tokens: float
    epochs: float | None
    mfu: float
    compute_seconds: float
    communication_seconds: float
    hours: float
    tokens_per_second: float
    gpu_hours: float
    cost: float | None
    kilowatt_hours: float | None
    checkpoint: float
    assumptions: list[str]
    warnings: list[str]

    @property
    def step_seconds(self) -> float:
        return max(self.compute_seconds, self.communication_seconds)


def plan(
    *,
    gpus: int = 1,
    gpu: GpuName = "h100",
    memory: str | None = None,
    peak_tflops: float | None = None,
    mfu: float | None = None,
    price: float | None = None,
    network: float = 50.0,
    mean_length: float = 350.0,
    data: str = "",
    run: str = "",
    objective: Pretraining = "metro",
    encoder: EncoderConfig = EncoderConfig(),
    metro: MetroConfig = MetroConfig(),
    mlm: MLMConfig = MLMConfig(),
    packing: PackingConfig = PackingConfig(),
    training: TrainingConfig = TrainingConfig(),
    seed: int = 0,
    device: str = "auto",
    report: bool = True,
) -> Plan:
    """What pretraining by a recipe would take, before it is begun: `biometro plan recipe.yaml --gpus 64`.

    Reads the options of `pretrain`, so that a recipe is read as it is and any of them can be tried after it
    (`--encoder.width 1280`). Formulas and what they leave out: docs/scale.md.

    Args:
        gpus: how many train together; they share the `training.accumulate` micro-batches of a step.
        gpu: which, of a table of data sheets; cpu measures the rate of this machine.
        memory: of one GPU, such as 80GiB or 24GB; default that of the data sheet.
        peak_tflops: of one GPU, dense; default that of the data sheet at the recipe's precision.
        mfu: share of the peak that training reaches; default a target by model size, which no run has shown yet.
        price: of an hour of one GPU, in any currency.
        network: GB/s that a machine of 8 GPUs sends to others.
        mean_length: residues of a sequence, lognormal as Swiss-Prot, where `data` is no corpus folder.
        data: corpus folder; its lengths are taken where it is there.
        run: not used.
        objective: as in `pretrain`.
        encoder: as in `pretrain`.
        metro: as in `pretrain`.
        mlm: as in `pretrain`.
        packing: as in `pretrain`.
        training: as in `pretrain`.
        seed: not used.
        device: not used.
        report: not used.

    Prints tables, and returns the figures. Raises UserError for what `pretrain` would refuse, too.
    """
    for name, value in {"gpus": gpus, "mean_length": mean_length, "network": network}.items():
        if not 1 <= value < math.inf:
            raise UserError(f"{name} is {value}; it must be at least 1")
    for name, given in {"peak_tflops": peak_tflops, "mfu": mfu, "price": price}.items():
        if given is not None and not 0 < given < math.inf:
            raise UserError(f"{name} is {given}; it must be above 0")
    corpus = Corpus.open(data) if data and Path(data).exists() else None
    alphabet = PROTEIN if corpus is None else corpus.alphabet
    encoder = for_alphabet(encoder, alphabet)
    with torch.device("meta"):
        goal = pretraining(objective, encoder, alphabet, metro, mlm)
    split = _assumed(mean_length) if corpus is None else corpus.split("train")
    loader = Loader(split, alphabet, packing)
    work = Work(goal, loader, training)
    if training.flops is not None:
        per_step = 3 * sum(work.forward.values()) * work.mean * training.accumulate
        work = Work(goal, loader, training := training.for_flops(per_step))
    machine = _machine(gpu, encoder, training, memory, peak_tflops)
    layouts = _layouts(work, machine, gpus)
    found = _figures(work, machine, layouts, gpus, mfu, price, network)
    lengths = f"lengths of {data}" if corpus else f"lengths as in Swiss-Prot, {mean_length:,.0f} residues on average"
    if data and corpus is None:
        lengths += f" (no corpus at {data})"
    found = dataclasses.replace(
        found,
        epochs=None if corpus is None else found.tokens / work.loader.tokens_per_epoch,
        assumptions=[lengths, *found.assumptions],
    )
    _show(found, machine, gpus)
    return found


def _assumed(mean_length: float) -> Split:
    """Lengths alone: quantiles of a lognormal distribution, as a split without letters."""
    quantiles = np.array([NormalDist().inv_cdf((i + 0.5) / 1000) for i in range(1000)])
    lengths = np.exp(math.log(mean_length) - _SPREAD**2 / 2 + _SPREAD * quantiles).round().clip(1)
    offsets = np.concatenate([[0], np.cumsum(np.tile(lengths, _ASSUMED // 1000))]).astype(np.int64)
    return Split.of(Shard(np.empty(0, dtype=np.uint8), offsets))


class Work:
    """What one step is: an objective without numbers, and how many tokens of which lengths it reads."""

    def __init__(self, goal: Objective, loader: Loader, training: TrainingConfig):
        self.goal, self.loader, self.training = goal, loader, training
        self.full = min(loader.config.batch_tokens, loader.tokens_per_epoch)  # tokens of the largest micro-batch
        self.mean = loader.tokens_per_epoch / loader.batches_per_epoch
        lengths = np.minimum(loader.split.lengths, loader.config.crop) + 2
        self._lengths = np.sort(lengths[:: max(1, len(lengths) // _ASSUMED)])
        sample = self._quantiles(10_000)
        starts = np.concatenate([[0], np.cumsum(sample)])
        self.parameters = sum(p.numel() for p in goal.parameters())
        parts = planner.forward_flops(goal, frame(np.zeros(starts[-1], dtype=np.int64), starts))
        self.forward = {name: flops / int(starts[-1]) for name, flops in parts.items()}

    def _quantiles(self, count: int) -> np.ndarray:
        count = max(1, min(count, len(self._lengths)))
        return self._lengths[((np.arange(count) + 0.5) / count * len(self._lengths)).astype(int)]

    def memory(self, how: Arithmetic, tokens: int, sharding: Sharding, gpus: int, gpu: bool) -> Memory:
        """Of one process that reads its share of a step in micro-batches of `tokens`."""
        sequences = self._quantiles(int(tokens / self._lengths.mean()))
        pairs = float(np.square(np.unique(sequences).astype(np.float64)).sum())
        each = -(-self.training.accumulate // gpus)
        parts = planner.shards(sharding, gpus)
        return planner.memory(self.goal, how, tokens, shards=parts, micro_batches=each, run_pairs=pairs, gpu=gpu)


@dataclass(frozen=True)
class Machine:
    """One GPU, or this machine's CPU. peak: FLOP/s. limit: bytes. link: GB/s."""

    name: str
    peak: float
    limit: float
    link: float
    watts: float | None
    how: Arithmetic
    warnings: list[str]


def _machine(
    name: GpuName, encoder: EncoderConfig, training: TrainingConfig, memory: str | None, tflops: float | None
) -> Machine:
    card = GPUS.get(name)
    if card is None:
        here = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        how = Arithmetic(training.precision == "bfloat16", training.compile == "yes")
        peak = tflops * 1e12 if tflops else planner.matmul_rate(encoder.width)
        return Machine("cpu", peak, planner.parse_bytes(memory) if memory else here, 10.0, None, how, [])
    half, warnings = training.precision != "float32", []
    flash = half and card.half > 0 and encoder.head_size % 8 == 0
    attention = encoder.attention
    if attention == "auto":
        attention = "flex" if encoder.positions == "alibi" else "varlen" if flash else "sdpa"
    if half and not card.half:
        warnings.append(f"{name} computes no bfloat16 in hardware; its float32 rate is taken")
    peak = tflops or (card.half if half and card.half else card.single)
    limit = planner.parse_bytes(memory) if memory else card.memory * 2**30
    how = Arithmetic(half, training.compile != "no", attention)
    return Machine(name, peak * 1e12, limit, card.link, card.watts, how, warnings)


def _layouts(work: Work, machine: Machine, gpus: int) -> list[Layout]:
    """All ways to lay the run out, the one that the recipe asks for first."""
    ways: list[Sharding] = ["replicate", "hybrid", "shard"]
    if gpus <= planner.NODE:  # sharding inside a machine is all there is
        ways = ["replicate", "shard"] if gpus > 1 else ["replicate"]
    found = []
    for way in ways:
        for again in (False, True):
            how, on_gpu = dataclasses.replace(machine.how, recompute=again), machine.watts is not None
            memory = work.memory(how, work.full, way, gpus, on_gpu)
            fixed = work.memory(how, 0, way, gpus, on_gpu).total
            largest = int((machine.limit - fixed) / (memory.total - fixed) * work.full)
            if largest < 2 * work.loader.longest:
                largest = 0
            found.append(Layout(way, again, memory, memory.total <= machine.limit, largest))
    config = work.training.parallel
    sharding = parallel.chosen(config.sharding, work.parameters, gpus, planner.NODE)
    if sharding not in ways:
        sharding = ways[-1]
    first = next(layout for layout in found if (layout.sharding, layout.recompute) == (sharding, config.recompute))
    return [first, *(layout for layout in found if layout is not first)]


def _figures(
    work: Work, machine: Machine, layouts: list[Layout], gpus: int, mfu: float | None, price: float | None, net: float
) -> Plan:
    goal, training, chosen = work.goal, work.training, layouts[0]
    main = goal.get_submodule("encoder")
    on_gpu = machine.watts is not None
    share = mfu or (planner.assumed_mfu(sum(p.numel() for p in main.parameters())) if on_gpu else planner.CPU_MFU)
    how = dataclasses.replace(machine.how, recompute=chosen.recompute)
    forward = sum(work.forward.values())
    frozen = isinstance(goal, Metro) and goal.config.auxiliary_frozen
    once = work.forward["heads"] + (work.forward["auxiliary"] if frozen else 0.0)
    done = 3 * forward + (forward - once if chosen.recompute else 0.0)
    each = -(-training.accumulate // gpus)
    compute = each * work.mean * done / (machine.peak * share)
    sent = planner.traffic(work.parameters, how, chosen.sharding, gpus, each).seconds(machine.link, net)
    step = max(compute, sent)
    per_step = work.mean * training.accumulate
    hours = training.steps * step / 3600
    sizes: dict[str, int] = {}
    for name, parameter in goal.named_parameters():
        part = name.split(".")[0] + ("" if parameter.requires_grad else _FROZEN)
        sizes[part] = sizes.get(part, 0) + parameter.numel()
    assumptions = [f"{share:.2f} of {machine.peak / 1e12:,.4g} TFLOP/s"]
    if on_gpu and mfu is None:
        assumptions[0] += " (a target by model size: no run on a GPU has shown it)"
    if gpus > 1:
        assumptions.append(
            f"collectives at {planner.LINK_SHARE:.0%} of {machine.link:g} GB/s between the GPUs of a machine"
            + (f" and {net:g} GB/s between machines of {planner.NODE}" if gpus > planner.NODE else "")
            + ", hidden behind computation as far as it reaches"
        )
    if on_gpu:
        assumptions.append("2 GB of each GPU taken by libraries, 5 % of the rest lost to fragmentation")
    return Plan(
        parameters=sizes,
        forward=work.forward,
        training=3 * forward * per_step * training.steps,
        layouts=layouts,
        limit=machine.limit,
        tokens_per_step=per_step,
        tokens=per_step * training.steps,
        epochs=None,
        mfu=share,
        compute_seconds=compute,
        communication_seconds=sent,
        hours=hours,
        tokens_per_second=per_step / step,
        gpu_hours=hours * gpus,
        cost=None if price is None else price * hours * gpus,
        kilowatt_hours=None if machine.watts is None else hours * gpus * machine.watts / 1000,
        checkpoint=12.0 * planner.trained(goal),
        assumptions=assumptions,
        warnings=[*machine.warnings, *_warnings(work, layouts, gpus, compute, sent)],
    )


def _warnings(work: Work, layouts: list[Layout], gpus: int, compute: float, sent: float) -> list[str]:
    found, chosen, accumulate = [], layouts[0], work.training.accumulate
    if not chosen.fits:
        advice = "more or larger GPUs"
        if better := next((layout for layout in layouts if layout.fits), None):
            changes = [f"--training.parallel.sharding {better.sharding}"] if better.sharding != chosen.sharding else []
            changes += (
                [f"--training.parallel.recompute {str(better.recompute).lower()}"]
                if better.recompute != chosen.recompute
                else []
            )
            advice = " ".join(changes)
        if chosen.largest:
            advice = f"--packing.batch_tokens {chosen.largest} or less, or {advice}"
        found.append(f"does not fit: {advice}")
    if accumulate % gpus:
        tokens = work.loader.config.batch_tokens * accumulate // gpus
        advice = f"--training.accumulate {-(-accumulate // gpus) * gpus} uses all and makes a step longer"
        if accumulate < gpus and tokens >= 2 * work.loader.longest:
            advice = f"--training.accumulate {gpus} --packing.batch_tokens {tokens} uses all at as many tokens a step"
        idle = 1 - accumulate / (-(-accumulate // gpus) * gpus)
        found.append(f"{idle:.0%} of the GPUs' time is idle: {gpus} share {accumulate} micro-batches a step; {advice}")
    if sent > compute:
        found.append(
            f"communication takes {sent / compute:.1f} times as long as computation: more tokens a step, fewer GPUs, "
            "or a faster --network"
        )
    return found


def _name(layout: Layout) -> str:
    return f"{layout.sharding}, recompute" if layout.recompute else layout.sharding


def _show(plan: Plan, machine: Machine, gpus: int) -> None:
    """Print the tables."""
    console, chosen = Console(), plan.layouts[0]
    table = Table("module", "parameters", title="Model", title_justify="left")
    for name, count in plan.parameters.items():
        table.add_row(name, f"{count:,}")
    learnt = sum(count for name, count in plan.parameters.items() if not name.endswith(_FROZEN))
    table.add_row("all (trained)", f"{learnt:,}")
    for name, flops in plan.forward.items():
        table.add_row(f"{name}: MFLOP per token, forward", f"{flops / 1e6:,.1f}")
    table.add_row("all: MFLOP per token, training (3 x)", f"{3 * sum(plan.forward.values()) / 1e6:,.1f}")
    _print(console, table)

    table = Table("what", "GiB", title=f"Memory of one {machine.name} ({_name(chosen)})", title_justify="left")
    for name, size in vars(chosen.memory).items():
        table.add_row(name, f"{size / 2**30:,.2f}")
    verdict = "fits" if chosen.fits else "does not fit"
    table.add_row(f"all, of {plan.limit / 2**30:,.1f}: {verdict}", f"{chosen.memory.total / 2**30:,.2f}")
    _print(console, table)

    table = Table("layout", "GiB", "fits", "largest batch_tokens", title="Choices", title_justify="left")
    for layout in plan.layouts:
        fits, largest = "yes" if layout.fits else "no", f"{layout.largest:,}" if layout.largest else "none"
        table.add_row(_name(layout), f"{layout.memory.total / 2**30:,.2f}", fits, largest)
    _print(console, table)

    table = Table("run", "", title=f"Run on {gpus} x {machine.name}", title_justify="left")
    rows = {
        "tokens per step": f"{plan.tokens_per_step:,.0f}",
        "steps": f"{round(plan.tokens / plan.tokens_per_step):,}",
        "tokens": f"{plan.tokens:.3g}",
        "epochs": "unknown" if plan.epochs is None else f"{plan.epochs:,.2f}",
        "FLOPs": f"{plan.training:.3g}",
        "ms per step: computation": f"{1000 * plan.compute_seconds:,.1f}",
        "ms per step: communication": f"{1000 * plan.communication_seconds:,.1f}",
        "tokens per second": f"{plan.tokens_per_second:,.0f}",
        "hours": f"{plan.hours:,.3g}" if plan.hours < 1 else f"{plan.hours:,.2f}",
        "GPU hours": f"{plan.gpu_hours:,.1f}",
        "cost": None if plan.cost is None else f"{plan.cost:,.2f}",
        "kWh, GPUs alone, at most": None if plan.kilowatt_hours is None else f"{plan.kilowatt_hours:,.1f}",
        "GiB per checkpoint": f"{plan.checkpoint / 2**30:,.2f}",
    }
    for name, text in rows.items():
        if text is not None:
            table.add_row(name, text)
    _print(console, table)
    for kind, lines in {"assumed": plan.assumptions, "warning": plan.warnings}.items():
        for line in lines:
            console.print(f"{kind}: {line}", highlight=False, soft_wrap=True, markup=False)


def _print(console: Console, table: Table) -> None:
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
