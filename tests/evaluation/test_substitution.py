"""Baselines of variant effects against columns scored one by one, Biopython's tables and scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from Bio.Align import PairwiseAligner, substitution_matrices
from Bio.SeqUtils.ProtParamData import kd

from biometro.alphabet import amino_acids
from biometro.alphabet.protein import STANDARD
from biometro.data.alignment import Alignment
from biometro.errors import UserError
from biometro.evaluation import substitution

WILDTYPE = "MKTAYIAKQRXQISFVKSHF"
BACKGROUND = {residue: amino_acids.BACKGROUND[k] for k, residue in enumerate(amino_acids.ORDER)}
VOLUME = {residue: amino_acids.VOLUME[k] for k, residue in enumerate(amino_acids.ORDER)}


@dataclass(frozen=True)
class Change:
    start: int
    end: int
    letters: str


@dataclass(frozen=True)
class Variant:
    name: str
    changes: tuple[Change, ...]


def replaced(*changes: tuple[int, str]) -> Any:
    return Variant(str(changes), tuple(Change(place, place + 1, letter) for place, letter in changes))


def changed(*changes: tuple[int, int, str]) -> Any:
    return Variant(str(changes), tuple(Change(*change) for change in changes))


def random_variants(seed: int, count: int, length: int, longest: int = 4) -> list[Any]:
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        places = np.sort(random.choice(length, random.integers(0, longest + 1), replace=False)).tolist()
        found.append(replaced(*((place, str(random.choice(list(STANDARD)))) for place in places)))
    return found


def singles(wildtype: str) -> list[Any]:
    return [replaced((place, a)) for place, old in enumerate(wildtype) for a in STANDARD if a != old]


def slow(variants: Sequence[Any], score: Callable[[int, str, str], float]) -> list[float]:
    """Sums over replaced residues by place, old and new letter; NaN outside the 20."""
    found = []
    for variant in variants:
        total = 0.0
        for change in variant.changes:
            old, new = WILDTYPE[change.start], change.letters
            total += score(change.start, old, new) if {old, new} <= set(STANDARD) else np.nan
        found.append(total)
    return found


VARIANTS = [*random_variants(0, 200, len(WILDTYPE)), replaced(), replaced((0, "X")), replaced((10, "A"))]


def aligned() -> Alignment:
    random = np.random.default_rng(1)
    rows = random.integers(0, 22, (30, len(WILDTYPE))).astype(np.uint8)
    return Alignment(WILDTYPE, rows, random.random(30), np.arange(len(WILDTYPE)) != 4)


def test_tables_are_summed_over_replaced_residues() -> None:
    scores = substitution_matrices.load("BLOSUM62")
    cases: list[tuple[np.ndarray, Callable[[int, str, str], float]]] = [
        (substitution.blosum62(WILDTYPE, VARIANTS), lambda _, old, new: scores[old, new] - scores[old, old]),
        (substitution.hydrophobicity(WILDTYPE, VARIANTS), lambda _, old, new: -abs(kd[new] - kd[old])),
        (substitution.volume(WILDTYPE, VARIANTS), lambda _, old, new: -abs(VOLUME[new] - VOLUME[old])),
        (substitution.composition(WILDTYPE, VARIANTS), lambda _, old, new: np.log(BACKGROUND[new] / BACKGROUND[old])),
    ]
    for found, score in cases:
        expected = np.array(slow(VARIANTS, score))
        assert found.shape == (len(VARIANTS),) and found.dtype == np.float64
        assert 2 < np.isnan(expected).sum() < 100
        assert np.allclose(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
        assert found[200] == 0 and not np.signbit(found[200])


def test_site_independent_is_the_log_ratio_in_the_column() -> None:
    alignment = aligned()
    for pseudocount in (1.0, 10.0):
        f = alignment.frequencies(pseudocount)
        expected = slow(VARIANTS, lambda k, a, b, f=f: np.log(f[k, STANDARD.index(b)] / f[k, STANDARD.index(a)]))
        found = substitution.site_independent(alignment, WILDTYPE, VARIANTS, pseudocount)
        assert np.allclose(found, expected, rtol=1e-9, atol=1e-12, equal_nan=True)
    uncovered = [replaced((4, a)) for a in STANDARD]  # where nothing is aligned, composition is left
    assert np.allclose(
        substitution.site_independent(alignment, WILDTYPE, uncovered), substitution.composition(WILDTYPE, uncovered)
    )
    with pytest.raises(UserError, match="is not the wild type"):
        substitution.site_independent(alignment, WILDTYPE[1:], [])
    with pytest.raises(ValueError, match="logarithm"):
        substitution.site_independent(alignment, WILDTYPE, [], 0)


def test_an_alignment_of_one_sequence_ranks_as_blosum_does_in_a_column() -> None:
    wildtype = "ACDEFGHIKLMNPQRSTVWY"
    alone = Alignment(wildtype, np.arange(20, dtype=np.uint8)[None], np.ones(1))
    variants = singles(wildtype)
    found = substitution.site_independent(alone, wildtype, variants)
    table, background = amino_acids.standard(amino_acids.blosum62()), amino_acids.standard(amino_acids.BACKGROUND)
    expected = [
        background[STANDARD.index(v.changes[0].letters)]
        * 2.0 ** (table[v.changes[0].start, STANDARD.index(v.changes[0].letters)] / 2)
        for v in variants
    ]
    for place in range(20):
        here = [k for k, v in enumerate(variants) if v.changes[0].start == place]
        ratio = np.exp(found[here]) / np.array(expected)[here]
        assert np.allclose(ratio, ratio[0])


def aligned_score(pairs: list[tuple[str, str]]) -> float:
    """Of an alignment's columns, where a gap of k costs 11 + k."""
    scores = substitution_matrices.load("BLOSUM62")
    total, before = 0.0, ""
    for old, new in pairs:
        side = "old" if old == "-" else "new" if new == "-" else ""
        total += scores[old, new] if not side else -1 if side == before else -12
        before = side
    return total


@pytest.mark.parametrize(
    ("changes", "old", "new"),
    [
        ([(2, 3, "")], "MKTAYIAK", "MK-AYIAK"),
        ([(2, 5, "")], "MKTAYIAK", "MK---IAK"),
        ([(3, 3, "GG")], "MKT--AYIAK", "MKTGGAYIAK"),
        ([(8, 8, "W")], "MKTAYIAK-", "MKTAYIAKW"),
        ([(2, 3, "RGG")], "MKT--AYIAK", "MKRGGAYIAK"),
        ([(2, 5, "R")], "MKTAYIAK", "MKR--IAK"),
        ([(0, 1, ""), (4, 5, "W"), (6, 6, "P")], "MKTAYI-AK", "-KTAWIPAK"),
    ],
)
def test_blosum_scores_insertions_and_deletions_as_an_alignment(changes: list, old: str, new: str) -> None:
    wildtype = old.replace("-", "")
    own = aligned_score([(a, a) for a in wildtype])
    expected = aligned_score(list(zip(old, new, strict=True))) - own
    assert substitution.blosum62(wildtype, [changed(*changes)]).tolist() == [expected]
    aligner = PairwiseAligner(mode="global", open_gap_score=-12, extend_gap_score=-1)
    aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")
    assert aligner.score(wildtype, new.replace("-", "")) - own >= expected
    others = [f(wildtype, [changed(*changes)]) for f in (substitution.volume, substitution.composition)]
    assert np.isnan(others).all()


def test_what_is_not_of_the_twenty_is_not_scored() -> None:
    variants = [changed((10, 11, "")), changed((3, 3, "X")), changed((0, 1, "")), changed((9, 11, "A"))]
    assert np.isnan(substitution.blosum62(WILDTYPE, variants)).tolist() == [True, True, False, True]
    for wrong in (changed((19, 21, "")), changed((-1, 0, "A"))):
        with pytest.raises(ValueError, match="of 20"):
            substitution.blosum62(WILDTYPE, [wrong])


def test_a_deep_scan_is_scored_in_seconds() -> None:
    wildtype = "MKTAYIAKQR" * 30
    variants = singles(wildtype) * 10
    assert substitution.blosum62(wildtype, variants).shape == (57_000,)
