"""The training loop: any objective, any source of batches.

    source(n) ─▶ objective.prepare ─▶ objective.backward ─▶ clip ─▶ AdamW ─▶ log, validate, checkpoint ─▶ n + 1

Everything random in step n is keyed by (seed, n), and everything that steps change is in a checkpoint. So a run that
was killed and started again is the run that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from biometro.data.batch import Batch
from biometro.errors import UserError
from biometro.model.encoder import Encoder
from biometro.objectives.corruption import generator_for
from biometro.objectives.objective import Objective, Terms
from biometro.training import checkpoint
from biometro.training import optimizer as optim
from biometro.training.checkpoint import Progress
from biometro.training.optimizer import OptimizerConfig
from biometro.training.signals import StopRequest
from biometro.training.tracking import Row, Screen, Tracker, TrackerName, open_trackers

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: stopped before the end, and the same command goes on
_VALID_STREAM = 1 << 40  # micro-batch numbers of validation, out of the way of training's


@dataclass(frozen=True)
class TrainingConfig:
    """The loop.

    Args:
        steps: optimizer steps.
        accumulate: micro-batches in one step.
        optimizer: AdamW and its schedule.
        precision: arithmetic of matrix products; auto is bfloat16 on CUDA, float32 elsewhere. Weights stay float32.
        compile: compile the transformer blocks; auto on CUDA only.
        log_every: steps between reading figures back from the device (every step's figures are logged).
        valid_every: steps between validations (there is one at the end in any case).
        valid_batches: micro-batches in a validation, always the same ones.
        checkpoint_every: steps between checkpoints (there is one at the end, and at a stop, in any case).
        keep: checkpoints kept.
        max_minutes: stop after this time, with a checkpoint and exit status 75.
        track: tensorboard, wandb; default tensorboard where it is installed.
    """

    steps: int = 1000
    accumulate: int = 1
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "yes", "no"] = "auto"
    log_every: int = 10
    valid_every: int = 200
    valid_batches: int = 8
    checkpoint_every: int = 500
    keep: int = 2
    max_minutes: float | None = None
    track: list[TrackerName] | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "log_every", "valid_every", "valid_batches", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"training.{name} is {getattr(self, name)}; it must be at least 1")


FREE_TO_CHANGE = ("log_every", "valid_every", "valid_batches", "checkpoint_every", "keep", "max_minutes", "track")
"""Settings that may differ when a run goes on, since they do not touch the weights."""


@dataclass(frozen=True)
class Outcome:
    """How training ended. `stopped` says why it ended early, None where it is complete."""

    progress: Progress
    stopped: str | None
    valid: Row


def train(
    objective: Objective,
    source: Callable[[int], Batch],
    config: TrainingConfig,
    run: Path,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    validation: Sequence[Batch] = (),
    recipe: dict[str, Any] | None = None,
    quiet: bool = False,
) -> Outcome:
    """Train until `config.steps`, from the run folder's last checkpoint if it has one.

    Args:
        objective: what to minimise; moved to `device`.
        source: clean micro-batch by number; step n takes numbers n x accumulate onwards.
        config: the loop.
        run: folder for checkpoints, metrics.jsonl and tensorboard.
        seed: of corruption and dropout.
        device: where to train.
        validation: held-out micro-batches.
        recipe: handed to Weights & Biases.
        quiet: print nothing.

    Raises UserError where the loss is no longer finite, or the run folder cannot be read or written.
    """
    device = torch.device(device)
    objective.to(device).train()
    if config.compile == "yes" or (config.compile == "auto" and device.type == "cuda"):
        for encoder in (module for module in objective.modules() if isinstance(module, Encoder)):
            encoder.compile_blocks()
    optimizer = optim.build(objective, config.optimizer)
    root = run / "checkpoints"
    messages: list[str] = []
    progress = checkpoint.load(root, objective, optimizer, messages.append) or Progress()
    trackers = open_trackers(run, config.track, recipe or {}, progress.step)
    screen = Screen(config.steps, progress.step, quiet)
    trackers.append(screen)
    for message in [*messages, f"going on from step {progress.step:,}"] if progress.step else messages:
        screen.say(message)
    log = _Log(objective, trackers, config, progress)
    half = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=half)
    valid: Row = {}

    def validate(write: bool = True) -> Row:
        if not validation:
            return {}
        with autocast:
            figures = evaluate(objective, validation, seed, device)
        row: Row = {"step": progress.step, "split": "valid", **figures}
        if write:
            log.write([row])
        return row

    saved = progress.step

    def save() -> None:
        nonlocal saved
        log.flush()  # first, for it refuses a loss that is not finite
        if saved != progress.step:
            checkpoint.save(root, objective, optimizer, progress, config.keep)
            saved = progress.step

    try:
        with StopRequest(config.max_minutes) as request:
            while progress.step < config.steps and request.check() is None:
                step = progress.step
                torch.manual_seed(seed * 1_000_003 + step)  # dropout
                clean = [source(step * config.accumulate + i) for i in range(config.accumulate)]
                prepared = [
                    objective.prepare(batch.to(device), generator_for(device, seed, step * config.accumulate + i))
                    for i, batch in enumerate(clean)
                ]
                with autocast:
                    terms = objective.backward(prepared)
                norm = _clip(objective, config.optimizer.clip)
                lr = optim.set_learning_rate(optimizer, config.optimizer, step, config.steps)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                progress.step += 1
                progress.tokens += sum(batch.tokens for batch in clean)
                progress.flops += 3 * sum(objective.flops(batch) for batch in clean)
                log.add(terms, lr, norm)
                at_end = progress.step == config.steps
                if progress.step % config.valid_every == 0 or at_end:
                    log.flush()
                    valid = validate()
                    log.restart_clock()
                if progress.step % config.checkpoint_every == 0 or at_end:
                    save()
            stopped = request.reason if progress.step < config.steps else None
            if stopped is not None:
                save()
                screen.say(f"stopped by {stopped} after step {progress.step:,}; the same command goes on from here")
            elif not valid:  # the run was complete already
                valid = validate(write=False)
    finally:
        for tracker in trackers:
            tracker.close()
    return Outcome(progress, stopped, valid)


def evaluate(
    objective: Objective, batches: Sequence[Batch], seed: int, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Averages of all terms over clean batches, corrupted the same way every time; `loss` is the weighted total."""
    device = torch.device(device)
    training = objective.training
    objective.eval()
    terms: Terms = {}
    with torch.no_grad():
        for number, batch in enumerate(batches):
            generator = generator_for(device, seed, _VALID_STREAM + number)
            for name, term in objective(objective.prepare(batch.to(device), generator)).items():
                terms[name] = terms[name] + term if name in terms else term
    objective.train(training)
    return _averages(objective, terms, {name: (float(t.sum), float(t.count)) for name, t in terms.items()})


def _averages(objective: Objective, terms: Terms, sums: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Means from (sum, count) by name; `loss` is their weighted total. A figure over nothing is NaN, a loss 0."""
    means = {
        name: total / count if count else 0.0 if terms[name].weight is not None else math.nan
        for name, (total, count) in sums.items()
    }
    total = sum(term.weight * means[name] for name, term in terms.items() if term.weight is not None)
    return {"loss": total, **means, **objective.derive(means)}


def _clip(objective: Objective, largest: float) -> torch.Tensor:
    return torch.nn.utils.clip_grad_norm_(objective.parameters(), largest if largest > 0 else math.inf)


class _Log:
    """Collects every step's figures on the device and reads them back together, so that steps do not wait."""

    def __init__(self, objective: Objective, trackers: list[Tracker], config: TrainingConfig, progress: Progress):
        self.objective, self.trackers, self.config, self.progress = objective, trackers, config, progress
        self._waiting: list[tuple[Row, Terms, torch.Tensor]] = []
        self._tokens = progress.tokens
        self.restart_clock()

    def restart_clock(self) -> None:
        """Time from here on is training time again (after a validation)."""
        self._clock = time.perf_counter()

    def add(self, terms: Terms, lr: float, norm: torch.Tensor) -> None:
        progress = self.progress
        row = {"step": progress.step, "split": "train", "tokens": progress.tokens, "flops": progress.flops, "lr": lr}
        self._waiting.append((row, terms, norm))
        if len(self._waiting) >= self.config.log_every:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        packed = torch.stack([
            torch.stack([x.float() for t in terms.values() for x in (t.sum, t.count)] + [norm.float()])
            for _, terms, norm in self._waiting
        ]).tolist()  # fmt: skip
        now = time.perf_counter()
        elapsed, self._clock = now - self._clock, now
        rate = (self.progress.tokens - self._tokens) / max(elapsed, 1e-9)
        began, self.progress.seconds = self.progress.seconds, self.progress.seconds + elapsed
        self._tokens = self.progress.tokens
        rows: list[Row] = []
        for number, ((row, terms, _), values) in enumerate(zip(self._waiting, packed, strict=True), 1):
            sums = {name: (values[2 * i], values[2 * i + 1]) for i, name in enumerate(terms)}
            row |= {
                "seconds": began + elapsed * number / len(packed),
                "tokens_per_s": rate,
                "grad_norm": values[-1],
                **_averages(self.objective, terms, sums),
            }
            rows.append(row)
        self._waiting.clear()
        self.write(rows)
        for row in rows:
            if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"]):
                raise UserError(
                    f"the loss or its gradient is not finite at step {row['step']:,} (loss {row['loss']}, gradient "
                    f"norm {row['grad_norm']}); checkpoints up to the last sound one are kept: lower optimizer.lr"
                )

    def write(self, rows: Sequence[Row]) -> None:
        for tracker in self.trackers:
            tracker.log(rows)
