"""Paired differences against plain versions and scipy; standings by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from biometro.evaluation import paired
from biometro.evaluation.paired import Difference, Placed

SHARES = st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=12)


def plain_holm(p: list[float]) -> list[float]:
    """By its definition: the largest of (tests left) times p over all tests up to this one."""
    known = [value for value in p if not math.isnan(value)]
    found = []
    for value in p:
        if math.isnan(value):
            found.append(math.nan)
            continue
        below = sorted(known)[: sum(other <= value for other in known)]
        found.append(min(1.0, max((len(known) - rank) * each for rank, each in enumerate(below))))
    return found


@given(SHARES)
def test_holm_is_its_definition(p: list[float]) -> None:
    assert paired.holm(p) == pytest.approx(plain_holm(p), nan_ok=True)


@given(SHARES)
def test_holm_lies_between_no_correction_and_bonferroni(p: list[float]) -> None:
    tests = sum(not math.isnan(value) for value in p)
    for value, corrected in zip(p, paired.holm(p), strict=True):
        assert math.isnan(value) or value <= corrected <= min(1.0, tests * value)


def test_p_is_the_plain_count_and_near_a_paired_test() -> None:
    random = np.random.default_rng(0)
    assert paired.p_value(np.array([1.0, 2.0, 3.0, -1.0])) == 2 * (1 + 1) / 5
    assert paired.p_value(np.zeros(9)) == 1.0
    assert paired.p_value(np.ones(999)) == 2 / 1000
    assert math.isnan(paired.p_value(np.empty(0)))
    # The mean of paired values: the bootstrap must agree with Student's test where both hold.
    values = random.normal(0.15, 1, 200)
    drawn = random.integers(200, size=(20_000, 200))
    expected = stats.ttest_1samp(values, 0).pvalue
    assert 0.005 < expected < 0.2
    assert paired.p_value(values[drawn].mean(1)) == pytest.approx(expected, rel=0.2)


def test_interval_is_that_of_the_difference_and_not_of_each() -> None:
    random = np.random.default_rng(1)
    hard = random.normal(0, 1, 4000)  # what makes a resample hard for both
    a, b = 0.5 + hard, 0.4 + hard + random.normal(0, 0.01, 4000)
    (found,) = paired.pairs({"a": a, "b": b})
    reference = stats.scoreatpercentile(a - b, [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx(tuple(reference), rel=1e-6)
    assert found.mean == pytest.approx((a - b).mean()) and found.clear and found.p == 2 / 4001
    mixed = paired.pairs({"a": a, "b": random.permutation(b)})[0]
    assert not mixed.clear  # unpaired, nothing would be seen


def test_undefined_resamples_are_left_out_or_undo_the_pair() -> None:
    a, b = np.linspace(0, 1, 100), np.zeros(100)
    a[:30] = np.nan
    some = paired.pairs({"a": a, "b": b})[0]
    assert some.resamples == 70 and some.mean == pytest.approx(np.nanmean(a))
    a[:60] = np.nan
    none = paired.pairs({"a": a, "b": b})[0]
    assert math.isnan(none.p) and math.isnan(none.mean) and not none.clear


def test_fewer_resamples_are_the_first_of_the_others() -> None:
    random = np.random.default_rng(2)
    a, b = random.normal(size=300), random.normal(size=200)
    assert paired.pairs({"a": a, "b": b})[0].mean == pytest.approx((a[:200] - b).mean())


@pytest.mark.parametrize("tests", [1, 3, 10, 45])
def test_enough_resamples_are_just_enough(tests: int) -> None:
    enough = paired.enough(tests)
    assert paired.least_p(tests, enough) < paired.LEVEL <= paired.least_p(tests, enough - 1)


def clear(a: str, b: str, mean: float, p: float = 0.01) -> Difference:
    return Difference(a, b, mean, mean, mean, p, p, 1000)


def test_standings_count_ranks_wins_and_baselines() -> None:
    models = {"x": "x", "y": "y", "z": "z"}
    accuracy = Placed(
        {"k": 0.5, "x": 0.9, "y": 0.7, "z": 0.7}, models, ["k"],
        [clear("x", "y", 0.2), clear("k", "x", -0.4), clear("k", "y", -0.2), clear("k", "z", -0.2, 0.2)], True,
    )  # fmt: skip
    error = Placed({"k": 1.0, "x": 2.0, "y": 1.0}, {"x": "x", "y": "y"}, ["k"],
                   [clear("x", "y", 1.0), clear("k", "x", -1.0)], False)  # fmt: skip
    found = {row.model: row for row in paired.standings(["x", "y", "z", "none"], [accuracy, error])}
    assert (found["x"].rank, found["y"].rank, found["z"].rank) == ((1 + 2) / 2, (2.5 + 1) / 2, 2.5)
    assert (found["x"].wins, found["x"].losses) == (1, 1) and (found["y"].wins, found["y"].losses) == (1, 1)
    assert [getattr(found["x"], word) for word in ("above", "within", "below")] == [1, 0, 1]
    assert [getattr(found["y"], word) for word in ("above", "within", "below")] == [1, 1, 0]
    assert accuracy.verdict("z") == "within" and error.verdict("z") == ""
    assert found["none"].tasks == 0 and math.isnan(found["none"].rank)
    assert [row.model for row in paired.standings(["none", "x"], [accuracy])] == ["x", "none"]
