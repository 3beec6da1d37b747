"""Pairs as two towers read them: micro-batches by number, a pure function of (seed, n).

    numbers of pairs ─▶ Sampler ─▶ members and their hard negatives ─▶ each sequence once ─▶ Batch of two views

Shape letters: N pairs, A and B sequences of the sides in a batch, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from biometro.data.batch import Batch, Packed, pack
from biometro.data.examples import Sampler, blank
from biometro.data.pairs import Pairs

_NEGATIVES = 5  # random stream; orders of examples have 4


@dataclass(frozen=True)
class Side:
    """The sequences of one side: tokens without specials, with the specials; or a vector of each, (sequences, D)."""

    tokens: Sequence[np.ndarray] | None = None
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    features: np.ndarray | None = None

    def view(self, numbers: np.ndarray) -> tuple[Packed, torch.Tensor | None]:
        """A pack of these sequences, whose tokens mean nothing where there are vectors; and these."""
        if self.features is not None:
            return blank([1] * len(numbers)), torch.from_numpy(self.features[numbers])
        assert self.tokens is not None
        return pack([self.tokens[i] for i in numbers.tolist()], self.begin, self.end), None


@dataclass(frozen=True)
class PairExamples:
    """Pairs and the sequences that they are of.

    pairs: of the training set. sides: by the name of the view, of `pairs.a` and `pairs.b`. value: (N,) float32 in
    standardised units, NaN unknown. negatives: so many pairs that are known not to bind go with each that does, of the
    same a, as far as there are any among `trained` (numbers of pairs; left out, all).
    """

    pairs: Pairs
    sides: dict[str, Side]
    value: np.ndarray
    negatives: int = 0
    seed: int = 0
    trained: np.ndarray | None = None
    _refused: dict[int, np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        trained = np.arange(len(self.pairs)) if self.trained is None else self.trained
        rows = trained[self.pairs.label[trained] == 0]
        order = rows[np.argsort(self.pairs.a[rows], kind="stable")]
        owners, starts = np.unique(self.pairs.a[order], return_index=True)
        found = dict(zip(owners.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else {}
        object.__setattr__(self, "_refused", found)

    @property
    def binds(self) -> np.ndarray:
        """(N,) bool: pairs that are not known not to bind."""
        return self.pairs.label != 0

    def batch(self, members: np.ndarray, number: int = 0) -> Batch:
        """The views, each sequence once, and the targets that `objectives.contrastive` names.

        number: of the micro-batch, which with the seed decides the hard negatives.
        """
        members = self._with_negatives(members, number) if self.negatives else members
        targets: dict[str, torch.Tensor] = {}
        views: dict[str, Packed] = {}
        for (name, side), key, place, numbers in zip(
            self.sides.items(), "ab", ("left", "right"), (self.pairs.a[members], self.pairs.b[members]), strict=True
        ):
            distinct, rows = np.unique(numbers, return_inverse=True)
            if side.tokens is not None:  # equally long sequences share an attention call on the CPU
                order = np.argsort([len(side.tokens[i]) for i in distinct.tolist()], kind="stable")
                distinct, rows = distinct[order], np.argsort(order)[rows]
            views[name], features = side.view(distinct)
            if features is not None:
                targets[f"{name}_features"] = features
            targets[key], targets[place] = torch.from_numpy(distinct), torch.from_numpy(rows)
        targets["binds"] = torch.from_numpy(self.binds[members])
        targets["value"] = torch.from_numpy(self.value[members].astype(np.float32, copy=False))
        targets["bound"] = torch.from_numpy(self.pairs.censored[members])
        return Batch(views, targets)

    def _with_negatives(self, members: np.ndarray, number: int) -> np.ndarray:
        random = np.random.Generator(np.random.Philox(key=[self.seed, _NEGATIVES], counter=[0, 0, 0, number]))
        found = [members]
        for pair in members[self.binds[members]].tolist():
            refused = self._refused.get(int(self.pairs.a[pair]))
            if refused is not None:
                found.append(random.choice(refused, min(self.negatives, len(refused)), replace=False))
        return np.unique(np.concatenate(found))


def sampler(pairs: Pairs, drawn: np.ndarray, size: int, seed: int, weights: Sequence[float] | None = None) -> Sampler:
    """Which of the `drawn` pairs (numbers) are in micro-batch n, as places in `drawn`.

    Args:
        pairs: of which data set each is.
        drawn: (M,) the pairs to draw from.
        size: pairs in a micro-batch, at most.
        seed: of the order.
        weights: share of each data set in a batch; without them each pair is read once an epoch.
    """
    each = None
    if weights is not None:
        source = pairs.source[drawn]
        counts = np.bincount(source, minlength=len(weights))
        each = np.asarray(weights, np.float64)[source] / np.maximum(counts, 1)[source]
    return Sampler(np.ones(len(drawn), np.int64), size, seed, each)
