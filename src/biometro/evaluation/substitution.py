"""Effects of variants as tables of residues or a column of relatives foretell them: what a model has to beat.

    variants ─▶ one entry for each residue replaced ─▶ score of wild type -> mutant ─▶ sums (N,), higher = fitter

Effects of several substitutions add up. The wild type itself scores 0. Scores but `blosum62` speak of replaced residues
only and are NaN for a variant with an insertion or a deletion, and all are NaN where a residue is not of the 20.

Shapes: N variants, M residues replaced in all, L residues of the wild type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from biometro.alphabet import amino_acids
from biometro.alphabet.protein import STANDARD
from biometro.data.alignment import PSEUDOCOUNT, Alignment
from biometro.data.variants import Variant
from biometro.errors import UserError

GAP_OPEN, GAP_EXTEND = 11, 1  # half bits: BLAST's costs for BLOSUM62
_UNKNOWN = 20
_NUMBER = {residue: number for number, residue in enumerate(STANDARD)}


class _Replaced(NamedTuple):
    """Residues replaced by others, variant by variant, all int64; and which variants do more than that."""

    variant_M: np.ndarray
    place_M: np.ndarray
    old_M: np.ndarray  # 0 to 19 in the order of STANDARD, 20 for anything else
    new_M: np.ndarray
    longer_N: np.ndarray  # bool: residues inserted or deleted

    def total(self, scores_M: np.ndarray) -> np.ndarray:
        """(N,) float64 sums of scores; NaN where they do not say all."""
        sums_N = np.bincount(self.variant_M, scores_M, minlength=len(self.longer_N)).astype(np.float64)
        sums_N[self.longer_N] = np.nan
        return sums_N


def blosum62(wildtype: str, variants: Sequence[Variant]) -> np.ndarray:
    """(N,) float64, half bits: the score of a variant aligned with the wild type, less that of the wild type itself.

    For a substitution that is s(old, new) - s(old, old), so that losing a residue that seldom changes costs most. Where
    residues are replaced by more or fewer, the first of both are aligned, and the k that are left are a gap, which
    costs 11 + k, as BLAST counts; deleted residues lose s(old, old) too. NaN for residues outside the 20.

    Raises:
        ValueError: for a change beyond the wild type.
    """
    scores = _with_unknown(amino_acids.standard(amino_acids.blosum62()))
    replaced = _replaced(wildtype, variants)
    sums_N = np.bincount(
        replaced.variant_M,
        scores[replaced.old_M, replaced.new_M] - scores[replaced.old_M, replaced.old_M],
        minlength=len(variants),
    ).astype(np.float64)
    for number in np.flatnonzero(replaced.longer_N).tolist():
        for change in variants[number].changes:
            old, new = wildtype[change.start : change.end], change.letters
            lost = [_NUMBER.get(residue, _UNKNOWN) for residue in old[len(new) :]]
            sums_N[number] -= scores[lost, lost].sum()
            if len(old) != len(new):
                sums_N[number] -= GAP_OPEN + GAP_EXTEND * abs(len(old) - len(new))
            if any(residue not in _NUMBER for residue in new):
                sums_N[number] = np.nan
    return sums_N


def site_independent(
    alignment: Alignment, wildtype: str, variants: Sequence[Variant], pseudocount: float = PSEUDOCOUNT
) -> np.ndarray:
    """(N,) float64, nats: the sum over replaced residues of log f(new) - log f(old) in their columns.

    The model without couplings that Hopf et al. 2017 (Nature Biotechnology 35:128) set beside theirs, with the
    frequencies of `Alignment.frequencies`. In columns that were not aligned these are the background's.

    Raises:
        UserError: where the alignment is of another query.
        ValueError: for a change beyond the wild type; for a pseudocount that is not above 0.
    """
    if alignment.query != wildtype:
        raise UserError(
            f"the alignment is of a query of {len(alignment.query):,} residues that is not the wild type of "
            f"{len(wildtype):,}; read it with the wild type as its query"
        )
    if not pseudocount > 0:
        raise ValueError(f"pseudocount: {pseudocount}; without one, residues that were not seen have no logarithm")
    logs = np.full((len(wildtype), 21), np.nan)
    logs[:, :20] = np.log(alignment.frequencies(pseudocount))
    replaced = _replaced(wildtype, variants)
    return replaced.total(logs[replaced.place_M, replaced.new_M] - logs[replaced.place_M, replaced.old_M])


def hydrophobicity(wildtype: str, variants: Sequence[Variant]) -> np.ndarray:
    """(N,) float64: minus the sum of absolute changes of hydropathy (Kyte & Doolittle 1982).

    Raises:
        ValueError: for a change beyond the wild type.
    """
    return _property(amino_acids.HYDROPATHY, wildtype, variants)


def volume(wildtype: str, variants: Sequence[Variant]) -> np.ndarray:
    """(N,) float64: minus the sum of absolute changes of the residue's volume, in cubic angstrom (Zamyatnin 1972).

    Raises:
        ValueError: for a change beyond the wild type.
    """
    return _property(amino_acids.VOLUME, wildtype, variants)


def composition(wildtype: str, variants: Sequence[Variant]) -> np.ndarray:
    """(N,) float64, nats: the sum of log b(new) - log b(old), b being the background frequencies of BLOSUM62.

    What is left of a model that knows no context. Raises ValueError for a change beyond the wild type.
    """
    logs = _with_unknown(np.log(amino_acids.standard(amino_acids.BACKGROUND)))
    replaced = _replaced(wildtype, variants)
    return replaced.total(logs[replaced.new_M] - logs[replaced.old_M])


def _property(table: np.ndarray, wildtype: str, variants: Sequence[Variant]) -> np.ndarray:
    values = _with_unknown(amino_acids.standard(table))
    replaced = _replaced(wildtype, variants)
    return replaced.total(-np.abs(values[replaced.new_M] - values[replaced.old_M])) + 0.0  # no -0


def _with_unknown(table: np.ndarray) -> np.ndarray:
    """A table with one more entry on every axis, NaN, for residues outside the 20."""
    return np.pad(table.astype(np.float64), (0, 1), constant_values=np.nan)


def _replaced(wildtype: str, variants: Sequence[Variant]) -> _Replaced:
    numbers = [_NUMBER.get(residue, _UNKNOWN) for residue in wildtype]
    entries: list[tuple[int, int, int, int]] = []
    longer_N = np.zeros(len(variants), bool)
    for number, variant in enumerate(variants):
        for change in variant.changes:
            if not 0 <= change.start <= change.end <= len(wildtype):
                raise ValueError(f"{variant.name}: residues {change.start} to {change.end} of {len(wildtype)}")
            if change.end - change.start != len(change.letters):
                longer_N[number] = True
            for place, residue in zip(range(change.start, change.end), change.letters, strict=False):
                entries.append((number, place, numbers[place], _NUMBER.get(residue, _UNKNOWN)))
    variant_M, place_M, old_M, new_M = np.array(entries, np.int64).reshape(-1, 4).T
    return _Replaced(variant_M, place_M, old_M, new_M, longer_N)
