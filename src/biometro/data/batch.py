"""`Packed` and `Batch`: what every model reads and every objective trains on.

Shape letters: T tokens of the whole pack, B sequences in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Whole sequences laid end to end, with no padding.

    tokens: (T,) int64. cu_seqlens: (B+1,) int32, where each sequence starts, and T at the end.
    positions: (T,) int64, 0 at the start of each sequence. max_len: no sequence is longer (an upper bound).
    """

    tokens: Tensor
    cu_seqlens: Tensor
    positions: Tensor
    max_len: int

    def __len__(self) -> int:
        """Number of sequences."""
        return self.cu_seqlens.numel() - 1

    @property
    def lengths(self) -> Tensor:
        """(B,) int32, tokens of each sequence."""
        return self.cu_seqlens.diff()

    @property
    def owners(self) -> Tensor:
        """(T,) int64, the number of the sequence that each token belongs to."""
        numbers = torch.arange(len(self), device=self.tokens.device)
        return numbers.repeat_interleave(self.lengths, output_size=self.tokens.numel())

    def to(self, device: torch.device | str) -> Packed:
        return Packed(
            self.tokens.to(device, non_blocking=True),
            self.cu_seqlens.to(device, non_blocking=True),
            self.positions.to(device, non_blocking=True),
            self.max_len,
        )

    def with_tokens(self, tokens: Tensor) -> Packed:
        """The same layout with other tokens, (T,) int64."""
        return replace(self, tokens=tokens)


@dataclass(frozen=True)
class Batch:
    """Named views of the same examples (`sequence`; `protein`, `ligand`; `a`, `b`) and their targets."""

    views: dict[str, Packed]
    targets: dict[str, Tensor] = field(default_factory=dict)

    @property
    def sequence(self) -> Packed:
        return self.views["sequence"]

    @property
    def tokens(self) -> int:
        """Tokens in all views: the unit in which training is counted."""
        return sum(view.tokens.numel() for view in self.views.values())

    def to(self, device: torch.device | str) -> Batch:
        return Batch(
            {name: view.to(device) for name, view in self.views.items()},
            {name: target.to(device, non_blocking=True) for name, target in self.targets.items()},
        )


def pack(sequences: Sequence[np.ndarray], begin: Sequence[int], end: Sequence[int]) -> Packed:
    """Token arrays without specials -> one pack, each framed by the tokens of `begin` and `end`."""
    framed = len(begin) + len(end)
    lengths = np.fromiter((len(s) + framed for s in sequences), dtype=np.int64, count=len(sequences))
    starts = np.zeros(len(sequences) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    tokens = np.empty(int(starts[-1]), dtype=np.int64)
    for sequence, start, stop in zip(sequences, starts[:-1], starts[1:], strict=True):
        tokens[start : start + len(begin)] = begin
        tokens[start + len(begin) : stop - len(end)] = sequence
        tokens[stop - len(end) : stop] = end
    return frame(tokens, starts)


def frame(tokens: np.ndarray, starts: np.ndarray, max_len: int | None = None) -> Packed:
    """Flat tokens (T,) and sequence starts (B+1,) -> Packed."""
    lengths = np.diff(starts)
    positions = np.arange(len(tokens), dtype=np.int64) - np.repeat(starts[:-1], lengths)
    return Packed(
        torch.from_numpy(tokens.astype(np.int64, copy=False)),
        torch.from_numpy(starts.astype(np.int32)),
        torch.from_numpy(positions),
        int(lengths.max(initial=0)) if max_len is None else max_len,
    )
