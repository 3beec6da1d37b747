"""Zero-shot variant effects: figures against scipy, the benchmark's average, and what task files may get wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from biometro.data.variants import parse, singles
from biometro.errors import UserError
from biometro.evaluation import substitution
from biometro.evaluation.protocol import Subject
from biometro.evaluation.tasks import find, read_task
from biometro.evaluation.variant_effects import Assay, VariantsConfig, VariantsExam, read
from biometro.inference.likelihood import Likelihood
from biometro.inference.variants import Scorer
from conftest import metro_bundle

WILD, OTHER = "MKTAYIAKQRQISFVKSH", "GSHMWLLKRAVNPQEEDT"


def assay(name: str, wildtype: str, function: str, seed: int, count: int = 120) -> Assay:
    random = np.random.default_rng(seed)
    every = singles(wildtype)
    variants = [every[i] for i in sorted(random.permutation(len(every))[:count])]
    return Assay(name, wildtype, wildtype[:4], function, variants, random.normal(size=count))


@pytest.fixture(scope="module")
def exam() -> VariantsExam:
    assays = [assay("a", WILD, "growth", 0), assay("b", WILD, "growth", 1), assay("c", OTHER, "growth", 2)]
    return VariantsExam([*assays, assay("d", OTHER, "binding", 3)], ["all", "pll", "average"], resamples=200)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject("metro", "metro", metro_bundle(), "f", torch.device("cpu"))


def test_each_assay_is_spearman_and_the_average_is_over_assays_proteins_functions(
    exam: VariantsExam, subject: Subject
) -> None:
    found = exam.model(subject, lambda text: None)
    assert list(found) == ["masked", "mutant", "pll_fast", "clm", "rtd", "pll", "average"]
    likelihood = Likelihood(subject.bundle)
    for method in ("masked", "rtd"):
        rho = {}
        for one in exam.assays:
            scores = Scorer(likelihood, one.wildtype).score(method, one.variants)
            rho[one.name] = spearmanr(scores, one.measured).statistic
            assert found[method].details["parts"][one.name]["value"] == pytest.approx(rho[one.name], abs=1e-9)
        growth = ((rho["a"] + rho["b"]) / 2 + rho["c"]) / 2
        assert found[method].figures["spearman/growth"] == pytest.approx(growth)
        assert found[method].figures["spearman"] == pytest.approx((growth + rho["d"]) / 2)
    assert found["masked"].note == "" and found["clm"].note.startswith("an approximation of masked; rank agreement")
    assert found["pll_fast"].note.startswith("an approximation of pll; rank agreement")
    low, high = np.nanquantile(found["masked"].replicates, (0.025, 0.975))
    assert low < found["masked"].figures["spearman"] < high and len(found["masked"].replicates) == 200


def test_baselines_are_those_of_substitutions(exam: VariantsExam) -> None:
    found = exam.baselines()
    one = exam.assays[0]
    expected = spearmanr(substitution.blosum62(one.wildtype, one.variants), one.measured).statistic
    assert found["BLOSUM62"].details["parts"]["a"]["value"] == pytest.approx(expected)
    assert list(found) == ["BLOSUM62", "hydrophobicity", "volume", "composition"]


def test_one_protein_measured_often_counts_as_one() -> None:
    """Ten assays of one protein and one of another: the interval is as wide as that of two proteins."""
    many = [assay(f"a{n}", WILD, "growth", 0) for n in range(10)]
    few = VariantsExam([many[0], assay("z", OTHER, "growth", 5)], resamples=300).baselines()["BLOSUM62"]
    more = VariantsExam([*many, assay("z", OTHER, "growth", 5)], resamples=300).baselines()["BLOSUM62"]
    assert more.figures["spearman"] == pytest.approx(few.figures["spearman"])
    assert more.replicates.std() > 0.7 * few.replicates.std()


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Two assays in one table, wild types with a benchmark's names, and its reference and published figures."""
    rows = ["assay,mutant,mutated_sequence,score"]
    for name, wildtype in (("one", WILD), ("two", OTHER)):
        rows.append(f"{name},,{wildtype},1.0")  # the wild type itself, as some tables have it
        for number, variant in enumerate(singles(wildtype)[:40]):
            rows.append(f"{name},{variant.name},{variant.apply(wildtype)},{number % 7}")
    (tmp_path / "variants.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "wild.csv").write_text(f"assay,wildtype,gym\none,{WILD},ONE_GYM\ntwo,{OTHER},\n")
    (tmp_path / "reference.csv").write_text("DMS_id,UniProt_ID,coarse_selection_type\nONE_GYM,ONE_HUMAN,Binding\n")
    (tmp_path / "published.csv").write_text("DMS ID,ESM2 (8M)\nONE_GYM,0.25\n")
    (tmp_path / "task.yaml").write_text(
        "kind: variants\ntitle: t\ndata: [variants.csv, wild.csv, reference.csv, published.csv]\nmetric: spearman\n"
        "wildtypes: wild.csv\nbenchmark: gym\nreference: reference.csv\npublished: published.csv\nshow: [ESM2 (8M)]\n"
        "most: 30\n"
    )
    return tmp_path


def test_a_task_file_with_reference_and_published_figures(tables: Path) -> None:
    task = read_task(tables / "task.yaml")
    places = task.locate(None)
    made: Any = task.read(places)
    assert [(a.name, a.protein, a.function, len(a.variants)) for a in made.assays] == [
        ("one", "ONE_HUMAN", "Binding", 30), ("two", made.assays[1].protein, "other", 30)
    ]  # fmt: skip
    assert made.assays[0].published == {"ESM2 (8M)": 0.25} and made.assays[1].published == {}
    assert made.facts["left out (variants above most)"] == "20" and made.test == [WILD.encode(), OTHER.encode()]
    assert made.baselines()["composition"].details["parts"]["one"]["beside"]["ESM2 (8M)"] == 0.25


def test_a_folder_has_a_table_for_each_assay(tmp_path: Path) -> None:
    folder = tmp_path / "DMS"
    folder.mkdir()
    for name, wildtype in (("ONE", WILD), ("TWO", OTHER)):
        rows = [f"{v.name},{v.apply(wildtype)},{n % 5}" for n, v in enumerate(singles(wildtype)[:25])]
        (folder / f"{name}.csv").write_text("\n".join(["mutant,mutated_sequence,DMS_score", *rows]) + "\n")
    (tmp_path / "reference.csv").write_text(f"DMS_id,target_seq,UniProt_ID,kind\nONE,{WILD},U1,A\nTWO,{OTHER},U2,B\n")
    config = VariantsConfig(
        wildtypes="reference.csv", assay=None, score="DMS_score", wildtype_assay="DMS_id", wildtype="target_seq",
        protein="UniProt_ID", function="kind",
    )  # fmt: skip
    made = read("variants", [str(folder), str(tmp_path / "reference.csv")], config, "spearman")
    assert [(a.name, a.protein, a.function) for a in made.assays] == [("ONE", "U1", "A"), ("TWO", "U2", "B")]
    (tmp_path / "task.yaml").write_text(
        "kind: variants\ntitle: t\ndata: [DMS, reference.csv]\nmetric: spearman\nassay: null\nscore: DMS_score\n"
        "wildtypes: reference.csv\nwildtype_assay: DMS_id\nwildtype: target_seq\n"
    )
    task = read_task(tmp_path / "task.yaml")
    before = task.digest(task.locate(None))
    (folder / "ONE.csv").write_text((folder / "ONE.csv").read_text().replace(",3\n", ",4\n"))
    assert task.digest(task.locate(None)) != before

    # only what is asked for is read
    (folder / "TWO.csv").write_text("nothing of use\n")
    config = replace(config, only=["ONE"])
    made = read("variants", [str(folder), str(tmp_path / "reference.csv")], config, "spearman")
    assert [(a.name, len(a.variants)) for a in made.assays] == [("ONE", 25)]


def test_without_mmseqs_all_but_the_alignment_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("biometro.evaluation.variant_effects.installed", lambda: False)
    made = VariantsExam([assay("a", WILD, "growth", 0)], resamples=100, search="proteins.fasta")
    assert list(made.baselines()) == ["BLOSUM62", "hydrophobicity", "volume", "composition"]
    assert made.facts["site-independent"] == "not run: MMseqs2 is not installed"


def test_an_empty_cell_is_no_published_figure(tables: Path) -> None:
    (tables / "published.csv").write_text("DMS ID,ESM2 (8M)\nONE_GYM,\n")
    task = read_task(tables / "task.yaml")
    made: Any = task.read(task.locate(None))
    assert made.assays[0].published == {}


def test_variants_without_a_score_are_counted() -> None:
    one = assay("a", WILD, "growth", 0)
    longer = [*one.variants, parse("K2del", WILD)]
    made = VariantsExam([replace(one, variants=longer, measured=np.append(one.measured, 0.0))], resamples=100)
    found = made.baselines()
    assert found["BLOSUM62"].note == ""
    assert found["hydrophobicity"].note == "1 variants that it has no score for are left out"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("wild.csv", f"one,{WILD}", f"one,{OTHER}"), r"variants\.csv, line \d+: M1. of assay one: residue 1"),
        (("wild.csv", "one,", "uno,"), "assay 'one' has no wild type"),
        (
            ("variants.csv", f",{WILD[0]}1A,A{WILD[1:]},0", f",{WILD[0]}1A,A{WILD[1:]},high"),
            "column 'score': 'high' is no number",
        ),
        (("published.csv", "0.25", "much"), r"ONE_GYM, column 'ESM2 \(8M\)': 'much' is no number"),
        (("variants.csv", f",{WILD[0]}1A,A{WILD[1:]},0", f",{WILD[0]}1A,C{WILD[1:]},0"), "another than its text says"),
        (("task.yaml", "most: 30", "most: 3"), "most is 3"),
        (("task.yaml", "most: 30", "methods: [maskd]"), "there is no 'maskd'"),
        (("task.yaml", "most: 30", "only: [three]"), "no usable assay three"),
        (("task.yaml", "most: 30", "methods: [average]"), "nothing that average could be the mean of"),
        (("task.yaml", "wildtypes: wild.csv", "wildtypes: tame.csv"), "tame.csv is not among the data"),
        (("task.yaml", "metric: spearman", "metric: accuracy"), "its metric is spearman"),
        (("task.yaml", "benchmark: gym", "benchmrk: gym"), "benchmark"),
    ],
)
def test_what_does_not_fit_is_said(tables: Path, change: tuple[str, str, str], message: str) -> None:
    name, old, new = change
    text = (tables / name).read_text()
    assert old in text
    (tables / name).write_text(text.replace(old, new))
    if name != "task.yaml":  # every row is read
        whole = (tables / "task.yaml").read_text().replace("most: 30\n", "")
        (tables / "task.yaml").write_text(whole)
    with pytest.raises(UserError, match=message):
        task = read_task(tables / "task.yaml")
        task.read(task.locate(None))


def test_a_model_that_cannot_do_what_is_asked_says_so(subject: Subject) -> None:
    asked = VariantsExam([assay("a", WILD, "growth", 0)], ["wildtype"], resamples=100)
    with pytest.raises(UserError, match="can be asked for masked, mutant"):
        asked.model(subject, lambda text: None)
    auto = VariantsExam([assay("a", WILD, "growth", 0)], resamples=100).model(subject, lambda text: None)
    assert list(auto) == ["clm"] and "approximation of masked" in auto["clm"].note


def test_the_shipped_tasks_can_be_read() -> None:
    (gym,) = find(["proteingym"])
    assert gym.config.assay is None and gym.head.metric == "spearman"
    assert {"variant_effects", "contacts"} <= {task.name for task in find(["protein", "example"])}


def test_variants_of_one_wild_type_with_several_changes(subject: Subject) -> None:
    variants = [
        parse(text, WILD)
        for text in ("M1A:K2R", "T3S", "A4G", "Y5F:I6V:A7G", "K8R", "Q9E", "R10K", "Q11H", "I12L", "S13T")
    ]
    one = Assay("m", WILD, "p", "growth", variants, np.arange(10.0))
    found = VariantsExam([one], ["masked"], resamples=100).model(subject, lambda text: None)
    scores = Scorer(Likelihood(subject.bundle), WILD).score("masked", variants)
    assert found["masked"].figures["spearman"] == pytest.approx(spearmanr(scores, np.arange(10.0)).statistic)


def test_an_assay_that_is_of_no_use_is_said_with_the_reason(tmp_path: Path) -> None:
    rows = [f"one,{variant.name},1" for variant in singles(WILD)[:25]]
    (tmp_path / "variants.csv").write_text("\n".join(["assay,mutant,score", *rows]) + "\n")
    (tmp_path / "wild.csv").write_text(f"assay,wildtype\none,{WILD}\n")
    config = VariantsConfig(wildtypes="wild.csv", sequence_column=None)
    with pytest.raises(UserError, match=r"no usable assay at all \(1 x assay of too few variants, or all alike\)"):
        read("variants", [str(tmp_path / "variants.csv"), str(tmp_path / "wild.csv")], config, "spearman")
