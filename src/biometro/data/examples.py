"""Micro-batches of labelled sequences by number: a pure function of (seed, n), as those of a corpus.

    numbers of the examples ─▶ permutation (or balanced draw) of the epoch ─▶ cut into packs ─▶ Batch with labels

Shape letters: N examples, B of them in a batch, T tokens, R residues, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from biometro.data.batch import Batch, Packed, frame, pack
from biometro.data.task import Task, Truth
from biometro.errors import UserError

_ORDER = 4  # random stream; the corpus loader has 1 to 3


class Sampler:
    """Which examples are in micro-batch n.

    As in the corpus loader, an epoch's permutation is laid end to end and example i belongs to the pack in which it
    ends, so that every epoch has the same number of packs, none above the budget. With `weights`, examples are drawn
    with replacement, in proportion to them, until the epoch's packs are full.

    Args:
        sizes: (N,) int64, what each example adds to a pack (tokens, or 1).
        budget: of a pack.
        seed: of the order.
        weights: (N,) float64.

    Raises UserError where the budget cannot hold two of the largest.
    """

    def __init__(self, sizes: np.ndarray, budget: int, seed: int, weights: np.ndarray | None = None):
        longest, total = int(sizes.max()), int(sizes.sum())
        if budget < 2 * longest - 1 and budget < total:
            raise UserError(
                f"batch_tokens is {budget:,}, too small for sequences of {longest:,} tokens; give at least "
                f"{2 * longest:,}, or a smaller max_length"
            )
        self.sizes, self.seed = sizes, seed
        self.weights = None if weights is None else weights / weights.sum()
        room = budget - longest + 1
        self.batches_per_epoch = 1 if total <= budget else -(-total // room)
        even = -(-total // self.batches_per_epoch)
        self._stride = even if even >= longest or self.batches_per_epoch == 1 else room
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's examples in order, and where in them each pack begins (packs + 1,)."""
        random = np.random.Generator(np.random.Philox(key=[self.seed, _ORDER], counter=[0, 0, 0, epoch]))
        count = len(self.sizes)
        if self.weights is None:
            order = random.permutation(count)
        else:
            wanted = self.batches_per_epoch * self._stride
            order = np.empty(0, dtype=np.int64)
            while self.sizes[order].sum() <= wanted:
                order = np.concatenate([order, random.choice(count, count, p=self.weights)])
        steps = np.arange(self.batches_per_epoch + 1) * self._stride
        return order, np.searchsorted(np.cumsum(self.sizes[order]), steps, side="right")

    def members(self, number: int) -> np.ndarray:
        """The examples of micro-batch 0, 1, 2, ... through all epochs, the shortest first."""
        epoch, place = divmod(number, self.batches_per_epoch)
        order, bounds = self._epoch(epoch)
        chosen = order[bounds[place] : bounds[place + 1]]
        return chosen[np.argsort(self.sizes[chosen], kind="stable")]


@dataclass(frozen=True)
class Examples:
    """Labelled sequences as a model reads them.

    task: what is predicted. truth: as in `Labelled`, one for each example. tokens: of each sequence, without specials;
    begin, end: the specials. features: instead of tokens, of each sequence one vector (D,), or one of each residue
    (L, D).
    """

    task: Task
    truth: Truth
    tokens: Sequence[np.ndarray] | None = None
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    features: Sequence[np.ndarray] | np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def margins(self) -> tuple[int, int]:
        """Tokens before and after each sequence that are no residues."""
        return len(self.begin), len(self.end)

    @property
    def sizes(self) -> np.ndarray:
        """(N,) int64, tokens of each example in a pack."""
        if self.tokens is not None:
            return np.array([len(tokens) for tokens in self.tokens], dtype=np.int64) + sum(self.margins)
        assert self.features is not None
        return np.array([len(f) if f.ndim == 2 else 1 for f in self.features], dtype=np.int64)

    def batch(self, members: Sequence[int] | np.ndarray) -> Batch:
        """The view `sequence`, and the targets `label` and, for vectors, `features` (T, D).

        `label` is (B,) int64 or (B, K) float32; where residues have labels (R,) int64 or (R, 1) float32, and
        `label_counts` (B,) says how many each sequence has.
        """
        targets = {}
        if self.tokens is not None:
            packed = pack([self.tokens[i] for i in members], self.begin, self.end)
        else:
            assert self.features is not None
            rows = [np.atleast_2d(self.features[i]) for i in members]
            packed = blank([len(row) for row in rows])
            targets["features"] = torch.from_numpy(np.concatenate(rows).astype(np.float32, copy=False))
        values = [self.truth[i] for i in members]
        if self.task.per_residue:
            label = np.concatenate(values)
            targets["label"] = torch.from_numpy(label if label.dtype == np.int64 else label[:, None])
            targets["label_counts"] = torch.tensor([len(value) for value in values])
        else:
            targets["label"] = torch.from_numpy(np.stack(values))
        return Batch({"sequence": packed}, targets)


def blank(lengths: list[int]) -> Packed:
    """A pack of these lengths whose tokens mean nothing: vectors stand in their place."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return frame(np.zeros(int(starts[-1]), dtype=np.int64), starts)
