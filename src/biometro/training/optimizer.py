"""AdamW or Adam with the usual two groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from biometro.errors import UserError
from biometro.objectives.objective import Objective


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019) or Adam (Kingma & Ba 2015), and the learning-rate schedule.

    Args:
        name: adamw, or adam (weight decay joins the gradient).
        lr: peak learning rate.
        schedule: linear or cosine decay after warm-up, warmup_stable_decay (constant, then linear to the end),
            constant, or staged (of fine-tuning: constant within a stage; each stage has as many epochs, begins from the
            best weights so far with a fresh optimizer, and divides the learning rate by `stage_divisor`).
        stages: of staged.
        stage_divisor: of staged.
        warmup: steps from 0 to the peak, linearly.
        decay: share of all steps that warmup_stable_decay spends decaying.
        final: the last learning rate, as a share of the peak.
        weight_decay: decoupled; on matrices only, not on biases and norms.
        beta1: decay of the gradient's running mean.
        beta2: decay of its running square.
        eps: added to the denominator.
        clip: largest norm of the whole gradient; 0 for no clipping.
    """

    name: Literal["adamw", "adam"] = "adamw"
    lr: float = 1e-3
    schedule: Literal["linear", "cosine", "warmup_stable_decay", "constant", "staged"] = "linear"
    stages: int = 3
    stage_divisor: float = 10.0
    warmup: int = 100
    decay: float = 0.2
    final: float = 0.0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise UserError(f"optimizer.lr is {self.lr}; it must be above 0")
        if not 0 < self.decay <= 1 or not 0 <= self.final <= 1:
            raise UserError("optimizer.decay and optimizer.final are shares, between 0 and 1 (decay above 0)")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.eps > 0):
            raise UserError("optimizer.beta1 and beta2 must be at least 0 and below 1, and optimizer.eps above 0")
        if self.stages < 1 or not 1 <= self.stage_divisor < math.inf:
            raise UserError("optimizer.stages and optimizer.stage_divisor must be at least 1")
        if min(self.warmup, self.weight_decay, self.clip) < 0:
            raise UserError("optimizer.warmup, weight_decay and clip must be at least 0")


def build(objective: Objective, config: OptimizerConfig) -> torch.optim.Adam:
    """Fused AdamW, or Adam, over the trainable parameters: matrices decay, biases and norms do not."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim >= 2, objective.rate_share(name)), []).append(parameter)
    settings = [
        {"params": found, "weight_decay": config.weight_decay if decays else 0.0, "share": share}
        for (decays, share), found in groups.items()
    ]
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(settings, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def learning_rate(config: OptimizerConfig, step: int, steps: int, stage: int = 0) -> float:
    """The learning rate of step 0, 1, ..., steps - 1; under `staged`, of such a step within stage 0, 1, ..."""
    peak = config.lr / config.stage_divisor**stage
    if step < config.warmup:
        return peak * (step + 1) / config.warmup
    if config.schedule in ("constant", "staged"):
        return peak
    if config.schedule == "warmup_stable_decay":
        length = max(1, round(config.decay * steps))
        begin = max(steps - length, config.warmup)
        done = max(0.0, (step - begin + 1) / max(1, steps - begin))
    else:
        done = (step - config.warmup + 1) / max(1, steps - config.warmup)
    done = min(done, 1.0)
    share = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return config.lr * (config.final + (1 - config.final) * share)


def apply(optimizer: torch.optim.Adam, rate: float, norm: Tensor) -> None:
    """One update at this learning rate, and fresh gradients; none at all where the gradient's norm is not finite.

    That is decided on the device, without waiting for it (by the fused kernel's switch for gradient scalers).
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
    optimizer.found_inf = 1 - norm.isfinite().float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
