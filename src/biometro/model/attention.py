"""Attention within each sequence of a pack. The only file that knows which back-end runs.

A back-end has two parts: a plan, made once for each forward pass, and the attention itself, called by every layer.
A back-end that cannot do what is asked refuses by name; none falls back to another.

    sdpa    one scaled-dot-product call for each run of equally long sequences; any device, dtype and position code
    varlen  FlashAttention over the whole pack (torch.nn.attention.varlen); CUDA, half precision, no bias
    flex    compiled flex_attention with a document mask; CUDA (elsewhere uncompiled, for tests); ALiBi or none

`Watched` stands in their place where the probabilities themselves are wanted, of one sequence.

Shape letters: T tokens, H heads, E head size, L length of one sequence.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from biometro.data.batch import Packed
from biometro.errors import UserError

Backend = Literal["auto", "sdpa", "varlen", "flex"]
Attend = Callable[[Tensor, Tensor], Tensor]
"""(T, 2, H, E) queries and keys, rotated where positions are rotary, and (T, H, E) values -> (T, H, E)."""


@dataclass(frozen=True)
class Runs:
    """Equally long neighbours: `lengths[i]` tokens each, `counts[i]` of them, one run after another."""

    lengths: list[int]
    counts: list[int]

    @classmethod
    def of(cls, packed: Packed) -> Runs:
        lengths: list[int] = []
        counts: list[int] = []
        for length in packed.lengths.tolist():
            if lengths and lengths[-1] == length:
                counts[-1] += 1
            else:
                lengths.append(length)
                counts.append(1)
        return cls(lengths, counts)


def plan_at(packed: Packed, at_B: Tensor, slopes_H: Tensor | None) -> Attend:
    """Attention of one token of each sequence, `at_B` (B,) int64, to all of its own: (B, H, E).

    Any device and position code; every run of equally long sequences is one scaled-dot-product call.
    """
    runs = Runs.of(packed)
    sizes = [length * count for length, count in zip(runs.lengths, runs.counts, strict=True)]
    place_B = packed.positions[at_B]

    def attend(qk_T2HE: Tensor, v_THE: Tensor) -> Tensor:
        q_BHE, k_THE = qk_T2HE[at_B, 0], qk_T2HE[:, 1]
        parts = []
        pieces = zip(
            q_BHE.split(runs.counts), k_THE.split(sizes), v_THE.split(sizes), place_B.split(runs.counts), runs.lengths,
            runs.counts, strict=True,
        )  # fmt: skip
        for q, k, v, place, length, count in pieces:
            k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in (k, v))  # each (count, H, L, E)
            mask = None
            if slopes_H is not None:
                distance = (torch.arange(length, device=place.device) - place[:, None]).abs()
                mask = (-slopes_H[None, :, None] * distance[:, None, :])[:, :, None].to(q.dtype)  # (count, H, 1, L)
            parts.append(F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=mask)[:, :, 0])
        return torch.cat(parts)

    return attend


def plan(packed: Packed, backend: Backend, slopes_H: Tensor | None, head_size: int, dtype: torch.dtype) -> Attend:
    """The attention of one pack, ready to be called by every layer.

    Args:
        packed: the layout; its tokens are not read.
        backend: `auto` takes varlen on CUDA where it can, flex there with ALiBi, sdpa in all other cases.
        slopes_H: (H,) float32 ALiBi slopes, or None.
        head_size: E.
        dtype: that of queries, keys and values.

    Raises UserError, with the reason, where the back-end cannot do this.
    """
    device = packed.tokens.device
    cuda = device.type == "cuda"
    obstacles = {
        "runs on CUDA only": not cuda,
        "needs a GPU of compute capability 8.0 or higher": cuda and torch.cuda.get_device_capability(device) < (8, 0),
        "needs bfloat16 or float16": dtype not in (torch.bfloat16, torch.float16),
        "needs a head size that is a multiple of 8": head_size % 8 != 0,
        "takes no bias, so no ALiBi": slopes_H is not None,
    }
    obstacle = next((reason for reason, present in obstacles.items() if present), None)
    if backend == "auto":
        backend = "flex" if cuda and slopes_H is not None else "sdpa" if obstacle else "varlen"
    if backend == "varlen":
        if obstacle:
            raise UserError(f"attention back-end varlen {obstacle} (here: {device}, {dtype}); use auto")
        return _plan_varlen(packed)
    if backend == "flex":
        return _plan_flex(packed, slopes_H)
    return _plan_sdpa(packed, slopes_H)


def _uncompiled(attend: Attend) -> Attend:
    """Keep it out of compiled blocks. Where no block was compiled torch's compiler need not be imported, which takes as
    long as half of the rest of torch."""
    return torch.compiler.disable(attend) if "torch._dynamo" in sys.modules else attend


def _plan_sdpa(packed: Packed, slopes_H: Tensor | None) -> Attend:
    runs = Runs.of(packed)
    sizes = [length * count for length, count in zip(runs.lengths, runs.counts, strict=True)]
    biases = [None if slopes_H is None else alibi_bias(slopes_H, length) for length in runs.lengths]

    @_uncompiled  # the runs differ from pack to pack: a compiled block must not be built for each
    def attend(qk_T2HE: Tensor, v_THE: Tensor) -> Tensor:
        parts = []
        # split, not slices: its backward is one concatenation, that of a slice fills a whole pack with zeros.
        pieces = zip(qk_T2HE.split(sizes), v_THE.split(sizes), runs.lengths, runs.counts, biases, strict=True)
        for qk, v, length, count, bias in pieces:
            q, k = qk.unflatten(0, (count, length)).permute(2, 0, 3, 1, 4)  # each (count, H, L, E)
            v = v.unflatten(0, (count, length)).transpose(1, 2)
            mask = None if bias is None else bias.to(q.dtype)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            parts.append(out.transpose(1, 2).flatten(0, 1))
        return torch.cat(parts)

    return attend


def _plan_varlen(packed: Packed) -> Attend:
    from torch.nn.attention.varlen import varlen_attn

    def attend(qk_T2HE: Tensor, v_THE: Tensor) -> Tensor:
        q, k = qk_T2HE.unbind(1)
        out = varlen_attn(q, k, v_THE, packed.cu_seqlens, packed.cu_seqlens, packed.max_len, packed.max_len)
        assert isinstance(out, Tensor)
        return out

    return attend


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _plan_flex(packed: Packed, slopes_H: Tensor | None) -> Attend:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    owners, positions = packed.owners, packed.positions
    total = packed.tokens.numel()
    cuda = owners.device.type == "cuda"
    if not cuda and torch.is_grad_enabled():
        raise UserError(f"attention back-end flex trains on CUDA only (here: {owners.device}); use auto")
    # Compiled, the mask is made block by block; else every pair of tokens stands in memory at once.
    mask = create_block_mask(
        lambda b, h, i, j: owners[i] == owners[j], None, None, total, total, device=str(owners.device), _compile=cuda
    )

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert slopes_H is not None
        return s - slopes_H[h] * (positions[i] - positions[j]).abs()

    run = _compiled_flex() if cuda else flex_attention

    def attend(qk_T2HE: Tensor, v_THE: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (*qk_T2HE.unbind(1), v_THE))  # each (1, H, T, E)
        out = run(q, k, v, score_mod=None if slopes_H is None else score, block_mask=mask)
        return out[0].transpose(0, 1)

    return attend


class Watched:
    """Attention of one sequence that keeps each layer's probabilities until they are taken; no back-end gives them.

    Scores and probabilities are float32, whatever queries and keys are.
    """

    def __init__(self, slopes_H: Tensor | None):
        self._slopes_H = slopes_H
        self._p_HLL: Tensor | None = None
        self._run = _uncompiled(self._attend)  # what it keeps is no part of a graph

    def __call__(self, qk_L2HE: Tensor, v_LHE: Tensor) -> Tensor:
        return self._run(qk_L2HE, v_LHE)

    def _attend(self, qk_L2HE: Tensor, v_LHE: Tensor) -> Tensor:
        with torch.autocast(qk_L2HE.device.type, enabled=False):
            q_HLE, k_HLE = qk_L2HE.float().permute(1, 2, 0, 3)
            score_HLL = q_HLE @ k_HLE.transpose(1, 2) * q_HLE.shape[-1] ** -0.5
            if self._slopes_H is not None:
                score_HLL += alibi_bias(self._slopes_H, len(v_LHE))[0]
            self._p_HLL = score_HLL.softmax(-1)
            out_HLE = self._p_HLL @ v_LHE.float().transpose(0, 1)
        return out_HLE.transpose(0, 1).to(v_LHE.dtype)

    def taken(self) -> Tensor:
        """(H, L, L) float32 of the layer that was called last; they are kept no longer."""
        assert self._p_HLL is not None
        p_HLL, self._p_HLL = self._p_HLL, None
        return p_HLL


def alibi_bias(slopes_H: Tensor, length: int) -> Tensor:
    """(1, H, L, L) float32: minus slope times distance, both ways."""
    places = torch.arange(length, device=slopes_H.device)
    distance = (places[:, None] - places[None, :]).abs()
    return -slopes_H[None, :, None, None] * distance


def attention_pairs(packed: Packed) -> int:
    """Sum over sequences of squared length: pairs of tokens that attention compares."""
    return int(packed.lengths.double().square().sum())
