"""What generated variants are like, beside what chance gives at the same number of mutations.

    variants of one method ─┐
    controls, drawn alike ──┴▶ figures: diversity, novelty, identity, model's score, agreement with the family

A model that is asked for its own opinion of its own variants always likes them: the score says that sampling works. The
family's alignment is what the model was not asked, and controls say what a figure is worth: random residues at random
places, and residues that BLOSUM62 puts in the wild type's place.

Shapes: N variants, L places of the wild type, R rows of an alignment or of sequences known, F free places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from biometro.alphabet import amino_acids
from biometro.alphabet.protein import STANDARD
from biometro.inference.generate import Model, Table, detections, draw_like, masked_marginals
from biometro.inference.space import Space, decode, encode
from biometro.inference.variants import rank_correlation

GENERATED, RANDOM, BLOSUM, FAMILY = "generated", "random mutants", "BLOSUM62 mutants", "alignment's columns"
FEWEST = 200
"""Mutants of each control, however few variants there are: a mean over few would be all noise."""
CONTROL_STREAM = 1 << 32  # added to the seed, so that controls share no draws with the variants
_BLOCK = 1 << 22  # comparisons of sequences held at once


class Alignment(Protocol):
    """What is asked of an alignment in the columns of the wild type."""

    @property
    def rows(self) -> np.ndarray: ...

    def frequencies(self) -> np.ndarray: ...

    def conservation(self) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Group:
    """Variants of one method. scores (N,) nats: masked marginals. logits (N,): of the detector, where there is one."""

    name: str
    variants: Sequence[bytes]
    scores: np.ndarray
    logits: np.ndarray | None = None


def group(name: str, model: Model, space: Space, variants: Sequence[bytes]) -> Group:
    """Variants with what the model says of them."""
    logits = detections(model, space, variants) if model.has_detector else None
    return Group(name, variants, masked_marginals(model, space, variants), logits)


def controls(
    model: Model, space: Space, variants: Sequence[bytes], seed: int, alignment: Alignment | None = None
) -> list[Group]:
    """Mutants as far from the wild type as the variants, at uniform free places, with allowed residues:

    random: uniform; BLOSUM62: in proportion to P(a | b) = f(a) 2^(s(a, b) / 2) of the wild type's residue b (Henikoff &
    Henikoff 1992); and, with an alignment, in proportion to the column's frequencies, independent of one another.
    """
    distances = [int((encode(variant) != space.codes).sum()) for variant in variants]
    counts = [distances[n % len(distances)] for n in range(max(FEWEST, len(distances)))]
    tables = {RANDOM: np.zeros((len(space.wildtype), 20)), BLOSUM: _blosum_logs(space)}
    if alignment is not None:
        tables[FAMILY] = np.log(alignment.frequencies())
    return [
        group(name, model, space, [decode(codes_L, space.wildtype) for codes_L in drawn])
        for name, drawn in (
            (name, draw_like(Table(table_L20), space, counts, seed + (k + 1) * CONTROL_STREAM))
            for k, (name, table_L20) in enumerate(tables.items())
        )
    ]


def _blosum_logs(space: Space) -> np.ndarray:
    """(L, 20) float64 log P(a | wild type's residue), up to a constant of each row."""
    scores_AA = amino_acids.standard(amino_acids.blosum62())
    return np.log(amino_acids.standard(amino_acids.BACKGROUND)) + np.log(2) / 2 * scores_AA[space.codes]


def figures(
    one: Group, space: Space, known: Sequence[bytes] = (), alignment: Alignment | None = None
) -> dict[str, float]:
    """Figures of one group by name; NaN where undefined.

    variants, distinct; mutations (mean); identity (mean, to the wild type); diversity: mean share of places in which
    two variants differ, over all pairs; score (mean, nats), better: share of variants above the wild type, whose score
    is 0; detector: mean logit of "replaced" at mutated places. With `known` or an alignment, novel: share of variants
    that are none of these; nearest: mean identity to the nearest of these with as many residues, or in the alignment's
    columns (the wild type aside). With an alignment also what `agreement` gives.
    """
    codes_NL = np.stack([encode(variant) for variant in one.variants])
    mutated_NL = codes_NL != space.codes
    found = {
        "variants": float(len(one.variants)),
        "distinct": float(len(set(one.variants))),
        "mutations": float(mutated_NL.sum(1).mean()),
        "identity": float(1 - mutated_NL.mean()),
        "diversity": diversity(codes_NL),
        "score": float(one.scores.mean()),
        "better": float((one.scores > 0).mean()),
    }
    if one.logits is not None:
        found["detector"] = float(one.logits.mean())
    # int8: 20,000 rows of 1,000 residues are 20 MB, and comparing them with variants goes by bytes
    same = [encode(other).astype(np.int8) for other in known if len(other) == len(space.wildtype)]
    rows_RL = np.stack(same) if same else np.zeros((0, len(space.wildtype)), np.int8)
    members = {*known}
    if alignment is not None:
        rows_RL = np.concatenate([rows_RL, np.where(alignment.rows < 20, alignment.rows.astype(np.int8), np.int8(-2))])
        members |= _letters(alignment.rows)
    if members:
        found["novel"] = float(np.mean([variant not in members for variant in one.variants]))
        rows_RL = rows_RL[(rows_RL != space.codes.astype(np.int8)).any(1)]
        found["nearest"] = float(nearest(codes_NL.astype(np.int8), rows_RL).mean()) if len(rows_RL) else math.nan
    if alignment is not None:
        found |= agreement(codes_NL, space, alignment)
    return found


def diversity(codes_NL: np.ndarray) -> float:
    """Mean share of places in which two of N sequences differ, over all pairs, exactly; NaN for one sequence.

    Of a column with n_a sequences that hold residue a, n_a (n_a - 1) of N (N - 1) ordered pairs agree.
    """
    N = len(codes_NL)
    if N < 2:
        return math.nan
    agreeing_L = np.zeros(codes_NL.shape[1])
    for code in np.unique(codes_NL):
        n_L = (codes_NL == code).sum(0).astype(np.float64)
        agreeing_L += n_L * (n_L - 1)
    return float(1 - agreeing_L.mean() / (N * (N - 1)))


def nearest(codes_NL: np.ndarray, rows_RL: np.ndarray) -> np.ndarray:
    """(N,) float64: identity to the nearest row, as a share of all places; gaps agree with nothing."""
    best_N = np.zeros(len(codes_NL))
    step = max(1, _BLOCK // max(1, rows_RL.size))
    for start in range(0, len(codes_NL), step):
        same = codes_NL[start : start + step, None] == rows_RL[None]
        best_N[start : start + step] = same.mean(2).max(1)
    return best_N


def agreement(codes_NL: np.ndarray, space: Space, alignment: Alignment) -> dict[str, float]:
    """How mutations fit the family; columns in which nothing is aligned are left out.

    conservation: Spearman between the share of variants that a free place is mutated in and 1 - its conservation.
    seen: share of mutations to a residue that some row has in that column. family_log: mean over mutations of
    log f(mutant), and family_gain: of log f(mutant) - log f(wild type), with the alignment's pseudocounts, in nats.
    """
    mutated_NL = codes_NL != space.codes
    conservation_L = alignment.conservation()
    usable_F = space.free[np.isfinite(conservation_L[space.free])]
    rate_F, varied_F = mutated_NL[:, usable_F].mean(0), 1 - conservation_L[usable_F]
    ranked = rank_correlation(rate_F, varied_F)
    n_N, l_N = np.nonzero(mutated_NL & np.isfinite(conservation_L))
    mutants = codes_NL[n_N, l_N]
    logs_L20 = np.log(alignment.frequencies())
    found = {"conservation": math.nan if ranked is None else ranked[0]}
    if not len(mutants):
        return found | dict.fromkeys(("seen", "family_log", "family_gain"), math.nan)
    held_L20 = np.stack([(alignment.rows == a).any(0) for a in range(20)], axis=1)
    mutant_logs = logs_L20[l_N, mutants]
    return found | {
        "seen": float(held_L20[l_N, mutants].mean()),
        "family_log": float(mutant_logs.mean()),
        "family_gain": float((mutant_logs - logs_L20[l_N, space.codes[l_N]]).mean()),
    }


def composition(one: Group, space: Space) -> np.ndarray:
    """(20,) float64: share of each residue among those that were put in."""
    codes_NL = np.stack([encode(variant) for variant in one.variants])
    counts_A = np.bincount(codes_NL[codes_NL != space.codes], minlength=20)
    shares_A: np.ndarray = counts_A / max(1, counts_A.sum())
    return shares_A


def rates(one: Group, space: Space) -> np.ndarray:
    """(L,) float64: share of variants that a place is mutated in."""
    shares_L: np.ndarray = np.stack([encode(variant) != space.codes for variant in one.variants]).mean(0)
    return shares_L


def _letters(rows_RL: np.ndarray) -> set[bytes]:
    """Rows as sequences without gaps, in letters."""
    letters = np.frombuffer((STANDARD + "-X").encode(), dtype=np.uint8)[np.minimum(rows_RL, 21)]
    return {bytes(row_L).replace(b"-", b"") for row_L in letters}
