"""Where a token stands: rotary angles and ALiBi slopes. Shape letters: T tokens, H heads, E head size."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_frequencies(head_size: int, base: float = 10000.0) -> Tensor:
    """(E/2,) float32 radians per position (Su et al. 2021, arXiv 2104.09864)."""
    return 1.0 / (base ** (torch.arange(0, head_size, 2, dtype=torch.float32) / head_size))


def rotary_table(positions_T: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of every token's angles, each (T, 1, 1, E/2) float32: broadcasts over (T, 2, H, E/2)."""
    angles = positions_T[:, None].float() * frequencies.float()
    return angles.cos()[:, None, None], angles.sin()[:, None, None]


def rotate(x_TnHE: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the two halves of each head against each other by the token's angles; dtype is kept."""
    cos, sin = table
    first, second = x_TnHE.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_TnHE.dtype)


def alibi_slopes(heads: int, asymmetric: bool = False, device: torch.device | None = None) -> Tensor:
    """(2, H) float32 slopes, towards the tokens before and those after: what a score loses with each token of distance.

    2^(-8 i / H), i = 1..H (Press et al. 2022, arXiv 2108.12409), of any number of heads, which keeps the slopes a
    geometric series between the same ends. The paper's models read the past alone. Where they go both ways alike, the
    vectors of a sequence read back to front are those of the sequence back to front: nothing tells left from right
    but the start and end tokens. Asymmetric, the slopes of the one side stand in reverse order on the other: a head
    that sees far to the left sees near to the right.
    """
    slopes_H = 2.0 ** (-8.0 * torch.arange(1, heads + 1, dtype=torch.float32, device=device) / heads)
    return torch.stack([slopes_H, slopes_H.flip(0) if asymmetric else slopes_H])


def alibi_bias(slopes_2H: Tensor, ahead: Tensor) -> Tensor:
    """(H, ...) what ALiBi adds to scores, where a query stands `ahead` (...) tokens after the key (below 0: before)."""
    before, after = (slopes_H.view(-1, *[1] * ahead.ndim) for slopes_H in slopes_2H)
    return -torch.where(ahead > 0, before, after) * ahead.abs()
