"""Measured variants of eleven assays: every text gives the sequence that stands beside it, and the other way round."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from biometro.data.intake import Account
from biometro.data.variants import VariantOptions, read_variants

pytestmark = [pytest.mark.real, pytest.mark.slow]
EVERY = 20


def test_every_mutant_gives_its_sequence(real_data: Path, tmp_path: Path) -> None:
    """Every twentieth, so that it ends in seconds; all 306,409 do (EVERY = 1)."""
    folder = real_data / "dms"
    sequences: dict[str, list[str]] = {}
    table = pq.read_table(folder / "dms_assays.parquet")
    assert len(table) == 306_409
    table = table.take(list(range(0, len(table), EVERY)))
    pq.write_table(table, tmp_path / "assays.parquet")
    pairs = table.select(["assay", "mutated_sequence"])
    for assay, letters in zip(*(column.to_pylist() for column in pairs.columns), strict=True):
        sequences.setdefault(assay, []).append(letters)
    wildtypes = pq.read_table(folder / "dms_wildtypes.parquet", columns=["assay", "wildtype"]).to_pylist()
    assert len(wildtypes) == 11 == len(sequences)
    for row in wildtypes:
        assay, wildtype, account = row["assay"], row["wildtype"], Account()
        for column in ("mutant", None):
            options = VariantOptions(column=column, fields=["score"], where={"assay": assay})
            found = read_variants(str(tmp_path / "assays.parquet"), wildtype, options, account)
            assert [variant.apply(wildtype) for variant in found] == sequences[assay]
            assert all(variant.substitutions for variant in found)
        assert account.dropped == {} and account.kept == 2 * len(sequences[assay])
