"""The figures of steps: collected on the device, then summed over ranks, read back and written together."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from biometro.objectives.objective import Objective, Terms
from biometro.training.checkpoint import Progress
from biometro.training.parallel import World
from biometro.training.tracking import Row, Tracker


def averages(objective: Objective, terms: Terms, world: World) -> dict[str, float]:
    """Means of the terms of all ranks; `loss` is the weighted total of the losses among them."""
    return _means(objective, terms, world.sum(_pack(terms).cpu().double()).tolist())


def _pack(terms: Terms) -> torch.Tensor:
    """(2 x terms,) float32: sum and count of each, one after another."""
    return torch.stack([x.float() for t in terms.values() for x in (t.sum, t.count)])


def _means(objective: Objective, terms: Terms, packed: Sequence[float]) -> dict[str, float]:
    """From packed sums and counts. A figure over nothing is NaN, a loss 0."""
    means = {}
    for (name, term), total, count in zip(terms.items(), packed[::2], packed[1::2], strict=False):
        means[name] = total / count if count else math.nan if term.weight is None else 0.0
    total = sum(term.weight * means[name] for name, term in terms.items() if term.weight is not None)
    return {"loss": total, **means, **objective.derive(means)}


class Log:
    """Collects every step's figures on the device and reads them back together, so that steps do not wait."""

    def __init__(self, objective: Objective, trackers: list[Tracker], every: int, progress: Progress, world: World):
        self.objective, self.trackers, self.every = objective, trackers, every
        self.progress, self.world = progress, world
        self.in_a_row = 0
        """Steps up to the last one read back whose gradient was not finite."""
        self._waiting: list[tuple[Row, Terms, torch.Tensor, list[float]]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Time from here on is training time again (after a validation)."""
        self._clock = time.perf_counter()

    @property
    def full(self) -> bool:
        return len(self._waiting) >= self.every

    def add(self, terms: Terms, lr: float, norm: torch.Tensor, tokens: int, flops: float) -> None:
        row = {"step": self.progress.step, "split": "train", "lr": lr}
        self._waiting.append((row, terms, norm, [tokens, flops]))

    def flush(self) -> list[tuple[int, Row]]:
        """Write all figures; gives the steps (with their figures) whose loss or gradient was not finite."""
        if not self._waiting:
            return []
        progress, terms = self.progress, self._waiting[0][1]
        packed = torch.stack([
            torch.cat([_pack(found), norm.float().reshape(1)])
            for _, found, norm, _ in self._waiting
        ]).cpu().double()  # fmt: skip
        norms = packed[:, -1].tolist()
        totals = torch.tensor([own for _, _, _, own in self._waiting], dtype=torch.float64)
        sums = self.world.sum(torch.cat([packed[:, :-1], totals], dim=1)).tolist()
        now = time.perf_counter()
        elapsed, self._clock = now - self._clock, now
        rate = sum(values[-2] for values in sums) / max(elapsed, 1e-9)
        began, progress.seconds = progress.seconds, progress.seconds + elapsed
        rows, wrong = [], []
        for number, ((row, *_), values, norm) in enumerate(zip(self._waiting, sums, norms, strict=True), 1):
            progress.tokens += int(values[-2])
            progress.flops += values[-1]
            row |= {
                "tokens": progress.tokens,
                "flops": progress.flops,
                "seconds": began + elapsed * number / len(sums),
                "tokens_per_s": rate,
                "grad_norm": norm,
                **_means(self.objective, terms, values),
            }
            rows.append(row)
            self.in_a_row = 0 if math.isfinite(norm) else self.in_a_row + 1
            progress.skipped += not math.isfinite(norm)
            if not (math.isfinite(norm) and math.isfinite(row["loss"])):
                wrong.append((row["step"], row))
        self._waiting.clear()
        self.write(rows)
        return wrong

    def write(self, rows: Sequence[Row]) -> None:
        for tracker in self.trackers:
            tracker.log(rows)
