"""Sides of pairs: what is cold stays cold, and the overlap is what a plain count says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from biometro.data import fingerprints, mmseqs
from biometro.data.pair_rows import PairAccount
from biometro.data.pair_splits import PairSplitConfig, divide_pairs
from biometro.data.pairs import Pairs
from biometro.errors import UserError

pytest.importorskip("rdkit")

AMINO = list("ACDEFGHIKLMNPQRSTVWY")


def proteins(count: int, each: int, seed: int = 0) -> list[bytes]:
    """Families of `each` relatives, one after another."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        ancestor = random.choice(AMINO, 90)
        for _ in range(each):
            one = ancestor.copy()
            one[random.integers(0, 90, 9)] = random.choice(AMINO, 9)
            found.append("".join(one).encode())
    return found


MOLECULES = [
    f"{chain}{ring}".encode()
    for ring in ("c1ccccc1", "C1CCCCC1", "c1ccncc1", "C1CCNCC1", "c1ccsc1", "c1ccoc1", "C1CCOC1", "c1cnc2ccccc2c1")
    for chain in ("C", "CC", "OCC", "NCCC")
]


def table(a: list[bytes], b: list[bytes], sides: list[str] | None = None, share: float = 1.0, **more: Any) -> Pairs:
    random = np.random.default_rng(1)
    at_a, at_b = (axis.ravel() for axis in np.meshgrid(np.arange(len(a)), np.arange(len(b)), indexing="ij"))
    kept = np.flatnonzero(random.random(len(at_a)) < share)
    n = len(kept)
    return Pairs(
        a, b, at_a[kept], at_b[kept], random.normal(6, 1, n).astype(np.float32), np.zeros(n, np.int8),
        np.full(n, -1, np.int8), "pKd", sides or [""] * n, at_a[kept], [row.decode() for row in a],
        np.zeros(n, np.int64), (PairAccount(),), **more,
    )  # fmt: skip


PAIRS = table(proteins(8, 3), MOLECULES, share=0.7)


def check(pairs: Pairs, by: Any, **options: Any) -> tuple[Any, dict[str, np.ndarray]]:
    config = PairSplitConfig(by=by, **options)
    division = divide_pairs(pairs, by, config, 0)
    every = np.concatenate([division.train, division.valid, division.test])
    assert len(every) == len(np.unique(every)) and len(every) + division.left_out == len(pairs)
    for side, overlap in division.overlaps.items():
        rows = getattr(division, side)
        in_a = np.isin(pairs.a[rows], pairs.a[division.train])
        in_b = np.isin(pairs.b[rows], pairs.b[division.train])
        assert overlap.of == len(rows)
        if not pairs.shared:
            assert [overlap.counts[name] for name in ("a", "b", "each", "neither")] == [
                in_a.sum(), in_b.sum(), (in_a & in_b).sum(), (~in_a & ~in_b).sum(),
            ]  # fmt: skip
    return division, division.overlaps


def test_a_random_split_shares_everything_but_pairs() -> None:
    division, overlaps = check(PAIRS, "random", valid=0.1, test=0.3)
    assert len(division.test) == pytest.approx(0.3 * len(PAIRS), abs=1)
    assert overlaps["test"].shares["each"] == 1 and overlaps["test"].counts["pair"] == 0
    again = divide_pairs(PAIRS, "random", PairSplitConfig(valid=0.1, test=0.3), 0)
    np.testing.assert_array_equal(again.test, division.test)
    other = divide_pairs(PAIRS, "random", PairSplitConfig(valid=0.1, test=0.3), 1)
    assert not np.array_equal(other.test, division.test)


def test_a_pair_measured_twice_stays_on_one_side() -> None:
    twice = PAIRS.take(np.concatenate([np.arange(len(PAIRS))] * 2))
    _, overlaps = check(twice, "random")
    assert overlaps["test"].counts["pair"] == 0


@pytest.mark.parametrize(("by", "cold", "warm"), [("cold_drug", "b", "a"), ("cold_target", "a", "b")])
def test_cold_splits_hold_out_whole_drugs_or_targets(by: str, cold: str, warm: str) -> None:
    division, overlaps = check(PAIRS, by)
    for side, share in (("test", 0.2), ("valid", 0.1)):
        assert overlaps[side].counts[cold] == 0 and overlaps[side].shares[warm] > 0.9
        assert len(getattr(division, side)) == pytest.approx(share * len(PAIRS), rel=0.5)
    swapped = table(MOLECULES, proteins(8, 3), kind_a="molecule", kind_b="protein")
    _, overlaps = check(swapped, by)
    assert overlaps["test"].counts[warm] == 0


def test_cold_both_shares_neither_and_counts_what_is_left_out() -> None:
    division, overlaps = check(PAIRS, "cold_both", valid=0.2, test=0.3)
    assert overlaps["test"].counts["neither"] == len(division.test) > 0
    assert overlaps["valid"].counts["neither"] == len(division.valid) > 0
    assert division.left_out > len(PAIRS) / 3


def test_no_scaffold_is_on_two_sides() -> None:
    division, overlaps = check(PAIRS, "scaffold", valid=0.2)
    assert overlaps["test"].counts["scaffold"] == overlaps["valid"].counts["scaffold"] == 0
    rings = [fingerprints.scaffold(MOLECULES[i]) for i in PAIRS.b]
    assert not {rings[i] for i in division.test} & {rings[i] for i in division.train}
    _, random = check(PAIRS, "random")
    assert random["test"].shares["scaffold"] == 1


@pytest.mark.long
@pytest.mark.skipif(not mmseqs.installed(), reason="MMseqs2 is not installed")
def test_no_relatives_of_a_protein_are_on_two_sides() -> None:
    division, overlaps = check(PAIRS, "homology", valid=0.15)
    assert overlaps["test"].counts["near_a"] == overlaps["test"].leaks["a"].count == 0
    assert not {*(PAIRS.a[division.test] // 3).tolist()} & {*(PAIRS.a[division.train] // 3).tolist()}
    _, cold = check(PAIRS, "cold_target")
    assert cold["test"].shares["near_a"] > 0.9  # cold, and yet with relatives in train
    _, unmeasured = check(PAIRS, "cold_target", identity=0)
    assert "near_a" not in unmeasured["test"].counts and "near_b" in unmeasured["test"].counts


def test_published_sides_and_what_they_share() -> None:
    sides = ["Test" if i % 5 == 0 else "none" if i % 5 == 1 else f"train{i % 3}" for i in range(len(PAIRS))]
    named = table(PAIRS.a_letters, MOLECULES, sides, share=0.7)
    division, overlaps = check(named, "published", valid=0.25)
    assert [sides[i] for i in division.test] == ["Test"] * len(division.test)
    assert division.left_out == 0 and {sides[i][:5] for i in division.train} == {"train", "none"}
    inside = len(division.train) + len(division.valid)
    assert len(division.valid) == pytest.approx(0.25 * inside, abs=1)
    division, _ = check(named, "published", train_is=["train0", "train1"], valid_is=["train2"])
    assert division.left_out == sides.count("none") and {sides[i] for i in division.valid} == {"train2"}
    with pytest.raises(UserError, match=r"pairs\.split says none, test"):
        check(named, "published", test_is=["held out"])
    assert overlaps["test"].shares["each"] == 1


@pytest.mark.long
def test_sequences_of_one_kind_are_held_out_on_both_ends() -> None:
    letters = proteins(8, 3)
    pairs = table(letters, letters, kind_b="protein")
    division, overlaps = check(pairs, "cold_both", valid=0.2, test=0.3)
    assert overlaps["test"].counts["neither"] == len(division.test)
    with pytest.raises(UserError, match="take cold_both"):
        check(pairs, "cold_drug")
    with pytest.raises(UserError, match="scaffold is for molecules"):
        check(pairs, "scaffold")
    if mmseqs.installed():
        _, overlaps = check(pairs, "homology", valid=0.2, test=0.3)
        assert overlaps["test"].counts["near_a"] == overlaps["test"].counts["near_b"] == 0


def test_options_and_sides_that_make_no_sense() -> None:
    for options in (
        {"by": []},
        {"valid": 0.6, "test": 0.5},
        {"identity": 2.0},
        {"edits": 3},
        {"by": "homology", "identity": 0},
    ):
        with pytest.raises(UserError):
            PairSplitConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"leaves no pair|no family can be held out"):
        check(table([b"MKT"], [b"C", b"CC"]), "cold_target")
    assert PairSplitConfig(by=["random", "cold_both"]).methods == ["random", "cold_both"]
