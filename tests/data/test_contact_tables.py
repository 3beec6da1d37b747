"""Tables of contacts, and families whose pairs are the truth."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biometro.alphabet.protein import STANDARD
from biometro.data import families
from biometro.data.contacts import PairColumns, Protein, read_table, simulated
from biometro.errors import UserError


@given(st.integers(-5, 500), st.data())
def test_pairs_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, first: int, data: st.DataObject
) -> None:
    first = max(first, 0)
    letters = data.draw(st.text(STANDARD, min_size=2, max_size=30))
    places = st.tuples(st.integers(0, len(letters) - 1), st.integers(0, len(letters) - 1)).filter(
        lambda p: p[0] != p[1]
    )
    pairs = data.draw(st.lists(places, max_size=8))
    cell = data.draw(st.sampled_from([";", "; ", " ;"])).join(f"{i + first}-{j + first}" for i, j in pairs)
    path = tmp_path_factory.mktemp("table") / "x.csv"
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([["name", "sequence", "pairs"], ["p", letters, cell]])
    (protein,) = read_table(str(path), PairColumns(id="name", first=first))
    assert protein.name == "p" and protein.letters.decode() == letters and protein.known.all()
    assert {tuple(pair) for pair in protein.pairs.tolist()} == {(min(p), max(p)) for p in pairs}
    matrix = protein.matrix()
    assert all(matrix[i, j] and matrix[j, i] for i, j in pairs) and matrix.sum() == 2 * len(protein.pairs)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("MKTA,1-5", "pair 1-5 is not one of two residues from 1 to 4"),
        ("MKTA,2-2", "pair 2-2"),
        ("MKTA,0-2", "pair 0-2"),
        ("MKTA,1-2;x", "'x' where a pair"),
        ("MKTA,1-2;;3-4", "'' where a pair"),
        ("MK-TA,1-2", "gaps"),
        ("MK7A,1-2", "'7'"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, row: str, words: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"sequence,pairs\nMK,1-2\n{row}\n")
    with pytest.raises(UserError, match=rf"x\.csv, line 3.*{words}"):
        read_table(str(path))


def test_a_table_must_have_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("sequence,contacts\nMK,1-2\n")
    with pytest.raises(UserError, match="no column named 'pairs'"):
        read_table(str(path))
    with pytest.raises(UserError, match="not from text"):
        read_table("MKTAYI")


def test_families_bring_their_pairs_and_their_alignment() -> None:
    proteins = simulated(0, 2, 8)
    for protein, family in zip(proteins, families.simulate(0, 2, 8), strict=True):
        assert protein.letters.decode() == family.members[0]
        np.testing.assert_array_equal(protein.pairs, family.pairs)
        assert protein.rows is not None and protein.rows.shape == (8, len(protein))
        assert "".join(STANDARD[code] for code in protein.rows[5]) == family.members[5]


def test_a_protein_fits_itself() -> None:
    known = np.ones(3, dtype=bool)
    for pairs in ([[0, 3]], [[1, 1]], [[-1, 2]]):
        with pytest.raises(ValueError, match="pair"):
            Protein("x", b"MKT", np.array(pairs), known)
    with pytest.raises(ValueError, match="known"):
        Protein("x", b"MKTA", np.zeros((0, 2), np.int64), known)
