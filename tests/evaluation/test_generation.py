"""Figures of generated variants: against plain slow versions, and controls against what they promise."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare, spearmanr

from biometro.alphabet.protein import STANDARD
from biometro.data import families
from biometro.evaluation import generation
from biometro.evaluation.generation import Group, agreement, composition, controls, diversity, figures, nearest, rates
from biometro.evaluation.generation_report import write_page
from biometro.inference.generate import Table
from biometro.inference.space import encode, space_of

WILDTYPE = b"MKTAYIAK"
VARIANTS = [b"MKTAYIAW", b"CKTAYLAK", b"CKTDYIAK", b"MKTDYLAK"]


@dataclass
class Columns:
    """An alignment as `figures` asks for it; nothing is aligned in the last column."""

    rows: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        counts = np.stack([(self.rows == a).sum(0) for a in range(20)], axis=1).astype(np.float64)
        counts[-1] = 0
        return counts

    def frequencies(self) -> np.ndarray:
        frequencies: np.ndarray = (self.counts + 0.5) / (self.counts + 0.5).sum(1, keepdims=True)
        return frequencies

    def conservation(self) -> np.ndarray:
        conservation = self.frequencies().max(1)
        conservation[-1] = np.nan
        return conservation


@pytest.fixture
def alignment() -> Columns:
    rows = [b"MKTAYIAK", b"CKTAYIA-", b"CKTEYLA-", b"CKSDYVA-"]
    return Columns(np.stack([[20 if c == 45 else STANDARD.index(chr(c)) for c in row] for row in rows]))


def codes(sequences: list[bytes]) -> np.ndarray:
    return np.stack([encode(s) for s in sequences])


def of(name: str, variants: list[bytes]) -> Group:
    return Group(name, variants, np.arange(len(variants)) - 1.0)


def test_diversity_is_the_mean_over_pairs() -> None:
    random = np.random.default_rng(0)
    some = random.integers(-1, 3, size=(15, 9))
    pairs = [(a != b).mean() for a, b in itertools.combinations(some, 2)]
    assert diversity(some) == pytest.approx(np.mean(pairs))
    assert math.isnan(diversity(some[:1])) and diversity(some[[0, 0]]) == 0


def test_nearest_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    some, rows = random.integers(0, 3, size=(15, 9)), random.integers(-2, 3, size=(6, 9))
    monkeypatch.setattr(generation, "_BLOCK", 120)  # several blocks
    assert nearest(some, rows) == pytest.approx([max((a == b).mean() for b in rows) for a in some])


def test_figures_of_variants(alignment: Columns) -> None:
    space = space_of(WILDTYPE, "1-2")
    found = figures(of("x", VARIANTS), space, [VARIANTS[0], b"AAA", WILDTYPE], alignment)
    assert found["mutations"] == 7 / 4 and found["identity"] == pytest.approx(1 - 7 / 32)
    assert (found["score"], found["better"], found["variants"]) == (0.5, 0.5, 4)
    assert found["novel"] == 0.75
    # the nearest that is not the wild type: itself; CKTAYIA-, CKTAYIA-; CKTAYIA- or CKSDYVA-
    assert found["nearest"] == pytest.approx((1 + 6 / 8 + 6 / 8 + 5 / 8) / 4)
    assert figures(of("x", VARIANTS), space, [WILDTYPE])["novel"] == 1
    assert math.isnan(figures(of("x", VARIANTS), space, [WILDTYPE])["nearest"])
    assert "novel" not in figures(of("x", VARIANTS), space)
    no_gaps = [b"CKTAYIA", b"MKTAYIAK"]  # a row counts without its gaps
    assert figures(of("x", no_gaps[1:]), space, (), alignment)["novel"] == 0


def test_agreement_with_an_alignment(alignment: Columns) -> None:
    space = space_of(WILDTYPE, "1-2", fixed="2")
    found = agreement(codes(VARIANTS), space, alignment)
    rate = np.array([0.5, 0, 0.5, 0, 0.5, 0])  # columns 1, 3 to 7; position 2 is fixed, 8 has nothing aligned
    variability = 1 - alignment.conservation()[[0, 2, 3, 4, 5, 6]]
    assert found["conservation"] == pytest.approx(spearmanr(rate, variability).statistic)
    assert found["seen"] == 1  # M1C twice, A4D twice, I6L twice; K8W is not counted
    frequencies = alignment.frequencies()
    mutations = [(0, "C", "M"), (3, "D", "A"), (5, "L", "I")]
    mine = np.mean([np.log(frequencies[i, STANDARD.index(a)]) for i, a, _ in mutations])
    own = np.mean([np.log(frequencies[i, STANDARD.index(b)]) for i, _, b in mutations])
    assert found["family_log"] == pytest.approx(mine) and found["family_gain"] == pytest.approx(mine - own)
    assert agreement(codes([b"MKTWYIAK"]), space, alignment)["seen"] == 0


def test_controls_are_as_far_away_and_follow_their_tables(alignment: Columns) -> None:
    from Bio.Align import substitution_matrices

    space = space_of(b"WLKA", "1-2", fixed="2", exclude="C")
    flat = Table(np.zeros((4, 20)))
    variants = [b"WLKC", b"ALRA"] * 2000
    random, blosum = controls(flat, space, variants, seed=0)
    for one in (random, blosum):
        distances = [int((encode(a) != space.codes).sum()) for a in one.variants]
        assert distances == [1, 2] * 2000
        assert all(v[1:2] == b"L" and b"C" not in v for v in one.variants)
    first = [v[0] for v in random.variants if v[0] != ord("W")]
    assert chisquare([first.count(ord(a)) for a in STANDARD if a not in "CW"]).pvalue > 1e-3
    table = substitution_matrices.load("BLOSUM62")
    _, background = families.rate_matrix()
    shares = {
        a: f * 2 ** (table["W"][a] / 2) for a, f in zip(families.RESIDUES, background, strict=True)
        if a not in "CW"
    }  # fmt: skip
    first = [v[0] for v in blosum.variants if v[0] != ord("W")]
    expected = np.array(list(shares.values())) / sum(shares.values()) * len(first)
    assert chisquare([first.count(ord(a)) for a in shares], expected).pvalue > 1e-3
    few = controls(Table(np.zeros((8, 20))), space_of(WILDTYPE, 2), VARIANTS[1:3], 0, alignment)
    assert [one.name for one in few][-1] == generation.FAMILY and len(few[-1].variants) == generation.FEWEST
    assert not {*few[0].variants} & {*few[1].variants} or few[0].variants != few[1].variants


def test_rates_and_composition() -> None:
    space = space_of(WILDTYPE, "1-2")
    assert rates(of("x", VARIANTS), space).tolist() == [0.5, 0, 0, 0.5, 0, 0.5, 0, 0.25]
    shares = composition(of("x", VARIANTS), space)
    assert {STANDARD[a]: shares[a] for a in np.flatnonzero(shares)} == pytest.approx(
        {"W": 1 / 7, "C": 2 / 7, "L": 2 / 7, "D": 2 / 7}
    )


def test_the_page_holds_what_was_found(tmp_path: Path, alignment: Columns) -> None:
    space = space_of(WILDTYPE, "1-2", first=11)
    groups = [of(generation.GENERATED, VARIANTS), *controls(Table(np.zeros((8, 20))), space, VARIANTS, 0, alignment)]
    found = {one.name: figures(one, space, (), alignment) for one in groups}
    write_page(
        tmp_path / "page.html", title="a <b>", facts={"model": "<i>"}, space=space, groups=groups, found=found,
        note="few & far", conservation=alignment.conservation(),
    )  # fmt: skip
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg role") == 3 and "few &amp; far" in page and "<i>" not in page and "<b>" not in page
    places = [page.index(f"<td>{names}<td>") for names in ("A14D: I16L", "M11C: A14D", "M11C: I16L", "K18W")]
    assert places == sorted(places) and "nan" not in page.lower()
