"""`biometro score` from the command line: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

import biometro
from biometro import cli
from biometro.data.variants import VariantOptions, singles
from biometro.errors import UserError
from biometro.inference.likelihood import Likelihood
from biometro.inference.variants import Scorer
from conftest import metro_bundle

WILD = "MKTAYIAKQRQISFVKSH"


@pytest.fixture(scope="module")
def metro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("metro") / "model"
    metro_bundle().save(folder)
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """As ProteinGym's, numbered from 24."""
    path = tmp_path / "assay.csv"
    rows = ["mutant,mutated_sequence,DMS_score"]
    for number, (place, letter) in enumerate([(0, "A"), (3, "G"), (5, "V"), (9, "K"), (9, "E"), (17, "A")]):
        sequence = WILD[:place] + letter + WILD[place + 1 :]
        rows.append(f"{WILD[place]}{place + 24}{letter},{sequence},{number / 10}")
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_table_with_measured_scores(metro: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    wild = tmp_path / "wild.fasta"
    wild.write_text(f">P12345 kinase\n{WILD}\n")
    out, page = tmp_path / "scores.csv", tmp_path / "scores.html"
    status = cli.main(
        ["score", f"--model={metro}", f"--wildtype={wild}", f"--data={table}", f"--out={out}", "--method=[all,average]",
         "--measured=DMS_score", "--variants.first=24", f"--report={page}", "--device=cpu"]
    )  # fmt: skip
    said = capsys.readouterr().err
    assert status == 0, said
    with out.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["mutations"] for row in rows] == ["M24A", "A27G", "I29V", "R33K", "R33E", "H41A"]
    methods = ["masked", "mutant", "pll_fast", "clm", "rtd", "average"]
    assert list(rows[0]) == ["variant", "mutations", "DMS_score", *methods]
    measured = [float(row["DMS_score"]) for row in rows]
    clm = [float(row["clm"]) for row in rows]
    assert f"Spearman with what was measured {spearmanr(clm, measured).statistic:.3f}" in said
    assert "clm (METRO's restoring head, one pass): 6 variants" in said and "an approximation of masked, not" in said
    text = page.read_text()
    assert "Variants of P12345" in text and "A column for each position" in text and "<script" not in text


def test_singles_from_python_are_the_scorers_table(metro: Path) -> None:
    scored = biometro.score(str(metro), WILD, method=["clm", "masked"])
    assert scored.out is None and len(scored.variants) == 19 * len(WILD)
    exact = Scorer(Likelihood(biometro.load(metro)), WILD)
    np.testing.assert_allclose(scored.tables["masked"], exact.table("masked"), atol=1e-5)
    np.testing.assert_allclose(scored.scores["clm"], exact.score("clm", scored.variants), atol=1e-5)
    rho, count = scored.agreement["clm"]
    assert count == len(scored.variants)
    assert rho == pytest.approx(spearmanr(scored.scores["clm"], scored.scores["masked"]).statistic, abs=1e-6)
    assert biometro.score(str(metro), WILD, ["A4G"]).scores.keys() == {"clm"}


def test_insertions_by_likelihood_to_parquet(metro: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    scored = biometro.score(str(metro), WILD, ["p.Ala4del", "A4_Y5insGG"], str(out), method=["pll", "pll_fast"])
    rows = pq.read_table(out).to_pylist()
    assert [row["pll"] for row in rows] == pytest.approx(scored.scores["pll"].tolist())
    assert rows[1]["variant"] == "A4_Y5insGG"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data=A5G"], "Y"),
        (["--data=A99G"], "99"),
        (["--data=A4*"], "stop"),
        (["--data=A4del"], "clm scores substitutions only; pll and pll_fast"),
        (["--data=A4G", "--method=maskd"], "no method 'maskd'"),
        (["--data=A4G", "--max_length=1"], "max_length is 1"),
        (["--data=A4G", "--check=-1"], "check is -1"),
        (["--data=A4G", "--out=scores.xlsx"], "must end in one of .csv"),
        (["--wildtype=MKT*", "--data=M1A"], "MKT*"),
        (["--data=A4G", "--measured=fitness"], "fitness"),
        (["--data=A4G", "--out="], "say where to write"),
        (["--data=A4G", "--out=nowhere/x.csv"], "there is no folder nowhere; make it first"),
        (["--data=A4G", "--report=x.txt"], "must end in .html"),
        (["--data=A4G", "--report="], "must end in .html"),
        (["--data=A4G", "--report=nowhere/x.html"], "there is no folder nowhere; make it first"),
        (["--data=A4G", "--part=auxiliary", "--method=clm"], "clm asks the main model, and part is auxiliary"),
        (["--data=A4G", "--part=main", "--method=rtd"], "rtd asks the auxiliary too, and part is main"),
        (["--wildtype=", "--data=A4G"], "the wild type is empty"),
        (["--wildtype=mktay", "--data=A4G"], "letters of a wild type are capitals"),
        (["--wildtype=XX"], "no standard residue"),
    ],
)
def test_mistakes_are_one_line(
    metro: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    given = [f"--model={metro}", f"--wildtype={WILD}", f"--out={tmp_path / 'x.csv'}", *options]
    assert cli.main(["score", *given]) == 1
    said = capsys.readouterr().err.strip()
    assert message in said and len(said.splitlines()) == 1 and "Traceback" not in said
    assert not (tmp_path / "x.csv").exists()


def test_a_table_is_not_replaced_while_it_is_read(metro: Path, table: Path, capsys: pytest.CaptureFixture) -> None:
    before = table.read_bytes()
    options = [f"--model={metro}", f"--wildtype={WILD}", f"--data={table}", f"--out={table}", "--variants.first=24"]
    assert cli.main(["score", *options]) == 1
    assert "one of the inputs" in capsys.readouterr().err and table.read_bytes() == before


def test_an_output_that_a_pattern_of_inputs_fits_is_not_replaced(
    metro: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = table.read_bytes()
    given = [f"--model={metro}", f"--wildtype={WILD}", f"--data={tmp_path / '*.csv'}", f"--out={table}"]
    assert cli.main(["score", *given, "--variants.first=24"]) == 1
    assert "one of the inputs" in capsys.readouterr().err and table.read_bytes() == before


@pytest.mark.parametrize("name", ["variant", "mutations", "masked"])
def test_a_column_that_would_be_lost_is_refused(metro: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"mutant,{name}\nA4G,1\nK2R,2\n")
    with pytest.raises(UserError, match=f"{name}: the column that comes along has the name of one that is written"):
        biometro.score(str(metro), WILD, str(path), method="masked", measured=name)


def test_what_is_not_compared_is_said_with_the_reason(
    metro: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("mutant,s\nA4G,1\nK2R,1\nA4V,1\n")
    given = [f"--model={metro}", f"--wildtype={WILD}", f"--data={path}", f"--out={tmp_path / 'x.csv'}"]
    assert cli.main(["score", *given, "--method=[masked,clm]", "--measured=s"]) == 0
    said = capsys.readouterr().err
    assert "not compared (fewer than 10 variants)" in said and "ask for both" not in said
    assert "not compared with what was measured (fewer than three variants, or all alike)" in said
    given[2] = "--data=[A4del, K2R]"
    assert cli.main(["score", *given, "--method=pll_fast", "--check=0"]) == 0
    assert "fewer than 10 variants" in capsys.readouterr().err


def test_the_auxiliary_alone_is_asked_as_a_masked_language_model(metro: Path, tmp_path: Path) -> None:
    """The letters that it sees are read alike whether or not the main model has a head that restores."""
    texts = ["A4G", "K2R:Y5F", "S17A"]
    whole = biometro.score(str(metro), WILD, texts, method="all", part="auxiliary")
    assert [*whole.scores] == ["wildtype", "masked", "mutant", "pll_fast", "rtd"]
    assert [*biometro.score(str(metro), WILD, texts, method="all", part="main").scores] == [
        "masked", "mutant", "pll_fast", "clm"
    ]  # fmt: skip
    assert [*biometro.score(str(metro), WILD, texts, part="auxiliary").scores] == ["masked"]
    bundle = biometro.load(metro)
    del bundle.modules["vocabulary"]
    bundle.save(tmp_path / "cut")
    cut = biometro.score(str(tmp_path / "cut"), WILD, texts, method="pll_fast", part="auxiliary")
    np.testing.assert_allclose(whole.scores["pll_fast"], cut.scores["pll_fast"], atol=1e-6)


def test_bad_variants_are_dropped_and_listed_where_asked(
    metro: Path, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    scored = biometro.score(str(metro), WILD, ["A4G", "A5G", "K2R"], variants=VariantOptions(bad="drop"))
    assert [variant.name for variant in scored.variants] == ["A4G", "K2R"]


def test_columns_of_several_types_and_late_values_reach_parquet(metro: Path, tmp_path: Path) -> None:
    """A column that is empty for thousands of rows, and one that is numbers in one file and text in another."""
    texts = [variant.name for variant in singles(WILD)] * 14
    late = [None] * 4500 + [1.5] * (len(texts) - 4500)
    assert len(texts) > 4500
    pq.write_table(pa.table({"mutant": texts, "s": late}), tmp_path / "late.parquet")
    out = tmp_path / "out.parquet"
    biometro.score(str(metro), WILD, str(tmp_path / "late.parquet"), str(out), measured="s", check=0)
    assert pq.read_table(out)["s"].to_pylist() == late
    pq.write_table(pa.table({"mutant": ["K2A"], "s": [1.0]}), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("mutant,s\nK2R,2\n")
    both = [str(tmp_path / "a.parquet"), str(tmp_path / "b.csv")]
    scored = biometro.score(str(metro), WILD, both, str(out), measured="s")
    assert pq.read_table(out)["s"].to_pylist() == ["1.0", "2"] and scored.measured_N.tolist() == [1.0, 2.0]
