"""The weights of the best validation: kept beside those in training, and gone back to.

    validation ─▶ better? ─▶ copy the weights ─▶ too long without a better one, or the stage is over ─▶ next stage | end

A stage begins from the best weights so far, with a fresh optimizer. The copies are saved in every checkpoint, so that a
run that was killed chooses what it would have chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from biometro.objectives.objective import Objective
from biometro.training.checkpoint import Progress, trained_state
from biometro.training.optimizer import Joined


@dataclass(frozen=True)
class Selection:
    """How the weights are chosen that training ends with.

    Args:
        metric: the figure of a validation that decides.
        larger: whether larger is better.
        patience: validations without a better one after which a stage, or training, ends; 0 for never.
        stages: in how many parts of equal length training is cut.
    """

    metric: str
    larger: bool
    patience: int = 0
    stages: int = 1


class Best:
    """The best weights so far.

    Args:
        objective: in training; laid out over its ranks.
        optimizer: whose state begins anew with a stage.
        selection: the rule.
        steps: of the whole training, at most.
    """

    def __init__(self, objective: Objective, optimizer: Joined, selection: Selection, steps: int):
        self.objective, self.optimizer, self.selection = objective, optimizer, selection
        self.stage_steps = math.ceil(steps / selection.stages)
        self.tensors: dict[str, Tensor] = {
            name: tensor.detach().clone() for name, tensor in trained_state(objective, "best").items()
        }

    def judge(self, value: float, progress: Progress) -> str | None:
        """Take in a validation's figure, and go on to the next stage or mark the end. Gives what there is to say."""
        if math.isfinite(value) and (
            progress.best is None or (value > progress.best if self.selection.larger else value < progress.best)
        ):
            progress.best, progress.best_step, progress.stale = value, progress.step, 0
            for name, tensor in trained_state(self.objective, "best").items():
                self.tensors[name].copy_(tensor.detach())
        else:
            progress.stale += 1
        tired = 0 < self.selection.patience <= progress.stale
        if not tired and progress.step - progress.stage_began < self.stage_steps:
            return None
        why = f"no better {self.selection.metric} in {progress.stale} validations" if tired else "the stage is over"
        if progress.stage + 1 == self.selection.stages:
            progress.done = True
            return f"training ends: {why}" if tired else None
        self.restore()
        for state in self.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()
        progress.stage, progress.stage_began, progress.stale = progress.stage + 1, progress.step, 0
        progress.updates = progress.step - progress.skipped
        return f"{why}: stage {progress.stage + 1} of {self.selection.stages} begins from the weights of step " + (
            f"{progress.best_step:,}"
        )

    def restore(self) -> None:
        """Give the objective the best weights."""
        with torch.no_grad():
            for name, tensor in trained_state(self.objective, "best").items():
                tensor.copy_(self.tensors[name])
