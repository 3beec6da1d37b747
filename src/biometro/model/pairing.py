"""Heads of two towers: what brings sequences into one space, and what reads an affinity off two of them.

    vectors of tokens ─▶ pooled, standardised ─▶ projection ─▶ length 1 ─┐
                                                                         ├▶ cosine ─▶ logits, affinity
    vectors of tokens ─▶ pooled, standardised ─▶ projection ─▶ length 1 ─┘

Shape letters: T tokens, B sequences, D width of an encoder, P of the common space, N pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biometro.data.batch import Packed
from biometro.errors import UserError
from biometro.model.heads import mean_of_residues
from biometro.model.limits import check_choices, check_flags, check_sizes

MOST_SCALE = 100.0
"""Logits are at most this many times a cosine (Radford et al. 2021, arXiv 2103.00020, section 2.5)."""


@dataclass(frozen=True)
class ProjectionConfig:
    """Args:
    width: of the encoder.
    outputs: of the common space.
    pooling: of a sequence's vectors: mean, or cls (the first token's).
    hidden: width of a hidden layer with GELU; none makes the projection linear.
    dropout: probability, before each linear layer, in training.
    """

    width: int
    outputs: int
    pooling: Literal["mean", "cls"] = "mean"
    hidden: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes("projection", self)
        check_choices("projection", self)
        if isinstance(self.dropout, bool) or not (isinstance(self.dropout, int | float) and 0 <= self.dropout < 1):
            raise UserError(f"projection.dropout is {self.dropout!r}; it must be at least 0 and below 1")


class Projection(nn.Module):
    """(B, D) pooled vectors -> (B, P) of length 1. `mean` and `std` (D,) are those of the training set's vectors."""

    def __init__(self, config: ProjectionConfig):
        super().__init__()
        self.config = config
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(config.width))
        self.register_buffer("std", torch.ones(config.width))
        self.dense = nn.Linear(config.width, config.hidden) if config.hidden is not None else None
        self.out = nn.Linear(config.hidden or config.width, config.outputs)
        for layer in (self.dense, self.out):
            if layer is not None:
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)

    def forward(self, h_BD: Tensor) -> Tensor:
        z = (h_BD.float() - self.mean) / self.std
        if self.dense is not None:
            z = F.gelu(self.dense(F.dropout(z, self.config.dropout, self.training)))
        z = self.out(F.dropout(z, self.config.dropout, self.training))
        return F.normalize(z.float(), dim=-1)

    def pool(self, h_TD: Tensor, packed: Packed, margins: tuple[int, int]) -> Tensor:
        """(B, D); `margins` tokens before and after each sequence are no residues."""
        if self.config.pooling == "cls":
            return h_TD[packed.cu_seqlens[:-1].long()]
        return mean_of_residues(h_TD, packed, margins)

    def flops(self, sequences: int) -> float:
        """Floating-point operations of one forward pass over so many pooled vectors."""
        return 2.0 * sequences * sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))


@dataclass(frozen=True)
class PairHeadConfig:
    """Args:
    width: of the common space.
    hidden: width of the cross-interaction head's hidden layer; none leaves that head out.
    dropout: probability, before its last layer, in training.
    cosine: whether affinities are read off the cosine.
    """

    width: int
    hidden: int | None = None
    dropout: float = 0.0
    cosine: bool = True

    def __post_init__(self) -> None:
        check_sizes("pair head", self)
        check_flags("pair head", self, "cosine")
        if isinstance(self.dropout, bool) or not (isinstance(self.dropout, int | float) and 0 <= self.dropout < 1):
            raise UserError(f"pair head.dropout is {self.dropout!r}; it must be at least 0 and below 1")


class PairHead(nn.Module):
    """What is learnt of pairs beside the towers. Scalars have shape (1,), so that they can be sharded.

    log_scale, bias: logits are exp(log_scale) x cosine + bias (the bias is SigLIP's; Zhai et al. 2023, arXiv
    2303.15343, which begins at log 10 and -10, where softmax begins at 1 / .07). slope, offset: affinity is
    slope x cosine + offset in standardised units, of which `center` and `unit` make those of the labels. The
    cross-interaction head reads (z_a, z_b, z_a x z_b, |z_a - z_b|) and gives an affinity of its own.
    """

    def __init__(self, config: PairHeadConfig):
        super().__init__()
        self.config = config
        self.log_scale = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))
        self.bias = nn.Parameter(torch.zeros(1))
        self.slope = nn.Parameter(torch.ones(1))
        self.offset = nn.Parameter(torch.zeros(1))
        self.center: Tensor
        self.unit: Tensor
        self.register_buffer("center", torch.zeros(1))
        self.register_buffer("unit", torch.ones(1))
        self.dense: nn.Linear | None = None
        self.out: nn.Linear | None = None
        if config.hidden is not None:
            self.dense = nn.Linear(4 * config.width, config.hidden)
            self.out = nn.Linear(config.hidden, 1)
            nn.init.normal_(self.dense.weight, std=(4 * config.width) ** -0.5)
            nn.init.normal_(self.out.weight, std=0.02)
            nn.init.zeros_(self.dense.bias)
            nn.init.zeros_(self.out.bias)

    @property
    def scale(self) -> Tensor:
        """(1,) by which cosines are multiplied; at most 100."""
        return self.log_scale.clamp(max=math.log(MOST_SCALE)).exp()

    def on_cosine(self, cosine: Tensor) -> Tensor:
        """Affinities in standardised units, of the shape of the cosines."""
        return self.slope * cosine + self.offset

    def cross(self, a_NP: Tensor, b_NP: Tensor) -> Tensor:
        """(N,) affinities in standardised units, by the cross-interaction head."""
        assert self.dense is not None and self.out is not None
        # vectors have length 1: their numbers are brought to the size that layers expect
        a_NP, b_NP = (z * self.config.width**0.5 for z in (a_NP, b_NP))
        both = torch.cat([a_NP, b_NP, a_NP * b_NP, (a_NP - b_NP).abs()], dim=-1)
        h = F.dropout(F.gelu(self.dense(both)), self.config.dropout, self.training)
        out: Tensor = self.out(h).squeeze(-1)
        return out

    def affinity(self, a_NP: Tensor, b_NP: Tensor) -> Tensor:
        """(N,) in the unit of the labels: read off the cosine, by the cross-interaction head, or the mean of both."""
        found = [self.on_cosine((a_NP * b_NP).sum(-1))] if self.config.cosine or self.dense is None else []
        found += [self.cross(a_NP, b_NP)] if self.dense is not None else []
        return sum(found[1:], found[0]) / len(found) * self.unit + self.center
