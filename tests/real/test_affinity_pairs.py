"""The affinity data at hand: what each source holds, what is lost of it and why, what its published split shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from biometro.data import pair_splits
from biometro.data.pair_config import PairConfig
from biometro.data.pair_splits import PairSplitConfig, divide_pairs
from biometro.data.pairs import Pairs, read_pairs
from biometro.errors import UserError

pytestmark = [pytest.mark.real, pytest.mark.slow]


def source(real_data: Path, name: str, **options: object) -> Pairs:
    path = str(real_data / "affinity" / "affinity_regression.parquet")
    config = {"value": "value", "unit": "unit", "split": "split", "where": {"source": name}, **options}
    return read_pairs(path, PairConfig(**config))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "unit", "read", "kept", "a", "b"),
    [("davis", "pKd", 30_056, 27_813, 379, 68), ("kiba", "KIBA", 118_254, 118_254, 229, 2_111)],
)
def test_davis_and_kiba(real_data: Path, name: str, unit: str, read: int, kept: int, a: int, b: int) -> None:
    pairs = source(real_data, name)
    (account,) = pairs.accounts
    assert (account.read, account.kept, pairs.unit) == (read, kept, unit)
    assert (len(pairs.a_letters), len(pairs.b_letters)) == (a, b)
    assert len(source(real_data, name, duplicates="keep")) == read


def test_charges_of_pdbbind_are_put_right(real_data: Path) -> None:
    as_they_stand, repaired = (source(real_data, "pdbbind2016", repair=repair) for repair in (False, True))
    unreadable = [pairs.accounts[0].dropped["no SMILES that RDKit can read"] for pairs in (as_they_stand, repaired)]
    assert unreadable == [5_880, 201]
    assert (len(as_they_stand), len(repaired)) == (7_343, 12_906)
    assert repaired.accounts[0].repaired == 5_563 and repaired.unit == "pKd/pKi"


def test_scales_stay_apart(real_data: Path) -> None:
    with pytest.raises(UserError, match="different scales"):
        source(real_data, "davis", where={"source": ["davis", "kiba"]})


def test_the_published_split_of_davis_shares_everything(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_splits.mmseqs, "installed", lambda: False)
    pairs = source(real_data, "davis", duplicates="keep")
    published = divide_pairs(pairs, "published", PairSplitConfig(by="published"), 0).overlaps["test"]
    assert published.of == 5_010 and published.shares["each"] == 1 and published.shares["pair"] > 0.15
    cold = divide_pairs(pairs, "cold_both", PairSplitConfig(by="cold_both", valid=0.2, test=0.2), 0)
    assert cold.overlaps["test"].shares["neither"] == 1 and cold.left_out > len(pairs) / 3
    target = divide_pairs(pairs, "cold_target", PairSplitConfig(by="cold_target"), 0)
    assert not np.isin(pairs.a[target.test], pairs.a[target.train]).any()
