"""Baselines of variant effects on real assays. Needs $BIOMETRO_DATA."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from biometro.data.alignment import align
from biometro.evaluation import substitution

pytestmark = [pytest.mark.real, pytest.mark.long]


def substitutions(wildtype: str, sequence: str) -> Any:
    places = [place for place, (a, b) in enumerate(zip(wildtype, sequence, strict=True)) if a != b]
    changes = tuple(SimpleNamespace(start=place, end=place + 1, letters=sequence[place]) for place in places)
    return SimpleNamespace(name="", changes=changes)


def test_relatives_foretell_effects_as_well_as_published(real_data: Path) -> None:
    """TEM-1, of which the set holds many relatives. ProteinGym has another alignment and pseudocount."""
    name = "BLAT_ECOLX_Stiffler_2015"
    assays = pq.read_table(real_data / "dms" / "dms_assays.parquet", filters=[("assay", "=", name)]).to_pydict()
    rows = pq.read_table(real_data / "dms" / "dms_wildtypes.parquet", filters=[("assay", "=", name)]).to_pylist()
    published = pq.read_table(real_data / "dms" / "proteingym_zero_shot_spearman_DMS_level.parquet").to_pylist()
    figure = next(row["Site-Independent"] for row in published if row["DMS ID"] == name)
    proteins = pq.read_table(real_data / "protein" / "proteins.parquet", columns=["sequence"]).column(0).to_pylist()
    letters = ["".join(filter(str.isalpha, sequence)).encode() for sequence in proteins]
    wildtype = rows[0]["wildtype"]
    relatives = align(wildtype, [row for row in letters if row], sensitivity=5.7)
    assert len(relatives.rows) > 1000 and 50 < relatives.effective < len(relatives.rows) / 5
    variants = [substitutions(wildtype, sequence) for sequence in assays["mutated_sequence"]]
    scores = {
        "site": substitution.site_independent(relatives, wildtype, variants),
        "blosum": substitution.blosum62(wildtype, variants),
    }
    reached = {key: spearmanr(score, np.array(assays["score"])).statistic for key, score in scores.items()}
    assert reached["site"] > figure > reached["blosum"] > 0.2
