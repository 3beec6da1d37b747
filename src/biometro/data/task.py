"""What is predicted, and where its labels stand in the input."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from biometro.alphabet import MoleculePolicy, Reading, ResiduePolicy, SequenceKind
from biometro.errors import UserError

TaskKind = Literal["classification", "multilabel", "regression", "residue_classification", "residue_regression"]
Truth = np.ndarray | list[np.ndarray]


@dataclass(frozen=True)
class LabelConfig:
    """Where labels stand and what is done with them.

    Args:
        task: classification (one class a sequence), multilabel (any number), regression (one number or more),
            residue_classification (a letter for every residue) or residue_regression (a number for every residue).
        column: of tables, the column or columns that hold the label; several for multilabel (0 or 1 in each) and
            regression.
        field: of FASTA headers, the number of the field that holds the label: 0 is the first, -1 the last.
        separator: what stands between fields of a header, and between the names in one multilabel cell is `several`.
        key: of FASTA headers, the label follows `KEY=` and ends at white space or the separator.
        pattern: of FASTA headers, a regular expression whose first group is the label.
        file: a table with the labels, for FASTA files; its `column` holds the label.
        file_id: the column of that table with the identifier (the first word of the header).
        several: between the names of a sequence's labels in one cell (multilabel).
        unknown: what stands for a label that is not known; for residues each letter or number among these.
        mask: column with a 1 for every residue whose label counts, 0 for others.
        group: of tables, a column that groups sequences (by epitope, say); figures "auroc_per_group" and
            "auc01_per_group" are means over its groups, and identical sequences of two groups both count.
        where: of tables, take only rows in which each of these columns says this, or one of these (an assay of many).
        where_not: leave out rows in which one of these columns says this, or one of these; "" is nothing at all.
        classes: of tables, classes that several columns say together, in place of `column`: by the class's name, what
            each column says of its members. A row is of the first class that fits; where none does, its label is
            unknown.
        at_most: take at most so many sequences, chosen by digest.
        bad: a record without a usable label (no such field, unknown, no number, another length than its sequence):
            fail, or drop it, counted.
        conflicts: identical sequences with different labels: drop them all, first (keep the first), merge (mean of
            numbers, union of labels), or fail. Identical sequences with one label count once.
        max_per_class: keep at most so many sequences of each class, chosen by digest.
        min_per_class: classes with fewer are left out.
    """

    task: TaskKind = "classification"
    column: str | list[str] = "label"
    field: int | None = None
    separator: str = "|"
    key: str | None = None
    pattern: str | None = None
    file: str | None = None
    file_id: str = "id"
    several: str = ";"
    unknown: list[str] = dataclasses.field(default_factory=lambda: ["", "NA", "nan", "NaN", "None", "?"])
    mask: str | None = None
    group: str | None = None
    where: dict[str, str | list[str]] | None = None
    where_not: dict[str, str | list[str]] | None = None
    classes: dict[str, dict[str, str | list[str]]] | None = None
    at_most: int | None = None
    bad: Literal["fail", "drop"] = "fail"
    conflicts: Literal["drop", "first", "merge", "fail"] = "drop"
    max_per_class: int | None = None
    min_per_class: int = 3

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.field, self.key, self.pattern, self.file)) > 1:
            raise UserError("labels.field, labels.key, labels.pattern and labels.file exclude one another")
        if self.group is not None and (self.field, self.key, self.pattern) != (None, None, None):
            raise UserError("labels.group names a column of a table; headers have none (give a table in labels.file)")
        if self.group is not None and self.task not in ("classification", "multilabel"):
            raise UserError(f"labels.group is for classification and multilabel; {self.task} has no figures per group")
        if not self.columns:
            raise UserError("labels.column names no column")
        if len(self.columns) > 1 and self.task not in ("multilabel", "regression"):
            raise UserError(f"labels.column names {len(self.columns)} columns; {self.task} takes one")
        if self.classes is not None and (self.task != "classification" or not all(self.classes.values())):
            raise UserError("labels.classes names the classes of a classification, each with columns and what they say")
        if not self.separator or not self.several:
            raise UserError("labels.separator and labels.several must not be empty")
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise UserError(f"labels.pattern {self.pattern!r} is no regular expression ({error})") from error
            if groups < 1:
                raise UserError(f"labels.pattern {self.pattern!r} has no group; put the label in parentheses")
        if self.at_most is not None and self.at_most < 1:
            raise UserError(f"labels.at_most is {self.at_most}; it must be at least 1")
        if self.min_per_class < 1 or (self.max_per_class is not None and self.max_per_class < self.min_per_class):
            raise UserError("labels.min_per_class must be at least 1 and labels.max_per_class not below it")
        if self.max_per_class is not None and self.task != "classification":
            raise UserError(f"labels.max_per_class counts sequences of a class; {self.task} has none")

    @property
    def columns(self) -> list[str]:
        return [self.column] if isinstance(self.column, str) else list(self.column)

    @property
    def cells(self) -> tuple[str, ...]:
        """The columns that are read: those of the label, then the mask, then the group."""
        held = self.columns if self.classes is None else [name for said in self.classes.values() for name in said]
        return (*dict.fromkeys(held), *(name for name in (self.mask, self.group) if name is not None))

    @property
    def asked(self) -> tuple[str, ...]:
        """The columns by which rows are chosen."""
        return tuple(dict.fromkeys((*(self.where or {}), *(self.where_not or {}))))

    def chosen(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is taken, by its cells of `asked`."""
        no = any(says(row[name], said) for name, said in (self.where_not or {}).items())
        return not no and all(says(row[name], said) for name, said in (self.where or {}).items())

    def label(self, cells: tuple[Any, ...]) -> tuple[Any, ...]:
        """The cells of `cells` -> those of the label, the mask and the group."""
        if self.classes is None:
            return cells
        row = dict(zip(self.cells, cells, strict=True))
        fits = (name for name, said in self.classes.items() if all(says(row[key], one) for key, one in said.items()))
        return (next(fits, None), *(() if self.group is None else cells[-1:]))


def says(cell: Any, wanted: str | list[str]) -> bool:
    """Whether the cell of a table says this, or one of these; where there is nothing, it says ""."""
    text = "" if cell is None or cell != cell else str(cell).strip()
    return text == wanted if isinstance(wanted, str) else text in wanted


@dataclass(frozen=True)
class Task:
    """What is predicted: the kind, and the names of classes (classification), labels or columns."""

    kind: TaskKind
    names: tuple[str, ...]

    @property
    def outputs(self) -> int:
        return len(self.names)

    @property
    def per_residue(self) -> bool:
        return self.kind.startswith("residue")

    @property
    def discrete(self) -> bool:
        """Whether outputs are logits of classes or labels, not numbers."""
        return self.kind not in ("regression", "residue_regression")


@dataclass(frozen=True)
class Calibration:
    """What validation says about how sure to be. `threshold` and `radius` hold `coverage` (conformal prediction)."""

    temperature: float = 1.0
    threshold: float | None = None
    radius: tuple[float, ...] | None = None
    coverage: float = 0.9


@dataclass(frozen=True)
class Answers:
    """What a fine-tuned model answers, and how it reads: the kind of sequence, policies, the first `max_length` tokens
    (residues, where they are tokens)."""

    task: Task
    calibration: Calibration
    reading: Reading
    max_length: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, which has no infinity: the radius of a column that none can be given for is None."""
        said = dataclasses.asdict(self)
        said |= said.pop("reading")
        radius = self.calibration.radius
        if radius is not None:
            said["calibration"]["radius"] = [entry if math.isfinite(entry) else None for entry in radius]
        return said

    @classmethod
    def from_json(cls, found: Any) -> Answers:
        """Raises ValueError, TypeError or KeyError where a stranger's file says what cannot be."""
        task = Task(found["task"]["kind"], tuple(found["task"]["names"]))
        if task.kind not in get_args(TaskKind) or not task.names or not all(isinstance(n, str) for n in task.names):
            raise ValueError(f"there is no task {task}")
        said = dict(found["calibration"])
        radius = said.pop("radius")
        if radius is not None:
            radius = tuple(math.inf if entry is None else float(entry) for entry in radius)
        calibration = Calibration(**said, radius=radius)
        if not 0 < calibration.temperature < 1e6 or not 0 < calibration.coverage < 1:
            raise ValueError("temperature and coverage must be above 0, coverage below 1")
        if calibration.radius is not None and len(calibration.radius) != len(task.names):
            raise ValueError("radius has another length than names")
        if found["kind"] not in get_args(SequenceKind) or found["residues"] not in get_args(ResiduePolicy):
            raise ValueError(f"kind {found['kind']!r}, residues {found['residues']!r}")
        length = found["max_length"]
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ValueError(f"max_length is {length!r}")
        molecules = MoleculePolicy(**found.get("molecules", {}))
        for entry in dataclasses.fields(MoleculePolicy):
            if getattr(molecules, entry.name) not in get_args(get_type_hints(MoleculePolicy)[entry.name]):
                raise ValueError(f"molecules.{entry.name} is {getattr(molecules, entry.name)!r}")
        return cls(task, calibration, Reading(found["kind"], found["residues"], molecules), length)
