"""How strongly two molecules bind, as tables say it: text, measure and unit in, one scale out.

    ">10000" | IC50 | nM ─▶ p-value 5, and the truth lies below        "7.5" | pKd ─▶ p-value 7.5

A p-value is -log10 of a concentration in mol/l: 9 is 1 nM, and more binds better. So a concentration *above* a bound is
a p-value *below* one. KIBA scores (Tang et al. 2014, doi:10.1021/ci400709d) are a scale of their own; so is a number
of which nothing is said.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal, NamedTuple

Scale = Literal["p", "KIBA", "score"]
"""p: -log10 of mol/l. KIBA: KIBA scores. score: any other number."""

_POWERS = {"": 0, "m": -3, "u": -6, "n": -9, "p": -12, "f": -15}  # before M
_UNIT = re.compile(r"([munpf]?)(?:M|m|[Mm]ol(?:ar)?|[Mm]ol/[Ll])")
_MEASURE = re.compile(r"(?:kd|ki|ic50|ec50)(?:(?:[/,;|]|or)(?:kd|ki|ic50|ec50))*")
_P = re.compile(r"(?:p|-\s*log(?:10)?\s*)\(?\s*((?:kd|ki|ic50|ec50|p?x)(?:/p?(?:kd|ki|ic50|ec50))*)\s*(?:\[?m\]?)?\)?")
_NAMES = {"kd": "Kd", "ki": "Ki", "ic50": "IC50", "ec50": "EC50"}
_TEXT = re.compile(
    r"(?:(?P<measure>[A-Za-z0-9]+)\s*(?=[=<>~≈≤≥]))?\s*"
    r"(?P<relation>(?:[=<>~≈≤≥]|ca\.?)*)\s*"
    r"(?P<number>[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*"
    r"(?:(?:±|\+/-)\s*[\d.]+(?:[eE][-+]?\d+)?\s*)?"
    r"(?P<unit>[A-Za-zµμ/]*)"
)  # fmt: skip
_MOST = 30.0  # a p-value beyond which a unit is a slip of the pen: less than a molecule in a cubic metre


class Measurement(NamedTuple):
    """A value on its scale, where more binds better on `p` and KIBA. censored: -1 where the truth lies below the
    value, 1 where it lies above, 0 where it is the value. measure: Kd, Ki, IC50, EC50, several with `/` between, KIBA,
    or "" where nothing is said."""

    value: float
    censored: int
    measure: str
    scale: Scale


class BadMeasurementError(ValueError):
    """A value that is of no use; the message is a reason to count it under."""


def find_measure(text: str) -> tuple[str, bool] | None:
    """What is measured, and whether as a p-value: "pKi" is ("Ki", True), "-log10(Kd/Ki)" is ("Kd/Ki", True), "" is
    ("", False). None for a text that names no measure."""
    low = text.strip().lower().replace("_", "").replace(" ", "")
    if low in ("", "score", "nan", "none", "na"):
        return "", False
    if low in ("kiba", "kibascore"):
        return "KIBA", False
    if _MEASURE.fullmatch(low):
        return _several(low), False
    low = re.sub(r"/p(?=[kie])", "/", low)  # pKd/pKi
    found = _P.fullmatch(low)
    if found is None:
        return None
    return ("" if found[1].endswith("x") else _several(found[1])), True


def _several(text: str) -> str:
    names = dict.fromkeys(_NAMES[name] for name in re.findall(r"kd|ki|ic50|ec50", text))
    return "/".join(sorted(names, key=list(_NAMES.values()).index))


def find_power(text: str) -> int | None:
    """Of ten, by which a concentration in a unit is mol/l; None for what is no unit of concentration."""
    text = text.strip().replace("µ", "u").replace("μ", "u")
    found = _UNIT.fullmatch(text)
    if found is None or text == "m":  # metres, or mol/l, or milli of something
        return None
    return _POWERS[found[1]]


def read_measurement(cell: Any, measure: str = "", unit: str = "") -> Measurement:
    """One value.

    Args:
        cell: a number, or text: a relation (`<`, `>=`, `~`), a number (`1,000`, `1.2e-6`), what it may be off by, and a
            unit, of which all but the number may be missing. `Ki=5nM`, as PDBbind has it, names its measure too.
        measure: Kd, Ki, IC50, EC50, the same as p-values (`pKd`, `-log10(Kd/Ki)`), KIBA, or nothing.
        unit: M, mM, uM, nM, pM, fM; or what could stand in `measure`. What the cell says counts before it.

    `~` is read as `=`. Raises BadMeasurementError, whose message is the reason.
    """
    relation, number, own_measure, own_unit = _parts(cell)
    named, as_p = "", False
    power: int | None = None
    for text in (own_measure, measure, own_unit, unit):
        found = find_measure(text)
        if found is not None:
            named, as_p = named or found[0], as_p or found[1]
        elif find_power(text) is None or text is measure:
            raise BadMeasurementError(f"a measure or unit that is not known: {text.strip()[:20]!r}")
        elif power is None:
            power = find_power(text)
    sign = -1 if "<" in relation or "≤" in relation else 1 if ">" in relation or "≥" in relation else 0
    if named == "KIBA":
        if power is not None or as_p:
            raise BadMeasurementError("a KIBA score with a unit of something else")
        return Measurement(number, sign, "KIBA", "KIBA")
    if as_p and power is None:
        if abs(number) > _MOST:
            raise BadMeasurementError("a p-value that no concentration has: is it one?")
        return Measurement(number, sign, named, "p")
    if power is None:
        if named:
            raise BadMeasurementError("a concentration without a unit")
        return Measurement(number, sign, "", "score")
    if as_p:
        raise BadMeasurementError("a p-value with the unit of a concentration")
    if number <= 0:
        raise BadMeasurementError("a concentration of zero or below")
    value = -math.log10(number) - power
    if abs(value) > _MOST:
        raise BadMeasurementError("a concentration that nothing has: is the unit right?")
    return Measurement(value, -sign, named, "p")


def _parts(cell: Any) -> tuple[str, float, str, str]:
    """Relation, number, measure and unit of a cell."""
    if (
        cell is None
        or cell != cell
        or (isinstance(cell, str) and cell.strip().lower() in ("", "na", "nan", "none", "nd"))
    ):
        raise BadMeasurementError("no value")
    if not isinstance(cell, str):
        number = float(cell)
        if not math.isfinite(number):
            raise BadMeasurementError("a value that is no number")
        return "", number, "", ""
    found = _TEXT.fullmatch(cell.strip())
    try:
        number = float(found["number"].replace(",", "")) if found else math.nan
    except ValueError:
        number = math.nan
    if found is None or not math.isfinite(number) or ("<" in found["relation"] and ">" in found["relation"]):
        raise BadMeasurementError("a value that is no number")
    return found["relation"], number, found["measure"] or "", found["unit"]
