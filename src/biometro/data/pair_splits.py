"""Which side of the split each pair is on, and how much of the held-out pairs stands in train already.

pairs ─┬─▶ published | random ──────────────────────────────────────────────┬─▶ train, valid, test ─▶ overlap
       └─▶ cold drug | cold target | cold both | scaffold | homology        ┘
                (whole drugs, targets, or families of them on one side)

A random split of pairs asks how well gaps in a table are filled: nearly all drugs and targets of its test pairs are in
train. What is asked of a new drug, a new target, or both (Pahikkala et al. 2015, doi:10.1093/bib/bbu010), is another
question. So the overlap is measured whatever made the split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from biometro.alphabet import SequenceKind
from biometro.data import fingerprints, mmseqs, splits
from biometro.data.likeness import likeness_of, unmarked
from biometro.data.pairs import Pairs
from biometro.data.sides import SIDES, check_numbers, named_sides
from biometro.data.splits import Leak
from biometro.errors import UserError

PairBy = Literal["published", "random", "cold_drug", "cold_target", "cold_both", "scaffold", "homology"]
_PROTEINS: tuple[SequenceKind, ...] = ("protein", "antibody")
_HINT = "ask for a larger share, or split in another way"


@dataclass(frozen=True)
class PairSplitConfig:
    """How pairs are divided.

    Args:
        by: published (`pairs.split` names the column that says the side); random (pairs); cold_drug, cold_target (no
            molecule, or no partner of one, is on two sides; of two sequences of other kinds, the second is the drug);
            cold_both (neither: a pair whose two sequences fall on different sides is left out); scaffold (no ring
            system of a molecule on two sides); homology (no relatives of a protein or antibody on two sides). Several
            by name compare them.
        train_is: what the column says of training pairs; left out, all that is neither of the others. Capitals or not
            is the same in all three; pairs on no side are counted and left out.
        valid_is: what it says of validation pairs; where there are none, a share of train is taken at random.
        test_is: what it says of test pairs.
        valid: share of validation pairs; of cold_both and homology, of sequences.
        test: share of test pairs, alike. Of cold_both, a tenth of each leaves a hundredth of the pairs.
        identity: share of identical residues from which two aligned proteins count as relatives; 0 leaves relatives out
            of account, and unmeasured.
        coverage: share of the shorter protein that must be aligned.
        edits: letters by which two T-cell receptors may differ to count as relatives.
        tanimoto: similarity of fingerprints (ECFP4) from which two molecules count as relatives.
    """

    by: PairBy | list[PairBy] = "random"
    train_is: list[str] | None = None
    valid_is: list[str] = dataclasses.field(default_factory=lambda: ["valid", "val", "validation", "dev"])
    test_is: list[str] = dataclasses.field(default_factory=lambda: ["test"])
    valid: float = 0.1
    test: float = 0.2
    identity: float = 0.4
    coverage: float = 0.8
    edits: int = 1
    tanimoto: float = 0.6

    def __post_init__(self) -> None:
        check_numbers(self)

    @property
    def methods(self) -> list[PairBy]:
        return list(self.by) if isinstance(self.by, list) else [self.by]


@dataclass(frozen=True)
class Overlap:
    """How much of the pairs of one side stands in train already: counts of N pairs.

    of: N. a, b: pairs whose first, second sequence is in a training pair. each: both are, in one training pair or in
    two. pair: the very pair is. neither: none of the two is. scaffold: of a molecule, its scaffold is. near_a, near_b:
    the sequence is in train, or a relative of it (see `Leak`). What cannot be measured is missing.
    leaks: of the distinct sequences of `a` and `b` that are not in train themselves, to those that are, where the kind
    has a measure.
    """

    of: int
    counts: dict[str, int]
    leaks: dict[str, Leak]

    @property
    def shares(self) -> dict[str, float]:
        """Of the pairs; 0 where there are none."""
        return {name: count / max(self.of, 1) for name, count in self.counts.items()}


@dataclass(frozen=True)
class PairDivision:
    """One split. train, valid, test: numbers of pairs. left_out: how many are on no side. overlaps: of `test` and
    `valid` with train."""

    by: PairBy
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    left_out: int
    overlaps: dict[str, Overlap]

    def sizes(self) -> dict[str, int]:
        return {"train": len(self.train), "valid": len(self.valid), "test": len(self.test), "left_out": self.left_out}

    def to_json(self) -> dict[str, Any]:
        return {
            "by": self.by, "sizes": self.sizes(),
            "seen_in_train": {side: overlap.shares for side, overlap in self.overlaps.items()},
        }  # fmt: skip


def divide_pairs(pairs: Pairs, by: PairBy, config: PairSplitConfig, seed: int) -> PairDivision:
    """Divide the pairs, and measure what the sides share.

    Args:
        pairs: the pairs; `sides` as the table's column says.
        by: one of the config's ways.
        config: shares and thresholds.
        seed: of the random choices.

    A pair that stands there several times is on one side of every split but a published one. Raises UserError where a
    side would be empty, for a way that these kinds do not have, and where MMseqs2 is needed and missing.
    """
    side = _sides(pairs, by, config, seed)
    parts = [np.flatnonzero(side == number) for number in range(3)]
    for name, part in zip(SIDES, parts, strict=True):
        if not len(part):
            raise UserError(f"the split by {by} leaves no pair in {name}; {_HINT}")
    train, valid, test = parts
    overlaps = _overlaps(pairs, train, {"test": test, "valid": valid}, config)
    return PairDivision(by, train, valid, test, int((side < 0).sum()), overlaps)


def _sides(pairs: Pairs, by: PairBy, config: PairSplitConfig, seed: int) -> np.ndarray:
    """(N,) int8 places in `SIDES`, -1 on none."""
    shares = (config.valid, config.test)
    if by == "published":
        if not any(pairs.sides):
            raise UserError("split.by: published needs pairs.split, the column that says the side")
        side = named_sides(pairs.sides, config, "the column pairs.split")
        if not (side == 1).any():
            inside = np.flatnonzero(side == 0)
            _, number = np.unique(_numbers(pairs)[inside], return_inverse=True)
            side[inside[splits.random_split(None, (config.valid, 0.0), seed, int(number.max()) + 1)[number] == 1]] = 1
        return side
    if by == "random":
        number = _numbers(pairs)
        return splits.random_split(None, shares, seed, int(number.max(initial=-1)) + 1)[number]
    if pairs.shared and by in ("cold_drug", "cold_target"):
        raise UserError(f"split.by: {by} tells a pair's two sequences apart, and these are of one kind: take cold_both")
    if by == "cold_both" and not pairs.shared:
        sides_a, sides_b = (
            splits.random_split(None, shares, seed + shift, len(letters))
            for shift, letters in enumerate((pairs.a_letters, pairs.b_letters))
        )
        return _agreed(sides_a[pairs.a], sides_b[pairs.b])
    if pairs.shared:
        own = _sequence_sides(pairs.a_letters, pairs.kind_a, by, config, seed)
        return _agreed(own[pairs.a], own[pairs.b])
    first = _is_first(pairs, by)
    letters, kind, at = (pairs.a_letters, pairs.kind_a, pairs.a) if first else (pairs.b_letters, pairs.kind_b, pairs.b)
    if by == "homology":
        return _sequence_sides(letters, kind, by, config, seed)[at]
    families = _scaffolds(letters, kind)[at] if by == "scaffold" else at
    return splits.family_split(families, None, shares, seed, _HINT)


def _sequence_sides(
    letters: list[bytes], kind: SequenceKind, by: PairBy, config: PairSplitConfig, seed: int
) -> np.ndarray:
    """Sides of sequences, (S,) int8."""
    shares = (config.valid, config.test)
    if by == "homology":
        if kind not in _PROTEINS:
            raise UserError(f"split.by: homology is for proteins and antibodies, and these are of the kind {kind}")
        return splits.homology_split(
            unmarked(letters), None, identity=config.identity, coverage=config.coverage, shares=shares, seed=seed
        )[0]
    if by == "scaffold":
        return splits.family_split(_scaffolds(letters, kind), None, shares, seed, _HINT)
    return splits.random_split(None, shares, seed, len(letters))


def _is_first(pairs: Pairs, by: PairBy) -> bool:
    """Whether a way of splitting goes by the first sequences of two kinds."""
    molecule_first = pairs.kind_a == "molecule"
    if by in ("cold_drug", "scaffold"):
        return molecule_first
    if by == "cold_target":
        return not molecule_first
    return pairs.kind_a in _PROTEINS


def _scaffolds(letters: list[bytes], kind: SequenceKind) -> np.ndarray:
    if kind != "molecule":
        raise UserError(f"split.by: scaffold is for molecules, and these are of the kind {kind}")
    return fingerprints.scaffold_families(letters)


def _agreed(side_a: np.ndarray, side_b: np.ndarray) -> np.ndarray:
    return np.where(side_a == side_b, side_a, -1).astype(np.int8)


def _numbers(pairs: Pairs) -> np.ndarray:
    """(N,) int64 the number of each distinct pair."""
    a, b = (np.minimum(pairs.a, pairs.b), np.maximum(pairs.a, pairs.b)) if pairs.shared else (pairs.a, pairs.b)
    numbers: np.ndarray = np.unique(a * len(pairs.b_letters) + b, return_inverse=True)[1]
    return numbers


# Overlap -------------------------------------------------------------------------------------------------------------


def _overlaps(
    pairs: Pairs, train: np.ndarray, held_out: dict[str, np.ndarray], config: PairSplitConfig
) -> dict[str, Overlap]:
    number = _numbers(pairs)
    sides = {"a": (pairs.a, pairs.a_letters, pairs.kind_a), "b": (pairs.b, pairs.b_letters, pairs.kind_b)}
    seen = {}
    for name, (at, letters, _) in sides.items():
        seen[name] = np.zeros(len(letters), bool)
        seen[name][at[train]] = True
    if pairs.shared:  # seen is seen, on whichever side of a pair
        seen["a"] = seen["b"] = seen["a"] | seen["b"]
    families: dict[str, np.ndarray] = {}
    found = {}
    for side, rows in held_out.items():
        here = {name: seen[name][at[rows]] for name, (at, _, _) in sides.items()}
        counts = {
            "a": here["a"], "b": here["b"], "each": here["a"] & here["b"], "neither": ~(here["a"] | here["b"]),
            "pair": np.isin(number[rows], number[train]),
        }  # fmt: skip
        leaks = {}
        for name, (at, letters, kind) in sides.items():
            if kind == "molecule" and not (pairs.shared and name == "b"):
                if name not in families:
                    families[name] = fingerprints.scaffold_families(letters)
                counts["scaffold"] = np.isin(families[name][at[rows]], families[name][np.flatnonzero(seen[name])])
            leak_of = _leak(kind, config)
            if leak_of is not None:
                own = np.unique(at[rows[~here[name]]])
                leaks[name] = leak_of([letters[i] for i in own], [letters[i] for i in np.flatnonzero(seen[name])])
                near = seen[name].copy()
                near[own[leaks[name].related]] = True
                counts[f"near_{name}"] = near[at[rows]]
        found[side] = Overlap(len(rows), {name: int(mask.sum()) for name, mask in counts.items()}, leaks)
    return found


def _leak(kind: SequenceKind, config: PairSplitConfig) -> Callable[[list[bytes], list[bytes]], Leak] | None:
    """How relatives in train are found; None where they are not."""
    likeness = likeness_of(kind)
    if likeness is None or (kind in _PROTEINS and (config.identity == 0 or not mmseqs.installed())):
        return None
    return lambda held_out, reference: splits.leak(likeness, held_out, reference, config)
