"""The training loop: any objective, any source of batches, any number of ranks.

    source(n) ─▶ objective.prepare ─▶ objective.backward ─▶ clip ─▶ AdamW ─▶ log, validate, checkpoint ─▶ n + 1

Everything random in step n is keyed by (seed, n), and everything that steps change is in a checkpoint. So a run that
was killed and started again is the run that was not, and ranks that share out a step's micro-batches compute the same
step, whatever their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from biometro.data.batch import Batch
from biometro.device import out_of_memory
from biometro.errors import UserError
from biometro.files import new_file
from biometro.model.encoder import Encoder
from biometro.model.huggingface import HuggingFaceEncoder
from biometro.objectives.corruption import generator_for
from biometro.objectives.objective import Objective, Term, Terms
from biometro.training import optimizer as optim
from biometro.training import parallel
from biometro.training.checkpoint import Checkpoints, Progress
from biometro.training.log import Log, averages
from biometro.training.optimizer import OptimizerConfig
from biometro.training.parallel import ParallelConfig, World
from biometro.training.selection import Best, Selection
from biometro.training.signals import StopRequest
from biometro.training.tracking import Row, Screen, Tracker, TrackerName, open_trackers
from biometro.training.watch import Watch

_VALID_STREAM = 1 << 40  # micro-batch numbers of validation, out of the way of training's
_MOST_IN_A_ROW = 20  # skipped steps one after another, before a run is given up
_BATCHES_KEPT = 5  # of steps that were not finite
_HALVED = 1 << 55  # dropout's random streams of parts of micro-batches, out of the way of whole ones
_SOUND_STEPS = 100  # after which a learning rate that was halved is doubled


@dataclass(frozen=True)
class TrainingConfig:
    """The loop.

    Args:
        steps: optimizer steps.
        flops: in place of steps, floating-point operations of training (forward and backward, all modules) that the run
            is to take: what runs at equal compute have in common. Steps are what comes nearest.
        accumulate: micro-batches in one step, shared out among the ranks; so the number of ranks does not change what a
            step computes.
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
        not_finite: what a step does whose gradient is infinite or not a number. It never touches the weights, and its
            batch is saved. stop; skip (go on with the next; 20 in a row stop); or back_off (skip, halve the learning
            rate, and double it again after every 100 sound steps).
        parallel: how several processes share the model.
    """

    steps: int = 1000
    flops: float | None = None
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
    not_finite: Literal["stop", "skip", "back_off"] = "stop"
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "log_every", "valid_every", "valid_batches", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"training.{name} is {getattr(self, name)}; it must be at least 1")
        if self.flops is not None and not 0 < self.flops < math.inf:
            raise UserError(f"training.flops is {self.flops}; it must be above 0")

    def for_flops(self, per_step: float) -> TrainingConfig:
        """The same with the steps that take the FLOPs asked for, where one takes `per_step`."""
        return self if self.flops is None else replace(self, steps=max(1, round(self.flops / per_step)))


FREE_TO_CHANGE = (
    "log_every", "valid_every", "valid_batches", "checkpoint_every", "keep", "max_minutes", "track", "not_finite",
    *(f"parallel.{name}" for name in ("sharding", "reshard", "recompute", "timeout_minutes")),
)  # fmt: skip
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
    world: World = World(),
    validation: Sequence[Batch] = (),
    score: Callable[[], Row] | None = None,
    selection: Selection | None = None,
    recipe: dict[str, Any] | None = None,
    request: StopRequest | None = None,
    quiet: bool = False,
) -> Outcome:
    """Train until `config.steps`, from the run folder's last checkpoint if it has one.

    Args:
        objective: what to minimise; laid out over the world and moved to its device.
        source: clean micro-batch by number; step n takes numbers n x accumulate onwards.
        config: the loop.
        run: folder for checkpoints, metrics.jsonl and tensorboard.
        seed: of corruption and dropout.
        world: the ranks that train together, each calling this.
        validation: held-out micro-batches.
        score: further figures of a validation, of the objective as it is then; the same on every rank.
        selection: end with the weights of the best validation, a figure of `score`; default: with the last.
        recipe: handed to Weights & Biases.
        request: who asks for a stop; default: signals and `config.max_minutes`, from now on.
        quiet: print nothing.

    Raises UserError where the gradient is not finite, or the run folder cannot be read or written.
    """
    if request is None:
        with StopRequest(config.max_minutes) as request:
            return train(
                objective, source, config, run, seed=seed, world=world, validation=validation, score=score,
                selection=selection, recipe=recipe, request=request, quiet=quiet,
            )  # fmt: skip
    with Watch(world, config.parallel.timeout_minutes) as watch:
        loop = _Loop(objective, source, config, run, seed, world, validation, watch, score, selection)
        try:
            loop.open(recipe or {}, quiet)
            return loop.run(request)
        finally:
            loop.close()


class _Loop:
    """One run: what the steps share."""

    def __init__(
        self, objective: Objective, source: Callable[[int], Batch], config: TrainingConfig, run: Path, seed: int,
        world: World, validation: Sequence[Batch], watch: Watch, score: Callable[[], Row] | None,
        selection: Selection | None,
    ):  # fmt: skip
        if (config.optimizer.schedule == "staged") != (selection is not None and selection.stages > 1):
            raise UserError("optimizer.schedule: staged is for fine-tuning, where the best weights are kept")
        if config.optimizer.name == "muon" and world.size > 1:
            raise UserError("optimizer.name: muon turns whole matrices, and ranks hold shares of them; take adamw")
        self.score, self.halvings = score, 0
        self.objective, self.source, self.config, self.folder = objective, source, config, run
        self.seed, self.world, self.validation, self.watch = seed, world, validation, watch
        half = config.precision == "bfloat16" or (config.precision == "auto" and world.device.type == "cuda")
        for encoder in (m for m in objective.modules() if isinstance(m, Encoder | HuggingFaceEncoder)):
            if config.parallel.recompute:
                encoder.recompute_blocks()
            if config.compile == "yes" or (config.compile == "auto" and world.device.type == "cuda"):
                encoder.compile_blocks()
        parallel.lay_out(objective, world, config.parallel, half)
        objective.train()
        self.autocast = torch.autocast(world.device.type, torch.bfloat16, enabled=half)
        self.optimizer = optim.build(objective, config.optimizer)
        self.best = None if selection is None else Best(objective, self.optimizer, selection, config.steps)
        self.checkpoints = Checkpoints(
            run / "checkpoints", objective, self.optimizer, world, config.keep,
            waiting=lambda: watch.beat("waiting for a checkpoint to be written"),
            more=None if self.best is None else self.best.tensors,
        )  # fmt: skip
        self.trackers: list[Tracker] = []

    def open(self, recipe: dict[str, Any], quiet: bool) -> None:
        """Restore the last checkpoint and open the trackers."""
        self.watch.beat("reading a checkpoint")
        messages: list[str] = []
        restored = self.checkpoints.load(messages.append)
        self.progress = restored or Progress()
        self.saved = None if restored is None else restored.step
        step = self.progress.step
        self.screen = Screen(self.config.steps, step, quiet or not self.world.leads)
        self.trackers.append(self.screen)
        if step:
            messages.append(f"going on from step {step:,}")
        if self.world.size > 1:
            messages.append(self._ranks())
        for message in messages:
            self.screen.say(message)
        opened = self.world.first(
            lambda: self.trackers.extend(open_trackers(self.folder, self.config.track, recipe, step))
        )
        assert opened is None
        self.log = Log(self.objective, self.trackers, self.config.log_every, self.progress, self.world)

    def _ranks(self) -> str:
        size, count = self.world.size, self.config.accumulate
        idle = -count % size
        text = f"{size} ranks share {count} micro-batches a step"
        return text if not idle else f"{text}: {idle} of {count + idle} passes are idle; make it a multiple of {size}"

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()
        self.checkpoints.close()

    def run(self, request: StopRequest) -> Outcome:
        config, progress = self.config, self.progress
        valid: Row = {}
        reason = self._agree(request)
        while not self.done and reason is None:
            self.step()
            if progress.step % config.valid_every == 0 or self.done:
                valid = self.validate()
                self._judge(valid)
            if progress.step % config.checkpoint_every == 0 or self.done:
                self.save()
            reason = self._agree(request)
        stopped = reason if not self.done else None
        if stopped is not None:
            self.save()
        self.watch.beat("finishing a checkpoint")
        self.checkpoints.finish()
        if stopped is not None:
            self.screen.say(f"stopped by {stopped} after step {progress.step:,}; the same command goes on from here")
        if self.best is not None:
            self.best.restore()
        if stopped is None and not valid:  # the run was complete already
            valid = self.validate(write=False)
        return Outcome(progress, stopped, valid)

    @property
    def done(self) -> bool:
        return self.progress.done or self.progress.step >= self.config.steps

    def _judge(self, valid: Row) -> None:
        if self.best is not None:
            said = self.best.judge(float(valid[self.best.selection.metric]), self.progress)
            if said is not None:
                self.screen.say(f"step {self.progress.step:,}: {said}")

    def _agree(self, request: StopRequest) -> str | None:
        """Why to stop, if any rank is asked to; all ranks get the same answer. Raises UserError for a failed save."""
        self.watch.beat(f"waiting at the end of step {self.progress.step:,}")
        reason = request.check()
        stop, failed = self.world.most([int(reason is not None), int(self.checkpoints.failed)])
        if failed:
            self.checkpoints.finish()
        return next((text for text in self.world.gather(reason) if text), None) if stop else None

    def step(self) -> None:
        config, progress, world = self.config, self.progress, self.world
        step, first = progress.step, progress.step * config.accumulate
        self.watch.beat(f"reading the batch of step {step + 1:,}")
        places, idle = parallel.share(world, config.accumulate)
        numbers = [first + place for place in places]
        clean = [self.source(number) for number in numbers]
        self.watch.beat(f"computing step {step + 1:,}")
        self.objective.at(step / config.steps)
        prepared = [
            self.objective.prepare(batch.to(world.device), generator_for(world.device, self.seed, number))
            for number, batch in zip(numbers, clean, strict=True)
        ]
        terms = self._backward(prepared, numbers, idle)
        norm = _clip(self.objective, config.optimizer.clip)
        rate = self._learning_rate(step)
        if config.not_finite == "back_off":
            rate *= progress.backoff
        optim.apply(self.optimizer, rate, norm)
        if config.not_finite == "back_off":
            self._back_off(bool(norm.isfinite()))
        counting = clean[: len(clean) - idle]
        progress.step += 1
        tokens = sum(batch.tokens for batch in counting)
        flops = 3 * sum(self.objective.flops(batch) for batch in counting)
        self.log.add(terms, rate, norm, tokens, flops)
        if self.log.full:
            self.flush()

    def _learning_rate(self, step: int) -> float:
        config, progress = self.config.optimizer, self.progress
        if config.schedule == "staged" and self.best is not None:
            return optim.learning_rate(config, step - progress.stage_began, self.best.stage_steps, progress.stage)
        return optim.learning_rate(config, step, self.config.steps)

    def _backward(self, prepared: list[Batch], numbers: list[int], idle: int) -> Terms:
        """The gradient of this rank's micro-batches; those that do not fit in memory are halved, from now on.

        Losses are sums that are divided once, by counts over the whole step, so halves give the gradient of the whole.
        """
        parts = list(zip(prepared, numbers, strict=True))
        for _ in range(self.halvings):
            parts = self._halve(parts)
        while True:
            seeds = [seed for _, seed in parts]

            def before(turn: int, seeds: list[int] = seeds) -> None:
                self.watch.beat(f"computing step {self.progress.step + 1:,}, micro-batch {turn + 1} of {len(seeds)}")
                torch.manual_seed(self.seed * 1_000_003 + seeds[turn])  # dropout
                parallel.reduce_gradient(self.objective, turn == len(seeds) - 1)

            try:
                with self.autocast:
                    return self.objective.backward([batch for batch, _ in parts], idle, self.world.sum, before)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                problem = str(error).splitlines()[0][:200]
            self.optimizer.zero_grad(set_to_none=True)  # outside the handler, which holds what was computed so far
            if self.world.device.type == "cuda":
                torch.cuda.empty_cache()
            if self.world.size > 1 or all(self.objective.halves(batch) is None for batch, _ in parts):
                raise UserError(f"a micro-batch does not fit in memory ({problem}); lower the tokens of a batch")
            parts = self._halve(parts)
            self.halvings += 1
            self.screen.say(
                f"step {self.progress.step + 1:,}: a micro-batch does not fit in memory; from now on each is read in "
                f"{2**self.halvings} parts, with the same result"
            )

    def _halve(self, parts: list[tuple[Batch, int]]) -> list[tuple[Batch, int]]:
        found: list[tuple[Batch, int]] = []
        for batch, seed in parts:
            halves = self.objective.halves(batch)
            found += (
                [(batch, seed)] if halves is None else [(half, _HALVED + 2 * seed + i) for i, half in enumerate(halves)]
            )
        return found

    def _back_off(self, finite: bool) -> None:
        progress = self.progress
        progress.sound = progress.sound + 1 if finite else 0
        if not finite:
            progress.backoff /= 2
        elif progress.sound == _SOUND_STEPS and progress.backoff < 1:
            progress.backoff, progress.sound = 2 * progress.backoff, 0

    def flush(self) -> None:
        """Write the figures of the steps since the last time, and look whether all were finite."""
        for step, row in self.log.flush():
            batch = self.folder / f"not-finite-step-{step:08d}.safetensors"
            self.world.first(partial(self._keep_batch, batch, step))
            found = (
                f"the gradient is not finite at step {step:,} (loss {row['loss']}, gradient norm {row['grad_norm']})"
            )
            if self.config.not_finite == "stop" or self.log.in_a_row >= _MOST_IN_A_ROW:
                raise UserError(
                    f"{found}; its batch is in {batch}, and checkpoints hold sound weights only: lower optimizer.lr, "
                    "or let training.not_finite skip such steps or back off"
                )
            self.screen.say(f"{found}; skipped, its batch is in {batch}")

    def _keep_batch(self, path: Path, step: int) -> None:
        """The clean batch of a step, a pack for each micro-batch; of the first few such steps only."""
        if len(list(path.parent.glob("not-finite-step-*"))) >= _BATCHES_KEPT:
            return
        first = (step - 1) * self.config.accumulate
        tensors = {}
        for number in range(first, first + self.config.accumulate):
            for view, packed in self.source(number).views.items():
                tensors[f"{number}.{view}.tokens"] = packed.tokens
                tensors[f"{number}.{view}.cu_seqlens"] = packed.cu_seqlens
        with new_file(path) as work:
            save_file(tensors, work)

    def validate(self, write: bool = True) -> Row:
        if not self.validation and self.score is None:
            return {}
        self.flush()
        self.watch.beat(f"validating after step {self.progress.step:,}")
        with self.autocast:
            figures: Row = {}
            if self.validation:
                figures |= evaluate(self.objective, self.validation, self.seed, self.world, self.watch.again)
            if self.score is not None:
                figures |= self.score()
        row: Row = {"step": self.progress.step, "split": "valid", **figures}
        if write:
            self.log.write([row])
        self.log.restart_clock()
        return row

    def save(self) -> None:
        self.flush()  # first, for it refuses a gradient that is not finite
        if self.saved != self.progress.step:
            self.watch.beat(f"saving step {self.progress.step:,}")
            self.checkpoints.save(self.progress)
            self.saved = self.progress.step


def evaluate(
    objective: Objective,
    batches: Sequence[Batch],
    seed: int,
    world: World = World(),
    before: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Averages of all terms over clean batches, corrupted the same way every time; `loss` is the weighted total.

    The ranks of `world` share the batches; each gets the averages of all. `before` is called before each pass.
    """
    training = objective.training
    objective.eval()
    terms: Terms = {}
    numbers, idle = parallel.share(world, len(batches))
    with torch.no_grad():
        for turn, number in enumerate(numbers):
            before()
            generator = generator_for(world.device, seed, _VALID_STREAM + number)
            weight = 1.0 if turn < len(numbers) - idle else 0.0
            for name, term in objective(objective.prepare(batches[number].to(world.device), generator)).items():
                term = Term(weight * term.sum, weight * term.count, term.weight)
                terms[name] = terms[name] + term if name in terms else term
    objective.train(training)
    return averages(objective, terms, world)


def _clip(objective: Objective, largest: float) -> torch.Tensor:
    """Scale the gradient to a norm of at most `largest` (0: leave it); gives the norm it had, of all ranks together."""
    norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), largest if largest > 0 else math.inf)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
