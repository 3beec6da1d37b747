"""Fitting two towers, or one that reads both sides, to pairs.

pairs ─▶ towers (frozen: vectors computed once; lora; full) ─▶ Contrastive ─▶ trained, best by validation
                                                                    └─▶ Scored: vectors, cosines, affinities
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from biometro.data.batch import Batch
from biometro.data.pair_examples import PairExamples, sampler
from biometro.data.pairs import Pairs
from biometro.errors import UserError
from biometro.files import saying
from biometro.model import adapters
from biometro.model.adapters import LoraConfig
from biometro.model.bundle import Bundle
from biometro.model.pairing import PairHead, PairHeadConfig, Projection, ProjectionConfig
from biometro.objectives.contrastive import Contrastive, Known, Tower
from biometro.objectives.pair_losses import LossConfig
from biometro.training.optimizer import OptimizerConfig
from biometro.training.parallel import ParallelConfig, World
from biometro.training.selection import Selection
from biometro.training.signals import StopRequest
from biometro.training.tracking import TrackerName, read_metrics
from biometro.training.trainer import Outcome, TrainingConfig, train

TowerDepth = Literal["frozen", "lora", "full"]


@dataclass(frozen=True)
class TowerConfig:
    """How one tower learns.

    Args:
        depth: frozen (the encoder's vectors, computed once, and a projection), lora (low-rank updates of the encoder),
            full (all weights).
        pooling: of a sequence's vectors: mean of the residues', or cls (the start token's).
        hidden: width of the projection's hidden layer; none makes it linear.
        dropout: probability, before each layer of the projection.
        max_length: residues (tokens); longer sequences are cut to their first ones, counted.
        lora: the low-rank updates.
    """

    depth: TowerDepth = "frozen"
    pooling: Literal["mean", "cls"] = "mean"
    hidden: int | None = 256
    dropout: float = 0.1
    max_length: int = 1022
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise UserError(f"max_length is {self.max_length}; it must be at least 2")


@dataclass(frozen=True)
class AlignTraining:
    """How towers are trained.

    Args:
        epochs: readings of the training pairs.
        batch_pairs: pairs in a step, whose sequences are one another's negatives; hard negatives come beside them.
        accumulate: parts in which a step is read, so that thousands of pairs fit a small machine: the gradient is that
            of the whole (GradCache).
        hard_negatives: pairs that are known not to bind, of the same first sequence, that go with each pair that does.
        optimizer: AdamW or Adam, and the schedule.
        encoder_rate: share of the learning rate at which an encoder that is trained in full learns.
        metric: figure of validation by which weights are chosen; default: spearman where affinities are learnt, auroc
            where there are pairs across classes, else mrr.
        patience: validations without a better one after which training ends; 0 for never.
        valid_epochs: epochs between validations.
        precision: arithmetic of matrix products; auto is bfloat16 on CUDA, float32 elsewhere.
        compile: compile the transformer blocks; auto on CUDA only.
        max_minutes: stop after this time, with a checkpoint and exit status 75.
        track: tensorboard, wandb.
        parallel: how several processes share the model.
    """

    epochs: int = 20
    batch_pairs: int = 256
    accumulate: int = 1
    hard_negatives: int = 0
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(schedule="cosine", warmup=50))
    encoder_rate: float = 0.1
    metric: str | None = None
    patience: int = 5
    valid_epochs: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "yes", "no"] = "auto"
    max_minutes: float | None = None
    track: list[TrackerName] = field(default_factory=list)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "valid_epochs"):
            if getattr(self, name) < 1:
                raise UserError(f"training.{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_pairs < 2 * self.accumulate:
            raise UserError(
                f"training.batch_pairs is {self.batch_pairs}; it must be at least 2 for each of the "
                f"{self.accumulate} parts of a step"
            )
        if min(self.hard_negatives, self.patience) < 0 or not 0 < self.encoder_rate <= 1:
            raise UserError("hard_negatives and patience must be at least 0, encoder_rate above 0 and at most 1")
        if self.optimizer.schedule == "staged":
            raise UserError("optimizer.schedule: staged is for finetune; choose linear, cosine or constant")

    @property
    def part(self) -> int:
        """Pairs in a micro-batch, at most."""
        return self.batch_pairs // self.accumulate


@dataclass(frozen=True)
class TowerModel:
    """One tower before training: its encoder and how it reads. side: all sequences, as tokens or as pooled vectors.
    mean, std: (D,) of the training sequences' pooled vectors."""

    bundle: Bundle
    config: TowerConfig
    mean: np.ndarray
    std: np.ndarray


def build(
    views: Mapping[str, str], models: Mapping[str, TowerModel], pairs: Pairs, value: np.ndarray, losses: LossConfig,
    width: int, moments: tuple[float, float], encoder_rate: float, seed: int, classes: np.ndarray | None = None,
) -> Contrastive:  # fmt: skip
    """The objective, its heads fresh, its encoders copies.

    Args:
        views: names of the sides of a pair, and which tower reads each.
        models: towers by name.
        pairs: of the training set, all of whose partners are known.
        value: (N,) of these, standardised.
        losses: what is minimised.
        width: of the common space.
        moments: mean and deviation of the training values.
        encoder_rate: share of the learning rate of encoders.
        seed: of fresh weights.
        classes: (sequences,) of each sequence its class, where pairs are made of classes.
    """
    torch.manual_seed(seed)
    towers = {}
    for name, model in models.items():
        alphabet, how = model.bundle.alphabet, model.config
        projection = Projection(
            ProjectionConfig(model.bundle.encoder.config.width, width, how.pooling, how.hidden, how.dropout)
        )
        projection.mean.copy_(torch.from_numpy(model.mean))
        projection.std.copy_(torch.from_numpy(model.std))
        encoder: nn.Module | None = None
        if how.depth != "frozen":
            encoder = copy.deepcopy(model.bundle.encoder).train()
            if how.depth == "lora":
                adapters.add(encoder, how.lora)
        towers[name] = Tower(encoder, projection, (len(alphabet.begin_ids), len(alphabet.end_ids)))
    head = PairHead(
        PairHeadConfig(width, how.hidden or width if losses.cross else None, how.dropout, losses.affinity > 0)
    )
    head.center.fill_(moments[0])
    head.unit.fill_(moments[1])
    if losses.siglip:
        with torch.no_grad():
            head.log_scale.fill_(math.log(10.0))
            head.bias.fill_(-10.0)
    for name in ("slope", "offset"):
        getattr(head, name).requires_grad_(losses.affinity > 0)
    head.bias.requires_grad_(losses.siglip > 0)
    uses_scale = {"clip", "multiple_negatives", "siglip", "soft", "ranking"}
    head.log_scale.requires_grad_(bool(uses_scale & {*losses.weights}))
    known = Known(pairs.a, pairs.b, pairs.label != 0, value, len(pairs.b_letters), classes, pairs.shared)
    return Contrastive(views, towers, head, known, losses, encoder_rate)


@dataclass(frozen=True)
class Scored:
    """What towers say of pairs. a, b: vectors of all sequences of the sides, (A, P), (B, P); NaN of those that stand in
    none of the pairs. pairs: which these are. cosine: (N,) of each pair. affinity: (N,) in the labels' unit, None where
    none was learnt."""

    pairs: Pairs
    a: np.ndarray
    b: np.ndarray
    cosine: np.ndarray
    affinity: np.ndarray | None

    @property
    def score(self) -> np.ndarray:
        """(N,) by which pairs are ordered: the affinity where one was learnt, else the cosine."""
        return self.cosine if self.affinity is None else self.affinity


def score(
    objective: Contrastive, examples: PairExamples, which: np.ndarray, device: torch.device, budget: int = 16384,
    partners: np.ndarray | None = None,
) -> Scored:  # fmt: skip
    """What the towers say of some of the pairs, or of their first sequences with other `partners`, (N,) places in
    `b_letters`; training mode and its absence are left as they were."""
    training = objective.training
    objective.eval()
    pairs = examples.pairs.take(which)
    if partners is not None:
        pairs = replace(pairs, b=partners)
    found = []
    with torch.no_grad():
        for (view, side), numbers, letters in zip(
            examples.sides.items(), (pairs.a, pairs.b), (pairs.a_letters, pairs.b_letters), strict=True
        ):
            vectors = np.full((len(letters), objective.head.config.width), np.nan, np.float32)
            wanted = np.unique(numbers)
            sizes = np.ones(len(wanted), int)
            if side.tokens is not None:
                sizes = np.array([len(side.tokens[i]) + 4 for i in wanted.tolist()])
                wanted, sizes = wanted[np.argsort(sizes, kind="stable")], np.sort(sizes)
            for chunk in np.split(wanted, _cuts(sizes, budget)):
                packed, features = side.view(chunk)
                batch = Batch({view: packed}, {} if features is None else {f"{view}_features": features}).to(device)
                vectors[chunk] = objective(batch, vectors=view).float().cpu().numpy()
            found.append(vectors)
        a_NP, b_NP = found[0][pairs.a], found[1][pairs.b]
        affinity = None
        if {"affinity", "cross"} & {*objective.losses.weights}:
            head = copy.deepcopy(objective.head).cpu().eval()
            affinity = head.affinity(torch.from_numpy(a_NP), torch.from_numpy(b_NP)).double().numpy()
    objective.train(training)
    return Scored(pairs, found[0], found[1], (a_NP * b_NP).sum(1), affinity)


def _cuts(sizes: np.ndarray, budget: int) -> np.ndarray:
    """Where a row of sizes is cut so that no part is above the budget, but for parts of one."""
    cuts, total = [], 0
    for place, size in enumerate(sizes.tolist()):
        if total + size > budget and total:
            cuts.append(place)
            total = 0
        total += size
    return np.array(cuts, np.int64)


def fit(
    objective: Contrastive, examples: PairExamples, drawn: np.ndarray, config: AlignTraining, run: Path, *, seed: int,
    world: World, measure: Callable[[Contrastive], dict[str, float]], metric: str, larger: bool,
    weights: list[float] | None = None, recipe: dict[str, Any] | None = None, request: StopRequest | None = None,
    quiet: bool = False,
) -> Outcome:  # fmt: skip
    """Train in the run folder, from its last checkpoint if it has one; end with the weights of the best validation.

    Args:
        objective: as `build` gives it.
        examples: pairs of which the training ones are drawn.
        drawn: numbers of these.
        config: the training.
        run: folder for checkpoints and figures.
        seed: of order, hard negatives and dropout.
        measure: figures of a validation.
        metric, larger: the one that decides, and whether larger is better.
        weights: share of each data set in a batch.
        recipe: for Weights & Biases.
        request: who asks for a stop.
        quiet: print nothing.

    Raises UserError as `train` does.
    """
    order = sampler(examples.pairs, drawn, config.part, seed, weights)
    epoch = math.ceil(order.batches_per_epoch / config.accumulate)
    every = epoch * config.valid_epochs
    training = TrainingConfig(
        steps=epoch * config.epochs, accumulate=config.accumulate, optimizer=config.optimizer,
        precision=config.precision, compile=config.compile, valid_every=every, checkpoint_every=every, keep=1,
        max_minutes=config.max_minutes, track=config.track, parallel=config.parallel,
    )  # fmt: skip
    with saying(run):
        run.mkdir(parents=True, exist_ok=True)
    return train(
        objective, lambda number: examples.batch(drawn[order.members(number)], number), training, run, seed=seed,
        world=world, score=lambda: measure(objective), selection=Selection(metric, larger, config.patience),
        recipe=recipe, request=request, quiet=quiet,
    )  # fmt: skip


def history(run: Path, metric: str) -> dict[str, list[float | None]]:
    """Of every validation its step and figure, and the mean training loss since the one before, over chance where that
    is told."""
    found: dict[str, list[float | None]] = {"step": [], "valid": [], "loss": []}
    losses: list[float] = []
    for row in read_metrics(run / "metrics.jsonl"):
        if row["split"] == "train":
            chance = [name for name in row if name.endswith("_over_chance")]
            losses.append(row[chance[0]] if chance else row["loss"])
        else:
            found["step"].append(row["step"])
            found["valid"].append(row.get(metric))
            found["loss"].append(float(np.mean(losses)) if losses else None)
            losses = []
    return found
