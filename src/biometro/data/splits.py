"""Which sequences are held out.

A split is a function of sequence digests, so it does not depend on the order of files, and one sequence falls on
the same side in every corpus. Splits by homology will be another function of the same shape.
"""

from __future__ import annotations

import numpy as np


def by_hash(digests: np.ndarray, valid: float) -> np.ndarray:
    """(N, 16) uint8 digests -> (N,) bool, True where held out; a share `valid` of all sequences in expectation.

    Reads the last 8 bytes: the first order the corpus, and must stay independent of the split.
    """
    numbers = np.ascontiguousarray(digests[:, 8:]).view(">u8").reshape(-1)
    return numbers < np.uint64(min(int(valid * 2.0**64), 2**64 - 1))


def given(name: str | None) -> bool | None:
    """What a table's split column says: True for `valid`, False for `train`; None where it is neither."""
    return {"train": False, "valid": True}.get(name or "")
