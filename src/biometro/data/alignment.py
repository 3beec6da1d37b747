"""Alignments of relatives below one query: what each place of a protein tolerates, as its family shows it.

    aligned FASTA, a2m, a3m ─▶ columns of the query ─┐
    query, sequences ─▶ MMseqs2 ─▶ best hit of each ─┴▶ Alignment ─▶ weights ─▶ frequencies, conservation

Columns are the query's residues. In a file, lower case and `.` are insertions and are left out (which leaves plain
aligned FASTA as it is), then columns in which the query has a gap. A query's own lower-case residues, and those of a
wild type beyond the aligned part, are places of which the alignment says nothing.

Shapes: N rows, L residues of the query.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from biometro.alphabet.amino_acids import BACKGROUND, blosum62, standard
from biometro.alphabet.protein import STANDARD
from biometro.data import fasta, mmseqs, sources
from biometro.data.bounds import LONGEST_RECORD, too_long
from biometro.data.sequence_weights import sequence_weights
from biometro.errors import UserError

GAP, OTHER = 20, 21  # codes beside 0..19, the residues of STANDARD
PSEUDOCOUNT = 10.0  # sequences; the beta of PSI-BLAST
MOST = 20_000  # rows; the time of weighting grows with their square
E_VALUE = 1e-3
_MOST_CELLS = 1 << 30  # bytes of an alignment in memory

_CODES = np.full(256, OTHER, np.uint8)
_CODES[ord("-")] = GAP
_CODES[list(STANDARD.encode())] = np.arange(20)
_LOWER = b"abcdefghijklmnopqrstuvwxyz"
_SPACE = b" \t\r\n"
_STEPS = re.compile(r"(\d+)([MID])")


@dataclass(frozen=True, eq=False)  # eq would ask arrays for one truth value
class Alignment:
    """Relatives of a query, in the query's columns.

    Fields:
        query: L residues.
        rows: (N, L) uint8: 0 to 19 in the order of STANDARD, 20 gap, 21 any other letter. Row 0 is the query.
        weights: (N,) float64, as `sequence_weights` defines them over the aligned columns.
        covered: (L,) bool, the columns that were aligned; None where all were. In the others only row 0 has residues,
            and they are no observations.
        found: rows there were before any were left out; 0 where that is not known.
    """

    query: str
    rows: np.ndarray
    weights: np.ndarray
    covered: np.ndarray | None = None
    found: int = 0

    @property
    def effective(self) -> float:
        """The sum of the weights: the number of sequences that differ (N_eff)."""
        return float(self.weights.sum())

    @cached_property
    def _counts(self) -> np.ndarray:
        """(L, 22) float64 sums of weights by code; 0 throughout in columns that were not aligned."""
        counts_LC = np.zeros((len(self.query), OTHER + 1))
        for column in range(len(self.query)) if self.covered is None else np.flatnonzero(self.covered):
            counts_LC[column] = np.bincount(self.rows[:, column], self.weights, minlength=OTHER + 1)
        return counts_LC

    def frequencies(self, pseudocount: float = PSEUDOCOUNT) -> np.ndarray:
        """(L, 20) float64 frequencies of the standard residues in the order of STANDARD; rows sum to 1.

        Observed frequencies f, of weight n (the weighted number of residues in the column), are mixed with what
        BLOSUM62 expects beside them, of weight beta (Tatusov et al. 1994, PNAS 91:12091; Altschul et al. 1997, Nucleic
        Acids Res 25:3389, equation 5, with n in place of their number of distinct residues):

            (n f(a) + beta sum_b f(b) P(a | b)) / (n + beta),  P(a | b) from the joint p(a) p(b) 2^(s(a, b) / 2)

        A column without residues has the background frequencies of BLOSUM62.

        Args:
            pseudocount: beta, in sequences; 0 gives observed frequencies.

        Raises:
            ValueError: for a pseudocount below 0.
        """
        if not pseudocount >= 0:
            raise ValueError(f"pseudocount: {pseudocount}; 0 or more is needed")
        counts_LA, background_A = self._counts[:, :20], standard(BACKGROUND)
        n_L1 = counts_LA.sum(1, keepdims=True)
        observed_LA = np.where(n_L1 > 0, counts_LA / np.where(n_L1 > 0, n_L1, 1), background_A)
        mixed_LA = n_L1 * observed_LA + pseudocount * observed_LA @ _conditional()
        return np.where(n_L1 > 0, mixed_LA / np.where(n_L1 > 0, n_L1 + pseudocount, 1), background_A)

    def conservation(self) -> np.ndarray:
        """(L,) float64, 0 to 1: Jensen-Shannon divergence in bits from BLOSUM62's background, gaps counting against it.

        As Capra & Singh 2007 (Bioinformatics 23:1875) score columns, without their window over neighbours: the
        divergence of the observed frequencies, times the weighted share of rows that have no gap. NaN where nothing is
        aligned; 0 where nothing but gaps and other letters is, since that tells as much as the background.
        """
        observed_LA, background_A = self.frequencies(0), standard(BACKGROUND)
        middle_LA = (observed_LA + background_A) / 2
        # x log x is 0 at 0, and a middle is never 0
        own_LA = observed_LA * np.log2(np.where(observed_LA > 0, observed_LA, 1) / middle_LA)
        background_LA = background_A * np.log2(background_A / middle_LA)
        all_L = self._counts.sum(1)
        filled_L = 1 - self._counts[:, GAP] / np.where(all_L > 0, all_L, 1)
        scores_L = (own_LA.sum(1) + background_LA.sum(1)) / 2 * filled_L
        return scores_L if self.covered is None else np.where(self.covered, scores_L, np.nan)


def _conditional() -> np.ndarray:
    """(20, 20) P(a | b) in row b, in the order of STANDARD: residues aligned with b, by BLOSUM62."""
    background_A = standard(BACKGROUND)
    joint = np.outer(background_A, background_A) * 2.0 ** (standard(blosum62()) / 2)
    return joint / joint.sum(1, keepdims=True)


# Files ---------------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """One record: its letters with gaps and insertions, without white space, and the line of its header."""

    raw: bytes
    line: int

    @property
    def columns(self) -> bytes:
        return self.raw.translate(None, _LOWER + b".")

    @property
    def residues(self) -> str:
        return self.raw.translate(None, b"-.*").decode().upper()


def read_alignment(path: str, query: str | None = None, *, coverage: float = 0.0, most: int = MOST) -> Alignment:
    """The alignment in a file of aligned FASTA, a2m or a3m, plain or compressed, local or at a URL.

    Args:
        path: the file. Lines before the first header that begin with `#` are passed over; ColabFold writes one.
        query: the wild type, whose residues are the columns. The first record must be all of it or a part, which is
            found by its letters; or else another record must be all of it. Without it, the first record is the query.
        coverage: rows with residues in a smaller share of the aligned columns are left out; 0.5 is usual.
        most: rows, the query among them. A longer alignment is thinned evenly over the file, since files are often in
            the order of similarity.

    Raises UserError for a file that is empty or no FASTA, rows of unequal length, a query that is not in the alignment,
    stands in the wild type twice or has no letters, or a share or number out of range.
    """
    _check(coverage, most)
    wildtype = None if query is None else _letters(query)
    found = sources.expand([path], sources.ReadOptions(format="fasta"))
    if len(found) != 1 or found[0].format != "fasta":
        raise UserError(f"{path}: this is not one file; name a file of aligned sequences")
    name = found[0].name
    first: _Row | None = None
    own: _Row | None = None
    thinned = _Thinned(most)
    for row in _records(found[0]):
        columns = row.columns
        if first is None:
            first, length = row, len(columns)
            own = first if wildtype is None or first.residues in wildtype else None
        elif len(columns) != length:
            raise UserError(
                f"{name}, line {row.line}: {len(columns):,} columns where the first record has {length:,} (lower case "
                "and '.' are insertions and not counted); all records of an alignment need as many"
            )
        if own is None and row.residues == wildtype:
            own = row
        thinned.add(row.line, columns)
    assert first is not None  # a file without records has raised
    wildtype, places, kept = _placed(own, first, wildtype, name)
    if (cells := len(thinned.kept) * len(wildtype)) > _MOST_CELLS:
        raise UserError(f"{name}: {cells:,} cells of rows x columns; take fewer rows (`most`)")
    rows = np.full((len(thinned.kept) + 1, len(wildtype)), GAP, np.uint8)
    rows[0] = coded(wildtype.encode())
    others = [columns for line, columns in thinned.kept if own is None or line != own.line]
    for number, columns in enumerate(others, 1):
        rows[number, places] = coded(columns)[kept]
    covered = np.zeros(len(wildtype), bool)
    covered[places] = True
    return _assembled(wildtype, rows[: len(others) + 1], covered, thinned.seen, coverage, most)


class _Thinned:
    """Every k-th of rows in a stream, where k doubles whenever twice the wanted number would be exceeded."""

    def __init__(self, most: int):
        self.kept: list[tuple[int, bytes]] = []
        self.seen = 0
        self._most, self._stride = most, 1

    def add(self, line: int, columns: bytes) -> None:
        if self.seen % self._stride == 0:
            self.kept.append((line, columns))
            if len(self.kept) > 2 * self._most:
                self.kept = self.kept[::2]
                self._stride *= 2
        self.seen += 1


def _records(source: sources.Source) -> Iterator[_Row]:
    with sources.opened(source) as handle:
        skipped = 0
        while handle.peek(1)[:1] == b"#":
            if len(handle.readline(LONGEST_RECORD + 1)) > LONGEST_RECORD:
                raise too_long(source.name, skipped + 1)
            skipped += 1
        for first, piece in fasta.cut(handle, source.name):
            for _, raw, line in fasta.parse(piece, first + skipped, source.name, fasta.ROW):
                yield _Row(raw.translate(None, _SPACE), line)


def _placed(own: _Row | None, first: _Row, wildtype: str | None, name: str) -> tuple[str, np.ndarray, np.ndarray]:
    """The wild type; the places of it that are aligned, in order; and which columns these are, (columns,) bool."""
    row = first if own is None else own
    letters = row.residues
    where = f"{name}, line {row.line}"
    if not letters:
        raise UserError(
            f"{where}: the query has no letters; the first record must be the sequence that others align to"
        )
    start = 0
    if wildtype is None:
        wildtype = letters
    elif own is None:
        raise UserError(f"{where}: the first record is no part of the query {_differing(letters, wildtype)}, and no "
                        "other record is all of it; give the alignment of this query")  # fmt: skip
    else:
        start = wildtype.find(letters)
        if (again := wildtype.find(letters, start + 1)) >= 0:
            raise UserError(f"{where}: the first record stands in the query twice, from residues {start + 1} and "
                            f"{again + 1}; align the whole query instead")  # fmt: skip
    raw = np.frombuffer(row.raw.translate(None, b"-.*"), np.uint8)
    places = start + np.flatnonzero(raw < ord("a"))
    if not len(places):
        raise UserError(f"{where}: the query is in lower case, which means insertions; write aligned residues in upper "
                        "case")  # fmt: skip
    columns = np.frombuffer(row.columns, np.uint8)
    return wildtype, places, (columns != ord("-")) & (columns != ord("*"))


def _differing(letters: str, wildtype: str) -> str:
    if len(letters) != len(wildtype):
        return f"({len(letters):,} and {len(wildtype):,} residues)"
    wrong = [place for place, (a, b) in enumerate(zip(letters, wildtype, strict=True)) if a != b]
    return (f"({len(wrong):,} of {len(letters):,} residues differ, the first at {wrong[0] + 1}: {letters[wrong[0]]} "
            f"where the query has {wildtype[wrong[0]]})")  # fmt: skip


# Searches ------------------------------------------------------------------------------------------------------


def align(
    query: str,
    sequences: Sequence[bytes],
    *,
    coverage: float = 0.5,
    e_value: float = E_VALUE,
    most: int = MOST,
    sensitivity: float = 7.5,
    threads: int | None = None,
) -> Alignment:
    """The relatives of a query among sequences, by local alignments of MMseqs2, one to a sequence.

    Args:
        query: the wild type; letters.
        sequences: to be searched; letters.
        coverage: the least share of the query's residues that must have a residue beside them.
        e_value: the most hits as good that chance would find, m n 2^-bits for a query of m residues among n in all.
        most: rows, the query among them; the best hits are kept.
        sensitivity, threads: as `mmseqs.search` has them.

    Raises UserError as `mmseqs.search` does, for a query that is no sequence of letters, and thresholds out of range.
    """
    _check(coverage, most)
    if not e_value > 0:
        raise UserError(f"e_value: {e_value}; a number above 0 is needed")
    wildtype = _letters(query)
    hits = mmseqs.search(
        [wildtype.encode()], sequences, sensitivity=sensitivity, most=most, alignments=True, threads=threads
    )
    assert hits.cigar is not None and hits.query_start is not None and hits.target_start is not None
    residues = sum(map(len, sequences))
    chance = len(wildtype) * residues * np.exp2(-hits.bits.astype(np.float64))
    _, best = np.unique(hits.target, return_index=True)  # the first of each target, and these are the best
    chosen = [k for k in np.sort(best).tolist() if chance[k] <= e_value][: most - 1]
    rows = np.full((len(chosen) + 1, len(wildtype)), GAP, np.uint8)
    rows[0] = coded(wildtype.encode())
    for number, k in enumerate(chosen, 1):
        target = coded(sequences[hits.target[k]].upper())
        _place(rows[number], target, int(hits.query_start[k]), int(hits.target_start[k]), hits.cigar[k])
    return _assembled(wildtype, rows, np.ones(len(wildtype), bool), len(chosen) + 1, coverage, most)


def _place(row_L: np.ndarray, target: np.ndarray, query_start: int, target_start: int, cigar: str) -> None:
    """Writes a target's codes where they are aligned; its insertions are left out."""
    for number, kind in _STEPS.findall(cigar):
        count = int(number)
        if kind == "M":
            row_L[query_start : query_start + count] = target[target_start : target_start + count]
        query_start += count * (kind != "D")
        target_start += count * (kind != "I")


# Both ----------------------------------------------------------------------------------------------------------


def _assembled(query: str, rows: np.ndarray, covered: np.ndarray, found: int, coverage: float, most: int) -> Alignment:
    """Leaves out rows that cover too little, thins what is too much, and weighs the rest."""
    aligned = rows[:, covered]
    enough = (aligned != GAP).mean(1) >= coverage
    enough[0] = False  # the query stays, and is put in front again
    others = np.flatnonzero(enough)
    if len(others) > most - 1:
        others = others[np.arange(most - 1) * len(others) // max(most - 1, 1)]
    chosen = np.append(0, others)
    weights = sequence_weights(aligned[chosen])
    return Alignment(query, rows[chosen], weights, None if covered.all() else covered, found)


def coded(letters: bytes) -> np.ndarray:
    """(L,) uint8 codes of a row, as in `Alignment.rows`."""
    return _CODES[np.frombuffer(letters, np.uint8)]


def _letters(query: str) -> str:
    if not (query.isascii() and query.isalpha()):
        raise UserError(f"the query {query[:30]!r} is not a sequence of letters; leave gaps and anything else out")
    return query.upper()


def _check(coverage: float, most: int) -> None:
    if not 0 <= coverage <= 1:
        raise UserError(f"coverage: {coverage} is no share; give a number from 0 to 1")
    if most < 1:
        raise UserError(f"most: {most} rows; at least 1 is needed, the query")
