"""Heads: what turns a token's vector into an answer. Shape letters: T tokens, D width, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biometro.model.limits import check_flags, check_sizes, check_small
from biometro.model.linear import Linear, linear_gelu


@dataclass(frozen=True)
class VocabularyHeadConfig:
    """Args:
    width: of the encoder.
    vocab_size: number of tokens.
    table_width: of the token table that serves as the projection; default `width`.
    dense: put a dense layer, GELU and a norm before the projection (BERT, ESM-2). Without it the head is one
        projection, as the simplified CLM of METRO; a narrower table needs it.
    norm_eps: of that norm.
    """

    width: int
    vocab_size: int
    table_width: int | None = None
    dense: bool = True
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_sizes("vocabulary head", self)
        check_flags("vocabulary head", self, "dense")
        check_small("vocabulary head", self, "norm_eps")


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
        if self.dense is not None:
            nn.init.normal_(self.dense.weight, std=0.02)
            nn.init.zeros_(self.dense.bias)

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
    """

    width: int
    outputs: int = 1
    dense: bool = False

    def __post_init__(self) -> None:
        check_sizes("token head", self)
        check_flags("token head", self, "dense")


class TokenHead(nn.Module):
    """(T, D) vectors -> (T, outputs) numbers: replaced-token detection, per-residue labels."""

    def __init__(self, config: TokenHeadConfig):
        super().__init__()
        self.config = config
        self.dense = Linear(config.width, config.width) if config.dense else None
        self.out = nn.Linear(config.width, config.outputs)
        for layer in (self.dense, self.out):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

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
