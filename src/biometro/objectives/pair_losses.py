"""Losses of two rows of vectors, in blocks: what is in memory is a block of similarities, never all of them.

    a (A, P), b (B, P), pairs (N,) of rows, known partners ─▶ each loss: blocks ─▶ sum, count ─▶ gradients of a and b

Every row of one side is compared with every row of the other. Rows that are known to be partners of an anchor, by any
pair of the training set, are never its negatives; pairs that were measured and do not bind are.

Shape letters: A, B rows of the sides, P dimensions, N pairs, Q anchors of a block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from biometro.errors import UserError
from biometro.model.pairing import PairHead

BLOCK = 512  # anchors at once
_COSENT = 20.0  # of Su 2022 (kexue.fm/archives/8847), as sentence-transformers has it


@dataclass(frozen=True)
class LossConfig:
    """What is minimised: a weight for each loss, 0 for those that are left out.

    Args:
        clip: cross-entropy of the true partner among all rows, both ways (InfoNCE; Radford et al. 2021, arXiv
            2103.00020).
        multiple_negatives: the same from the first side to the second alone (Henderson et al. 2017, arXiv 1705.00652).
        siglip: is each row a partner or not (Zhai et al. 2023, arXiv 2303.15343).
        triplet: a partner nearer than the nearest row that is none, by `margin` of cosine, both ways.
        soft: cross-entropy to the softmax of measured affinities / `softness`, both ways.
        affinity: squared error of affinities read off the cosine, in units of the training set's variance.
        cross: squared error of those of the cross-interaction head.
        ranking: of two measured partners of one anchor the stronger is nearer (Burges et al. 2005, RankNet).
        cosent: over all measured pairs of a batch, the stronger has the larger cosine (CoSENT).
        angle: the same of angles in complex space (Li & Li 2023, arXiv 2309.12871).
        margin: of triplet.
        softness: of soft, in units of the training set's deviation.
    """

    clip: float = 0.0
    multiple_negatives: float = 0.0
    siglip: float = 0.0
    triplet: float = 0.0
    soft: float = 0.0
    affinity: float = 0.0
    cross: float = 0.0
    ranking: float = 0.0
    cosent: float = 0.0
    angle: float = 0.0
    margin: float = 0.2
    softness: float = 0.5

    def __post_init__(self) -> None:
        for name in dataclasses.asdict(self):
            if getattr(self, name) < 0:
                raise UserError(f"losses.{name} is {getattr(self, name)}; it must be at least 0")
        if not self.weights:
            raise UserError(f"losses: give at least one of {', '.join(LOSSES)} a weight, for example losses.clip: 1")
        if self.softness <= 0:
            raise UserError("losses.softness must be above 0")

    @property
    def weights(self) -> dict[str, float]:
        """Of the losses that take part."""
        return {name: getattr(self, name) for name in LOSSES if getattr(self, name) > 0}

    @property
    def contrasts(self) -> bool:
        """Whether rows of a batch are one another's negatives."""
        return bool({*self.weights} & CONTRASTS)

    @property
    def measures(self) -> bool:
        """Whether measured values are needed."""
        return bool({*self.weights} & MEASURES)


@dataclass(frozen=True)
class Rows:
    """What a step compares.

    a, b: (A, P), (B, P) float32 of length 1. left, right: (N,) int64, the rows of each pair. binds: (N,) bool. value:
    (N,) float32 in standardised units, NaN where unknown. bound: (N,) int8, -1 where the truth is at most the value, 1
    where it is at least that.
    """

    a: Tensor
    b: Tensor
    left: Tensor
    right: Tensor
    binds: Tensor
    value: Tensor
    bound: Tensor
    known: Callable[[Tensor, bool], tuple[Tensor, Tensor]]
    """Q rows of a (of b where the second argument is true) -> what is known of each with all rows of the other side:
    whether they are partners, or one and the same sequence, (Q, R) bool; values (Q, R) float32, NaN where unknown."""

    def swapped(self) -> Rows:
        """The sides in each other's place."""
        known = self.known
        return dataclasses.replace(
            self, a=self.b, b=self.a, left=self.right, right=self.left,
            known=lambda some, flipped: known(some, not flipped),
        )  # fmt: skip


Part = tuple[Tensor, Tensor]
"""A loss's sum over a block and how many were summed, 0-d float32."""


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))


def _candidates(rows: Rows, pairs: Tensor, head: PairHead) -> tuple[Tensor, Tensor, Tensor]:
    """Of binding pairs (Q,): logits (Q, B), which of them are negatives or the partner itself, and the pairs' own."""
    anchors, partners = rows.left[pairs], rows.right[pairs]
    logits_QB = head.scale * (rows.a[anchors] @ rows.b.T)
    partner_QB, _ = rows.known(anchors, False)
    taken_QB = ~partner_QB
    taken_QB[torch.arange(len(pairs), device=pairs.device), partners] = True
    return logits_QB, taken_QB, partners


def info_nce(rows: Rows, head: PairHead) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """From a to b. Of each block of binding pairs: the sum of losses, of their logs of the number of candidates (what
    chance would lose), and the number of pairs."""
    binding = rows.binds.nonzero().squeeze(-1)
    for block in _blocks(len(binding)):
        logits_QB, taken_QB, partners = _candidates(rows, binding[block], head)
        logits_QB = logits_QB.masked_fill(~taken_QB, -torch.inf)
        loss_Q = F.cross_entropy(logits_QB, partners, reduction="none")
        yield loss_Q.sum(), taken_QB.sum(1).float().log().sum(), _count(len(partners), loss_Q)


def siglip(rows: Rows, head: PairHead) -> Iterator[Part]:
    """Summed over all rows of both sides, counted by rows of a."""
    for block in _blocks(len(rows.a)):
        anchors = torch.arange(len(rows.a), device=rows.a.device)[block]
        logits_QB = head.scale * (rows.a[block] @ rows.b.T) + head.bias
        partner_QB, _ = rows.known(anchors, False)
        yield -F.logsigmoid(torch.where(partner_QB, logits_QB, -logits_QB)).sum(), _count(len(anchors), logits_QB)


def triplet(rows: Rows, margin: float) -> Iterator[Part]:
    """From a to b, with the nearest negative of each binding pair."""
    binding = rows.binds.nonzero().squeeze(-1)
    for block in _blocks(len(binding)):
        anchors, partners = rows.left[binding[block]], rows.right[binding[block]]
        cosine_QB = rows.a[anchors] @ rows.b.T
        partner_QB, _ = rows.known(anchors, False)
        nearest_Q = cosine_QB.masked_fill(partner_QB, -torch.inf).amax(1)
        own_Q = cosine_QB.gather(1, partners[:, None]).squeeze(1)
        some_Q = nearest_Q.isfinite()  # an anchor whose every row is a partner has no negative
        loss_Q = F.relu(margin + torch.where(some_Q, nearest_Q, own_Q - margin) - own_Q)
        yield loss_Q.sum(), some_Q.sum().float()


def anchors_measured(rows: Rows) -> float:
    """How many rows of a have a measured partner among the rows of b."""
    every = torch.arange(len(rows.a), device=rows.a.device)
    return float(sum(int(rows.known(every[block], False)[1].isfinite().any(1).sum()) for block in _blocks(len(every))))


def soft(rows: Rows, head: PairHead, softness: float) -> Iterator[Part]:
    """From a to b: of every row of a that has measured partners among the rows, against the softmax of their values."""
    for block in _blocks(len(rows.a)):
        anchors = torch.arange(len(rows.a), device=rows.a.device)[block]
        _, value_QB = rows.known(anchors, False)
        measured_QB = value_QB.isfinite()
        some = measured_QB.any(1)
        target_QB = torch.where(measured_QB, value_QB / softness, -torch.inf)[some].softmax(1)
        logits_QB = head.scale * (rows.a[block][some] @ rows.b.T)
        yield -(target_QB * logits_QB.log_softmax(1)).sum(), _count(int(some.sum()), logits_QB)


def squared_error(rows: Rows, predicted_N: Tensor) -> Part:
    """Of measured pairs; where the value is only a bound, of what lies beyond it."""
    known = rows.value.isfinite()
    error = predicted_N - rows.value.nan_to_num()
    error = torch.where(rows.bound < 0, error.clamp(min=0), torch.where(rows.bound > 0, error.clamp(max=0), error))
    return (error.square() * known).sum(), known.sum().float()


def ranking(rows: Rows, cosine_N: Tensor, scale: Tensor) -> Part:
    """Of every two pairs of one row of a, neither of them a bound, whose values differ."""
    exact = (rows.value.isfinite() & (rows.bound == 0)).nonzero().squeeze(-1)
    total, count = cosine_N.sum() * 0, torch.zeros((), device=cosine_N.device)
    for block in _blocks(len(exact)):
        these = exact[block]
        same = rows.left[these][:, None] == rows.left[exact][None]
        stronger = same & (rows.value[these][:, None] > rows.value[exact][None])
        gap = scale * (cosine_N[these][:, None] - cosine_N[exact][None])
        total = total + (F.softplus(-gap) * stronger).sum()
        count = count + stronger.sum()
    return total, count


def ordered(value_N: Tensor, similarity_N: Tensor) -> Tensor:
    """0-d: log(1 + sum of exp(20 (s_weaker - s_stronger))) over all ordered couples of measured pairs."""
    known = value_N.isfinite().nonzero().squeeze(-1)
    value, scaled = value_N[known], _COSENT * similarity_N[known]
    stronger = value[:, None] > value[None]
    gap = (scaled[None] - scaled[:, None]).masked_fill(~stronger, -torch.inf).flatten()
    return torch.cat([gap.new_zeros(1), gap]).logsumexp(0)


def angles(a_NP: Tensor, b_NP: Tensor) -> Tensor:
    """(N,) how far the halves of each vector, read as complex numbers, agree in angle (AnglE, equations 5 to 8)."""
    (a_re, a_im), (b_re, b_im) = a_NP.chunk(2, dim=-1), b_NP.chunk(2, dim=-1)
    norm = (b_re**2 + b_im**2).sum(-1, keepdim=True).clamp(min=1e-12)
    re, im = (a_re * b_re + a_im * b_im) / norm, (a_im * b_re - a_re * b_im) / norm
    ratio = a_NP.norm(dim=-1, keepdim=True) / b_NP.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return (torch.cat([re, im], dim=-1) / ratio.clamp(min=1e-12)).sum(-1).abs()


def _count(number: int, like: Tensor) -> Tensor:
    return torch.tensor(float(number), device=like.device)


CONTRASTS = {"clip", "multiple_negatives", "siglip", "triplet", "soft"}
MEASURES = {"soft", "affinity", "cross", "ranking", "cosent", "angle"}
LOSSES = ("clip", "multiple_negatives", "siglip", "triplet", "soft", "affinity", "cross", "ranking", "cosent", "angle")
