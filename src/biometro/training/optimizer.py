"""AdamW, Adam or Muon with a group for each share of the learning rate, which is a pure function of the step."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from biometro.errors import UserError
from biometro.model import mup
from biometro.objectives.objective import Objective


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019), Adam (Kingma & Ba 2015) or Muon, and the learning-rate schedule.

    Args:
        name: adamw, adam (weight decay joins the gradient), or muon (Jordan et al. 2024) for the matrices within layers
            and AdamW for the rest, at one learning rate (Liu et al. 2025, arXiv 2502.16982); of one process.
        lr: peak learning rate.
        schedule: linear or cosine decay after warm-up, warmup_stable_decay (constant, then linear to the end),
            constant, or staged (of fine-tuning: constant within a stage; each stage has as many epochs, begins from the
            best weights so far with a fresh optimizer, and divides the learning rate by `stage_divisor`).
        stages: of staged.
        stage_divisor: of staged.
        warmup: steps from 0 to the peak, linearly; below 1 a share of all steps.
        decay: share of all steps that warmup_stable_decay spends decaying.
        final: the last learning rate, as a share of the peak.
        weight_decay: decoupled; on matrices only, not on biases and norms.
        beta1: decay of the gradient's running mean.
        beta2: decay of its running square.
        eps: added to the denominator.
        momentum: of muon, of the gradient's running mean.
        clip: largest norm of the whole gradient; 0 for no clipping.
    """

    name: Literal["adamw", "adam", "muon"] = "adamw"
    lr: float = 1e-3
    schedule: Literal["linear", "cosine", "warmup_stable_decay", "constant", "staged"] = "linear"
    stages: int = 3
    stage_divisor: float = 10.0
    warmup: int | float = 100
    decay: float = 0.2
    final: float = 0.0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    momentum: float = 0.95
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise UserError(f"optimizer.lr is {self.lr}; it must be above 0")
        if not 0 < self.decay <= 1 or not 0 <= self.final <= 1:
            raise UserError("optimizer.decay and optimizer.final are shares, between 0 and 1 (decay above 0)")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.eps > 0):
            raise UserError("optimizer.beta1 and beta2 must be at least 0 and below 1, and optimizer.eps above 0")
        if not 0 < self.momentum < 1:
            raise UserError(f"optimizer.momentum is {self.momentum}; it must lie between 0 and 1")
        if self.stages < 1 or not 1 <= self.stage_divisor < math.inf:
            raise UserError("optimizer.stages and optimizer.stage_divisor must be at least 1")
        if not (0 <= self.warmup < math.inf and 0 <= self.weight_decay < math.inf and self.clip >= 0):
            raise UserError("optimizer.warmup, weight_decay and clip must be at least 0, the first two finite")
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise UserError(f"optimizer.warmup is {self.warmup}; it is a number of steps, or a share of them below 1")


class Joined:
    """Optimizers of different parameters as one: their groups in a row, and one state."""

    def __init__(self, parts: list[torch.optim.Optimizer]):
        self.parts = parts
        self.state: defaultdict[Tensor, Any] = defaultdict(dict)
        for part in parts:
            part.state = self.state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)


def build(objective: Objective, config: OptimizerConfig) -> Joined:
    """The optimizers of the trainable parameters: matrices decay, biases and norms do not; shares of the learning rate
    are the objective's and those of muP (`model/mup.py`), which leave everything as it stands at the base."""
    known = mup.of_parameters(objective)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        own = known.get(name, mup.Shares())
        muon = own.muon if config.name == "muon" and parameter.ndim == 2 else None
        rate = own.adam if muon is None else muon
        # Adam adds decay to the gradient: what keeps is its size beside that
        scale = own.eps / own.start if config.name == "adam" and own.start else 1 / rate
        decay = config.weight_decay * scale if parameter.ndim >= 2 else 0.0
        settings = {"weight_decay": decay, "share": rate * objective.rate_share(name)}
        if muon is None:
            settings["eps"] = config.eps * own.eps
        group = groups.setdefault((muon is None, *settings.values()), {"params": [], **settings})
        group["params"].append(parameter)
    by_adam, by_muon = ([group for group in groups.values() if ("eps" in group) == adam] for adam in (True, False))
    parts: list[torch.optim.Optimizer] = []
    if by_adam:
        kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
        parts.append(kind(by_adam, lr=config.lr, betas=(config.beta1, config.beta2), fused=True))
    if by_muon:
        parts.append(torch.optim.Muon(by_muon, lr=config.lr, momentum=config.momentum, adjust_lr_fn="match_rms_adamw"))
    return Joined(parts)


def learning_rate(config: OptimizerConfig, step: int, steps: int, stage: int = 0) -> float:
    """The learning rate of step 0, 1, ..., steps - 1; under `staged`, of such a step within stage 0, 1, ..."""
    peak = config.lr / config.stage_divisor**stage
    warmup = config.warmup if config.warmup >= 1 else round(config.warmup * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule in ("constant", "staged"):
        return peak
    if config.schedule == "warmup_stable_decay":
        length = max(1, round(config.decay * steps))
        begin = max(steps - length, warmup)
        done = max(0.0, (step - begin + 1) / max(1, steps - begin))
    else:
        done = (step - warmup + 1) / max(1, steps - warmup)
    done = min(done, 1.0)
    share = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return config.lr * (config.final + (1 - config.final) * share)


def apply(optimizer: Joined, rate: float, norm: Tensor) -> None:
    """One update at this learning rate, and fresh gradients; none at all where the gradient's norm is not finite.

    That is decided on the device, without waiting for it (by the fused kernel's switch for gradient scalers); Muon has
    no such switch, and waits.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
    for part in optimizer.parts:
        if isinstance(part, torch.optim.Adam):
            part.found_inf = 1 - norm.isfinite().float()  # type: ignore[attr-defined]
        elif not norm.isfinite():
            continue
        part.step()
    optimizer.zero_grad()


def begin_state(optimizer: Joined) -> None:
    """Give every parameter the state of before the first update, so that a checkpoint can be read into it."""
    for group in optimizer.param_groups:
        names = ("momentum_buffer",) if "momentum" in group else ("exp_avg", "exp_avg_sq")
        for parameter in group["params"]:
            state = {name: torch.zeros_like(parameter) for name in names}
            steps = {} if "momentum" in group else {"step": torch.zeros((), device=parameter.device)}
            optimizer.state[parameter] = steps | state
