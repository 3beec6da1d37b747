"""What a training objective is: a module that owns encoders and heads and maps a batch to named losses.

    clean batch ─▶ prepare (corruption, a pure function of seed, step, micro-batch) ─▶ forward ─▶ {name: Term}

Losses are sums with counts. The trainer adds counts over micro-batches and ranks *before* any backward pass, so
that the gradient is that of one large batch however it is cut; that is why corruption, which decides the counts,
is a step of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from biometro.data.batch import Batch


@dataclass(frozen=True)
class Term:
    """A sum and the number of things summed, both scalars (0-d tensors); the value reported is their ratio.

    Terms of micro-batches and ranks add up; `weight` is the factor in the training loss, None for a figure that is
    only reported.
    """

    sum: Tensor
    count: Tensor
    weight: float | None = None

    def __add__(self, other: Term) -> Term:
        return Term(self.sum + other.sum, self.count + other.count, self.weight)

    @property
    def mean(self) -> Tensor:
        return self.sum / self.count.clamp(min=1)


Terms = dict[str, Term]


def total_loss(terms: Terms, counts: dict[str, Tensor]) -> Tensor:
    """Weighted sum of the losses, each divided by its count over the whole step (0-d, float32)."""
    return sum(
        (t.weight * t.sum / counts[name].clamp(min=1) for name, t in terms.items() if t.weight is not None),
        start=torch.zeros((), device=next(iter(terms.values())).sum.device),
    )


class Objective(nn.Module):
    """Base of all objectives. A subclass fills in the four methods."""

    def at(self, share: float) -> None:
        """Told before each step which share of the steps is behind (0 to 1), for what changes on the way."""

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with what the objective draws at random added to it (corrupted views, targets), on its device."""
        raise NotImplementedError

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """The count of every loss of a prepared batch, without a forward pass."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Terms:
        """Losses and figures of a prepared batch. The trainer calls the module, so hooks of wrappers fire."""
        raise NotImplementedError

    def backward(
        self,
        batches: Sequence[Batch],
        idle: int = 0,
        add: Callable[[Tensor], Tensor] = lambda counts: counts,
        before: Callable[[int], None] = lambda number: None,
    ) -> Terms:
        """Accumulate the gradient of one step over this rank's prepared micro-batches; gives their summed terms.

        Args:
            batches: the micro-batches.
            idle: so many at the end have no weight and are not counted: they keep a rank in step with others.
            add: sums a tensor over ranks (the counts of all losses, float32).
            before: called with 0, 1, ... before the forward pass of that micro-batch.

        The terms are detached, and of this rank alone. A loss that is no sum over examples overrides this.
        """
        counting = batches[: len(batches) - idle]
        each = [self.counts(batch) for batch in counting] or [
            {name: torch.zeros_like(count) for name, count in self.counts(batches[0]).items()}
        ]
        local = torch.stack([torch.stack(list(found.values())) for found in each]).sum(0)
        counts = dict(zip(each[0], add(local), strict=True))
        terms: Terms = {}
        for number, batch in enumerate(batches):
            before(number)
            weight = 1.0 if number < len(counting) else 0.0
            found: Terms = self(batch)
            (weight * total_loss(found, counts)).backward()
            for name, term in found.items():
                term = Term(weight * term.sum.detach(), weight * term.count, term.weight)
                terms[name] = terms[name] + term if name in terms else term
        return terms

    def rate_share(self, name: str) -> float:
        """The share of the learning rate at which the parameter of this name learns."""
        return 1.0

    def halves(self, batch: Batch) -> tuple[Batch, Batch] | None:
        """A prepared batch in two, each with its share of the sequences; None where it cannot be halved."""
        return None

    def flops(self, batch: Batch) -> float:
        """A third of the floating-point operations of training on a clean batch: those of one forward pass, but for
        what has no backward pass."""
        raise NotImplementedError

    def derive(self, means: dict[str, float]) -> dict[str, float]:
        """Figures that are functions of averaged figures, computed once all sums are in."""
        return {}

    def bundle_modules(self) -> dict[str, nn.Module]:
        """The modules by role that make the model folder."""
        raise NotImplementedError
