"""Weights of aligned sequences, so that what was sequenced a thousand times does not count a thousand times.

    rows ─▶ signs, one per residue ─▶ products, block by block ─▶ pairs that may be alike ─▶ compared ─▶ 1 / number

Comparing all pairs costs twenty multiplications per place as one-hot vectors. Here residues are first told apart by a
sign alone: the product of two rows of signs bounds their identical places from above, for one multiplication per
place, and few pairs are left to compare letter by letter.

Shapes: N rows, L columns, B rows of a block, M pairs.
"""

from __future__ import annotations

import numpy as np

IDENTITY = 0.8
_BLOCK = 1024  # rows; a product of two blocks has 4 MB
_CELLS = 1 << 22  # letters compared at once
# Residues that often replace one another have different signs, for then a sign parts them too.
_SIGNS = np.zeros(256, np.float32)
_SIGNS[:20] = [1 if residue in "ADFIKMNQSW" else -1 for residue in "ACDEFGHIKLMNPQRSTVWY"]


def sequence_weights(rows: np.ndarray, identity: float = IDENTITY) -> np.ndarray:
    """(N,) float64: 1 / the number of rows that have `identity` of this row's residues, itself among them.

    As in DeepSequence (Riesselman et al. 2018, Nature Methods 15:816) and EVE (Frazer et al. 2021, Nature 599:91): the
    share is of the row's own residues, so that a fragment is like the whole and the whole not like the fragment; gaps
    and other letters are like nothing. A row without residues has weight 0.

    Args:
        rows: (N, L) uint8; 0 to 19 are residues, higher codes are not.
        identity: the share, above 0 and at most 1.

    Raises:
        ValueError: for a share out of range.
    """
    if not 0 < identity <= 1:
        raise ValueError(f"identity: {identity}; a share above 0 and at most 1 is needed")
    count = len(rows)
    residues_N = (rows < 20).sum(1)
    least_N = np.ceil(identity * residues_N - 1e-9).astype(np.int64)  # 0.8 x 5 is above 4 in binary
    alike_N = (residues_N > 0).astype(np.int64)
    blocks = [slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
    for number, left in enumerate(blocks):
        left_BL = _SIGNS[rows[left]]
        for right in blocks[number:]:
            right_BL = left_BL if right is left else _SIGNS[rows[right]]
            # Of c places in which both have residues, p - m is the product where p signs agree: p = (product + c) / 2.
            most_BB = (left_BL @ right_BL.T + np.minimum.outer(residues_N[left], residues_N[right])) / 2
            maybe_BB = most_BB >= np.maximum(np.minimum.outer(least_N[left], least_N[right]), 1)
            if right is left:
                maybe_BB = np.triu(maybe_BB, 1)
            a_M, b_M = np.nonzero(maybe_BB)
            a_M, b_M = a_M + left.start, b_M + right.start
            same_M = _identical(rows, a_M, b_M)
            for of_M in (a_M, b_M):
                alike_N += np.bincount(of_M[(same_M >= least_N[of_M]) & (same_M > 0)], minlength=count)
    return np.where(alike_N > 0, 1 / np.maximum(alike_N, 1), 0.0)


def _identical(rows: np.ndarray, a_M: np.ndarray, b_M: np.ndarray) -> np.ndarray:
    """(M,) int64: places in which the rows of each pair have the same residue."""
    same_M = np.zeros(len(a_M), np.int64)
    step = max(_CELLS // max(rows.shape[1], 1), 1)
    for start in range(0, len(a_M), step):
        left, right = rows[a_M[start : start + step]], rows[b_M[start : start + step]]
        same = (left == right) & (left < 20)
        same_M[start : start + step] = same.sum(1, dtype=np.uint32)
    return same_M
