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


def alibi_slopes(heads: int, device: torch.device | None = None) -> Tensor:
    """(H,) float32 slopes 2^(-8 i / H), i = 1..H (Press et al. 2022, arXiv 2108.12409), used symmetrically here.

    For a number of heads that is no power of two the formula is applied as it stands, which keeps the slopes a
    geometric series between the same ends. Few heads have no steep slope, and none that sees its neighbours alone: of
    two the slopes are 1/16 and 1/256. Alike to both sides, they cannot tell left from right; start and end tokens do.
    """
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1, dtype=torch.float32, device=device) / heads)
