"""Rows of tables as pairs: letters, a value on one scale, a label; and every pair once.

    row ─▶ chosen? ─▶ letters of a and b ─▶ measurement ─▶ label ─▶ Row ─▶ duplicates settled

What is of no use is counted in an account, by reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from biometro.alphabet import AlphabetError, Reading
from biometro.alphabet.charges import repaired
from biometro.alphabet.kinds import AnyAlphabet
from biometro.data.intake import Account
from biometro.data.measurements import BadMeasurementError, Measurement, find_measure, find_power, read_measurement
from biometro.data.pair_config import PairConfig
from biometro.data.settle import settle_label, settle_values
from biometro.data.sources import ReadOptions, Record, Source, read, table_columns
from biometro.errors import UserError

_TABLES = ("csv", "tsv", "parquet")
_BOUND = "a value that is only a bound (pairs.censored)"
_OTHER_MEASURE = "another measure than pairs.measures"
_DUPLICATE = "a pair that stands there already"
_ORDER = ("Kd", "Ki", "IC50", "EC50")


@dataclass
class PairAccount(Account):
    """repaired: pairs that are there since the charges of a molecule were put right."""

    repaired: int = 0

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"repaired": self.repaired}


class Row(NamedTuple):
    record: Record  # without its text, for messages
    a: int
    b: int
    value: float
    censored: int
    label: int
    measure: str
    scale: str
    group: str | int
    repaired: bool

    @property
    def side(self) -> str:
        return (self.record.split or "").strip()


class Letters:
    """Distinct cleaned sequences with their places, and what became of every text that was met.

    other: shares its places, where both sequences of a pair are of one kind.
    """

    def __init__(
        self, reading: Reading, alphabet: AnyAlphabet | None, config: PairConfig, other: Letters | None = None
    ):
        self.places: dict[bytes, int] = {} if other is None else other.places
        self._repair = config.repair and reading.kind == "molecule"
        self._clean = reading.cleaner(alphabet)
        self._known: dict[bytes, tuple[bytes, str, str, bool]] = {}

    def of(self, raw: bytes, record: Record) -> tuple[bytes, str, str, bool]:
        """Letters, or why there are none and what of; and whether they were repaired. Raises UserError."""
        found = self._known.get(raw)
        if found is None:
            fixed = repaired(_first_word(raw)) if self._repair else None
            try:
                done = self._clean(raw if fixed is None else fixed.encode())
            except AlphabetError as error:
                raise UserError(f"{record.where}: {error}") from error
            reason = done.dropped or ("" if done.letters else "a sequence without letters")
            found = self._known[raw] = done.letters, reason, done.detail, fixed is not None
        return found

    def place(self, letters: bytes) -> int:
        return self.places.setdefault(letters, len(self.places))


def _first_word(raw: bytes) -> str:
    return (raw.split(None, 1) or [b""])[0].decode("ascii", "replace")


def read_rows(
    source: Source, config: PairConfig, options: ReadOptions, one: Letters, two: Letters, account: PairAccount
) -> list[Row]:
    """The usable rows of one table."""
    if source.format not in _TABLES:
        raise UserError(f"{source.name}: pairs stand in tables (CSV, TSV, Parquet), and this is none")
    assert config.b is not None
    columns = table_columns(source)
    measure, unit = (_column_or_text(name, config, columns, source) for name in ("measure", "unit"))
    wanted = (config.b, config.value, config.label, config.group, measure[0], unit[0], *config.asked)
    fields = tuple(dict.fromkeys(name for name in wanted if name is not None))
    rows = []
    for record in read(source, replace(options, fields=fields, blanks=True)):
        cells = dict(zip(fields, record.fields, strict=True))
        if not config.chosen(cells):
            continue
        account.read += 1
        bare = record._replace(raw=b"", fields=())
        if record.skip:
            account.drop(record.skip, bare)
            continue
        texts = record.raw, _text(cells[config.b]).encode("utf-8")
        if not texts[0].strip() or not texts[1].strip():
            account.drop("an empty cell where a sequence was expected", bare)
            continue
        sequences = [letters.of(text, record) for letters, text in zip((one, two), texts, strict=True)]
        bad = next((found for found in sequences if found[1]), None)
        if bad is not None:
            account.drop(bad[1], bare, bad[2])
            continue
        try:
            found = _value(cells, config, measure, unit)
            label = _label(cells, config, found)
        except BadMeasurementError as error:
            account.drop(str(error), bare)
            continue
        a, b = one.place(sequences[0][0]), two.place(sequences[1][0])
        name = "" if config.group is None else _text(cells[config.group])
        fixed = sequences[0][3] or sequences[1][3]
        rows.append(Row(bare, a, b, found.value, found.censored, label, found.measure, found.scale, name or a, fixed))
    return rows


def _text(cell: Any) -> str:
    return "" if cell is None or cell != cell else str(cell).strip()


def _column_or_text(name: str, config: PairConfig, columns: Sequence[str], source: Source) -> tuple[str | None, str]:
    """The column that an option names, or else the text it is. Raises UserError where it is neither."""
    said: str | None = getattr(config, name)
    if said is None or (said in columns and said not in (config.value, config.label)):  # a column `Kd` is no measure's
        return said, ""
    if find_measure(said) is None and find_power(said) is None:
        raise UserError(
            f"{source.name}: pairs.{name} {said!r} is no column, and no measure (Kd, pKi, KIBA) or unit (nM, uM); "
            f"its columns are: {', '.join(columns[:20])}"
        )
    return None, said


def _value(
    cells: dict[str, Any], config: PairConfig, measure: tuple[str | None, str], unit: tuple[str | None, str]
) -> Measurement:
    """The value of a row; NaN without one, where a label may do. Raises BadMeasurementError."""
    none = Measurement(float("nan"), 0, "", "score")
    if config.value is None:
        return none
    said = [text if column is None else _text(cells[column]) for column, text in (measure, unit)]
    if config.label is not None and not _text(cells[config.value]):
        return none
    found = read_measurement(cells[config.value], *said)
    chosen = config.chosen_measures
    if chosen is not None and not set(found.measure.split("/")) <= {
        part for name in chosen for part in name.split("/")
    }:
        raise BadMeasurementError(_OTHER_MEASURE)
    if found.censored and config.censored == "drop":
        raise BadMeasurementError(_BOUND)
    if found.scale == "score" and not config.higher_binds:
        found = found._replace(value=-found.value, censored=-found.censored)
    return found._replace(censored=0) if config.censored == "bound" else found


def _label(cells: dict[str, Any], config: PairConfig, found: Measurement) -> int:
    """1 binds, 0 does not, -1 unknown. Raises BadMeasurementError for what is neither 0 nor 1."""
    if config.label is None:
        if config.binds_from is not None:
            binds = found.value >= config.binds_from
            return -1 if (found.censored < 0 and binds) or (found.censored > 0 and not binds) else int(binds)
        return 1 if config.value is None else -1  # pairs alone are pairs that belong together
    text = _text(cells[config.label]).lower()
    if text in ("1", "1.0", "true", "0", "0.0", "false"):
        return int(text in ("1", "1.0", "true"))
    if text:
        raise BadMeasurementError("a label that is neither 0 nor 1")
    if found.value != found.value:
        raise BadMeasurementError("neither a value nor a label")
    return -1


def refuse(account: Account, only: str | None = None, hint: str = "pairs.bad: drop leaves such records out") -> None:
    """Raises UserError with all reasons (or that one), how often each was met, and where first, if there are any."""
    found = {
        reason: count for reason, count in account.dropped.items()
        if (reason not in (_BOUND, _OTHER_MEASURE) if only is None else reason == only)
    }  # fmt: skip
    if found:
        told = "; ".join(f"{count:,} x {r} ({', '.join(account.examples[r])})" for r, count in found.items())
        raise UserError(f"{sum(found.values()):,} of {account.read:,} records are no usable pair: {told}; {hint}")


def unit_of(rows: Sequence[Row], config: PairConfig) -> str:
    """What values are, in words. Raises UserError for scales that are not to be mixed."""
    valued = [row for row in rows if row.value == row.value]
    scales = {row.scale for row in valued}
    asked = {"KIBA"} < (config.chosen_measures or set())
    if len(scales) > 1 and not (scales == {"p", "KIBA"} and asked):
        first = [next(row for row in valued if row.scale == scale) for scale in sorted(scales)]
        told = ", ".join(f"{row.scale} at {row.record.where}" for row in first)
        raise UserError(
            f"values of different scales ({told}); choose rows with pairs.where, measures with pairs.measures, or say "
            "the unit with pairs.unit"
        )
    return " and ".join(name_of(scale, {row.measure for row in valued}) for scale in sorted(scales, reverse=True))


def name_of(scale: str, measures: set[str]) -> str:
    if scale != "p":
        return "KIBA" if scale == "KIBA" else ""
    parts = {part for measure in measures - {"KIBA"} for part in measure.split("/") if part}
    return "/".join(f"p{part}" for part in sorted(parts, key=_ORDER.index)) or "p"


def once(rows: list[Row], config: PairConfig, shared: bool, account: PairAccount) -> list[Row]:
    """Every pair once within a side; what its values and labels disagree about is settled by the policies."""
    if config.duplicates == "keep":
        return rows
    groups: dict[tuple[int, int, str, str | int], list[Row]] = {}
    for row in rows:
        a, b = (min(row.a, row.b), max(row.a, row.b)) if shared else (row.a, row.b)
        groups.setdefault((a, b, row.side, row.group if config.group is not None else ""), []).append(row)
    conflict = f"values of one pair more than {config.spread:g} apart, or labels that differ"
    if config.duplicates == "drop":
        conflict = "values or labels of one pair that differ"
    kept = []
    for group in groups.values():
        if len(group) == 1:
            kept.append(group[0])
            continue
        known = [(row.value, row.censored) for row in group if row.value == row.value]
        merge = config.conflicts == "merge" and config.duplicates != "drop"
        value = settle_values(known, config.duplicates, np.inf if merge else config.spread) if known else (np.nan, 0)
        label = settle_label([row.label for row in group], merge)
        if value is None or label is None:
            for row in group:
                account.drop(conflict, row.record)
            continue
        for row in group[1:]:
            account.drop(_DUPLICATE, row.record)
        kept.append(group[0]._replace(value=value[0], censored=value[1], label=label))
    if config.conflicts == "fail":
        refuse(account, conflict, "pairs.conflicts: drop or merge settles it")
    return kept
