"""What is known of the twenty residues by themselves: how they replace one another, how common they are, their nature.

The tables stand in the order in which BLOSUM62 was published, `ORDER`; `standard` gives them in that of `STANDARD`.
"""

from __future__ import annotations

import numpy as np

from biometro.alphabet.protein import STANDARD

ORDER = "ARNDCQEGHILKMFPSTWYV"  # of every table below

# Henikoff & Henikoff 1992, PNAS 89:10915: log-odds in half bits, lower triangle and diagonal, row by row.
_BLOSUM62 = """
4  -1 5  -2 0 6  -2 -2 1 6  0 -3 -3 -3 9  -1 1 0 0 -3 5  -1 0 0 2 -4 2 5  0 -2 0 -1 -3 -2 -2 6
-2 0 1 -1 -3 0 0 -2 8  -1 -3 -3 -3 -1 -3 -3 -4 -3 4  -1 -2 -3 -4 -1 -2 -3 -4 -3 2 4
-1 2 0 -1 -3 1 1 -2 -1 -3 -2 5  -1 -1 -2 -3 -1 0 -2 -3 -2 1 2 -1 5  -2 -3 -3 -3 -2 -3 -3 -3 -1 0 0 -3 0 6
-1 -2 -2 -1 -3 -1 -1 -2 -2 -3 -3 -1 -2 -4 7  1 -1 1 0 -1 0 0 0 -1 -2 -2 0 -1 -2 -1 4
0 -1 0 -1 -1 -1 -1 -2 -2 -1 -1 -1 -1 -2 -1 1 5  -3 -3 -4 -4 -2 -2 -3 -2 -2 -3 -2 -3 -1 1 -4 -3 -2 11
-2 -2 -2 -3 -2 -1 -2 -3 2 -1 -1 -2 -1 3 -3 -2 -2 2 7  0 -3 -3 -3 -1 -2 -2 -3 -3 3 1 -2 1 -1 -2 -2 0 -3 -1 4
"""
# Background frequencies of BLOSUM62 (`BLOSUM62_bg` in matrix_frequency_data.c of NCBI BLAST+, rounded).
BACKGROUND = np.array([.074, .052, .045, .054, .025, .034, .054, .074, .026, .068,
                       .099, .058, .025, .047, .039, .057, .051, .013, .032, .073])  # fmt: skip
# Hydropathy (Kyte & Doolittle 1982), residue volume in cubic angstrom (Zamyatnin 1972), charge at pH 7.
HYDROPATHY = np.array([1.8, -4.5, -3.5, -3.5, 2.5, -3.5, -3.5, -0.4, -3.2, 4.5,
                       3.8, -3.9, 1.9, 2.8, -1.6, -0.8, -0.7, -0.9, -1.3, 4.2])  # fmt: skip
VOLUME = np.array([88.6, 173.4, 114.1, 111.1, 108.5, 143.8, 138.4, 60.1, 153.2, 166.7,
                   166.7, 168.6, 162.9, 189.9, 112.7, 89.0, 116.1, 227.8, 193.6, 140.0])  # fmt: skip
CHARGE = np.array([(residue in "RK") - (residue in "DE") for residue in ORDER], dtype=np.float64)

for _table in (BACKGROUND, HYDROPATHY, VOLUME, CHARGE):
    _table.flags.writeable = False  # one copy serves all


def blosum62() -> np.ndarray:
    """(20, 20) int64 scores in half bits, in the order of `ORDER`."""
    lower = np.zeros((20, 20), dtype=np.int64)
    lower[np.tril_indices(20)] = [int(score) for score in _BLOSUM62.split()]
    return lower + np.tril(lower, -1).T


def standard(table: np.ndarray) -> np.ndarray:
    """A table in the order of `ORDER`, (20,) or (20, 20), in that of `STANDARD`; a copy."""
    places = [ORDER.index(residue) for residue in STANDARD]
    return table[np.ix_(*[places] * table.ndim)]
