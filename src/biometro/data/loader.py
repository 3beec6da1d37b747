"""The batch of step n is a pure function of (seed, n).

    corpus split ─▶ epoch's permutation ─▶ cut into equal packs ─▶ crop, reverse ─▶ Batch(sequence)

Nothing is remembered between calls but the current epoch's permutation, so any process can ask for any batch:
resuming needs a number, and ranks share the work by taking different numbers.

How an epoch is cut: lay the cropped sequences of the permutation end to end; sequence i belongs to pack k when it
*ends* inside (k S, (k+1) S]. Every pack then holds whole sequences and at most S + longest - 1 tokens, the number
of packs is the same in every epoch, and each pack is found by two binary searches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from biometro.alphabet import Alphabet
from biometro.data.batch import Batch, frame
from biometro.data.corpus import Split
from biometro.errors import UserError

_ORDER, _DRAW = 1, 2  # which random stream: an epoch's permutation, or a pack's crops and directions


@dataclass(frozen=True)
class PackingConfig:
    """How sequences are put into batches.

    Args:
        batch_tokens: no micro-batch holds more tokens than this; at least twice `crop` + 2.
        crop: residues; a longer sequence is cut to a window of this length, at a random place.
        reverse: probability that a sequence is read back to front, with another start token.
    """

    batch_tokens: int = 16384
    crop: int = 1022
    reverse: float = 0.0

    def __post_init__(self) -> None:
        if self.crop < 1:
            raise UserError(f"packing.crop is {self.crop}; it must be at least 1 residue")
        if not 0 <= self.reverse <= 1:
            raise UserError(f"packing.reverse is {self.reverse}; it is a probability, between 0 and 1")


class Loader:
    """Micro-batches of a corpus split by number.

    Args:
        split: the sequences.
        alphabet: for the start, end and reverse tokens.
        config: token budget, crop and reversal.
        seed: another seed gives another order, other crops and other directions.

    Raises UserError where the token budget cannot hold two of the longest (cropped) sequences.
    """

    def __init__(self, split: Split, alphabet: Alphabet, config: PackingConfig, seed: int = 0):
        if len(split) == 0:
            raise UserError("this corpus split holds no sequence")
        self.split, self.alphabet, self.config, self.seed = split, alphabet, config, seed
        lengths = np.minimum(split.lengths, config.crop) + 2
        self._lengths = lengths.astype(np.uint32)
        self.longest = int(lengths.max())
        self.tokens_per_epoch = int(lengths.sum())
        if config.batch_tokens < 2 * self.longest - 1 and config.batch_tokens < self.tokens_per_epoch:
            raise UserError(
                f"packing.batch_tokens is {config.batch_tokens}, too small for sequences of {self.longest} tokens "
                f"(with start and end); give at least {2 * self.longest}, or a smaller packing.crop"
            )
        stride = max(config.batch_tokens - self.longest + 1, 1)
        if self.tokens_per_epoch <= config.batch_tokens:
            stride = self.tokens_per_epoch
        self.batches_per_epoch = -(-self.tokens_per_epoch // stride)
        even = -(-self.tokens_per_epoch // self.batches_per_epoch)  # as many packs, of more equal size
        self._stride = even if even >= self.longest else stride
        self._epoch = lru_cache(maxsize=1)(self._plan_epoch)

    def _random(self, stream: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, stream], counter=[0, 0, 0, number]))

    def _plan_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's order (N,) and where each sequence ends in the row of tokens (N,)."""
        order = self._random(_ORDER, epoch).permutation(np.arange(len(self.split), dtype=np.int64))
        return order, np.cumsum(self._lengths[order], dtype=np.int64)

    def members(self, number: int) -> np.ndarray:
        """Numbers of the sequences in micro-batch `number`, longest last"""
        epoch, index = divmod(number, self.batches_per_epoch)
        order, ends = self._epoch(epoch)
        low, high = np.searchsorted(ends, [index * self._stride, (index + 1) * self._stride], side="right")
        chosen = order[low:high]
        # Equal lengths side by side: attention handles a run of them in one call.
        return chosen[np.argsort(self._lengths[chosen], kind="stable")]

    def batch(self, number: int) -> Batch:
        """Micro-batch `number` (0, 1, 2, ... through all epochs), with the view `sequence`."""
        chosen = self.members(number)
        kept = self._lengths[chosen].astype(np.int64)
        full = self.split.lengths[chosen]
        random = self._random(_DRAW, number)
        first = self.split.offsets[chosen] + (random.random(len(chosen)) * (full - kept + 3)).astype(np.int64)
        backwards = random.random(len(chosen)) < self.config.reverse
        starts = np.zeros(len(chosen) + 1, dtype=np.int64)
        np.cumsum(kept, out=starts[1:])
        # Token t of a sequence is residue t - 1, counted from its first letter or back from its last.
        direction = np.where(backwards, -1, 1)
        origin = np.where(backwards, first + kept - 3, first) - direction * (starts[:-1] + 1)
        if backwards.any():
            where = np.arange(starts[-1]) * np.repeat(direction, kept) + np.repeat(origin, kept)
        else:
            where = np.arange(starts[-1]) + np.repeat(origin, kept)
        where[starts[:-1]] = where[starts[1:] - 1] = 0  # start and end tokens, written below
        tokens = self.split.tokens[where]
        alphabet = self.alphabet
        tokens[starts[:-1]] = np.where(backwards, alphabet.id(alphabet.reverse), alphabet.id(alphabet.begin))
        tokens[starts[1:] - 1] = alphabet.id(alphabet.end)
        return Batch({"sequence": frame(tokens, starts, self.longest)})
