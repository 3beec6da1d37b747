"""On real tables of receptors: corpora beside what a plain reading finds. Needs $BIOMETRO_DATA."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biometro.alphabet.immune import join
from biometro.data import layouts
from biometro.data.corpus import Corpus
from biometro.jobs.prepare import prepare

pytestmark = pytest.mark.real
ROWS = 20_000


def sliced(path: Path, folder: Path) -> tuple[Path, list[dict[str, str | None]]]:
    """The first rows of a table, in a file of several row groups, and as they are."""
    table = pa.Table.from_batches([next(pq.ParquetFile(path).iter_batches(ROWS))])
    pq.write_table(table, folder / path.name, row_group_size=3000)
    return folder / path.name, table.to_pylist()


def sequences(corpus: Corpus | None) -> set[str]:
    assert corpus is not None
    split = corpus.split("train")
    return {corpus.alphabet.decode(split[i]) for i in range(len(split))}


def test_vdjdb(real_data: Path, tmp_path: Path) -> None:
    path, rows = sliced(real_data / "tcr" / "vdjdb.parquet", tmp_path)
    corpus = prepare(str(path), str(tmp_path / "c"), kind="tcr", valid=0, residues="as_is")
    expected = {
        join("tcr", {"alpha": row["cdr3.alpha"], "beta": row["cdr3.beta"], "peptide": row["antigen.epitope"]})
        for row in rows
        if row["cdr3.alpha"] or row["cdr3.beta"]
    }
    assert sequences(corpus) == expected
    assert corpus is not None and set(corpus.info["intake"]["dropped"]) <= {layouts.NO_LETTERS, layouts.ODD}


def test_tcrdb(real_data: Path, tmp_path: Path) -> None:
    path, rows = sliced(real_data / "tcr" / "tcrdb_cdr3.parquet", tmp_path)
    corpus = prepare(str(path), str(tmp_path / "c"), kind="tcr", valid=0, residues="as_is", workers=2)
    assert {row["chain"] for row in rows} <= {"A", "B"}
    expected = {f"{row['cdr3']}|" if row["chain"] == "A" else f"|{row['cdr3']}" for row in rows}
    assert sequences(corpus) == expected


def test_paired_antibodies_by_their_columns(real_data: Path, tmp_path: Path) -> None:
    path, rows = sliced(real_data / "antibody" / "tonsil_paired_vh_vl.parquet", tmp_path)
    column = {"heavy": "VH", "light": "VL"}
    corpus = prepare(str(path), str(tmp_path / "c"), kind="antibody", valid=0, residues="as_is", column=column)
    expected = {"|".join((row[name] or "").rstrip("*").replace("*", "X") for name in ("VH", "VL")) for row in rows}
    assert sequences(corpus) == expected
