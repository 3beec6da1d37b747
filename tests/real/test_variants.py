"""Measured variants of eleven assays: every text gives the sequence that stands beside it, and the other way round."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from biometro.data.intake import Account
from biometro.data.variants import VariantOptions, read_variants

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_every_mutant_gives_its_sequence(real_data: Path) -> None:
    folder = real_data / "dms"
    sequences: dict[str, list[str]] = {}
    table = pq.read_table(folder / "dms_assays.parquet", columns=["assay", "mutated_sequence"])
    for assay, letters in zip(*(column.to_pylist() for column in table.columns), strict=True):
        sequences.setdefault(assay, []).append(letters)
    wildtypes = pq.read_table(folder / "dms_wildtypes.parquet", columns=["assay", "wildtype"]).to_pylist()
    assert len(wildtypes) == 11 and sum(map(len, sequences.values())) == 306_409
    for row in wildtypes:
        assay, wildtype, account = row["assay"], row["wildtype"], Account()
        for column in ("mutant", None):
            options = VariantOptions(column=column, fields=["score"], where={"assay": assay})
            found = read_variants(str(folder / "dms_assays.parquet"), wildtype, options, account)
            assert [variant.apply(wildtype) for variant in found] == sequences[assay]
            assert all(variant.substitutions for variant in found)
        assert account.dropped == {} and account.kept == 2 * len(sequences[assay])
