"""Sides of labelled sequences: by a column, at random, by families; and the file that keeps them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from biometro.data import sides, splits
from biometro.data.intake import Account
from biometro.data.labels import Labelled
from biometro.data.likeness import likeness_of
from biometro.data.sides import SplitConfig
from biometro.data.task import Task
from biometro.errors import UserError


def labelled(column: list[str | None] | None = None) -> Labelled:
    """Ten families of six."""
    random = np.random.default_rng(0)
    ancestors = ["".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), 80)) for _ in range(10)]
    letters = []
    for number in range(60):
        one = list(ancestors[number % 10])
        for place in random.integers(0, 80, 8):
            one[place] = str(random.choice(list("ACDEFGHIKLMNPQRSTVWY")))
        letters.append("".join(one).encode())
    truth = np.arange(60) % 2
    return Labelled(
        Task("classification", ("a", "b")), [f"s{i}" for i in range(60)], letters, column or [None] * 60, truth, {}, {},
        Account(),
    )  # fmt: skip


@pytest.mark.parametrize("by", ["random", pytest.param("homology", marks=pytest.mark.long)])
def test_a_division_that_is_kept_is_found_again(by: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, config, path = labelled(), SplitConfig(by=by, valid=0.2), tmp_path / by / "split.parquet"
    first = sides.kept(path, data, by, config, 0)
    assert (first.leaks["test"].count == 0) == (by == "homology")
    table = pq.read_table(path).to_pylist()
    assert [row["id"] for row in table] == data.ids
    assert {row["side"] for row in table} == {"train", "valid", "test"}
    assert all((row["similarity"] is None) == (row["related"] is None) == (row["side"] == "train") for row in table)

    def fail(*args: Any) -> Any:
        raise AssertionError("divided again")

    monkeypatch.setattr(sides, "divide", fail)
    again = sides.kept(path, data, by, config, 0)
    for name in ("train", "valid", "test", "families"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    for side, leak in first.leaks.items():
        other = again.leaks[side]
        for name in ("share", "count", "of", "examples", "measure", "relatives", "threshold"):
            assert getattr(other, name) == getattr(leak, name)
        np.testing.assert_array_equal(other.similarity, leak.similarity)
        np.testing.assert_array_equal(other.related, leak.related)
    for change in ({"seed": 1}, {"config": SplitConfig(by=by, valid=0.25)}):
        with pytest.raises(AssertionError, match="divided again"):
            sides.kept(path, data, by, change.get("config", config), change.get("seed", 0))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(AssertionError, match="divided again"):
        sides.kept(path, data, by, config, 0)


def test_a_column_says_the_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    data = labelled([["Train", "DEV", " test ", "odd"][i % 4] for i in range(60)])
    config = SplitConfig(by="column", column="x", identity=0)
    found = sides.divide(data, "column", config, 0)
    assert found.sizes() == {"train": 30, "valid": 15, "test": 15} and found.leaks == {}
    strict = sides.divide(data, "column", SplitConfig(by="column", column="x", train_is=["train"], identity=0), 0)
    assert strict.sizes() == {"train": 15, "valid": 15, "test": 15}
    drawn = sides.divide(data, "column", SplitConfig(by="column", column="x", valid_is=["none"], identity=0), 0)
    assert drawn.sizes()["valid"] == round(0.1 * 45) and drawn.sizes()["test"] == 15
    with pytest.raises(UserError, match=r"says .*; none of these is split.test_is"):
        sides.divide(data, "column", SplitConfig(by="column", column="x", test_is=["never"], identity=0), 0)


@pytest.mark.long
def test_the_leak_of_a_split_that_is_given_is_measured() -> None:
    data = labelled([["train", "valid", "test"][i // 20] for i in range(60)])
    found = sides.divide(data, "column", SplitConfig(by="column", column="x"), 0)
    likeness = likeness_of("protein")
    assert likeness is not None
    parts = [[data.letters[i] for i in part] for part in (found.test, found.train)]
    reference = splits.leak(likeness, *parts, SplitConfig())
    assert found.leaks["test"].count == reference.count == 20


# By kind of sequence ----------------------------------------------------------------------------------------------


def of_kind(kind: Any, letters: list[bytes], column: list[str | None] | None = None) -> Labelled:
    truth = np.arange(len(letters)) % 2
    names = [f"s{i}" for i in range(len(letters))]
    task = Task("classification", ("a", "b"))
    return Labelled(task, names, letters, column or [None] * len(letters), truth, {}, {}, Account(), kind)


def receptors(count: int, seed: int = 0) -> list[bytes]:
    """Clones and their neighbours at one or two letters, with peptides."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        clone = np.random.default_rng(int(random.integers(count // 3)))
        chains = [list(clone.choice(list("ACDEFGHIKLMNPQRSTVWY"), clone.integers(8, 14))) for _ in range(2)]
        for _ in range(int(random.integers(3))):
            one = chains[int(random.integers(2))]
            one[int(random.integers(len(one)))] = str(random.choice(list("ACDEFGHIKLMNPQRSTVWY")))
        alpha, beta = ("".join(chain) for chain in chains)
        found.append(f"{alpha if random.random() < 0.7 else ''}|{beta}:{random.choice(['GILGFVFTL', 'NLVPMVATV'])}")
    return [text.encode() for text in found]


def parts_of(found: sides.Division) -> list[np.ndarray]:
    return [found.train, found.valid, found.test]


@pytest.mark.parametrize("edits", [0, 1, 2])
def test_no_receptor_has_a_relative_on_another_side(edits: int) -> None:
    from rapidfuzz.distance import Levenshtein

    data = of_kind("tcr", receptors(150))
    found = sides.divide(data, "cdr3", SplitConfig(by="cdr3", valid=0.2, edits=edits), 0)
    assert found.sizes()["test"] == pytest.approx(30, abs=4)
    assert found.leaks["test"].count == found.leaks["valid"].count == 0
    assert found.leaks["test"].relatives == f"within {edits} edit{'s' * (edits != 1)} of its chains"
    chains = [row.split(b":")[0].split(b"|") for row in data.letters]
    for one in range(3):
        for two in range(one):
            for i in parts_of(found)[one]:
                for j in parts_of(found)[two]:
                    both = [(a, b) for a, b in zip(chains[i], chains[j], strict=True) if a and b]
                    assert sum(Levenshtein.distance(a, b) for a, b in both) > edits
    leaky = sides.divide(data, "random", SplitConfig(valid=0.2, edits=edits), 0).leaks["test"]
    assert leaky.count > 0 and leaky.threshold is None


def test_clusters_scaffolds_and_groups_stay_whole() -> None:
    rings = ["c1ccccc1", "C1CCCCC1", "c1ccncc1", "C1CCNCC1", "c1ccsc1", "C1CCC1", "c1cc[nH]c1", "C1CC1", "c1ccoc1", ""]
    tails = ["C", "CC", "CCC", "CCCC", "CCO", "CCCO", "CCN", "CCCN", "C(=O)O", "CC(=O)O"]
    letters = [(ring + tail).encode() for ring in rings for tail in tails]
    data = of_kind("molecule", letters, [f"patient {i % 12}" if i % 9 else None for i in range(100)])
    ways: tuple[Any, ...] = ("scaffold", "butina", "group")
    for by in ways:
        config = SplitConfig(by=by, column="x" if by == "group" else None, valid=0.2, tanimoto=0.5)
        found = sides.divide(data, by, config, 0)
        again = sides.divide(data, by, config, 0)
        assert all(np.array_equal(a, b) for a, b in zip(parts_of(found), parts_of(again), strict=True))
        assert found.families is not None
        held = [{*found.families[part].tolist()} for part in parts_of(found)]
        assert not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2])
        named = {"scaffold": [number // 10 for number in range(100)], "group": data.sides}.get(by)
        if named is not None:
            pairs = {(name, int(family)) for name, family in zip(named, found.families, strict=True)}
            assert len({name for name, _ in pairs}) == len({family for _, family in pairs}) == len(pairs)
        assert sum(found.sizes().values()) == (88 if by == "group" else 100)
        leak = found.leaks["test"]
        assert (leak.measure, leak.threshold) == ("Tanimoto similarity", 0.5)
        assert leak.relatives == "from 0.5 Tanimoto similarity"
        assert leak.count == (leak.similarity >= 0.5).sum()


@pytest.mark.parametrize(
    ("kind", "by", "said"),
    [
        ("tcr", "homology", "for proteins and antibodies, and these are T-cell receptors; choose from cdr3, "
         "random, column, group"),
        ("molecule", "homology", "these are molecules; choose from scaffold, butina, random, column, group"),
        ("protein", "cdr3", "cdr3 is for antibodies and T-cell receptors, and these are proteins; choose from"),
        ("antibody", "cdr3", "cdr3 of antibodies goes by a column of the table; name it with split.column"),
        ("text", "scaffold", "is for molecules, and these are read as text; choose from random, column, group"),
    ],
)  # fmt: skip
def test_a_way_that_a_kind_does_not_have_is_refused(kind: Any, by: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        sides.divide(of_kind(kind, [b"CCC"] * 30), by, SplitConfig(by=by), 0)


@pytest.mark.parametrize("edits", [0, 1, 2])
def test_antibodies_are_split_by_the_cdr3_that_a_column_holds(edits: int) -> None:
    from rapidfuzz.distance import Levenshtein

    random = np.random.default_rng(0)
    loops: list[str] = []
    for _ in range(60):
        loop = "".join(random.choice(list("ACDEFGHIKL"), 9))
        loops += [loop, loop[:4] + str(random.choice(list("MNPQ"))) + loop[5:]][: int(random.integers(1, 3))]
    data = of_kind("antibody", [f"EVQ{'AC'[n % 2] * (n + 1)}|DIQ".encode() for n in range(len(loops) + 1)])
    data = dataclasses.replace(data, sides=[*loops, None])
    config = SplitConfig(by="cdr3", column="CDRH3", valid=0.2, edits=edits, identity=0)
    found = sides.divide(data, "cdr3", config, 0)
    assert found.sizes()["test"] == pytest.approx(0.2 * len(loops), abs=3)
    assert sum(found.sizes().values()) == len(loops)  # without a CDR3, on no side
    near = [
        Levenshtein.distance(loops[i], loops[j])
        for part in (found.valid, found.test)
        for i in part
        for j in found.train
    ]
    assert min(near) > edits
    assert SplitConfig(by=["cdr3", "column"], column="side").cdr3_column is None


def test_a_split_that_makes_no_sense_is_refused() -> None:
    for settings, said in (
        ({"by": ["column", "group"], "column": "x"}, "either sides"),
        ({"by": "group"}, "go together"),
        ({"by": "random", "column": "x"}, "go together"),
        ({"edits": 3}, "split.edits is 0 to 2"),
        ({"tanimoto": 0}, "split.tanimoto above 0"),
    ):
        with pytest.raises(UserError, match=said):
            SplitConfig(**settings)  # type: ignore[arg-type]
    acyclic = of_kind("molecule", [b"C" * n for n in range(1, 40)])
    with pytest.raises(UserError, match=r"39 sequences are 1 families.*ask for a larger share, or split by butina"):
        sides.divide(acyclic, "scaffold", SplitConfig(by="scaffold"), 0)


def test_a_kept_division_is_of_its_kind(tmp_path: Path) -> None:
    data, config, path = of_kind("tcr", receptors(60)), SplitConfig(by="cdr3", valid=0.2), tmp_path / "split.parquet"
    first = sides.kept(path, data, "cdr3", config, 0)
    again = sides.kept(path, data, "cdr3", config, 0)
    for name, value in vars(first.leaks["test"]).items():
        np.testing.assert_array_equal(getattr(again.leaks["test"], name), value)
    near = sides.near(first.leaks["test"])
    assert sum(near["counts"]) == len(first.test) and near["measure"] == "edit similarity" and not any(near["related"])
