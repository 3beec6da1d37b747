"""Exact top-k of a store: which rows have the largest products with a query.

    query ─▶ int8 codes of a block · query ─▶ those whose bound reaches the k-th best ─▶ float32 rows ─▶ k best so far

The first pass reads a quarter of the bytes. For a row x = centre + a c + r and a query q = b d + e, with codes c and d,

    q.x = q.centre + a b (c.d) + e.(a c) + q.r,   |e.(a c)| <= |e| norm,   |q.r| <= |q| residual

(Cauchy-Schwarz; `store.py` keeps norm and residual of each shard), so a row whose product of codes lies further than
that below the k-th best score cannot be among the k best, and is never read. All others are scored from their float32
vectors in float64, rounded to float32. The result is that of scoring every row so, ties by number: it depends on no
block, shard, thread or worker. Where int8 products are not exact or not fast (a CPU without VNNI), or let too many rows
pass, the first pass is a float32 product with the bound of its rounding instead.

Shape letters: Q queries, P width, N rows of a shard, B rows of a block, M pairs of query and row, K best.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from biometro.errors import UserError
from biometro.inference.store import Shard, Store, check_unit

First = Literal["auto", "int8", "float32"]

_PRODUCTS = 1 << 20  # of a block, 4 bytes each: a few buffers that stay in the cache
_MOST_ROWS = 1 << 16  # of a block
_MOST_QUERIES = 256  # that go over the shards together
_PAIRS = 4096  # scored at once
_PASSING = 64  # a block of which more than one pair in so many passes int8 is looked at again in float32
_SLACK = 2.0**-21  # of roundings to float32, above eight of them on numbers of about 1
NONE = np.iinfo(np.int64).max
"""The number of a place in a ranking that no row has."""


@dataclass(frozen=True)
class Ranking:
    """The best rows of each query, best first: `numbers` (Q, K) int64 in the store, `scores` (Q, K) float32."""

    numbers: np.ndarray
    scores: np.ndarray


def rank(
    store: Store, queries_QP: np.ndarray, top: int, shards: Sequence[int] | None = None, first: First = "auto"
) -> Ranking:
    """The `top` rows with the largest product with each query, or all rows where there are fewer.

    Args:
        store: the library.
        queries_QP: float32, rows of length 1.
        top: K.
        shards: of these shards alone, by place; default all.
        first: of the first pass; auto is what is fast here. The result is the same.

    Raises ValueError for queries that do not fit the store or are not of length 1, UserError for a damaged store.
    """
    queries_QP = np.ascontiguousarray(queries_QP, np.float32)
    if queries_QP.ndim != 2 or queries_QP.shape[1] != store.width or top < 1:
        raise ValueError(f"queries of shape {queries_QP.shape} and top {top} do not go with width {store.width}")
    check_unit(queries_QP)
    int8 = int8_pays() if first == "auto" else first == "int8"
    int8 = int8 and store.width > 1  # torch 2.13's int8 product of one column with several is wrong
    chosen = [store.shards[place] for place in (range(len(store.shards)) if shards is None else sorted(shards))]
    top = min(top, sum(map(len, chosen)))
    found = [
        _over(chosen, _Queries(queries_QP[start : start + _MOST_QUERIES]), top, int8)
        for start in range(0, len(queries_QP), _MOST_QUERIES)
    ]
    none = (np.empty((0, top), np.int64), np.empty((0, top), np.float32))
    return Ranking(
        np.concatenate([none[0], *(f.numbers for f in found)]), np.concatenate([none[1], *(f.scores for f in found)])
    )


def merge(rankings: Iterable[Ranking], top: int) -> Ranking:
    """The ranking of a whole from those of its parts, whatever their order; ties by number."""
    parts = list(rankings)
    numbers_QK = np.concatenate([part.numbers for part in parts], axis=1)
    scores_QK = np.concatenate([part.scores for part in parts], axis=1)
    order_QK = np.lexsort((numbers_QK, -scores_QK), axis=1)[:, :top]
    return Ranking(np.take_along_axis(numbers_QK, order_QK, 1), np.take_along_axis(scores_QK, order_QK, 1))


def exact(rows_MP: np.ndarray, queries_MP: np.ndarray) -> np.ndarray:
    """(M,) float32 products of rows with rows, each by itself in float64. Raises ValueError where one is not finite."""
    scores_M = (rows_MP.astype(np.float64) * queries_MP).sum(1)
    if not np.isfinite(scores_M).all():
        raise ValueError("a vector is not finite")
    return scores_M.astype(np.float32)


@functools.cache
def int8_pays() -> bool:
    """Whether this CPU multiplies int8 fast and exactly: with VNNI. Others add in int16, which may overflow."""
    capable = getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
    if not capable:
        return False
    signs = torch.tensor([127, -127], dtype=torch.int8)
    codes_BP, query_PQ = signs[:, None].expand(2, 256).contiguous(), signs[:, None].expand(2, 256).contiguous().t()
    return bool((torch._int_mm(codes_BP, query_PQ) == 127 * 127 * 256 * torch.tensor([[1, -1], [-1, 1]])).all())


class _Queries:
    """Some queries in all forms that are needed, and the floor that all threads raise: a score that at least K rows
    reach, so that what is below it is not among the best. One thread's raise may undo another's; any floor is right."""

    def __init__(self, queries_QP: np.ndarray):
        self.exact_QP = queries_QP.astype(np.float64)
        self.step_Q = np.abs(self.exact_QP).max(1) / 127
        codes_QP = np.rint(self.exact_QP / self.step_Q[:, None])
        self.rest_Q = np.linalg.norm(self.exact_QP - codes_QP * self.step_Q[:, None], axis=1)
        self.length_Q = np.linalg.norm(self.exact_QP, axis=1)
        self.codes_PQ = torch.from_numpy(codes_QP.astype(np.int8)).t()
        self.float_PQ = torch.from_numpy(queries_QP).t()
        self.floor_Q = np.full(len(queries_QP), -np.inf)
        # |fl(q.x) - q.x| <= P u / (1 - P u) |q| |x|, whatever the order of the sum (Higham 2002, section 3.1)
        self.rounding_Q = (queries_QP.shape[1] + 2) * 2.0**-24 * 1.01 * self.length_Q + _SLACK

    def __len__(self) -> int:
        return len(self.exact_QP)


@dataclass(frozen=True)
class _Passage:
    """A shard as the queries meet it: tensors over its maps, and for int8 what to add to a product of codes (`shift`)
    and how far it may be off (`bound`)."""

    shard: Shard
    vectors_NP: Tensor
    codes_NP: Tensor
    scales_N: Tensor
    shift_Q: np.ndarray
    bound_Q: np.ndarray

    @staticmethod
    def of(shard: Shard, queries: _Queries) -> _Passage:
        bound_Q = queries.rest_Q * shard.note.norm + queries.length_Q * shard.note.residual
        return _Passage(
            shard, _tensor(shard.vectors), _tensor(shard.codes), _tensor(shard.scales),
            queries.exact_QP @ shard.centre.astype(np.float64),
            bound_Q * (1 + 1e-9) + _SLACK * (1 + shard.note.norm),
        )  # fmt: skip


def _over(shards: Sequence[Shard], queries: _Queries, top: int, int8: bool) -> Ranking:
    """The best of these shards, by as many threads as torch has, each with blocks of its own.

    Threads that share an operator wait for the slowest of them, again and again; these never wait.
    """
    rows = max(1, min(_MOST_ROWS, _PRODUCTS // len(queries)))
    passages = (_Passage.of(shard, queries) for shard in shards)
    blocks = ((passage, start) for passage in passages for start in range(0, len(passage.shard), rows))
    taking, threads = threading.Lock(), torch.get_num_threads()

    def work() -> Ranking:
        torch.set_num_threads(1)  # of this thread
        scan = _Scan(queries, top, rows)
        while True:
            with taking:
                block = next(blocks, None)
            if block is None:
                return scan.best
            scan.over(*block, int8)

    try:
        with ThreadPoolExecutor(threads) as pool:
            working = [pool.submit(work) for _ in range(threads)]
            return merge([each.result() for each in working], top)
    finally:
        torch.set_num_threads(threads)  # of threads to come


class _Scan:
    """The best rows so far that one thread has met."""

    def __init__(self, queries: _Queries, top: int, rows: int):
        self.queries, self.top = queries, top
        count = len(queries)
        self.best = Ranking(np.full((count, top), NONE), np.full((count, top), -np.inf, np.float32))
        self._int = torch.empty(rows, count, dtype=torch.int32)
        self._float = torch.empty(rows, count)
        self._pass = torch.empty(rows, count, dtype=torch.bool)

    def over(self, passage: _Passage, start: int, int8: bool) -> None:
        """Take up what is best of a shard's block that begins at `start`."""
        queries, shard = self.queries, passage.shard
        rows = slice(start, min(start + len(self._int), len(shard)))
        scores_BQ, flat = self._float[: rows.stop - start], None
        if int8:
            products_BQ = torch._int_mm(passage.codes_NP[rows], queries.codes_PQ, out=self._int[: len(scores_BQ)])
            torch.mul(products_BQ, passage.scales_N[rows, None], out=scores_BQ)
            self._start(shard, start, scores_BQ)
            flat = self._passing(scores_BQ, (queries.floor_Q - passage.shift_Q - passage.bound_Q) / queries.step_Q)
        if flat is None or len(flat) * _PASSING > scores_BQ.numel():
            torch.mm(passage.vectors_NP[rows], queries.float_PQ, out=scores_BQ)
            self._start(shard, start, scores_BQ)
            flat = self._passing(scores_BQ, queries.floor_Q - queries.rounding_Q)
        self._take(shard, start, flat)

    def _start(self, shard: Shard, start: int, scores_BQ: Tensor) -> None:
        """Before anything is known: the floor from rows that look best in the first block that has enough of them."""
        if np.isfinite(self.queries.floor_Q).all() or len(scores_BQ) < self.top:
            return
        place_KQ = scores_BQ.topk(self.top, dim=0, sorted=False).indices.numpy()
        query_M = np.tile(np.arange(len(self.queries)), self.top)
        scores_M = self._score(shard, start + place_KQ.reshape(-1), query_M)
        self.queries.floor_Q = np.maximum(self.queries.floor_Q, scores_M.reshape(place_KQ.shape).min(0))

    def _passing(self, scores_BQ: Tensor, least_Q: np.ndarray) -> np.ndarray:
        """Places, in the flattened block, of scores that reach what is least; rounded so that none is missed."""
        least = torch.from_numpy(np.nextafter(least_Q.astype(np.float32), np.float32(-np.inf)))
        passing_BQ = torch.ge(scores_BQ, least, out=self._pass[: len(scores_BQ)])
        return np.flatnonzero(passing_BQ.numpy())

    def _take(self, shard: Shard, start: int, flat: np.ndarray) -> None:
        """Score the pairs that passed, and keep the best."""
        step = _PAIRS * 16
        for begin in range(0, len(flat), step):
            row_M, query_M = np.divmod(flat[begin : begin + step], len(self.queries))
            scores_M = self._score(shard, start + row_M, query_M)
            keep = scores_M >= self.queries.floor_Q[query_M]
            self._merge(query_M[keep], shard.first + start + row_M[keep], scores_M[keep])

    def _score(self, shard: Shard, row_M: np.ndarray, query_M: np.ndarray) -> np.ndarray:
        scores_M = np.empty(len(row_M), np.float32)
        try:
            for begin in range(0, len(row_M), _PAIRS):
                some = slice(begin, begin + _PAIRS)
                scores_M[some] = exact(shard.vectors[row_M[some]], self.queries.exact_QP[query_M[some]])
        except ValueError as error:
            raise UserError(f"{shard.note.name}: this shard of the store is damaged ({error}); index again") from error
        return scores_M

    def _merge(self, query_M: np.ndarray, number_M: np.ndarray, scores_M: np.ndarray) -> None:
        if not len(query_M):
            return
        count, top = self.best.numbers.shape
        query = np.concatenate([np.repeat(np.arange(count), top), query_M])
        number = np.concatenate([self.best.numbers.reshape(-1), number_M])
        scores = np.concatenate([self.best.scores.reshape(-1), scores_M])
        order = np.lexsort((number, -scores, query))
        begins = np.searchsorted(query[order], np.arange(count))
        kept_QK = order[begins[:, None] + np.arange(top)]
        self.best = Ranking(number[kept_QK], scores[kept_QK])
        self.queries.floor_Q = np.maximum(self.queries.floor_Q, self.best.scores[:, -1])


def _tensor(array: np.ndarray) -> Tensor:
    """A memory map as a tensor over the same pages; nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(array)
