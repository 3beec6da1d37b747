"""The batch of step n is a pure function of (seed, n).

    split ─▶ permutation of its shards ─▶ of each one's sequences ─▶ cut into equal packs ─▶ crop, reverse ─▶ Batch

Nothing is remembered between calls but the order of the shards read last, so any process can ask for any batch:
resuming needs a number, and ranks share the work by taking different numbers.

How an epoch is cut: shard after shard, in an order drawn anew. Of a shard, lay the cropped sequences of its
permutation end to end; sequence i belongs to pack k when it *ends* inside (k S, (k+1) S]. Every pack then holds whole
sequences and at most S + longest - 1 tokens, and the number of packs depends on the lengths alone, so it is known from
the histograms before a shard is opened and is the same in every epoch.

Memory is that of two shards' permutations (4 bytes a sequence), whatever the size of the corpus. Shards are random
samples of the corpus (`builder.build`), so this order is as good as a permutation of everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from biometro.alphabet import Alphabet
from biometro.data.batch import Batch, frame
from biometro.data.corpus import Shard, Split
from biometro.errors import UserError

_ORDER, _DRAW, _SHARDS = 1, 2, 3  # random streams: a shard's permutation, a pack's crops and directions, the shards
_PLANS = 2  # shards kept ready: a step of several micro-batches may straddle two
_CHECK_EVERY = 1000  # batches between two looks at whether the corpus is still what it was


@dataclass(frozen=True)
class PackingConfig:
    """How sequences are put into batches.

    Args:
        batch_tokens: no micro-batch holds more tokens than this; at least twice `crop` + 2.
        crop: residues; a longer sequence is cut to a window of this length, at a random place.
        reverse: probability that a sequence is read back to front, with another start token; left out, what the corpus
            was prepared with (`prepare --reverse`), or 0. Molecules are read forwards.
    """

    batch_tokens: int = 16384
    crop: int = 1022
    reverse: float | None = None

    def __post_init__(self) -> None:
        if self.crop < 1:
            raise UserError(f"packing.crop is {self.crop}; it must be at least 1 residue")
        if not 0 <= (self.reverse or 0) <= 1:
            raise UserError(f"packing.reverse is {self.reverse}; it is a probability, between 0 and 1")


@dataclass(frozen=True)
class _Plan:
    """A shard in an epoch: the order of its sequences (N,) uint32, and where in it each pack begins (packs + 1,)."""

    shard: Shard
    order: np.ndarray
    bounds: np.ndarray


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
        self.longest = max(min(int(h[:, 0].max()), config.crop) for h in split.histograms) + 2
        tokens = [int(((np.minimum(h[:, 0], config.crop) + 2) * h[:, 1]).sum()) for h in split.histograms]
        self.tokens_per_epoch = sum(tokens)
        if config.batch_tokens < 2 * self.longest - 1 and config.batch_tokens < self.tokens_per_epoch:
            raise UserError(
                f"packing.batch_tokens is {config.batch_tokens}, too small for sequences of {self.longest} tokens "
                f"(with start and end); give at least {2 * self.longest}, or a smaller packing.crop"
            )
        stride = max(config.batch_tokens - self.longest + 1, 1)
        self._tokens = np.array(tokens)
        self._packs = np.where(self._tokens <= config.batch_tokens, 1, -(-self._tokens // stride))
        even = -(-self._tokens // self._packs)  # as many packs, of more equal size
        self._strides = np.where((even >= self.longest) | (self._packs == 1), even, stride)
        self.batches_per_epoch = int(self._packs.sum())
        self._epoch = lru_cache(maxsize=2)(self._order_shards)
        self._plans: dict[tuple[int, int], _Plan] = {}
        self._calls = 0

    def _random(self, stream: int, number: int, shard: int = 0) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, stream], counter=[0, 0, shard, number]))

    def _order_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's order of shards (S,), and the number of packs up to the end of each (S,)."""
        order = self._random(_SHARDS, epoch).permutation(len(self._packs))
        return order, np.cumsum(self._packs[order])

    def _plan(self, epoch: int, place: int) -> _Plan:
        """The shard that comes at `place` of the epoch, in order. The one that comes after it is fetched meanwhile."""
        order, _ = self._epoch(epoch)
        number = int(order[place])
        plan = self._plans.pop((epoch, number), None)
        if plan is None:
            while len(self._plans) >= _PLANS:  # before the next is opened: what is held cannot leave the cache
                del self._plans[next(iter(self._plans))]
            plan = self._draw_plan(epoch, number)
            following = int(order[place + 1] if place + 1 < len(order) else self._epoch(epoch + 1)[0][0])
            if following != number:
                self.split.prefetch(following)
        self._plans[epoch, number] = plan  # the last used stands last
        return plan

    def _draw_plan(self, epoch: int, number: int) -> _Plan:
        shard = self.split.shard(number)
        lengths = np.minimum(shard.lengths, self.config.crop)
        shortest, lengths = int(lengths.min()), (lengths + 2).astype(np.uint32)
        order = self._random(_ORDER, epoch, number).permutation(np.arange(len(lengths), dtype=np.uint32))
        ends = np.cumsum(lengths[order], dtype=np.int64)
        if shortest < 1 or ends[-1] != self._tokens[number]:
            raise UserError(f"{shard.name}: damaged corpus (its lengths are not those of lengths.npy)")
        steps = np.arange(self._packs[number] + 1) * self._strides[number]
        return _Plan(shard, order, np.searchsorted(ends, steps, side="right"))

    def _find(self, number: int) -> tuple[int, Shard, np.ndarray, np.ndarray]:
        """Of a micro-batch: number of the shard, the shard, numbers in it (B,), tokens of each when cropped (B,)."""
        epoch, index = divmod(number, self.batches_per_epoch)
        order, ends = self._epoch(epoch)
        place = int(np.searchsorted(ends, index, side="right"))
        plan = self._plan(epoch, place)
        pack = index - int(ends[place] - self._packs[order[place]])
        chosen = plan.order[plan.bounds[pack] : plan.bounds[pack + 1]].astype(np.int64)
        offsets = plan.shard.offsets
        kept = np.minimum(offsets[chosen + 1] - offsets[chosen], self.config.crop) + 2
        # Equal lengths side by side: attention handles a run of them in one call.
        by_length = np.argsort(kept, kind="stable")
        return int(order[place]), plan.shard, chosen[by_length], kept[by_length]

    def members(self, number: int) -> tuple[int, np.ndarray]:
        """Of micro-batch `number`: its shard, and the numbers of its sequences there (B,), longest last."""
        shard, _, chosen, _ = self._find(number)
        return shard, chosen

    def batch(self, number: int) -> Batch:
        """Micro-batch `number` (0, 1, 2, ... through all epochs), with the view `sequence`.

        Raises UserError where a shard cannot be had, or the corpus changed since it was opened.
        """
        self._calls += 1
        if self._calls % _CHECK_EVERY == 0:
            self.split.check()
        _, shard, chosen, kept = self._find(number)
        random = self._random(_DRAW, number)
        full = shard.offsets[chosen + 1] - shard.offsets[chosen]
        first = shard.offsets[chosen] + (random.random(len(chosen)) * (full - kept + 3)).astype(np.int64)
        backwards = random.random(len(chosen)) < (self.config.reverse or 0)
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
        tokens = shard.tokens[where]
        alphabet = self.alphabet
        tokens[starts[:-1]] = np.where(backwards, alphabet.id(alphabet.reverse), alphabet.id(alphabet.begin))
        tokens[starts[1:] - 1] = alphabet.id(alphabet.end)
        return Batch({"sequence": frame(tokens, starts, self.longest)})
