"""Fitting a model to labels, at one of four depths.

probe      the encoder's vectors, computed once ─▶ a head
lora_head  the same vectors ─▶ a head that stays as it began, and low-rank updates of it
lora       tokens ─▶ the encoder as it was and low-rank updates of it ─▶ a head
full       tokens ─▶ the encoder, trained ─▶ a head
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from biometro.data.examples import Examples, Sampler
from biometro.data.task import Task, Truth
from biometro.errors import UserError
from biometro.files import saying
from biometro.inference.predict import answers, outputs
from biometro.model import adapters
from biometro.model.adapters import LoraConfig
from biometro.model.encoder import Encoder
from biometro.model.heads import LabelHead, LabelHeadConfig
from biometro.objectives.supervised import Supervised
from biometro.training.optimizer import OptimizerConfig
from biometro.training.parallel import ParallelConfig, World
from biometro.training.selection import Selection
from biometro.training.signals import StopRequest
from biometro.training.tracking import TrackerName
from biometro.training.trainer import Outcome, TrainingConfig, train

Depth = Literal["probe", "lora_head", "lora", "full"]
FROZEN: tuple[Depth, ...] = ("probe", "lora_head")
"""Depths at which the encoder gives the same vectors all the time."""

Predictions = np.ndarray | list[np.ndarray]
Measure = Callable[[Truth, Predictions], dict[str, float]]


@dataclass(frozen=True)
class HeadConfig:
    """What stands on the encoder.

    Args:
        pooling: mean of the residues' vectors, cls (the start token's), or attention (a mean with learnt weights).
            Where residues have labels there is none.
        hidden: width of a hidden layer; none makes the head linear.
        dropout: probability, before each of its layers.
    """

    pooling: Literal["mean", "cls", "attention"] = "mean"
    hidden: int | None = None
    dropout: float = 0.0


@dataclass(frozen=True)
class FitConfig:
    """How a model is fitted.

    Args:
        epochs: readings of the training set; under the schedule `staged`, in each stage.
        batch_tokens: tokens in a micro-batch.
        batch_size: sequences in one, where the encoder is frozen and each is one vector.
        accumulate: micro-batches in one step.
        optimizer: AdamW or Adam, and the schedule.
        encoder_rate: share of the learning rate at which an encoder that is trained in full learns.
        frozen_layers: of an encoder that is trained in full, so many of the first layers, and the token table, are not.
        balance: what is done about classes of unequal size: none, weights (of the loss), or sampling (rare classes are
            drawn more often).
        metric: of validation, by which weights are chosen; default by the task: macro_f1, auroc or spearman.
        patience: epochs without a better validation after which a stage ends; 0 for never.
        precision: arithmetic of matrix products; auto is bfloat16 on CUDA, float32 elsewhere.
        compile: compile the transformer blocks; auto on CUDA only.
        checkpoint_epochs: epochs between checkpoints of an encoder in training; heads alone are saved at the end, or at
            a stop.
        max_minutes: stop after this time, with a checkpoint and exit status 75.
        track: tensorboard, wandb.
        parallel: how several processes share the model; recompute saves memory.
    """

    epochs: int = 15
    batch_tokens: int = 8192
    batch_size: int = 64
    accumulate: int = 1
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(schedule="staged", warmup=0, beta2=0.999, eps=1e-8)
    )
    encoder_rate: float = 0.1
    frozen_layers: int = 0
    balance: Literal["none", "weights", "sampling"] = "none"
    metric: str | None = None
    patience: int = 5
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "yes", "no"] = "auto"
    checkpoint_epochs: int = 1
    max_minutes: float | None = None
    track: list[TrackerName] = field(default_factory=list)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_tokens", "batch_size", "accumulate", "checkpoint_epochs"):
            if getattr(self, name) < 1:
                raise UserError(f"training.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.encoder_rate <= 1:
            raise UserError(f"training.encoder_rate is {self.encoder_rate}; it must be above 0 and at most 1")
        if min(self.frozen_layers, self.patience) < 0:
            raise UserError("training.frozen_layers and training.patience must be at least 0")


@dataclass(frozen=True)
class Fit:
    """A fitted model: the objective, with the weights of the best validation, and how training ended."""

    objective: Supervised
    outcome: Outcome
    epoch: float
    """Of the best validation."""

    def predict(self, examples: Examples, budget: int, device: torch.device) -> Predictions:
        """Outputs as the head gives them: logits, or numbers in units of the training labels."""
        return predict(self.objective, examples, budget, device)


def predict(objective: Supervised, examples: Examples, budget: int, device: torch.device) -> Predictions:
    """As `Fit.predict`; training mode and its absence are left as they were."""
    training = objective.training
    objective.eval()
    found = outputs(lambda batch: objective(batch, outputs=True), examples, budget, device)
    objective.train(training)
    return found


def build(
    task: Task, depth: Depth, encoder: nn.Module, width: int, train_set: Examples, head: HeadConfig, lora: LoraConfig,
    config: FitConfig, moments: tuple[np.ndarray, np.ndarray], seed: int,
) -> Supervised:  # fmt: skip
    """The objective of a depth, its head fresh, its encoder a copy.

    Args:
        encoder: of the model; not changed.
        width: of its vectors.
        train_set: the examples to learn from.
        moments: mean and standard deviation (D,) of the encoder's vectors over the training set.
        seed: of fresh weights.
    """
    torch.manual_seed(seed)
    pooling: Any = "residues" if task.per_residue else head.pooling
    module = LabelHead(LabelHeadConfig(width, task.outputs, pooling, head.hidden, head.dropout))
    module.mean.copy_(torch.from_numpy(moments[0]))
    module.std.copy_(torch.from_numpy(moments[1]))
    if not task.kind.endswith("classification"):
        known = np.concatenate(train_set.truth)[:, None] if task.per_residue else np.asarray(train_set.truth)
        for name, column in zip(task.names, known.T, strict=True):
            if not np.isfinite(column).any():
                raise UserError(f"{name}: no training sequence has a known value; leave it out of labels.column")
    if not task.discrete:
        module.offset.copy_(torch.from_numpy(np.nanmean(known, axis=0)))
        spread = np.nanstd(known, axis=0)
        module.unit.copy_(torch.from_numpy(np.where(spread > 0, spread, 1)))
    own: nn.Module | None = None
    if depth not in FROZEN:
        own = copy.deepcopy(encoder).train()
    if depth == "lora":
        adapters.add(own, lora)  # type: ignore[arg-type]
    elif depth == "lora_head":
        adapters.add(module, lora)
    elif own is not None and config.frozen_layers:
        freeze(own, config.frozen_layers)
    weights = None
    if config.balance == "weights":
        if not task.kind.endswith("classification"):
            raise UserError(f"training.balance: weights is for classes, not {task.kind}")
        counts = class_counts(train_set)
        weights = torch.from_numpy(counts.sum() / (np.maximum(counts, 1) * (counts > 0).sum())).float()
    return Supervised(task, module, own, train_set.margins, weights, config.encoder_rate)


def freeze(encoder: nn.Module, layers: int) -> None:
    """Stop the token table and the first layers from learning. Raises UserError where there are no such layers."""
    if not isinstance(encoder, Encoder) or layers > len(encoder.blocks):
        depth = len(encoder.blocks) if isinstance(encoder, Encoder) else 0
        raise UserError(f"training.frozen_layers is {layers}; this encoder has {depth} layers that can be frozen")
    for module in (encoder.embedding, encoder.lift, *encoder.blocks[:layers]):
        if module is not None:
            module.requires_grad_(False)


def class_counts(examples: Examples) -> np.ndarray:
    """(K,) int64, sequences, or residues, of each class."""
    numbers = np.concatenate(examples.truth) if isinstance(examples.truth, list) else examples.truth
    return np.bincount(numbers[numbers >= 0], minlength=examples.task.outputs)


def fit(
    objective: Supervised, train_set: Examples, valid_set: Examples, config: FitConfig, run: Path, *, seed: int,
    world: World, measure: Measure, metric: str, larger: bool, request: StopRequest | None, quiet: bool,
) -> Fit:  # fmt: skip
    """Train in the run folder, from its last checkpoint if it has one; end with the weights of the best validation.

    Args:
        objective: as `build` gives it.
        train_set, valid_set: what it reads.
        seed: of order and dropout.
        measure: truth and predictions -> figures.
        metric, larger: the figure that decides, and whether larger is better.
        request: who asks for a stop.
    """
    if not math.isfinite(measure(valid_set.truth, _by_chance(valid_set)).get(metric, math.nan)):
        raise UserError(
            f"{metric} is undefined on the {len(valid_set):,} validation sequences (one class or value only, or too "
            "few), so no weights can be chosen by it; give a larger split.valid, or another training.metric"
        )
    with saying(run):
        run.mkdir(parents=True, exist_ok=True)
    plain = train_set.features is not None and not train_set.task.per_residue and train_set.sizes.max() == 1
    budget = config.batch_size if plain else config.batch_tokens
    sampler = Sampler(train_set.sizes, budget, seed, sampling_weights(train_set, config))
    epoch = math.ceil(sampler.batches_per_epoch / config.accumulate)
    stages = config.optimizer.stages if config.optimizer.schedule == "staged" else 1
    steps = epoch * config.epochs * stages
    training = TrainingConfig(
        steps=steps, accumulate=config.accumulate,
        optimizer=config.optimizer if stages > 1 else replace(config.optimizer, schedule=_one_stage(config)),
        precision=config.precision, compile=config.compile, valid_every=epoch, keep=1,
        checkpoint_every=steps if objective.encoder is None else epoch * config.checkpoint_epochs,
        max_minutes=config.max_minutes, track=config.track, parallel=config.parallel,
    )  # fmt: skip
    head = objective.head

    def score() -> dict[str, float]:
        found = predict(objective, valid_set, 4 * config.batch_tokens, world.device)
        scaled = answers(objective.task, found, head.offset.cpu().numpy(), head.unit.cpu().numpy())
        return measure(valid_set.truth, scaled)

    outcome = train(
        objective, lambda number: train_set.batch(sampler.members(number)), training, run, seed=seed, world=world,
        score=score, selection=Selection(metric, larger, config.patience, stages), request=request, quiet=quiet,
    )  # fmt: skip
    return Fit(objective, outcome, outcome.progress.best_step / epoch)


def _by_chance(examples: Examples) -> Predictions:
    """Answers that know nothing and differ among sequences, laid out as a model's."""
    random = np.random.default_rng(0)
    K = examples.task.outputs

    def drawn(count: int) -> np.ndarray:
        found = random.uniform(size=(count, K))
        return found / found.sum(1, keepdims=True) if examples.task.kind.endswith("classification") else found

    if isinstance(examples.truth, list):
        return [drawn(len(value)) for value in examples.truth]
    return drawn(len(examples))


def _one_stage(config: FitConfig) -> Any:
    """The schedule of a single stage: staged is constant there."""
    return "constant" if config.optimizer.schedule == "staged" else config.optimizer.schedule


def sampling_weights(examples: Examples, config: FitConfig) -> np.ndarray | None:
    """(N,) by which examples are drawn; None where each is read once an epoch."""
    if config.balance != "sampling":
        return None
    if examples.task.kind != "classification":
        raise UserError(f"training.balance: sampling is for classification, not {examples.task.kind}")
    counts = class_counts(examples)
    weights: np.ndarray = 1.0 / counts[np.asarray(examples.truth)]
    return weights
