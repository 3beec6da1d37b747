"""Heads: what turns a token's vector into an answer.

Shape letters: T tokens, B sequences, R residues, D width, V vocabulary, K outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biometro.data.batch import Packed
from biometro.errors import UserError
from biometro.model.encoder import EncoderConfig
from biometro.model.limits import check_choices, check_flags, check_positive, check_sizes, check_small
from biometro.model.linear import Linear, linear_gelu
from biometro.model.mup import Ratios, Role, shares


@dataclass(frozen=True)
class VocabularyHeadConfig:
    """Args:
    width: of the encoder.
    vocab_size: number of tokens.
    table_width: of the token table that serves as the projection; default `width`.
    dense: put a dense layer, GELU and a norm before the projection (BERT, ESM-2). Without it the head is one
        projection, as the simplified CLM of METRO; a narrower table needs it.
    norm_eps: of that norm.
    ratio: width of the model over that of its base, under muP (`model/mup.py`).
    """

    width: int
    vocab_size: int
    table_width: int | None = None
    dense: bool = True
    norm_eps: float = 1e-5
    ratio: float = 1.0

    def __post_init__(self) -> None:
        check_sizes("vocabulary head", self)
        check_flags("vocabulary head", self, "dense")
        check_small("vocabulary head", self, "norm_eps")
        check_positive("vocabulary head", self, "ratio")

    @classmethod
    def of(cls, encoder: EncoderConfig, dense: bool = True) -> VocabularyHeadConfig:
        """The head of an encoder whose token table it shares. Raises UserError where muP knows no scale for it."""
        if encoder.mup and encoder.embedding_width not in (None, encoder.width):
            raise UserError("encoder.mup wants a token table as wide as the model: leave encoder.embedding_width out")
        if encoder.mup and not dense:
            raise UserError("encoder.mup scales the norm before the token table, which a linear head lacks: take dense")
        return cls(
            encoder.width, encoder.vocab_size, encoder.embedding_width or encoder.width, dense, encoder.norm_eps,
            encoder.ratios.width,
        )  # fmt: skip


class VocabularyHead(nn.Module):
    """(T, D) vectors and the (V, D) token table -> (T, V) logits. The projection is the table itself (tied)."""

    def __init__(self, config: VocabularyHeadConfig):
        super().__init__()
        self.config = config
        out = config.table_width or config.width
        self.dense = Linear(config.width, out) if config.dense else None
        self.norm = nn.LayerNorm(out, eps=config.norm_eps) if config.dense else None
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        if not config.dense and out != config.width:
            raise ValueError(f"a head without a dense layer cannot go from width {config.width} to a table of {out}")
        self.ratios = Ratios(config.ratio)
        if self.dense is not None and self.norm is not None:
            nn.init.normal_(self.dense.weight, std=0.02 * shares("hidden", self.ratios).start)
            nn.init.zeros_(self.dense.bias)
            nn.init.constant_(self.norm.weight, shares("output", self.ratios).start)

    def role(self, name: str) -> Role:
        """What a parameter is to muP."""
        return "hidden" if name == "dense.weight" else "output" if name.startswith("norm.") else "vector"

    def forward(self, h_TD: Tensor, table_VD: Tensor) -> Tensor:
        if self.dense is not None and self.norm is not None:
            h_TD = self.norm(linear_gelu(self.dense, h_TD))
        return F.linear(h_TD, table_VD, self.bias)

    def flops(self, tokens: int) -> float:
        """Floating-point operations of one forward pass over `tokens` vectors."""
        table = (self.config.table_width or self.config.width) * self.config.vocab_size
        return 2.0 * tokens * (table + (self.dense.weight.numel() if self.dense is not None else 0))


@dataclass(frozen=True)
class TokenHeadConfig:
    """Args:
    width: of the encoder.
    outputs: numbers per token.
    dense: put a dense layer and GELU before the projection (ELECTRA); without it the head is linear (COCO-LM).
    ratio: width of the model over that of its base, under muP (`model/mup.py`).
    """

    width: int
    outputs: int = 1
    dense: bool = False
    ratio: float = 1.0

    def __post_init__(self) -> None:
        check_sizes("token head", self)
        check_flags("token head", self, "dense")
        check_positive("token head", self, "ratio")


class TokenHead(nn.Module):
    """(T, D) vectors -> (T, outputs) numbers: replaced-token detection, per-residue labels."""

    def __init__(self, config: TokenHeadConfig):
        super().__init__()
        self.config = config
        self.dense = Linear(config.width, config.width) if config.dense else None
        self.out = nn.Linear(config.width, config.outputs)
        self.ratios = Ratios(config.ratio)
        for name, layer in (("dense.weight", self.dense), ("out.weight", self.out)):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02 * shares(self.role(name), self.ratios).start)
                nn.init.zeros_(layer.bias)

    def role(self, name: str) -> Role:
        """What a parameter is to muP."""
        found: dict[str, Role] = {"dense.weight": "hidden", "out.weight": "output"}
        return found.get(name, "vector")

    def forward(self, h_TD: Tensor) -> Tensor:
        if self.dense is not None:
            h_TD = linear_gelu(self.dense, h_TD)
        out: Tensor = self.out(h_TD)
        return out

    def flops(self, tokens: int) -> float:
        """Floating-point operations of one forward pass over `tokens` vectors."""
        return 2.0 * tokens * sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))


@dataclass(frozen=True)
class ContactWeightsConfig:
    """Args:
    features: layers x heads.
    """

    features: int

    def __post_init__(self) -> None:
        check_sizes("contact weights", self)


class ContactWeights(nn.Module):
    """The logistic regression of ESM-2's contact head over (layers x heads) symmetrised attention maps."""

    def __init__(self, config: ContactWeightsConfig):
        super().__init__()
        self.config = config
        self.regression = nn.Linear(config.features, 1)
        nn.init.zeros_(self.regression.weight)
        nn.init.zeros_(self.regression.bias)


@dataclass(frozen=True)
class LabelHeadConfig:
    """Args:
    width: of the encoder.
    outputs: classes, labels or numbers that are predicted.
    pooling: of a sequence's vectors before the layers: mean, cls (the first token's), attention (a mean with learnt
        weights), or residues (none: an answer for every residue).
    hidden: width of a hidden layer with GELU; none makes the head linear.
    dropout: probability, before each linear layer, in training.
    """

    width: int
    outputs: int
    pooling: Literal["mean", "cls", "attention", "residues"] = "mean"
    hidden: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes("head", self)
        check_choices("head", self)
        if isinstance(self.dropout, bool) or not (isinstance(self.dropout, int | float) and 0 <= self.dropout < 1):
            raise UserError(f"head.dropout is {self.dropout!r}; it must be at least 0 and below 1")


class LabelHead(nn.Module):
    """Vectors of packed tokens -> (B, outputs) for sequences, or (R, outputs) for the R residues among the tokens.

    Vectors are standardised (`mean`, `std` of the training set's), so that one learning rate serves all encoders, and
    numbers that are predicted are given back in their own unit (`offset`, `unit`).
    """

    def __init__(self, config: LabelHeadConfig):
        super().__init__()
        self.config = config
        self.mean: Tensor
        self.std: Tensor
        self.offset: Tensor
        self.unit: Tensor
        self.register_buffer("mean", torch.zeros(config.width))
        self.register_buffer("std", torch.ones(config.width))
        self.register_buffer("offset", torch.zeros(config.outputs))
        self.register_buffer("unit", torch.ones(config.outputs))
        self.attention = nn.Linear(config.width, 1) if config.pooling == "attention" else None
        self.dense = nn.Linear(config.width, config.hidden) if config.hidden is not None else None
        self.out = nn.Linear(config.hidden or config.width, config.outputs)
        for layer in (self.attention, self.dense, self.out):
            if layer is not None:
                nn.init.zeros_(layer.bias)
                nn.init.normal_(layer.weight, std=0.02 if layer is self.out else layer.in_features**-0.5)

    def forward(self, h_TD: Tensor, packed: Packed, margins: tuple[int, int]) -> Tensor:
        """Standardised outputs; `margins` tokens before and after each sequence are no residues."""
        h_BD = self.pool(h_TD, packed, margins)
        h_BD = (h_BD - self.mean) / self.std
        if self.dense is not None:
            h_BD = F.gelu(self.dense(F.dropout(h_BD, self.config.dropout, self.training)))
        out: Tensor = self.out(F.dropout(h_BD, self.config.dropout, self.training))
        return out

    def scale(self, out_BK: Tensor) -> Tensor:
        """Outputs in the unit of the labels."""
        return out_BK * self.unit + self.offset

    def pool(self, h_TD: Tensor, packed: Packed, margins: tuple[int, int]) -> Tensor:
        """(B, D) vectors of sequences, or (R, D) of residues."""
        if self.config.pooling == "cls":
            return h_TD[packed.cu_seqlens[:-1].long()]
        inside_T = residues(packed, margins)
        h_RD = h_TD[inside_T]
        if self.config.pooling == "residues":
            return h_RD
        owners_R, count = packed.owners[inside_T], len(packed)
        if self.attention is None:
            return mean_of_residues(h_TD, packed, margins)
        score_R = self.attention((h_RD - self.mean) / self.std).float().squeeze(-1)
        top_B = torch.full((count,), -torch.inf, device=h_RD.device).scatter_reduce(0, owners_R, score_R, "amax")
        return _weighted_mean(h_RD, (score_R - top_B[owners_R].detach()).exp(), owners_R, count)

    def flops(self, tokens: int) -> float:
        """Floating-point operations of one forward pass over `tokens` vectors, at most."""
        return 2.0 * tokens * sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))


def residues(packed: Packed, margins: tuple[int, int]) -> Tensor:
    """(T,) bool: tokens that are no start or end; `margins` says how many of these there are."""
    places_T = packed.positions
    lengths_T = packed.lengths.long().repeat_interleave(packed.lengths, output_size=places_T.numel())
    return (places_T >= margins[0]) & (places_T < lengths_T - margins[1])


def mean_of_residues(h_TD: Tensor, packed: Packed, margins: tuple[int, int]) -> Tensor:
    """(B, D), each sequence's mean over tokens that are no start or end."""
    inside_T = residues(packed, margins)
    h_RD = h_TD[inside_T]
    ones_R = torch.ones(len(h_RD), device=h_RD.device, dtype=h_RD.dtype)
    return _weighted_mean(h_RD, ones_R, packed.owners[inside_T], len(packed))


def _weighted_mean(h_RD: Tensor, weight_R: Tensor, owners_R: Tensor, count: int) -> Tensor:
    """(count, D) means of each owner's rows."""
    total_B = torch.zeros(count, device=h_RD.device, dtype=weight_R.dtype).index_add(0, owners_R, weight_R)
    sums_BD = torch.zeros(count, h_RD.shape[1], device=h_RD.device, dtype=h_RD.dtype)
    share_R = (weight_R / total_B[owners_R]).to(h_RD.dtype)
    return sums_BD.index_add(0, owners_R, h_RD * share_R[:, None])
