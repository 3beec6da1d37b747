"""Controls of binding: what each must find, what it must not, and what is said of a model that does not beat them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from biometro.data import fingerprints
from biometro.data.mmseqs import installed
from biometro.data.pair_rows import PairAccount
from biometro.data.pairs import Pairs
from biometro.evaluation import controls
from biometro.evaluation.controls import run_controls, shuffled

pytest.importorskip("rdkit")

AMINO = list("ACDEFGHIKLMNPQRSTVWY")
NAMES = ["ligand only", "protein only", "nearest ligand", "nearest protein", "ECFP4 + k-mers", "shuffled partners"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few trees, on one thread, and no MMseqs2: small data show what is meant."""
    monkeypatch.setattr(controls, "_TREES", 20)
    monkeypatch.setattr(controls, "installed", lambda: False)
    with threadpool_limits(1):
        yield


def proteins(families: int = 6, each: int = 4) -> list[bytes]:
    random = np.random.default_rng(0)
    found = []
    for _ in range(families):
        ancestor = random.choice(AMINO, 120)
        for _ in range(each):
            one = ancestor.copy()
            one[random.integers(0, 120, 8)] = random.choice(AMINO, 8)
            found.append("".join(one).encode())
    return found


RINGS = ("c1ccccc1", "C1CCNCC1", "c1ccsc1", "c1cnc2ccccc2c1", "C1CCOC1")
MOLECULES = [f"{chain}{ring}".encode() for ring in RINGS for chain in ("C", "CC", "CCC", "CCCC", "OCC", "NCC")]


def table(value: Any, a: list[bytes] | None = None, **more: Any) -> Pairs:
    """All proteins with all molecules; value: of (proteins' numbers, molecules' numbers)."""
    letters = proteins() if a is None else a
    at_a, at_b = (axis.ravel() for axis in np.meshgrid(np.arange(len(letters)), np.arange(len(MOLECULES))))
    n, names = len(at_a), [row.decode() for row in letters]
    values = np.broadcast_to(np.asarray(value(at_a, at_b), np.float32), (n,)).copy()
    label = (values > np.median(values)).astype(np.int8)
    return Pairs(
        letters, MOLECULES, at_a, at_b, values, np.zeros(n, np.int8), label, "pKd", [""] * n, at_a, names,
        np.zeros(n, np.int64), (PairAccount(),), **more,
    )  # fmt: skip


def parts(pairs: Pairs, cold: str = "") -> tuple[Pairs, Pairs]:
    if cold:
        held = np.flatnonzero(getattr(pairs, cold) % 4 == 1)
    else:
        held = np.random.default_rng(5).permutation(len(pairs))[: len(pairs) // 5]
    return pairs.take(np.setdiff1d(np.arange(len(pairs)), held)), pairs.take(held)


def errors(train: Pairs, test: Pairs, kind: Any = "affinity") -> dict[str, float]:
    """Correlation of each control with the truth."""
    truth = test.value if kind == "affinity" else test.label
    found = run_controls(train, test, kind)
    assert list(found) == NAMES and all(row.shape == (len(test),) for row in found.values())
    assert all(np.isfinite(row).all() for row in found.values())
    with np.errstate(invalid="ignore"):
        return {name: float(np.nan_to_num(np.corrcoef(row, truth)[0, 1])) for name, row in found.items()}


FAMILY = 4  # proteins of one


@pytest.mark.parametrize("kind", ["affinity", "classes"])
def test_one_partner_is_enough_where_the_other_plays_no_part(kind: str) -> None:
    r = errors(*parts(table(lambda a, b: 5 + b // 6)), kind)
    assert r["ligand only"] > 0.95 and r["ECFP4 + k-mers"] > 0.9 and abs(r["protein only"]) < 0.5
    r = errors(*parts(table(lambda a, b: 5 + a // FAMILY)), kind)
    assert r["protein only"] > 0.95 and r["shuffled partners"] > 0.8 and abs(r["ligand only"]) < 0.5


def test_an_interaction_takes_both() -> None:
    train, test = parts(table(lambda a, b: 5 + 2 * ((a // FAMILY + b // 6) % 2)))
    r = errors(train, test)
    assert r["ECFP4 + k-mers"] > 0.9
    assert r["nearest protein"] > 0.9 and r["nearest ligand"] > 0.6
    assert max(abs(r[name]) for name in ("ligand only", "protein only", "shuffled partners")) < 0.5


def test_new_partners_are_judged_by_what_they_look_like() -> None:
    family = lambda a, b: 5 + a // FAMILY + 0.01 * b  # noqa: E731
    train, test = parts(table(family), "a")
    assert not {*train.a.tolist()} & {*test.a.tolist()}
    r = errors(train, test)
    assert r["nearest protein"] > 0.95 and r["protein only"] > 0.8 and r["ligand only"] < 0.2
    r = errors(*parts(table(lambda a, b: 5 + b // 6), "b"))
    assert r["nearest ligand"] > 0.8 and r["ligand only"] > 0.8 and abs(r["protein only"]) < 0.2


def test_neighbours_are_those_of_a_plain_search() -> None:
    random = np.random.default_rng(1)
    pairs = table(lambda a, b: random.normal(6, 1, len(a)))
    some = pairs.take(random.permutation(len(pairs))[:300])
    train, test = some.take(np.arange(200)), some.take(np.arange(200, 300))
    found = run_controls(train, test, "affinity")["nearest ligand"]
    bits = np.unpackbits(fingerprints.fingerprints(MOLECULES), axis=1).astype(bool)
    for row in range(100):
        a, b = int(test.a[row]), int(test.b[row])
        candidates = []
        for other in range(200):
            if train.a[other] == a:
                near = bits[train.b[other]]
                similarity = (near & bits[b]).sum() / (near | bits[b]).sum()
                if similarity > 0:
                    candidates.append((-similarity, int(train.b[other]), float(train.value[other])))
        if (train.a == a).any() and candidates:
            best = sorted(candidates)
            if len(best) > 5 and abs(best[4][0] - best[5][0]) < 1e-9:
                continue  # which of two equals is the fifth is a matter of order
            weight = np.array([1 / (1.05 + negative) for negative, _, _ in best[:5]])
            assert found[row] == pytest.approx(weight @ [value for _, _, value in best[:5]] / weight.sum(), rel=1e-5)


def test_pairs_of_one_kind_have_controls_by_place() -> None:
    names = list(controls.controls(replace(table(lambda a, b: a), kind_b="protein")))
    assert names == ["second only", "first only", "nearest second", "nearest first", "k-mers", "shuffled partners"]


def test_shuffling_moves_partners_only() -> None:
    pairs = table(lambda a, b: a)
    other = shuffled(pairs, 1)
    assert sorted(other.b.tolist()) == sorted(pairs.b.tolist()) and not np.array_equal(other.b, pairs.b)
    assert np.array_equal(other.a, pairs.a) and np.array_equal(other.value, pairs.value)
    assert np.array_equal(shuffled(pairs, 1).b, other.b)


def test_constant_and_missing_truths() -> None:
    pairs = table(lambda a, b: np.full(len(a), 7.0))
    train, test = parts(pairs)
    assert all(np.allclose(row, 7) for row in run_controls(train, test, "affinity").values())
    train.value[:] = np.nan
    with pytest.raises(ValueError, match="no training pair has a value"):
        run_controls(train, test, "affinity")
    with pytest.raises(ValueError, match="not of one set"):
        run_controls(pairs, table(lambda a, b: a), "affinity")


@pytest.mark.skipif(not installed(), reason="MMseqs2 is not installed")
def test_alignments_are_used_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    hits = controls._hits(proteins()[:2], proteins()[4:8] + proteins()[1:4], "protein")
    assert {*hits[0][0].tolist()[:3]} == {4, 5, 6} and hits[1][0][0] == 4 and hits[1][1][0] == 1
