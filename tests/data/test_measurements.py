"""Values of tables on one scale."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biometro.data.measurements import BadMeasurementError, find_measure, find_power, read_measurement


@pytest.mark.parametrize(
    ("cell", "measure", "unit", "value", "censored", "named", "scale"),
    [
        (">10000", "IC50", "nM", 5.0, -1, "IC50", "p"),
        ("<0.1", "Ki", "µM", 7.0, 1, "Ki", "p"),
        ("≥ 1e4", "Kd", "nM", 5.0, -1, "Kd", "p"),
        ("5.2 nM", "", "", 9 - math.log10(5.2), 0, "", "p"),
        ("5 nM", "Kd", "uM", 9 - math.log10(5), 0, "Kd", "p"),  # what the cell says comes first
        ("~3", "Kd", "uM", 6 - math.log10(3), 0, "Kd", "p"),
        ("1.2e-6", "EC50", "M", 6 - math.log10(1.2), 0, "EC50", "p"),
        (2.5, "Kd", "mM", 3 - math.log10(2.5), 0, "Kd", "p"),
        (np.float32(100), "Kd", "pM", 10.0, 0, "Kd", "p"),
        (1, "Kd", "fM", 15.0, 0, "Kd", "p"),
        ("1,000 ± 20 nM", "Kd", "", 6.0, 0, "Kd", "p"),
        (".5", "EC50", "nmol/L", 9 - math.log10(0.5), 0, "EC50", "p"),
        ("Ki=5nM", "", "", 9 - math.log10(5), 0, "Ki", "p"),  # PDBbind's index
        ("Kd>=10uM", "", "", 5.0, -1, "Kd", "p"),
        (7.5, "pKd", "", 7.5, 0, "Kd", "p"),
        (">7.5", "pIC50", "", 7.5, 1, "IC50", "p"),
        (7.5, "", "pKd/pKi", 7.5, 0, "Kd/Ki", "p"),
        (7.5, "-log10(Kd/Ki)", "", 7.5, 0, "Kd/Ki", "p"),
        (-1, "pKd", "", -1.0, 0, "Kd", "p"),
        (6, "pX", "", 6.0, 0, "", "p"),
        (11.2, "", "KIBA", 11.2, 0, "KIBA", "KIBA"),
        ("-0.4", "", "", -0.4, 0, "", "score"),
        ("<3", "", "", 3.0, -1, "", "score"),
    ],
)
def test_values(cell: Any, measure: str, unit: str, value: float, censored: int, named: str, scale: str) -> None:
    found = read_measurement(cell, measure, unit)
    assert found.value == pytest.approx(value, abs=1e-6)
    assert (found.censored, found.measure, found.scale) == (censored, named, scale)


@pytest.mark.parametrize(
    ("cell", "measure", "unit", "reason"),
    [
        (0, "Kd", "nM", "zero or below"),
        ("-5", "Kd", "nM", "zero or below"),
        (None, "Kd", "nM", "no value"),
        (math.nan, "Kd", "nM", "no value"),
        (" NA ", "Kd", "nM", "no value"),
        (math.inf, "Kd", "nM", "no number"),
        ("strong", "Kd", "nM", "no number"),
        ("5,2", "Kd", "nM", "no number"),
        ("1-5", "Kd", "nM", "no number"),
        ("<5>", "Kd", "nM", "no number"),
        ("<>5", "Kd", "nM", "no number"),
        ("5", "Kd", "", "without a unit"),
        ("5", "Kd", "parsec", "not known: 'parsec'"),
        ("5", "Km", "nM", "not known: 'Km'"),
        ("5", "nM", "", "not known: 'nM'"),
        ("8", "pIC50", "nM", "with the unit of a concentration"),
        ("5", "KIBA", "nM", "KIBA score with a unit"),
        ("5000", "pKd", "", "is it one"),
        ("1e-40", "Kd", "M", "is the unit right"),
    ],
)
def test_what_is_no_value_says_why(cell: Any, measure: str, unit: str, reason: str) -> None:
    with pytest.raises(BadMeasurementError, match=reason.replace("?", ".")):
        read_measurement(cell, measure, unit)


def test_names() -> None:
    assert find_measure("ki or kd") == ("Kd/Ki", False)
    assert find_measure(" PKI ") == ("Ki", True)
    assert find_measure("") == ("", False)
    assert find_measure("temperature") is None
    assert [find_power(unit) for unit in ("M", "mM", "uM", "µM", "μM", "nM", "pM", "fM")] == [
        0, -3, -6, -6, -6, -9, -12, -15,
    ]  # fmt: skip
    assert find_power("m") is None and find_power("") is None


@given(st.floats(1e-12, 1e6), st.sampled_from(["mM", "uM", "nM", "pM"]))
def test_a_p_value_and_its_concentration_are_one(number: float, unit: str) -> None:
    molar = number * {"mM": 1e-3, "uM": 1e-6, "nM": 1e-9, "pM": 1e-12}[unit]
    assert read_measurement(repr(number), "Kd", unit).value == pytest.approx(-math.log10(molar), abs=1e-9)


@given(st.text(max_size=20))
def test_any_text_is_a_value_or_a_reason(text: str) -> None:
    try:
        assert math.isfinite(read_measurement(text, "Kd", "nM").value)
    except BadMeasurementError as error:
        assert str(error)
