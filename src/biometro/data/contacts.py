"""Proteins of which is known who touches whom: from a table, or from simulated families, whose truth is exact.

    table (sequence, pairs "3-17;4-20") ─┐
    example:families (coupled pairs) ────┼─▶ Protein(letters, pairs, known, rows)
    structures (`structures.py`) ────────┘

Shapes: L residues, P pairs, N rows of an alignment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from biometro.alphabet import Reading
from biometro.data import families
from biometro.data.alignment import coded
from biometro.data.intake import Account, clean_records
from biometro.data.sources import ReadOptions, expand, read
from biometro.errors import UserError

_PAIR = re.compile(r"\s*(\d{1,7})\s*-\s*(\d{1,7})\s*")


@dataclass(frozen=True, eq=False)  # eq would ask arrays for one truth value
class Protein:
    """A sequence and its contacts.

    Fields:
        name: as the report calls it.
        letters: of the L residues, capital.
        pairs: (P, 2) int64 residues in contact, i < j, from 0, each pair once, ascending.
        known: (L,) bool residues whose contacts are known; pairs with another are neither contact nor none.
        rows: (N, L) uint8 aligned relatives, in the codes of `Alignment.rows`; None without any.
        side: what a table's split column says.

    Raises ValueError where these do not fit one another.
    """

    name: str
    letters: bytes
    pairs: np.ndarray
    known: np.ndarray
    rows: np.ndarray | None = None
    side: str | None = None

    def __post_init__(self) -> None:
        length = len(self.letters)
        i_P, j_P = self.pairs.reshape(-1, 2).T
        if not ((i_P >= 0) & (i_P < j_P) & (j_P < length)).all():
            raise ValueError(f"{self.name}: a pair is not i < j within {length} residues")
        if self.known.shape != (length,) or (self.rows is not None and self.rows.shape[1:] != (length,)):
            raise ValueError(f"{self.name}: known or rows are not of {length} residues")

    def __len__(self) -> int:
        return len(self.letters)

    def matrix(self) -> np.ndarray:
        """(L, L) bool, symmetric: who touches whom."""
        touching = np.zeros((len(self), len(self)), dtype=bool)
        touching[self.pairs[:, 0], self.pairs[:, 1]] = True
        return touching | touching.T


@dataclass(frozen=True)
class PairColumns:
    """Where a table says what touches what.

    Args:
        sequence: the column of sequences.
        pairs: the column of contacts, as `3-17;4-20`; an empty cell means that nothing touches.
        id: the column of names; without it, rows are numbered.
        split: the column that names the side of a split; none is needed.
        first: number of a sequence's first residue in `pairs`.
    """

    sequence: str = "sequence"
    pairs: str = "pairs"
    id: str | None = None
    split: str | None = None
    first: int = 1


def read_table(data: str | list[str], columns: PairColumns = PairColumns()) -> list[Protein]:
    """Proteins of a CSV, TSV or Parquet table, in input order; all their residues are known.

    Raises UserError, naming file and line, for a missing column, letters that are no residues, gaps or stops inside a
    sequence (which would shift the numbers), and pairs that are none.
    """
    options = ReadOptions(
        column=columns.sequence, id_column=columns.id, split_column=columns.split, fields=(columns.pairs,)
    )
    proteins = []
    for source in expand(data, options):
        if source.format not in ("csv", "tsv", "parquet"):
            raise UserError(f"{source.name}: contacts are read from CSV, TSV and Parquet, not from {source.format}")
        for record, letters in clean_records(read(source, options), Reading(), Account()):
            if len(letters) != len(record.raw.strip()):
                raise UserError(f"{record.where}: gaps, spaces or stops in the sequence; pairs would not fit it")
            pairs = _parse(record.fields[0], len(letters), columns.first, record.where)
            known = np.ones(len(letters), dtype=bool)
            proteins.append(Protein(record.id, letters, pairs, known, side=record.split))
    if not proteins:
        raise UserError("no sequence is left of the table of contacts")
    return proteins


def _parse(cell: object, length: int, first: int, where: str) -> np.ndarray:
    """(P, 2) int64 pairs of a cell, from 0, sorted, each once."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return np.zeros((0, 2), dtype=np.int64)
    if not isinstance(cell, str):
        raise UserError(f"{where}: a {type(cell).__name__} where pairs such as 3-17;4-20 were expected")
    found = set()
    for text in cell.strip().removesuffix(";").split(";"):
        match = _PAIR.fullmatch(text)
        if match is None:
            raise UserError(f"{where}: {text[:40]!a} where a pair such as 3-17 was expected")
        i, j = sorted(int(number) - first for number in match.groups())
        if not 0 <= i < j < length:
            last = length - 1 + first
            raise UserError(f"{where}: the pair {text.strip()} is not one of two residues from {first} to {last}")
        found.add((i, j))
    return np.array(sorted(found), dtype=np.int64)


def simulated(seed: int = 0, number: int = 8, members: int = 256, *, coupling: float | None = None) -> list[Protein]:
    """The families of `example:families` (with the defaults), one protein each: the first member, aligned with all.

    Contacts are the pairs of sites that evolved jointly. `coupling` 0 is the control, whose pairs leave no trace.
    """
    strength = families.COUPLING if coupling is None else coupling
    proteins = []
    for family in families.simulate(seed, number, members, coupling=strength):
        rows = np.stack([coded(member.encode()) for member in family.members])
        known = np.ones(rows.shape[1], dtype=bool)
        proteins.append(Protein(family.name, family.members[0].encode(), family.pairs, known, rows))
    return proteins
