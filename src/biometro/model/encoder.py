"""One pre-norm transformer on packed tokens: `Packed -> (T, width)`.

    tokens ─▶ embedding ─▶ depth x [ + attention(norm) ; + feed-forward(norm) ] ─▶ norm ─▶ h_TD

Everything that differs between models is a field of `EncoderConfig`; ESM-2 is one setting of it.
Shape letters: T tokens, D width, H heads, E head size, F feed-forward width, L tokens of one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from biometro.data.batch import Packed
from biometro.errors import UserError
from biometro.model import attention, positions
from biometro.model.attention import Attend, Backend
from biometro.model.limits import check_choices, check_flags, check_sizes, check_small
from biometro.model.linear import Linear, linear_gelu
from biometro.model.mup import Ratios, Role, encoder_role, shares

ESM2_MASK_RATE = 0.15 * 0.8  # share of <mask> tokens in ESM-2's training, which its embeddings are scaled to


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder.

    Args:
        vocab_size: number of tokens.
        width: size of a token's vector.
        depth: number of layers.
        head_size: size of one attention head; `width` is a multiple of it.
        ffn_width: hidden size of the feed-forward; default 4 x width, or 8/3 x width for swiglu (same parameters).
        embedding_width: size of the token table, projected to `width` where it differs; default `width`.
        positions: rotary (relative by rotation) or alibi (relative by a bias; it wants eight heads or more).
        ffn: gelu or swiglu.
        norm: layernorm or rmsnorm.
        norm_eps: added to the variance.
        bias: whether linear layers and layernorm have biases.
        dropout: probability, on the outputs of attention and feed-forward, in training.
        token_dropout: ESM-2's rule: masked tokens read as zeros, the rest scaled to the training mask rate.
        mask_token: number of the mask token, for token_dropout.
        attention: back-end; `auto` takes the fastest exact one for device and dtype. Not saved with a model.
        init_std: standard deviation of the encoder's fresh weights (those of heads are 0.02). 0.02 (BERT) suits widths
            from 512 up.
        mup: scale fresh weights and learning rates with width and depth (`model/mup.py`), so that the learning rate
            that is best at `base_width` and `base_depth` is best here.
        base_width: of the model whose hyper-parameters these are; under mup only.
        base_depth: its layers.
    """

    vocab_size: int = 33
    width: int = 320
    depth: int = 6
    head_size: int = 64
    ffn_width: int | None = None
    embedding_width: int | None = None
    positions: Literal["rotary", "alibi"] = "rotary"
    ffn: Literal["gelu", "swiglu"] = "gelu"
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float = 1e-5
    bias: bool = True
    dropout: float = 0.0
    token_dropout: bool = False
    mask_token: int = 32
    attention: Backend = "auto"
    init_std: float = 0.02
    mup: bool = False
    base_width: int = 128
    base_depth: int = 4

    def __post_init__(self) -> None:
        check_sizes("encoder", self)
        check_flags("encoder", self, "bias", "token_dropout", "mup")
        check_choices("encoder", self)
        check_small("encoder", self, "init_std", "norm_eps")
        if self.width % self.head_size:
            raise UserError(f"encoder.width {self.width} is no multiple of encoder.head_size {self.head_size}")
        if self.positions == "rotary" and self.head_size % 2:
            raise UserError(f"encoder.head_size {self.head_size} is odd; rotary positions need pairs")
        if not (isinstance(self.dropout, int | float) and 0 <= self.dropout < 1):
            raise UserError(f"encoder.dropout is {self.dropout!r}; it must be at least 0 and below 1")
        if not (isinstance(self.mask_token, int) and 0 <= self.mask_token < self.vocab_size):
            raise UserError(f"encoder.mask_token is {self.mask_token!r}; it must be one of {self.vocab_size} tokens")

    @property
    def ratios(self) -> Ratios:
        """Width and depth over the base's, under mup."""
        return Ratios(self.width / self.base_width, self.depth / self.base_depth) if self.mup else Ratios()

    @property
    def heads(self) -> int:
        return self.width // self.head_size

    @property
    def summary(self) -> str:
        """The shape in words."""
        return f"{self.depth} layers, width {self.width}, {self.heads} heads, {self.positions} positions"

    @property
    def hidden(self) -> int:
        """Feed-forward width as built."""
        if self.ffn_width is not None:
            return self.ffn_width
        return 4 * self.width if self.ffn == "gelu" else -(-8 * self.width // 3 // 8) * 8


def make_norm(config: EncoderConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.width, eps=config.norm_eps)
    return nn.LayerNorm(config.width, eps=config.norm_eps, bias=config.bias)


class Attention(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.head_size = config.head_size
        self.qkv = Linear(config.width, 3 * config.width, bias=config.bias)
        self.out = Linear(config.width, config.width, bias=config.bias)

    def forward(self, x_TD: Tensor, attend: Attend, table: tuple[Tensor, Tensor] | None) -> Tensor:
        # split, not slices: its backward is one concatenation, that of a slice fills a whole tensor with zeros.
        qk_T2HE, v_T1HE = self.qkv(x_TD).unflatten(-1, (3, -1, self.head_size)).split([2, 1], dim=1)
        if table is not None:
            qk_T2HE = positions.rotate(qk_T2HE, table)
        out: Tensor = self.out(attend(qk_T2HE, v_T1HE.squeeze(1)).flatten(1))
        return out


class FeedForward(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.gated = config.ffn == "swiglu"
        self.up = Linear(config.width, config.hidden * (2 if self.gated else 1), bias=config.bias)
        self.down = Linear(config.hidden, config.width, bias=config.bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        if self.gated:
            gate, value = self.up(x_TD).chunk(2, dim=-1)
            h = F.silu(gate) * value
        else:
            h = linear_gelu(self.up, x_TD)
        out: Tensor = self.down(h)
        return out


class Block(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.attention_norm, self.attention = make_norm(config), Attention(config)
        self.ffn_norm, self.ffn = make_norm(config), FeedForward(config)
        self.dropout = config.dropout
        self.recompute = False

    def forward(
        self, x_TD: Tensor, attend: Attend, table: tuple[Tensor, Tensor] | None, at_B: Tensor | None = None
    ) -> Tensor:
        """(T, D) -> (T, D); with `at_B`, and an `attend` made for these tokens, (B, D)."""
        if at_B is not None:
            x_BD = x_TD[at_B] + self.attention(self.attention_norm(x_TD), attend, table)
            out: Tensor = x_BD + self.ffn(self.ffn_norm(x_BD))
            return out
        if self.recompute and torch.is_grad_enabled():
            whole: Tensor = checkpoint(self._compute, x_TD, attend, table, use_reentrant=False)
            return whole
        return self._compute(x_TD, attend, table)

    def _compute(self, x_TD: Tensor, attend: Attend, table: tuple[Tensor, Tensor] | None) -> Tensor:
        h = self.attention(self.attention_norm(x_TD), attend, table)
        x_TD = x_TD + F.dropout(h, self.dropout, self.training)
        h = self.ffn(self.ffn_norm(x_TD))
        return x_TD + F.dropout(h, self.dropout, self.training)


class Encoder(nn.Module):
    """The transformer. Call it with a `Packed`; it gives (T, width), normalised, in input order.

    Weights start as N(0, init_std), those that write to the residual stream as N(0, init_std / sqrt(2 depth)) (as in
    METRO and GPT-2), biases as 0; under mup so at the base's width and depth, and here as its table says.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config, self.ratios = config, config.ratios
        table_width = config.embedding_width or config.width
        self.embedding = nn.Embedding(config.vocab_size, table_width)
        self.lift = None if table_width == config.width else Linear(table_width, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = make_norm(config)
        self.frequencies: Tensor
        if config.positions == "rotary":
            # A saved buffer, not a formula at load time: released ESM-2 checkpoints carry rounded frequencies.
            self.register_buffer("frequencies", positions.rotary_frequencies(config.head_size))
        self.initialise()

    def role(self, name: str) -> Role:
        """What a parameter is to muP."""
        return encoder_role(name)

    def initialise(self) -> None:
        config = self.config
        base_depth = config.base_depth if config.mup else config.depth
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                role = self.role(f"{name}.weight")
                std = config.init_std / (2 * base_depth) ** 0.5 if role == "writes" else config.init_std
                nn.init.normal_(module.weight, std=std * shares(role, self.ratios).start)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, packed: Packed, at_B: Tensor | None = None) -> Tensor:
        """(T, width) of a pack; with `at_B` (B,) int64, one token of each sequence, only theirs, (B, width).

        The last layer then computes these tokens only: the same numbers for less work, without dropout (inference).
        """
        x_TD, table, slopes_H = self._begin(packed)
        dtype = self._compute_dtype(x_TD)
        attend = attention.plan(packed, self.config.attention, slopes_H, self.config.head_size, dtype)
        for number, block in enumerate(self.blocks, 1):
            if at_B is not None and number == len(self.blocks):
                x_TD = block(x_TD, attention.plan_at(packed, at_B, slopes_H), table, at_B)
            else:
                x_TD = block(x_TD, attend, table)
        out: Tensor = self.norm(x_TD)
        return out

    def attention_maps(self, packed: Packed) -> Iterator[Tensor]:
        """Who attends to whom in one sequence: (H, L, L) float32 probabilities of each layer, from the first on.

        L counts the start and end tokens; rows attend, and add up to 1. A layer is computed when it is asked for, and
        only one is in memory: 4 H L^2 bytes (and as much again of scores while it is made).

        Raises ValueError for a pack of more than one sequence.
        """
        if len(packed) != 1:
            raise ValueError(f"attention maps are those of one sequence, not of {len(packed)}")
        x_TD, table, slopes_H = self._begin(packed)
        attend = attention.Watched(slopes_H)
        for block in self.blocks:
            x_TD = block(x_TD, attend, table)
            yield attend.taken()

    def _begin(self, packed: Packed) -> tuple[Tensor, tuple[Tensor, Tensor] | None, Tensor | None]:
        """What the first layer reads, (T, D), and where tokens stand: rotary cos and sin, or ALiBi slopes (H,)."""
        x_TD = self.embedding(packed.tokens)
        if self.config.token_dropout:
            x_TD = self._drop_masked(x_TD, packed)
        if self.lift is not None:
            x_TD = self.lift(x_TD).to(x_TD.dtype)  # autocast or not, the residual stream is float32
        if self.config.positions == "rotary":
            return x_TD, positions.rotary_table(packed.positions, self.frequencies), None
        return x_TD, None, positions.alibi_slopes(self.config.heads, x_TD.device)

    def _drop_masked(self, x_TD: Tensor, packed: Packed) -> Tensor:
        masked_T = packed.tokens == self.config.mask_token
        share_B = torch.zeros(len(packed), device=x_TD.device).index_add_(0, packed.owners, masked_T.float())
        scale_B = (1 - ESM2_MASK_RATE) / (1 - share_B / packed.lengths)
        scale_T = scale_B[packed.owners].masked_fill(masked_T, 0.0)
        return x_TD * scale_T[:, None].to(x_TD.dtype)

    @staticmethod
    def _compute_dtype(x_TD: Tensor) -> torch.dtype:
        device = x_TD.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_TD.dtype

    def compile_blocks(self) -> None:
        """Compile each block in place (one graph serves all)."""
        for block in self.blocks:
            block.compile(dynamic=True)

    def recompute_blocks(self) -> None:
        """Keep only each block's input for the backward pass, and compute the rest of it again there."""
        for block in self.blocks:
            assert isinstance(block, Block)
            block.recompute = True

    def flops(self, packed: Packed) -> float:
        """Floating-point operations of one forward pass: 2 per weight and token in matrix products, plus attention."""
        weights = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        pairs = attention.attention_pairs(packed)
        return 2.0 * weights * packed.tokens.numel() + 4.0 * self.config.depth * self.config.width * pairs
