"""Logos against a plain computation, letter by letter."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from biometro.alphabet.protein import STANDARD
from biometro.evaluation import logos


def entropy(counts: list[int]) -> float:
    total = sum(counts)
    return -sum(c / total * math.log2(c / total) for c in counts if c)


def test_the_correction_is_the_mean_entropy_over_every_draw() -> None:
    """Schneider et al. 1986 sum over all compositions of n residues; here over all 20^n rows, and for large n by their
    approximation."""
    for n in (1, 2, 3):
        every = itertools.product(range(20), repeat=n)
        mean = np.mean([entropy([*Counter(row).values()]) for row in every])
        assert logos.correction(n) == pytest.approx(math.log2(20) - mean, abs=1e-9)
    assert logos.correction(5000) == pytest.approx(19 / (2 * math.log(2) * 5000), rel=0.01)
    assert logos.correction(0) == math.log2(20)


def test_heights_are_those_of_a_plain_computation() -> None:
    random = np.random.default_rng(0)
    rows = ["C" + "".join(random.choice(list("AGS"), 3)) + "XF"[n % 2] for n in range(40)]
    found = logos.heights(rows)
    for place in range(5):
        column = Counter(row[place] for row in rows if row[place] in STANDARD)
        n = sum(column.values())
        bits = max(0.0, math.log2(20) - entropy([*column.values()]) - logos.correction(n))
        for a, letter in enumerate(STANDARD):
            assert found[place, a] == pytest.approx(column[letter] / n * bits)
    assert found[0].argmax() == STANDARD.index("C") and found[0].sum() > found[1].sum() > 0


def test_the_commonest_length_or_both_ends() -> None:
    rows = ["CASF", "CASSF", "CATSF", "CAF", "CAAF", "CAAAAAAF"]
    found = logos.logo(rows)
    assert found is not None and (found.used, found.of, found.heights.shape) == (2, 6, (4, 20))  # of two, the shorter
    assert "2 of 6 sequences" in found.note and "4 residues" in found.note
    ends = logos.logo(rows, "ends")
    assert ends is not None and ends.heights.shape == (8, 20) and ends.used == 6
    assert logos.ends_aligned("CASSF", 8) == "CAS---SF" and logos.ends_aligned("CASF", 4) == "CASF"
    assert ends.heights[0].argmax() == STANDARD.index("C") and ends.heights[7].argmax() == STANDARD.index("F")
    assert logos.logo([]) is None and logos.logo([""]) is None


@given(st.text(STANDARD, max_size=20), st.integers(0, 10))
def test_alignment_of_ends_loses_nothing(sequence: str, more: int) -> None:
    found = logos.ends_aligned(sequence, len(sequence) + more)
    assert len(found) == len(sequence) + more and found.replace("-", "") == sequence


def test_chains_of_receptors() -> None:
    found = logos.cdr3_sets([b"CAVF|CASSF:GIL", b"|CASF", b"CAGF", b"CAF|:GIL@YF"])
    assert found == {"alpha": ["CAVF", "CAF"], "beta": ["CASSF", "CASF"], "chain": ["CAGF"]}


def test_letters_fill_their_boxes_in_the_colours_of_chemistry() -> None:
    patch = logos._letter("D", 1.0, 0.5, 0.9, 2.0)
    box = patch.get_path().get_extents()
    assert (box.x0, box.y0, box.width, box.height) == pytest.approx((1.0, 0.5, 0.9, 2.0))
    assert patch.get_facecolor()[:3] == pytest.approx(to_rgb(logos.CHEMISTRY["acidic"]))
    assert set(logos.COLOURS) == set(STANDARD)
    one = logos.logo(["CASSF", "CASTF", "CADDF"] * 5)
    assert one is not None
    svg = logos.draw(one)
    assert svg.startswith("<svg ") and svg.rstrip().endswith("</svg>") and "<image" not in svg
    assert svg.count(logos.CHEMISTRY["acidic"]) >= 2 and "currentColor" in svg
    assert not re.search(r"NaN|inf", svg) and svg == logos.draw(one)
