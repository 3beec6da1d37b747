"""Tables of the residues against those of Biopython."""

from __future__ import annotations

import numpy as np
import pytest

from biometro.alphabet import amino_acids
from biometro.alphabet.amino_acids import ORDER
from biometro.alphabet.protein import STANDARD


def test_tables_are_those_of_biopython() -> None:
    matrices = pytest.importorskip("Bio.Align.substitution_matrices")
    hydropathy = pytest.importorskip("Bio.SeqUtils.ProtParamData").kd
    reference = matrices.load("BLOSUM62")
    assert np.array_equal(amino_acids.blosum62(), [[reference[a, b] for b in ORDER] for a in ORDER])
    assert amino_acids.HYDROPATHY.tolist() == [hydropathy[residue] for residue in ORDER]


def test_tables_in_the_order_of_the_alphabet() -> None:
    scores, volumes = amino_acids.standard(amino_acids.blosum62()), amino_acids.standard(amino_acids.VOLUME)
    for i, a in enumerate(STANDARD):
        assert volumes[i] == amino_acids.VOLUME[ORDER.index(a)]
        for j, b in enumerate(STANDARD):
            assert scores[i, j] == amino_acids.blosum62()[ORDER.index(a), ORDER.index(b)]


def test_nobody_can_change_a_table_for_all() -> None:
    with pytest.raises(ValueError, match="read-only"):
        amino_acids.BACKGROUND[0] = 1
    amino_acids.standard(amino_acids.BACKGROUND)[0] = 1
    amino_acids.blosum62()[:] = 0
    assert amino_acids.blosum62().any()
