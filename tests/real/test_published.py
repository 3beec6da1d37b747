"""Published figures: ProteinGym's own averages, and ESM-2's Spearman of each assay where its weights are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import biometro
from biometro.evaluation.protocol import Subject
from biometro.evaluation.tasks import find
from biometro.evaluation.variant_effects import average_of_assays

pytestmark = pytest.mark.real
SIZES = {6: "ESM2 (8M)", 12: "ESM2 (35M)", 30: "ESM2 (150M)", 33: "ESM2 (650M)", 36: "ESM2 (3B)"}
WITHIN = 0.005


def test_our_average_of_assays_is_proteingyms(real_data: Path) -> None:
    rows = pq.read_table(real_data / "dms" / "proteingym_zero_shot_spearman_DMS_level.parquet").to_pylist()
    summary = pq.read_table(real_data / "dms" / "proteingym_zero_shot_spearman_summary.parquet").to_pylist()
    proteins, functions = [row["UniProt ID"] for row in rows], [row["Selection Type"] for row in rows]
    checked = 0
    for model in summary:
        name = model["Model_name"]
        if name not in rows[0]:
            continue
        rho = np.array([row[name] if row[name] is not None else np.nan for row in rows])
        mean, by_function = average_of_assays(rho, proteins, functions)
        assert mean == pytest.approx(model["Average_Spearman"], abs=0.0015), name
        assert by_function["Stability"] == pytest.approx(model["Function_Stability"], abs=0.0015), name
        checked += 1
    assert checked > 50


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_esm2_reaches_its_published_figures(real_data: Path) -> None:
    """Masked marginals of all variants of each assay that ProteinGym has too. $BIOMETRO_ESM2 names the weights."""
    folder = os.environ.get("BIOMETRO_ESM2")
    if not folder:
        pytest.skip("$BIOMETRO_ESM2 names no folder of ESM-2 weights")
    bundle = biometro.load(folder)
    published = SIZES[bundle.encoder.config.depth]  # type: ignore[union-attr]
    (task,) = find(["variant_effects"])
    config = {**vars(task.config), "most": None, "methods": ["masked"], "search": None, "show": [published]}
    task = type(task)(task.name, task.suite, task.path, task.head, type(task.config)(**config))
    exam = task.read(task.locate(real_data), resamples=100)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = exam.model(Subject("esm2", folder, bundle, "", device, "float32"), print)["masked"]
    for name, said in found.details["parts"].items():
        assert said["value"] == pytest.approx(said["beside"][published], abs=WITHIN), name
