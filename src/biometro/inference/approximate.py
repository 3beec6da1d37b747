"""Approximate ranking: faiss looks into the clusters of a store that are nearest to a query, and no further.

    vectors ─▶ k-means ─▶ int8 codes by cluster (kept in the user's cache) ─▶ candidates ─▶ scored exactly ─▶ best

faiss (Johnson et al. 2019, doi:10.1109/TBDATA.2019.2921572) reads its files as it finds them, so they are never taken
from a store, which may be a stranger's: they lie in the cache folder, under the store's digest. What it finds is scored
as in `screen.py`, so that a row that is found has its true score; rows may be missing, and `recall` says how many.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from biometro.errors import UserError
from biometro.files import new_file, saying
from biometro.inference.screen import NONE, Ranking, exact
from biometro.inference.store import Store

_SAMPLE = 64  # vectors for each cluster that k-means learns from
_LOOKED_AT = 16  # of so many clusters one is looked into, and at least _LEAST
_LEAST = 8
_CANDIDATES = 4  # scored exactly, in units of the rows asked for


class Approximate:
    """Clusters of a store, made or found in the cache. Raises UserError where faiss is not installed.

    Args:
        store: the library.
        tell: is given a line before clusters are made, which takes minutes for a million rows.
    """

    def __init__(self, store: Store, tell: Callable[[str], None] = lambda line: None):
        self.store, faiss = store, _faiss()
        path = _path(store, faiss.__version__)
        try:
            found: Any = faiss.read_index(str(path)) if path.exists() else None
        except RuntimeError:  # cut short, or none of faiss'
            found = None
        if found is None or (found.ntotal, found.d) != (store.count, store.width):
            tell(f"clustering {store.count:,} rows for approximate search; kept at {path}")
            found = _clustered(store, faiss)
            with saying(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(path) as work:
                faiss.write_index(found, str(work))
        self._index: Any = found
        self._index.nprobe = min(self._index.nlist, max(_LEAST, self._index.nlist // _LOOKED_AT))

    @property
    def looked_at(self) -> str:
        """How much of the store a query sees, in words."""
        return f"{self._index.nprobe} of {self._index.nlist} clusters"

    def rank(self, queries_QP: np.ndarray, top: int) -> Ranking:
        """As `screen.rank`; a place that no row was found for has the number NONE and the score -inf."""
        top = min(top, self.store.count)
        _, found_QC = self._index.search(
            np.ascontiguousarray(queries_QP, np.float32), min(_CANDIDATES * top, self.store.count)
        )
        best = Ranking(np.full((len(queries_QP), top), NONE), np.full((len(queries_QP), top), -np.inf, np.float32))
        for query, found_C in enumerate(found_QC):
            numbers_C = np.sort(found_C[(found_C >= 0) & (found_C < self.store.count)])
            scores_C = exact(self.store.vectors(numbers_C), queries_QP[query].astype(np.float64))
            order = np.argsort(-scores_C, kind="stable")[:top]
            best.numbers[query, : len(order)], best.scores[query, : len(order)] = numbers_C[order], scores_C[order]
        return best


def recall(found: Ranking, expected: Ranking) -> np.ndarray:
    """(Q,) float64: of the rows that exact ranking gives, the share that was found. Rows whose score is that of the
    last one count as found where as many of that score were, since ties are no mistakes."""
    shares = []
    for mine_K, theirs_K in zip(found.scores, expected.scores, strict=True):
        shares.append(float((mine_K[: len(theirs_K)] >= theirs_K[-1]).mean()))
    return np.array(shares)


def _clustered(store: Store, faiss: Any) -> Any:
    """Inverted lists of int8 vectors. faiss draws its first centres by a seed of its own."""
    clusters = max(1, min(store.count // _SAMPLE, round(4 * store.count**0.5)))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(store.width), store.width, clusters, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    sample = np.linspace(0, store.count - 1, min(store.count, _SAMPLE * clusters)).astype(np.int64)
    index.train(store.vectors(sample))
    for shard in store.shards:
        index.add(np.ascontiguousarray(shard.vectors))
    return index


def _path(store: Store, version: str) -> Path:
    folder = Path(os.environ.get("BIOMETRO_CACHE") or "~/.cache/biometro").expanduser()
    key = f"{store.digest} {store.count} {store.width} {version}"
    return folder / "approximate" / f"{hashlib.sha256(key.encode()).hexdigest()}.faiss"


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "approximate needs faiss, which is not installed: pip install 'biometro[approximate]'"
        ) from error
    return faiss
