"""Exact ranking: against plain NumPy, with ties, whatever the blocks, shards, threads and the first pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import make, unit

from biometro.errors import UserError
from biometro.inference import screen
from biometro.inference.screen import Ranking, merge, rank
from biometro.inference.store import Store, open_store


def plain(vectors_NP: np.ndarray, queries: np.ndarray, top: int) -> Ranking:
    """All scores in float64, rounded to float32, sorted; ties by number."""
    scores_QN = np.stack([(vectors_NP * q_P.astype(np.float64)).sum(1) for q_P in queries]).astype(np.float32)
    numbers_QK = np.argsort(-scores_QN, axis=1, kind="stable")[:, :top]
    return Ranking(numbers_QK, np.take_along_axis(scores_QN, numbers_QK, 1))


def same(found: Ranking, expected: Ranking) -> bool:
    return np.array_equal(found.numbers, expected.numbers) and np.array_equal(found.scores, expected.scores)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, np.ndarray]:
    """3,000 rows of width 48 in uneven shards: spread, crowded together, and 500 of them copies of others."""
    random = np.random.default_rng(0)
    spread, crowded = random.standard_normal((1500, 48)), 1 + 0.02 * random.standard_normal((1000, 48))
    rows_NP = unit(np.concatenate([spread, crowded]))
    rows_NP = np.concatenate([rows_NP, rows_NP[random.integers(0, len(rows_NP), 500)]])
    rows_NP = rows_NP[random.permutation(len(rows_NP))]
    return open_store(make(tmp_path_factory.mktemp("x") / "library", rows_NP, [1000, 1, 1500, 499])), rows_NP


@pytest.fixture(scope="module")
def queries(library: tuple[Store, np.ndarray]) -> np.ndarray:
    random = np.random.default_rng(1)
    return unit(np.concatenate([random.standard_normal((4, 48)), library[1][:3], np.ones((1, 48))]))


@pytest.mark.parametrize("first", ["int8", "float32"])
@pytest.mark.parametrize("products", [1, 64, 4096, 1 << 20])
def test_equals_plain_numpy_whatever_the_blocks(
    library: tuple[Store, np.ndarray], queries: np.ndarray, first: screen.First, products: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(screen, "_PRODUCTS", products)
    store, rows_NP = library
    for top in (1, 10, 700) if products > 64 else (10,):
        assert same(rank(store, queries, top, first=first), plain(rows_NP, queries, top))


def test_one_query_equals_many_and_groups_do_not_matter(
    library: tuple[Store, np.ndarray], queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = rank(library[0], queries, 20)
    alone = [rank(library[0], queries[i : i + 1], 20) for i in range(len(queries))]
    assert same(together, Ranking(*(np.concatenate([getattr(a, n) for a in alone]) for n in ("numbers", "scores"))))
    monkeypatch.setattr(screen, "_MOST_QUERIES", 3)
    assert same(rank(library[0], queries, 20), together)


def test_more_than_there_are_gives_all_and_no_query_gives_none(
    library: tuple[Store, np.ndarray], queries: np.ndarray
) -> None:
    store, rows_NP = library
    assert same(rank(store, queries[:2], 10_000), plain(rows_NP, queries[:2], 10_000))
    assert rank(store, queries[:0], 5).numbers.shape == (0, 5)


def test_shards_merge_in_any_order(library: tuple[Store, np.ndarray], queries: np.ndarray) -> None:
    store, rows_NP = library
    parts = [rank(store, queries, 50, [place]) for place in (3, 1, 0, 2)]
    assert same(merge(parts, 50), plain(rows_NP, queries, 50))
    assert same(merge([merge(parts[:2], 50), merge(parts[2:], 50)], 50), merge(parts, 50))


def test_threads_do_not_matter_and_are_given_back(library: tuple[Store, np.ndarray], queries: np.ndarray) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert same(rank(library[0], queries, 30), plain(library[1], queries, 30))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_int8_reads_few_rows(
    library: tuple[Store, np.ndarray], queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pass must do its work: with bounds of nothing it would miss rows, with wide ones score all."""
    scored = []
    exact = screen.exact
    monkeypatch.setattr(screen, "exact", lambda a, b: scored.append(len(a)) or exact(a, b))
    rank(library[0], queries[:4], 5, first="int8")
    assert sum(scored) < 0.1 * 4 * library[0].count


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_store_ranks_as_numpy_does(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Few directions, so that ties and near ties are everywhere; shards and blocks of any size."""
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    width, kinds = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 9))
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    nudge = data.draw(st.sampled_from([0.0, 1e-8, 1e-6, 1e-3, 1.0]))
    directions = random.choice([-1.0, 1.0, 3.0], (kinds, width))
    rows = directions[random.integers(0, kinds, sum(sizes))] + nudge * random.standard_normal((sum(sizes), width))
    rows_NP = unit(rows)
    queries = np.concatenate([rows_NP[:2], unit(random.standard_normal((2, width)) + 0.1)])
    top = data.draw(st.integers(1, 60))
    store = open_store(make(tmp_path_factory.mktemp("any") / "library", rows_NP, sizes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen, "_PRODUCTS", data.draw(st.integers(1, 200)))
        patch.setattr(screen, "_PASSING", data.draw(st.sampled_from([1, 2, 64])))
        for first in ("int8", "float32"):
            assert same(rank(store, queries, top, first=first), plain(rows_NP, queries, top))


def test_one_dimension_ranks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks, of which the first raises the floor for the rest; a wrong int8 product then loses rows."""
    random = np.random.default_rng(0)
    for number in range(20):
        rows_NP, queries_QP = (random.choice(np.float32([-1, 1]), (count, 1)) for count in (50, 3))
        store = open_store(make(tmp_path / f"library-{number}", rows_NP, [20, 30]))
        monkeypatch.setattr(screen, "_PRODUCTS", int(random.integers(60, 200)))
        monkeypatch.setattr(screen, "_PASSING", 1)  # blocks are small here: never leave the int8 product for another
        for first in ("int8", "float32", "auto"):
            assert same(rank(store, queries_QP, 4, first=first), plain(rows_NP, queries_QP, 4))


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    rows_NP = unit(np.random.default_rng(0).standard_normal((9, 4)))
    folder = make(tmp_path / "library", rows_NP, [9])
    store = open_store(folder)
    for wrong in (np.nan, np.inf, 0.0):
        with pytest.raises(ValueError, match="length"):
            rank(store, np.full((1, 4), wrong, np.float32), 3)
    with pytest.raises(ValueError, match="width"):
        rank(store, np.ones((1, 3), np.float32), 3)
    damaged = rows_NP.copy()
    damaged[4] = np.nan
    np.save(next(folder.glob("*/vectors.npy")), damaged)
    with pytest.raises(UserError, match="damaged"):
        rank(open_store(folder), rows_NP[4:5], 9)
