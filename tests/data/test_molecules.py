"""Corpora of molecules: any number of workers, any format, one corpus."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import biometro

SMILES = [f"C{'C' * n}(=O)N{ring}" for n in range(60) for ring in ("c1ccccc1", "C1CCNCC1", "[C@@H](C)O")]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "corpus.json"}


@pytest.mark.parametrize("suffix", ["csv", "parquet", "smi"])
def test_workers_share_the_rows_of_one_file_and_make_one_corpus(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    if suffix == "csv":
        path.write_text("sequence\n" + "\n".join(SMILES) + "\n")
    elif suffix == "smi":
        path.write_text("\n".join(f"{text} m{n}" for n, text in enumerate(SMILES)) + "\n")
    else:
        pq.write_table(pa.table({"sequence": SMILES}), path)
    one = biometro.prepare(str(path), str(tmp_path / "one"), kind="molecule", valid=0.1)
    two = biometro.prepare(str(path), str(tmp_path / "two"), kind="molecule", valid=0.1, workers=2)
    assert one is not None and two is not None
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert one.info["vocabulary"] == two.info["vocabulary"] and one.alphabet == two.alphabet
    assert one.info["sources"] == two.info["sources"] and one.info["sources"][0]["sha256"]
    assert one.info["sequences"] == len(SMILES)
