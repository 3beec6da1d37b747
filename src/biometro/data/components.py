"""What hangs together: connected components of links, and groups numbered alike however they were found."""

from __future__ import annotations

import numpy as np


def components(count: int, links: np.ndarray) -> np.ndarray:
    """(2, M) pairs of `count` things -> (count,) int64, the number of each one's connected component."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(links.shape[1], np.int8), (links[0], links[1])), shape=(count, count))
    return connected_components(graph.tocsr(), directed=False)[1].astype(np.int64)


def by_first_appearance(numbers: np.ndarray) -> np.ndarray:
    """(N,) of any numbers -> (N,) int64, the same groups numbered from 0 in the order in which they appear."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)
