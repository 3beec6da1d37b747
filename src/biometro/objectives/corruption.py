"""Random choices of masked positions and replacements, drawn on the device from a generator.

Shape letters: T tokens of the pack, B sequences, M masked positions, V vocabulary.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from biometro.alphabet import Alphabet
from biometro.data.batch import Packed


def generator_for(device: torch.device, *key: int) -> torch.Generator:
    """A generator whose stream depends on the whole key (seed, step, micro-batch, ...) and on nothing else."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "little") >> 1)


def letter_mask(alphabet: Alphabet) -> Tensor:
    """(V,) bool: tokens that may be masked, replaced and predicted (the standard letters)."""
    mask = torch.zeros(alphabet.size, dtype=torch.bool)
    mask[list(alphabet.standard_ids)] = True
    return mask


def choose(packed: Packed, eligible_T: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """(M,) int64 positions, ascending: a share `rate` of the eligible tokens of *each* sequence.

    The number chosen in a sequence of n eligible tokens is n x rate, rounded up or down at random with the right
    mean, so every sequence teaches its share and short ones are not passed over. Uniform without replacement.
    """
    device = packed.tokens.device
    owners = packed.owners
    sequences = len(packed)
    counts_B = torch.zeros(sequences, dtype=torch.int64, device=device).index_add_(0, owners, eligible_T.long())
    wanted_B = counts_B * rate
    wanted_B = wanted_B.floor() + (torch.rand(sequences, generator=generator, device=device) < wanted_B.frac())
    # Order tokens by sequence, then ineligible last, then at random: the first `wanted` of each are chosen.
    noise_T = torch.rand(owners.numel(), generator=generator, device=device, dtype=torch.float64)
    order_T = (owners * 2 + (~eligible_T).long() + noise_T).argsort()
    place_T = torch.empty_like(order_T)
    place_T[order_T] = torch.arange(order_T.numel(), device=device)
    rank_T = place_T - packed.cu_seqlens[owners]
    return ((rank_T < wanted_B[owners]) & eligible_T).nonzero().squeeze(1)


def gumbel(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """(rows, columns) float32 standard Gumbel noise, on the generator's device."""
    uniform = torch.rand(rows, columns, generator=generator, device=generator.device)
    return -(-uniform.clamp(min=1e-20).log()).log()


def sample(logits_MV: Tensor, allowed_V: Tensor, temperature: float, gumbel_MV: Tensor) -> Tensor:
    """(M,) int64 tokens from softmax(logits / temperature) over the allowed tokens, by the Gumbel-max trick."""
    with torch.no_grad():
        scores_MV = logits_MV.float() / temperature + gumbel_MV
        return scores_MV.masked_fill(~allowed_V, float("-inf")).argmax(-1)
