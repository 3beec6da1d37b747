"""What is said of the rows that a ranking found: who they are, what the model answers, which known binders are near.

Ranking ─▶ numbers ─┬─▶ identifiers and letters of the store
                    ├─▶ affinity and probability, where the model of pairs has them
                    └─▶ the nearest known binder of the same query ─▶ Hits, best first
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from biometro.alphabet import SequenceKind
from biometro.data.likeness import likeness_of
from biometro.data.neighbours import Thresholds
from biometro.data.pairs import Pairs
from biometro.inference.screen import NONE, Ranking
from biometro.inference.store import Store
from biometro.model.towers import Towers

_QUERIES = 64  # answered together


@dataclass(frozen=True)
class Hit:
    """One row of the library: its place in the ranking (from 1), name and letters, and what is said of it.

    affinity, probability: None where the model has none. known, similarity: the most similar known binder of the query
    ("" where none is alike at all), and how alike; None where none is known.
    """

    rank: int
    id: str
    letters: str
    score: float
    affinity: float | None = None
    probability: float | None = None
    known: str | None = None
    similarity: float | None = None


@dataclass(frozen=True)
class Answering:
    """How rows of a ranking are answered for.

    Args:
        store: the library.
        towers: of a model of pairs; None where scores are similarities, which say nothing of binding.
        query_first: whether queries are on the first side of the pair.
        known: letters of a query -> letters of its known binders; empty where nothing is known.
        kind: what the library holds.
        thresholds: of likeness.
    """

    store: Store
    towers: Towers | None
    query_first: bool
    kind: SequenceKind
    thresholds: Thresholds
    known: Mapping[bytes, Sequence[bytes]] = field(default_factory=dict)

    def hits(self, letters: Sequence[bytes], queries_QP: np.ndarray, ranking: Ranking) -> Iterator[list[Hit]]:
        """Of each query its hits, best first. Raises UserError where the store is damaged."""
        for start in range(0, len(letters), _QUERIES):
            some = slice(start, start + _QUERIES)
            part = Ranking(ranking.numbers[some], ranking.scores[some])
            yield from self._answer(letters[some], queries_QP[some], part)

    def _answer(self, letters: Sequence[bytes], queries_QP: np.ndarray, ranking: Ranking) -> Iterator[list[Hit]]:
        there_QK = ranking.numbers != NONE
        number_M, scores_M = ranking.numbers[there_QK], ranking.scores[there_QK]
        entries = self.store.entries(number_M)
        affinity_M = probability_M = None
        if self.towers is not None:
            pair = (queries_QP[np.nonzero(there_QK)[0]], self.store.vectors(number_M))
            affinity_M = self.towers.affinity(*(pair if self.query_first else pair[::-1]))
            probability_M = self.towers.probability(scores_M)
        begin = 0
        for query, count in zip(letters, there_QK.sum(1).tolist(), strict=True):
            rows = slice(begin, begin + count)
            near = self._nearest(query, [found for _, found in entries[rows]])
            yield [
                Hit(
                    place + 1, *_named(entries[begin + place]), float(scores_M[begin + place]),
                    None if affinity_M is None else float(affinity_M[begin + place]),
                    None if probability_M is None else float(probability_M[begin + place]), *near[place],
                )
                for place in range(count)
            ]  # fmt: skip
            begin += count

    def _nearest(self, query: bytes, found: list[bytes]) -> list[tuple[str | None, float | None]]:
        binders, likeness = self.known.get(query), likeness_of(self.kind)
        if not binders or likeness is None or not found:
            return [(None, None)] * len(found)
        near = likeness.nearest(found, binders, self.thresholds)
        return [
            (_text(binders[place]) if alike > 0 else "", alike)
            for alike, place in zip(near.similarity.tolist(), near.place.tolist(), strict=True)
        ]


def binders(pairs: Pairs, ways: Sequence[bool]) -> dict[bytes, list[bytes]]:
    """Letters of a query -> letters of what is known to bind it.

    Args:
        pairs: those with label 1; of a table without labels, all.
        ways: where queries stand: True on the first side of a pair, False on the second.
    """
    binding_N = pairs.label == 1 if (pairs.label >= 0).any() else np.ones(len(pairs), bool)
    known: dict[bytes, dict[bytes, None]] = {}
    for first in ways:
        for a, b in zip(pairs.a[binding_N].tolist(), pairs.b[binding_N].tolist(), strict=True):
            query, partner = (pairs.a_letters[a], pairs.b_letters[b])[:: 1 if first else -1]
            known.setdefault(query, {})[partner] = None
    return {query: list(partners) for query, partners in known.items()}


def _named(entry: tuple[str, bytes]) -> tuple[str, str]:
    return entry[0], _text(entry[1])


def _text(letters: bytes) -> str:
    return letters.decode("utf-8", "backslashreplace")
