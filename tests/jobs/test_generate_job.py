"""`generate` as its users meet it: files, the page, and what it refuses."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import biometro
from biometro import cli
from biometro.alphabet import PROTEIN
from biometro.data import sources
from biometro.data.families import simulate
from biometro.errors import UserError
from biometro.inference.generate import Sampling
from biometro.model.bundle import Bundle
from biometro.model.encoder import EncoderConfig
from biometro.objectives.metro import Metro
from conftest import esm2_folder

WILDTYPE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"


@pytest.fixture(scope="module")
def esm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return esm2_folder(tmp_path_factory.mktemp("esm2") / "model")


@pytest.fixture(scope="module")
def metro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    objective = Metro(EncoderConfig(width=32, depth=3, head_size=8), PROTEIN)
    folder = tmp_path_factory.mktemp("metro") / "model"
    Bundle(PROTEIN, objective.bundle_modules()).save(folder)
    return folder


def test_a_fasta_file_in_and_every_format_out(esm2: Path, tmp_path: Path) -> None:
    (tmp_path / "wt.fasta").write_text(f">mine of old\n{WILDTYPE}\n")
    options = ["generate", f"--model={esm2}", f"--wildtype={tmp_path / 'wt.fasta'}", "--count=9", "--mutations=2-3"]
    options += ["--fixed=101-105", "--exclude=CW", "--first=101", "--device=cpu", "--sampling.temperature=0.9"]
    for name in ("a.csv", "a.tsv", "a.parquet", "a.fasta"):
        assert cli.main([*options, f"--out={tmp_path / name}", f"--report={tmp_path / 'page.html'}"]) == 0
    with (tmp_path / "a.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    table = pq.read_table(tmp_path / "a.parquet").to_pylist()
    records = list(sources.read(sources.expand(str(tmp_path / "a.fasta"))[0]))
    assert len(rows) == len(table) == len(records) == 9
    for row, typed, record in zip(rows, table, records, strict=True):
        assert row["sequence"] == typed["sequence"] == record.raw.decode().strip()
        assert f"mutations={row['mutations']} count={row['count']} identity=" in record.header
        letters = list(WILDTYPE)
        for mutation in row["mutations"].split(":"):
            old, place, new = mutation[0], int(mutation[1:-1]) - 101, mutation[-1]
            assert letters[place] == old and place > 4 and new not in "CW"
            letters[place] = new
        assert "".join(letters) == row["sequence"] and typed["count"] == len(row["mutations"].split(":")) in (2, 3)
        assert typed["identity"] == pytest.approx(1 - typed["count"] / len(WILDTYPE))
        assert float(row["score"]) == pytest.approx(typed["score"], rel=1e-4) and "detector" not in row
    page = (tmp_path / "page.html").read_text()
    assert "Variants of mine" in page and "BLOSUM62 mutants" in page and rows[0]["mutations"].replace(":", ": ") in page


def test_proposals_of_a_metro_model_from_python(metro: Path) -> None:
    def run(count: int, seed: int = 4) -> list[str]:
        found = biometro.generate(
            str(metro), WILDTYPE, count=count, identity=0.9, sampling=Sampling("proposals", tries=3), seed=seed,
            device="cpu",
        )  # fmt: skip
        assert found.out is None and all(row["count"] == 3 and "detector" in row for row in found.rows)
        assert set(found.figures) == {"generated", "random mutants", "BLOSUM62 mutants"}
        assert "novel" not in found.figures["generated"] and "detector" in found.figures["random mutants"]
        return [row["sequence"] for row in found.rows]

    assert run(4) == run(12)[:4] != run(4, seed=5)


def test_known_sequences_are_not_new(esm2: Path, tmp_path: Path) -> None:
    made = biometro.generate(str(esm2), WILDTYPE, count=4, mutations=1, device="cpu", seed=1)
    (tmp_path / "known.csv").write_text(f"sequence\n{made.rows[2]['sequence']}\n{WILDTYPE}\n")
    again = biometro.generate(
        str(esm2), WILDTYPE, count=4, mutations=1, device="cpu", seed=1, known=str(tmp_path / "known.csv")
    )
    assert again.rows == made.rows and again.figures["generated"]["novel"] == 0.75


def test_a_familys_alignment_is_compared_with(esm2: Path, tmp_path: Path) -> None:
    family = simulate(seed=3, families=1, members=40)[0]
    path = tmp_path / "family.a2m"
    path.write_text("".join(f">{n}\n{letters}\n" for n, letters in enumerate(family.members)))
    page = tmp_path / "page.html"
    made = biometro.generate(
        str(esm2), family.members[0], count=6, mutations=5, alignment=str(path), report=str(page), device="cpu"
    )
    seen = [{member[i] for member in family.members} for i in range(len(family.members[0]))]
    expected = []
    for row in made.rows:
        pairs = enumerate(zip(family.members[0], row["sequence"], strict=True))
        expected += [new in seen[i] for i, (old, new) in pairs if old != new]
    assert len(expected) == 30
    assert made.figures["generated"]["seen"] == pytest.approx(np.mean(expected))
    assert set(made.figures) == {"generated", "random mutants", "BLOSUM62 mutants", "alignment's columns"}
    assert "alignment&#x27;s columns" in page.read_text() and "40 of 40 sequences, as good as" in page.read_text()


def test_what_is_wrong_is_said(esm2: Path, metro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.csv"
    (tmp_path / "two.fasta").write_text(">a\nMKT\n>b\nMKV\n")
    (tmp_path / "one.fasta").write_text(">a\nMKT\n")
    cases = {
        "more than one sequence": [f"--wildtype={tmp_path / 'two.fasta'}", "--mutations=1"],
        "only 3 may change": ["--wildtype=MKT", "--mutations=4"],
        "leaves no residue": ["--wildtype=MKT", "--mutations=1", "--exclude=ACDEFGHIKLMNPQRSTVWY"],
        "the wild type itself": ["--wildtype=MKT", "--identity=1.0"],
        "there is no folder": ["--wildtype=MKT", "--mutations=1", f"--out={tmp_path / 'no' / 'x.fasta'}"],
        "make it first": ["--wildtype=MKT", "--mutations=1", f"--report={tmp_path / 'no' / 'x.html'}"],
        "must end in .html": ["--wildtype=MKT", "--mutations=1", "--report=page.txt"],
        "count is 0": ["--wildtype=MKT", "--mutations=1", "--count=0"],
        "pretrained with METRO": ["--wildtype=MKT", "--mutations=1", "--sampling.method=proposals"],
        "one of the inputs": [
            f"--wildtype={tmp_path / 'one.fasta'}", "--mutations=1", f"--out={tmp_path / 'one.fasta'}",
        ],
    }  # fmt: skip
    for message, options in cases.items():
        assert cli.main(["generate", f"--model={esm2}", f"--out={out}", "--device=cpu", *options]) == 1, message
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1
    assert not out.exists()
    with pytest.raises(UserError, match=r"one of \.csv, \.tsv, \.parquet, \.fasta"):
        biometro.generate(str(metro), WILDTYPE, out=str(tmp_path / "x.txt"), mutations=1)
