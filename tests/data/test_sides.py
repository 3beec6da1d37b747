"""Sides of labelled sequences: by a column, at random, by families; and the file that keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from biometro.data import sides, splits
from biometro.data.intake import Account
from biometro.data.labels import Labelled
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


@pytest.mark.parametrize("by", ["random", "homology"])
def test_a_division_that_is_kept_is_found_again(by: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, config, path = labelled(), SplitConfig(by=by, valid=0.2), tmp_path / by / "split.parquet"
    first = sides.kept(path, data, by, config, 0)
    assert (first.leaks["test"].count == 0) == (by == "homology")
    table = pq.read_table(path).to_pylist()
    assert [row["id"] for row in table] == data.ids
    assert {row["side"] for row in table} == {"train", "valid", "test"}
    assert all((row["identity"] is None) == (row["side"] == "train") for row in table)

    def fail(*args: Any) -> Any:
        raise AssertionError("divided again")

    monkeypatch.setattr(sides, "divide", fail)
    again = sides.kept(path, data, by, config, 0)
    for name in ("train", "valid", "test", "families"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    for side, leak in first.leaks.items():
        other = again.leaks[side]
        assert (other.share, other.count, other.of, other.examples) == (leak.share, leak.count, leak.of, leak.examples)
        np.testing.assert_array_equal(other.identity, leak.identity)
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


def test_the_leak_of_a_split_that_is_given_is_measured() -> None:
    data = labelled([["train", "valid", "test"][i // 20] for i in range(60)])
    found = sides.divide(data, "column", SplitConfig(by="column", column="x"), 0)
    reference = splits.leak([data.letters[i] for i in found.test], [data.letters[i] for i in found.train], 0.4, 0.8)
    assert found.leaks["test"].count == reference.count == 20
