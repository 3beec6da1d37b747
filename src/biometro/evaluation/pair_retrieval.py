"""Retrieval of partners: of each query, at which rank its first true partner stands in a fixed pool, both ways.

    vectors of a and b, true pairs ─▶ scores, block by block ─▶ rank of the first true partner ─▶ recall@k, MRR, median
                                                    pool sizes ─▶ the same by chance ───────────┘

A query may have several true partners: the first counts, and the others are not counted against it. Of equal scores,
partners that are not true come first, so that a method gains nothing by having no opinion.

Shapes: Q queries, P partners in the pool, F features, N true pairs, S resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from biometro.evaluation import resampling
from biometro.evaluation.metrics import interval

AT = (1, 5, 10, 50)
"""Ranks of recall@k."""
FIGURES = (*(f"recall@{k}" for k in AT), "mrr", "median_rank")
_BLOCK = 4_000_000  # scores in memory at once

Scores = Callable[[np.ndarray], np.ndarray]
"""Queries (Q,) -> their scores with the pool (Q, P)."""


@dataclass(frozen=True)
class Retrieval:
    """One way of retrieval.

    Fields:
        values: recall@k is the share of queries whose first true partner is among the first k; mrr the mean of one over
            its rank; median_rank.
        chance: the same where the order is random.
        intervals: (low, high) of each, 95 % of resamples of queries; empty where none were asked for.
        queries, pool: how many. partners: true ones of a query, on average.
        rank: (Q,) int64, of each query.
    """

    values: dict[str, float]
    chance: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    queries: int
    pool: int
    partners: float
    rank: np.ndarray


def both_ways(
    vectors_a: np.ndarray, vectors_b: np.ndarray, true: np.ndarray, known: np.ndarray | None = None, *,
    pool_a: np.ndarray | None = None, pool_b: np.ndarray | None = None, shared: bool = False, samples: int = 0,
    seed: int = 0,
) -> dict[str, Retrieval]:  # fmt: skip
    """From a to b and from b to a, by products of vectors.

    Args:
        vectors_a, vectors_b: (A, F), (B, F), rows of length one.
        true: (N, 2) places of true pairs (of the test set): their sequences are the queries.
        known: (M, 2) other pairs that are true (of train): not counted against a query either, and not for it.
        pool_a, pool_b: places that are searched, the true ones among them. Default: those of `true`.
        shared: both are one list, of which no query is its own partner; a pair is true both ways.
        samples, seed: of the bootstrap.

    Returns: "a to b" and "b to a"; of a shared list "a to b" alone. Raises ValueError as `retrieve` does.
    """
    known = np.empty((0, 2), np.int64) if known is None else known
    if shared:
        true, known = (np.concatenate([pairs, pairs[:, ::-1]]) for pairs in (true, known))
    ways = {"a to b": (vectors_a, vectors_b, true, known, pool_b)}
    if not shared:
        ways["b to a"] = (vectors_b, vectors_a, true[:, ::-1], known[:, ::-1], pool_a)
    found = {}
    for name, (queries, partners, pairs, others, pool) in ways.items():
        pool = np.unique(pairs[:, 1]) if pool is None else pool
        scores = products(queries, partners[pool])
        found[name] = retrieve(scores, pool, pairs, others, shared=shared, samples=samples, seed=seed)
    return found


def products(queries: np.ndarray, partners: np.ndarray) -> Scores:
    """Scores as products of vectors, (Q, F) and (P, F)."""
    return lambda places: queries[places] @ partners.T


def retrieve(
    scores: Scores, pool: np.ndarray, true: np.ndarray, known: np.ndarray, *, shared: bool = False, samples: int = 0,
    seed: int = 0,
) -> Retrieval:  # fmt: skip
    """One way, by any scores.

    Args:
        scores: of queries with the pool.
        pool: (P,) distinct places of partners.
        true, known, shared, samples, seed: as for `both_ways`.

    Raises ValueError where there is no pair, or a true partner is not in the pool.
    """
    if not len(true):
        raise ValueError("no true pair, so that there is nothing to find")
    column = np.full(int(max(pool.max(), true[:, 1].max(), known[:, 1].max(initial=0))) + 1, -1, np.int64)
    column[pool] = np.arange(len(pool))
    if (column[true[:, 1]] < 0).any():
        raise ValueError("a true partner is not in the pool")
    query_Q = np.unique(true[:, 0])
    own, left = _columns(true, query_Q, column), _columns(known, query_Q, column)
    if shared:
        left = [
            np.append(others, column[q]) if q < len(column) else others for others, q in zip(left, query_Q, strict=True)
        ]
    rank_Q, size_Q, true_Q = (np.empty(len(query_Q), np.int64) for _ in range(3))
    step = max(1, _BLOCK // max(len(pool), 1))
    for start in range(0, len(query_Q), step):
        block = np.asarray(scores(query_Q[start : start + step]))
        for place, score_P in enumerate(block, start):
            mine, counts = own[place], np.ones(len(pool), bool)
            counts[left[place][left[place] >= 0]] = False
            counts[mine] = False
            best = score_P[mine].max()
            worse = score_P[counts] < best  # NaN is worse than nothing, and ranks last
            rank_Q[place] = 1 + int((~worse).sum())
            size_Q[place], true_Q[place] = int(counts.sum()), len(mine)
    intervals = {}
    if samples:
        drawn = {name: [] for name in FIGURES}  # type: dict[str, list[np.ndarray]]
        for weights_SQ in resampling.draws(len(query_Q), samples, seed):
            for name, values_S in _figures(rank_Q, weights_SQ).items():
                drawn[name].append(values_S)
        intervals = {name: interval(np.concatenate(blocks)) for name, blocks in drawn.items()}
    values = {name: float(value_S[0]) for name, value_S in _figures(rank_Q, np.ones((1, len(rank_Q)))).items()}
    return Retrieval(values, chance(size_Q, true_Q), intervals, len(query_Q), len(pool), float(true_Q.mean()), rank_Q)


def _columns(pairs: np.ndarray, query_Q: np.ndarray, column: np.ndarray) -> list[np.ndarray]:
    """Of each query, the distinct places of its partners in the pool; -1 for those that are not there."""
    pairs = np.unique(pairs, axis=0)
    first, last = (np.searchsorted(pairs[:, 0], query_Q, side) for side in ("left", "right"))
    return [column[pairs[i:j, 1]] for i, j in zip(first.tolist(), last.tolist(), strict=True)]


def _figures(rank_Q: np.ndarray, weights_SQ: np.ndarray) -> dict[str, np.ndarray]:
    """(S,) of each figure, of weighted queries."""
    total_S = weights_SQ.sum(1)
    found = {f"recall@{k}": weights_SQ @ (rank_Q <= k) / total_S for k in AT}
    found["mrr"] = weights_SQ @ (1 / rank_Q) / total_S
    order = np.argsort(rank_Q, kind="stable")
    below_SQ = np.cumsum(weights_SQ[:, order], axis=1)
    # The median of an even number is the mean of the two in the middle.
    low, high = ((below_SQ < need[:, None]).sum(1) for need in (np.ceil(total_S / 2), np.floor(total_S / 2) + 1))
    found["median_rank"] = (rank_Q[order][low] + rank_Q[order][high]) / 2
    return found


def chance(size_Q: np.ndarray, true_Q: np.ndarray) -> dict[str, float]:
    """The expected figures of a random order, of queries with so many partners that are not true, and so many that are.

    That the first r of the order are none of the true ones, so that the rank is above r, has the probability
    C(n, r) / C(n + t, r); the median is that of the ranks of all queries taken together.
    """
    sizes, times = np.unique(np.stack([size_Q, true_Q], 1), axis=0, return_counts=True)
    longest = int(sizes[:, 0].max()) + 1
    above = np.zeros(longest + 1)  # probability that the rank is above r = 0, 1, ...
    for (others, partners), count in zip(sizes.tolist(), times.tolist(), strict=True):
        step = np.arange(others)
        above[: others + 1] += count * np.append(1, np.cumprod((others - step) / (others + partners - step)))
    above /= len(size_Q)
    rank = np.arange(1, longest + 1)
    found = {f"recall@{k}": float(1 - above[min(k, longest)]) for k in AT}
    found["mrr"] = float((above[:-1] - above[1:]) @ (1 / rank))
    found["median_rank"] = float(rank[np.argmax(above[1:] <= 0.5)])
    return found
