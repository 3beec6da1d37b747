"""Pictures of variants: cut into lines, and what stands in them."""

from __future__ import annotations

import numpy as np
import pytest

from biometro.alphabet.protein import STANDARD
from biometro.evaluation import variant_plots

CUTS = [
    (5, 100, (1, 5)),
    (100, 100, (1, 100)),
    (124, 100, (2, 70)),
    (199, 100, (2, 100)),
    (286, 100, (3, 100)),
    (300, 300, (1, 300)),
]


@pytest.mark.parametrize(("length", "most", "expected"), CUTS)
def test_lines_are_about_as_long_as_one_another(length: int, most: int, expected: tuple[int, int]) -> None:
    lines, across = variant_plots._lines(length, most)
    assert (lines, across) == expected and (lines - 1) * across < length <= lines * across


def test_a_heat_map_has_every_position_once_and_the_wild_type_unscored() -> None:
    wildtype = "MKXTAYIAKQ" * 13
    scores = np.random.default_rng(0).normal(size=(len(wildtype), 20))
    scores[2::10] = np.nan
    figure = variant_plots.heat_map(wildtype, scores, STANDARD, first=24)
    shown = np.concatenate([axes.images[0].get_array().filled(np.nan).T for axes in figure.axes[:2]])
    assert shown.shape == (len(wildtype), 20)
    columns = [STANDARD.index(letter) for letter in variant_plots.ORDER]
    own = np.array([[letter == a for letter in variant_plots.ORDER] for a in wildtype])
    assert np.isnan(shown[own]).all() and np.isnan(shown[2::10]).all()
    known = ~own & np.isfinite(scores[:, columns])
    np.testing.assert_allclose(shown[known], scores[:, columns][known])
    assert figure.axes[0].get_xticklabels()[0].get_text() == "M24"


def test_sensitivity_leaves_the_wild_types_own_letter_out() -> None:
    scores = np.full((3, 20), -2.0)
    for place, letter in enumerate("MKT"):
        scores[place, STANDARD.index(letter)] = 0.0
    np.testing.assert_allclose(variant_plots.position_means("MKT", scores, STANDARD), [-2, -2, -2])
    assert len(variant_plots.sensitivity("MKT", scores, STANDARD).axes) == 1
