"""Fine-tuning on real labelled proteins, at the smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from biometro import cli
from conftest import esm2_folder

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(400)]


def test_resistance_genes_by_homology_and_at_random(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe of the table in the documents, all methods, on few genes: sides without relatives, and with."""
    monkeypatch.setenv("BIOMETRO_CACHE", str(tmp_path / "cache"))
    base = esm2_folder(tmp_path / "base")
    command = [
        "finetune", "recipes/arg-lora.yaml", f"--model={base}", f"--data={real_data / 'arg' / 'arg_proteins.parquet'}",
        f"--run={tmp_path / 'run'}", "--seeds=1", "--training.epochs=1", "--labels.max_per_class=12",
        "--labels.min_per_class=12", "--max_length=128",
    ]  # fmt: skip
    assert cli.main(command) == 0
    said = json.loads((tmp_path / "run" / "results.json").read_text())
    shares = {by: split["leaks"]["test"]["share"] for by, split in said["splits"].items()}
    assert shares["homology"] == 0 and shares["random"] > 0.3
    methods = {"nearest neighbour", "k-mers", "probe", "lora_head", "lora", "full"}
    assert all({*split["methods"]} == methods for split in said["splits"].values())
    neighbour = {
        by: s["methods"]["nearest neighbour"]["summary"]["accuracy"]["mean"] for by, s in said["splits"].items()
    }
    assert neighbour["random"] > neighbour["homology"]
