"""What is found where sequences are compared, whatever their kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Thresholds(Protocol):
    """From where on two sequences are relatives; `sides.SplitConfig` says what each means."""

    @property
    def identity(self) -> float: ...

    @property
    def coverage(self) -> float: ...

    @property
    def edits(self) -> int: ...

    @property
    def tanimoto(self) -> float: ...


@dataclass(frozen=True)
class Nearest:
    """The nearest reference of each of N queries.

    Fields:
        similarity: (N,) float32, 0 to 1; 0 where there is none.
        place: (N,) int64, which reference; 0 where there is none.
        related: (N,) bool, whether it is a relative.
    """

    similarity: np.ndarray
    place: np.ndarray
    related: np.ndarray

    @classmethod
    def none(cls, count: int) -> Nearest:
        return cls(np.zeros(count, np.float32), np.zeros(count, np.int64), np.zeros(count, bool))

    def take(self, which: np.ndarray) -> Nearest:
        """Of these queries, in this order."""
        return Nearest(self.similarity[which], self.place[which], self.related[which])


@dataclass(frozen=True)
class Hits:
    """M hits, query by query, the best first.

    Fields:
        query, target: (M,) int64, places in the lists that were searched.
        similarity: (M,) float32, 0 to 1.
        query_start, target_start: (M,) int64, the first aligned letter, from 0; None unless asked for.
        cigar: M texts such as 48M7D143M; M: both have a letter, I: only the query, D: only the target. None unless
            asked for.
    """

    query: np.ndarray
    target: np.ndarray
    similarity: np.ndarray
    query_start: np.ndarray | None = None
    target_start: np.ndarray | None = None
    cigar: list[str] | None = None


def best_hits(similarity_QT: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The `most` most similar targets of each query, best first: query and target, (M,) int64 each.

    Those that share nothing (0) are left out; of equal ones the first in the list comes first.
    """
    if most < similarity_QT.shape[1]:
        least_Q = -np.partition(-similarity_QT, most - 1, axis=1)[:, most - 1]
        query, target = np.nonzero((similarity_QT >= least_Q[:, None]) & (similarity_QT > 0))
    else:
        query, target = np.nonzero(similarity_QT > 0)
    order = np.lexsort((target, -similarity_QT[query, target], query))
    query, target = query[order], target[order]
    kept = np.arange(len(query)) - np.searchsorted(query, query) < most  # equal ones may be more
    return query[kept], target[kept]
