"""Tasks of molecules and receptors: who may read them, what is counted, and what stands in the table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import biometro
from biometro.alphabet import PROTEIN, Alphabet, MoleculeAlphabet, MoleculePolicy
from biometro.alphabet.immune import ANTIBODY, TCR
from biometro.alphabet.molecule import canonical, parse
from biometro.data.task import LabelConfig, says
from biometro.errors import UserError
from biometro.evaluation import probes, retrieval
from biometro.evaluation.probes import ProbeConfig
from biometro.evaluation.protocol import Subject
from biometro.evaluation.retrieval import PairsConfig, RetrievalConfig
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder, EncoderConfig

SMILES = [
    "CCO", "CCN", "CCC", "OCC", "c1ccccc1", "c1ccccc1O", "CC(=O)O", "CC(=O)N", "C1CCCCC1", "CCCl", "CCBr", "CC#N",
    "OCCO", "NCCN", "CCCC", "CCCCC", "CC(C)C", "CC(C)O", "c1ccncc1", "C[Si](C)C", "CS(C)=O", "CCS", "CCOC", "COC",
    "CNC", "CN(C)C", "CC=C", "C=C", "CC=O", "C1CCNCC1",
]  # fmt: skip
SYMBOLS = ("[C]", "[=C]", "[O]", "[=O]", "[N]", "[Branch1]", "[Ring1]", "[#N]", "[Cl]", "[Br]", "[=N]", "[#C]", "[S]")
MOLECULES = MoleculeAlphabet.of((*SYMBOLS, "[=Branch1]", "[#Branch1]", "[=S]", "[=Ring1]"), "selfies")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIOMETRO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("BIOMETRO_DATA", raising=False)
        yield


def bundle_of(alphabet: Alphabet) -> Bundle:
    torch.manual_seed(0)
    mask = alphabet.id(alphabet.mask)
    config = EncoderConfig(vocab_size=alphabet.size, width=16, depth=1, head_size=8, mask_token=mask)
    return Bundle(alphabet, {"encoder": Encoder(config)})


def subject_of(alphabet: Alphabet, name: str = "m") -> Subject:
    return Subject(name, name, bundle_of(alphabet), f"{name} {alphabet.fingerprint}", torch.device("cpu"))


def table(path: Path, **columns: Sequence[object]) -> str:
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return str(path)


@pytest.fixture
def molecules(tmp_path: Path) -> str:
    return table(tmp_path / "m.csv", smiles=SMILES, y=[float(len(text)) for text in SMILES])


def probe_of(path: str, **settings: Any) -> probes.ProbeExam:
    config = ProbeConfig(labels=LabelConfig(column="y"), sequences="molecule", column="smiles", **settings)
    return probes.read("regression", [path], config, "rmse", resamples=100)


def test_molecules_are_read_as_canonical_smiles_once_each(molecules: str) -> None:
    exam = probe_of(molecules)
    found = {letters.decode() for side in exam.letters.values() for letters in side}
    assert exam.sequences == "molecule"
    assert found == {canonical(parse(text)) for text in SMILES}  # CCO and OCC are one


def test_tokens_that_a_model_does_not_know_are_counted(molecules: str) -> None:
    exam = probe_of(molecules)
    everything = [letters for side in exam.letters.values() for letters in side]
    score = exam.model(subject_of(MOLECULES), lambda _: None)["probe"]
    assert score.note == f"1 of {len(everything)} molecules hold a token that this model does not know"  # [Si]
    assert np.isfinite(score.figures["rmse"])
    knows = MoleculeAlphabet.of(("C", "c", "1", "(", ")", "=", "#", "O", "N", "n", "S", "Cl", "Br", "[Si]"), "smiles")
    assert exam.model(subject_of(knows, "all"), lambda _: None)["probe"].note == ""


@pytest.mark.parametrize(
    ("alphabet", "own"), [(PROTEIN, "proteins"), (TCR, "T-cell receptors"), (ANTIBODY, "antibodies")]
)
def test_a_model_of_letters_refuses_molecules(molecules: str, alphabet: Alphabet, own: str) -> None:
    with pytest.raises(UserError) as caught:
        probe_of(molecules).model(subject_of(alphabet), lambda _: None)
    assert str(caught.value) == f"m: is a model of {own}, and cannot read molecules"


def test_a_model_of_molecules_refuses_proteins_everywhere(tmp_path: Path) -> None:
    subject = subject_of(MOLECULES)
    random = np.random.default_rng(0)
    letters = ["".join(random.choice(list(PROTEIN.standard), 30)) for _ in range(20)]
    path = table(tmp_path / "p.csv", id=range(20), sequence=letters, label=["a", "b"] * 10)
    pairs = table(tmp_path / "pairs.csv", a=[0, 1, 2], b=[3, 4, 5], label=["yes", "no", "yes"])
    exams: list[Any] = [
        probes.read("classification", [path], ProbeConfig(), "mcc", resamples=100),
        retrieval.read("retrieval", [path], RetrievalConfig(), "map", resamples=100),
        retrieval.read_pairs("pairs", [path, pairs], PairsConfig(["no"]), "auroc", resamples=100),
    ]
    for exam in exams:
        assert exam.sequences == "protein"
        with pytest.raises(UserError, match=r"^m: is a model of molecules, and cannot read proteins$"):
            exam.model(subject, lambda _: None)


def test_a_model_of_proteins_reads_chains_one_by_one() -> None:
    protein, receptor = subject_of(PROTEIN), subject_of(TCR)
    assert protein.reads([b"|CASSF", b"CASSF", b"CAVF|"], "tcr") == [b"CASSF", b"CASSF", b"CAVF"]
    assert receptor.reads([b"|CASSF", b"CAVF|CASSF:GIL"], "tcr") == [b"|CASSF", b"CAVF|CASSF:GIL"]
    assert protein.reads([b"EVQ|"], "antibody") == [b"EVQ"]
    for letters in (b"CAVF|CASSF", b"|CASSF:GIL"):
        with pytest.raises(UserError, match=r"^m: is a model of proteins, which reads chains one by one; .*CASSF"):
            protein.reads([b"|CASSF", letters], "tcr")
    with pytest.raises(UserError, match="m: is a model of T-cell receptors, and cannot read antibodies"):
        receptor.reads([b"EVQ"], "antibody")


def test_receptors_of_one_label_are_found_by_their_vectors(tmp_path: Path) -> None:
    chains = [f"CASS{a}{b}YEQYF" for a in "ADEFG" for b in "HIKLM"]
    path = table(tmp_path / "t.csv", cdr3=[f"|{chain}" for chain in chains], label=[chain[4] for chain in chains])
    config = RetrievalConfig(LabelConfig(min_per_class=1), sequences="tcr", column="cdr3")
    exam = retrieval.read("retrieval", [path], config, "map", resamples=100)
    assert exam.letters[0] == b"|CASSAHYEQYF" and exam.sequences == "tcr"
    alone, typed = (exam.model(subject_of(a, a.name), lambda _: None)["cosine"] for a in (PROTEIN, TCR))
    assert 0 < alone.figures["map"] <= 1 and 0 < typed.figures["map"] <= 1


def test_what_is_done_with_molecules_is_the_tasks_to_say(tmp_path: Path) -> None:
    salts = [f"{'C' * n}O.[Na+].[Cl-]" for n in range(1, 21)]
    path = table(tmp_path / "m.csv", smiles=salts, y=range(20))
    whole = probe_of(path)
    parts = probe_of(path, molecules=MoleculePolicy(fragments="largest"))
    assert all(b"." in letters for letters in whole.test) and not any(b"." in letters for letters in parts.test)


def test_a_table_says_why_a_model_has_no_figure(molecules: str, tmp_path: Path) -> None:
    said = {
        "kind": "regression", "title": "size", "data": "m.csv", "metric": "rmse", "sequences": "molecule",
        "column": "smiles", "labels": {"column": "y"},
    }  # fmt: skip
    (tmp_path / "size.yaml").write_text(yaml.safe_dump(said))
    for alphabet in (PROTEIN, MOLECULES):
        bundle_of(alphabet).save(tmp_path / alphabet.name / "model")
    models = [str(tmp_path / name / "model") for name in ("protein", "molecule")]
    letters = {"kind": "classification", "title": "x", "data": "p.csv", "metric": "mcc", "split": {"identity": 0}}
    (tmp_path / "letters.yaml").write_text(yaml.safe_dump(letters))
    random = np.random.default_rng(0)
    proteins = ["".join(random.choice(list(PROTEIN.standard), 30)) for _ in range(30)]
    table(tmp_path / "p.csv", sequence=proteins, label=["a", "b"] * 15)
    tasks = [str(tmp_path / name) for name in ("size.yaml", "letters.yaml")]
    found = biometro.evaluate(models, str(tmp_path / "out"), tasks, resamples=100, device="cpu", report=False).results
    size, other = found["tasks"]
    assert size["refused"] == {"protein": "protein: is a model of proteins, and cannot read molecules"}
    assert other["refused"] == {"molecule": "molecule: is a model of molecules, and cannot read proteins"}
    text = (tmp_path / "out" / "table.md").read_text()
    assert "cannot read molecules" in text and "cannot read proteins" in text
    assert "- size, molecule: 1 of 28 molecules hold a token that this model does not know" in text


# Rows and classes of tables --------------------------------------------------------------------------------------


def rows_of(tmp_path: Path, config: LabelConfig) -> dict[str, str]:
    columns: dict[str, Sequence[object]] = {
        "sequence": ["MKTAYIAKQ" + letter for letter in "ACDEFGH"],
        "good": ["X", "X, Y", "", "", "X", "", "Y"],
        "bad": ["", "", "X", "X", "Y", "", ""],
        "light": ["Q", "ND", "Q", "Q", "", "Q", "Q"],
    }
    labelled = probes.read_labelled(table(tmp_path / "r.csv", **columns), config)
    assert labelled.classes is not None
    return {s.decode()[-1]: labelled.task.names[k] for s, k in zip(labelled.letters, labelled.classes, strict=True)}


CLASSES: dict[str, dict[str, str | list[str]]] = {"yes": {"good": ["X", "X, Y"]}, "no": {"bad": "X", "good": ""}}


def test_a_class_is_what_several_columns_say(tmp_path: Path) -> None:
    config = LabelConfig(classes=CLASSES, bad="drop", min_per_class=1)
    assert rows_of(tmp_path, config) == {"A": "yes", "C": "yes", "F": "yes", "D": "no", "E": "no"}
    chosen = LabelConfig(classes=CLASSES, where_not={"light": ["", "ND"]}, bad="drop", min_per_class=1)
    assert rows_of(tmp_path, chosen) == {"A": "yes", "D": "no", "E": "no"}
    both = LabelConfig(
        classes=CLASSES, where={"light": ["Q", "ND"]}, where_not={"light": "ND"}, bad="drop", min_per_class=1
    )
    assert rows_of(tmp_path, both) == {"A": "yes", "D": "no", "E": "no"}
    with pytest.raises(UserError, match="2 of 7 records have no usable label: 2 x label: unknown"):
        rows_of(tmp_path, LabelConfig(classes=CLASSES, min_per_class=1))


def test_classes_are_for_tables_and_classifications(tmp_path: Path) -> None:
    (tmp_path / "x.fasta").write_text(">a\nMKT\n")
    with pytest.raises(UserError, match=r"labels\.classes reads rows of a table, and this is none"):
        probes.read_labelled(str(tmp_path / "x.fasta"), LabelConfig(classes=CLASSES, field=0))
    wrongs: list[dict[str, Any]] = [{"task": "regression", "classes": CLASSES}, {"classes": {"yes": {}}}]
    for wrong in wrongs:
        with pytest.raises(UserError, match=r"labels\.classes names the classes of a classification"):
            LabelConfig(**wrong)


@given(st.one_of(st.none(), st.text(max_size=3), st.floats(), st.integers()), st.lists(st.text(max_size=3), max_size=3))
def test_a_cell_says_what_its_text_is(cell: Any, wanted: list[str]) -> None:
    nothing = cell is None or (isinstance(cell, float) and np.isnan(cell))
    assert says(cell, wanted) == (("" if nothing else str(cell).strip()) in wanted)
    assert says(cell, "") == (nothing or not str(cell).strip())
