"""Speed of exact ranking, beside a plain NumPy product and argpartition, and beside the memory itself.

The library is memory-mapped float32 for NumPy and a store of the same rows for us (int8 for the first look, the same
float32 behind it); pages are in memory before the clock starts. Memory's floor is the time in which both cores read
the library's float32, and the store's int8, once. Recall is against scores in float64.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

import common
from biometro.inference.screen import Ranking, rank
from biometro.inference.store import SHARD_NUMBERS, About, Store, open_store, shard_name, write_about, write_shard

NUMPY, FLOAT32, OURS = "numpy float32, argpartition", "biometro, float32 alone", "biometro"
READ_FLOAT32, READ_INT8 = "reading the float32", "reading the int8"
TARGET = (0.5, 0.35)  # our time in that of NumPy


def unit(rows_NP: np.ndarray) -> np.ndarray:
    return rows_NP / np.linalg.norm(rows_NP, axis=1, keepdims=True)


def make(folder: Path, count: int, width: int, spread: float, seed: int) -> tuple[Store, np.ndarray]:
    """A store, and the same rows as one memory-mapped array. Rows lie around 1,000 centres: `spread` is how far, in
    units of the centres' own length (0: no centres)."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((1000, width), dtype=np.float32)
    flat = np.lib.format.open_memmap(folder / "flat.npy", "w+", np.float32, (count, width))
    size, notes = SHARD_NUMBERS // width, []
    for place, start in enumerate(range(0, count, size)):
        rows = random.standard_normal((min(size, count - start), width), dtype=np.float32)
        if spread:
            rows = spread * rows + centres[random.integers(0, len(centres), len(rows))]
        flat[start : start + len(rows)] = unit(rows)
        names = [str(start + i) for i in range(len(rows))]
        home = folder / "store" / shard_name(place, [str(start)])
        notes.append(write_shard(home, names, [b"A"] * len(rows), flat[start : start + len(rows)]))
    write_about(folder / "store", About("none", "none", "ligand", "molecule"), width, notes)
    del flat
    return open_store(folder / "store"), np.load(folder / "flat.npy", mmap_mode="r")


def with_numpy(flat_NP: np.ndarray, queries_QP: np.ndarray, top: int) -> Ranking:
    """All scores, then the best of each query by argpartition, sorted."""
    scores_QN = queries_QP @ flat_NP.T
    place_QK = np.argpartition(scores_QN, -top, axis=1)[:, -top:]
    best_QK = np.take_along_axis(scores_QN, place_QK, 1)
    order_QK = np.argsort(-best_QK, axis=1, kind="stable")
    return Ranking(np.take_along_axis(place_QK, order_QK, 1), np.take_along_axis(best_QK, order_QK, 1))


def read(arrays: list[np.ndarray], threads: int) -> int:
    """Every byte once, as 64-bit numbers, by all threads."""
    pieces = [piece for array in arrays for piece in np.array_split(array.reshape(-1).view(np.int64), 4 * threads)]
    with ThreadPoolExecutor(threads) as pool:
        return (
            sum(int(np.bitwise_xor.reduce(piece)) for piece in pieces)
            if threads == 1
            else sum(map(int, pool.map(np.bitwise_xor.reduce, pieces)))
        )


def last_scores(store: Store, queries_QP: np.ndarray, top: int) -> np.ndarray:
    """(Q,) scores of the last of each query's best, in float64."""
    best_KQ = np.empty((0, len(queries_QP)))
    for shard in store.shards:
        scores_NQ = np.concatenate([best_KQ, shard.vectors.astype(np.float64) @ queries_QP.T.astype(np.float64)])
        best_KQ = np.partition(scores_NQ, -top, axis=0)[-top:]
    return best_KQ.min(0)


def recall(found: Ranking, store: Store, queries_QP: np.ndarray, last_Q: np.ndarray) -> float:
    """Share of each query's best that were found, by scores in float64; one that equals the last of them counts."""
    shares = [
        (store.vectors(numbers_K).astype(np.float64) @ query >= last - 1e-12).mean()
        for query, numbers_K, last in zip(queries_QP.astype(np.float64), found.numbers, last_Q, strict=True)
    ]
    return float(np.mean(shares))


def contenders(store: Store, flat_NP: np.ndarray, queries_QP: np.ndarray, top: int, threads: int) -> dict[str, Any]:
    codes, floats = [shard.codes for shard in store.shards], [shard.vectors for shard in store.shards]
    found: dict[str, Callable[[], Any]] = {
        NUMPY: partial(with_numpy, flat_NP, queries_QP, top),
        FLOAT32: partial(rank, store, queries_QP, top, first="float32"),
        OURS: partial(rank, store, queries_QP, top),
        READ_FLOAT32: partial(read, floats, threads),
        READ_INT8: partial(read, codes, threads),
    }
    return found


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    random = np.random.default_rng(options.seed + 1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, threadpool_limits(options.threads):
        store, flat_NP = make(Path(folder), options.rows, options.width, options.spread, options.seed)
        for count in options.queries:
            near = store.vectors(random.integers(0, store.count, count))  # as a query's partners lie: some are near
            noise = random.standard_normal((count, options.width)).astype(np.float32)
            queries_QP = unit(near + noise / np.linalg.norm(noise, axis=1, keepdims=True))
            runs = contenders(store, flat_NP, queries_QP, options.top, options.threads)
            for run in runs.values():
                run()  # pages come into memory
            rounds = common.interleave(runs, options, options.width)
            rows, last_Q = [], last_scores(store, queries_QP, options.top)
            for name in runs:
                ratios, milliseconds = rounds.ratios(name, NUMPY), [1e3 * s for s in rounds.seconds[name].values()]
                ranked = name in (NUMPY, FLOAT32, OURS)
                told = recall(rounds.results[name][0], store, queries_QP, last_Q) if ranked else None
                rows.append([
                    name, common.spread(milliseconds, 1), common.spread(ratios, 3),
                    common.spread(rounds.ratios(name, READ_FLOAT32)), common.spread(rounds.ratios(name, READ_INT8)),
                    "-" if told is None else f"{told:.4f}",
                    common.verdict(median(ratios), *TARGET) if name == OURS else "-",
                ])  # fmt: skip
            common.print_table(
                f"\nExact top {options.top} of {store.count:,} x {store.width}, {count} "
                f"{'query' if count == 1 else 'queries'}, spread {options.spread:g}, {options.rounds} rounds",
                ["", "ms", "time / numpy (range)", "/ reading float32", "/ reading int8", "recall", "target"], rows,
            )  # fmt: skip
    common.print_environment(rounds, options.seed, "threadpoolctl")


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--top", type=int, default=100)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--spread", type=float, default=0.0, help="of rows around centres; 0 is no centres")
    parser.add_argument("--folder", default=None, help="for the library: 2.3 GB at the default size")
    main(parser.parse_args())
