"""Where pairs stand in a table, what their values mean, and what is done with doubtful ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from biometro.alphabet import SequenceKind
from biometro.data.measurements import find_measure
from biometro.data.task import says
from biometro.errors import UserError

Censored = Literal["drop", "bound", "keep"]
Duplicates = Literal["mean", "median", "best", "drop", "keep"]


@dataclass(frozen=True)
class PairConfig:
    """Where pairs stand and what is done with them.

    Args:
        a: the column of the first sequence (of receptors, columns by part, as `column` elsewhere).
        b: the column of the second; none where pairs are made of sequences with one `label`.
        kind_a: what the first ones are.
        kind_b: what the second ones are.
        value: the column of how strongly they bind, a number or text (`>10000`, `5.2 nM`); none where nothing says it.
        measure: of values, the column that says what was measured (Kd, Ki, IC50, EC50, pKd, ..., KIBA), or that itself.
        unit: of values, the column with their unit (M, mM, uM, nM, pM, fM), or that itself; a column may also hold what
            `measure` takes. With a unit, or as pKd and the like, values are read as -log10 of mol/l; others as they
            stand.
        measures: take these measures only. Several are merged into one scale. Default: all.
        higher_binds: whether more of a plain score (no measure, no unit) is a stronger bond; if not, its sign changes.
        label: the column with 1 for pairs that bind and 0 for those that do not; without `b`, with the class of each
            sequence.
        binds_from: a value from which a pair binds, where no column says it; a bound that leaves it open says nothing.
        censored: a value given as a bound: drop the pair; bound takes the bound for the value; keep marks it.
        duplicates: values of one pair (within one side of a split that is given) become their mean, median or best
            (the strongest), are all dropped where they differ, or are kept as pairs of their own.
        spread: units of the scale by which values of one pair may differ before they are in conflict.
        conflicts: pairs whose values, or labels, are in conflict: drop them, merge them like others (of labels, the
            more frequent), or fail.
        bad: a record without a usable sequence, value or label: drop it, counted and listed, or fail. (Letters that
            are none of a protein's are always an error.)
        repair: SMILES that RDKit refuses, since delocalised charges stand on the wrong atom: put them right
            (`alphabet/charges.py`), counted.
        split: the column that names the side of a published split.
        group: the column that says what figures per target go by (a target's name); default: the first sequence.
        where: take only rows in which each of these columns says this, or one of these.
        where_not: leave out rows in which one of these columns says this, or one of these; "" is nothing at all.
    """

    a: str | dict[str, str] = "protein_sequence"
    b: str | None = "smiles"
    kind_a: SequenceKind = "protein"
    kind_b: SequenceKind = "molecule"
    value: str | None = None
    measure: str | None = None
    unit: str | None = None
    measures: list[str] | None = None
    higher_binds: bool = True
    label: str | None = None
    binds_from: float | None = None
    censored: Censored = "keep"
    duplicates: Duplicates = "mean"
    spread: float = 1.0
    conflicts: Literal["drop", "merge", "fail"] = "drop"
    bad: Literal["drop", "fail"] = "drop"
    repair: bool = False
    split: str | None = None
    group: str | None = None
    where: dict[str, str | list[str]] | None = None
    where_not: dict[str, str | list[str]] | None = None

    def __post_init__(self) -> None:
        if not self.a or self.b == "":
            raise UserError("pairs.a and pairs.b name the columns of the two sequences")
        if self.b is None and (self.label is None or self.value is not None):
            raise UserError("without pairs.b, pairs are made of sequences of one class: pairs.label names its column")
        if self.b is None and self.kind_a != self.kind_b:
            object.__setattr__(self, "kind_b", self.kind_a)
        if self.value is None and (self.unit, self.measure, self.measures, self.binds_from) != (None,) * 4:
            raise UserError("pairs.unit, measure, measures and binds_from are said of values: name pairs.value")
        if self.label is not None and self.binds_from is not None:
            raise UserError("pairs.label says which pairs bind, or pairs.binds_from does, not both")
        if not self.spread >= 0:
            raise UserError(f"pairs.spread is {self.spread}; it must not be below 0")
        if self.repair and "molecule" not in (self.kind_a, self.kind_b):
            raise UserError("pairs.repair is for molecules, and these are none")
        for name in self.measures or ():
            found = find_measure(name)
            if found is None or not found[0]:
                raise UserError(f"pairs.measures: {name!r} is no measure; there are Kd, Ki, IC50, EC50 and KIBA")

    @property
    def chosen_measures(self) -> set[str] | None:
        """As `find_measure` names them; None for all."""
        return None if self.measures is None else {(find_measure(name) or ("",))[0] for name in self.measures}

    @property
    def asked(self) -> tuple[str, ...]:
        """The columns by which rows are chosen."""
        return tuple(dict.fromkeys((*(self.where or {}), *(self.where_not or {}))))

    def chosen(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is taken, by its cells of `asked`."""
        no = any(says(row[name], said) for name, said in (self.where_not or {}).items())
        return not no and all(says(row[name], said) for name, said in (self.where or {}).items())
