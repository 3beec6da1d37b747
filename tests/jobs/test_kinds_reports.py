"""`generate`, `score`, `pretrain` and `finetune` on molecules and receptors, as their users meet them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import biometro
from biometro import cli
from biometro.alphabet import immune
from biometro.data.corpus import Corpus
from biometro.errors import UserError
from biometro.inference.generate import Sampling
from biometro.model.bundle import Bundle
from biometro.model.encoder import EncoderConfig
from biometro.objectives.metro import Metro

Chem = pytest.importorskip("rdkit.Chem")
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
RECEPTOR = "CAVRDSNYQLIW|CASSIRSSYEQYF:GILGFVFTL"
TINY = [
    "--encoder.width=32", "--encoder.depth=1", "--encoder.head_size=16", "--packing.batch_tokens=1024",
    "--training.steps=4", "--training.checkpoint_every=4", "--training.valid_every=4", "--training.valid_batches=1",
    "--device=cpu",
]  # fmt: skip


def chains() -> list[str]:
    """Small molecules of some variety."""
    heads, middles = ("C", "CC", "N", "O", "CC(C)", "c1ccccc1", "C1CCNCC1"), ("C", "CO", "C(=O)N", "CS", "C=C")
    return [f"{head}{middle}{tail}" for head in heads for middle in middles for tail in ("F", "Cl", "C#N", "CO", "Br")]


@pytest.fixture(scope="module")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on molecules with all that it leaves, beside its corpus."""
    folder = tmp_path_factory.mktemp("molecules")
    (folder / "all.csv").write_text("\n".join(["sequence", *chains(), ASPIRIN]) + "\n")
    command = ["prepare", "--kind=molecule", f"--data={folder / 'all.csv'}", f"--out={folder / 'corpus'}"]
    assert cli.main([*command, "--valid=0.2"]) == 0
    assert cli.main(["pretrain", f"--data={folder / 'corpus'}", f"--run={folder / 'run'}", *TINY]) == 0
    return folder


@pytest.fixture(scope="module")
def receptors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tcr")
    random = np.random.default_rng(0)
    middles = ["".join(random.choice(list("ASTGRNQE"), random.integers(6, 8))) for _ in range(120)]
    rows = [f"CAV{m[:5]}LIW|CAS{m}QYF" for m in middles]
    (folder / "all.csv").write_text("sequence,label\n" + "".join(f"{r},{'SR'[n % 2]}\n" for n, r in enumerate(rows)))
    command = ["prepare", "--kind=tcr", f"--data={folder / 'all.csv'}", f"--out={folder / 'corpus'}", "--valid=0.3"]
    assert cli.main(command) == 0
    assert cli.main(["pretrain", f"--data={folder / 'corpus'}", f"--run={folder / 'run'}", *TINY]) == 0
    return folder


def test_the_report_of_a_run_draws_held_out_molecules(molecules: Path) -> None:
    page = (molecules / "run" / "report.html").read_text()
    assert "Held-out molecules" in page and "length in tokens" in page and "logP (Crippen)" in page
    assert page.count("<div><svg") == 12 and "hydrophobic" not in page
    assert "https://" not in page.replace("http://www.w3.org", "")
    card = (molecules / "run" / "model" / "README.md").read_text()
    assert "nats per token" in card and " tokens, from all.csv" in card


def test_the_report_of_a_run_draws_held_out_cdr3s(receptors: Path) -> None:
    page = (receptors / "run" / "report.html").read_text()
    assert "Held-out CDR3s: alpha chains" in page and "Held-out CDR3s: beta chains" in page
    assert "share of hydrophobic residues" in page and "the commonest length" in page
    assert "nats per residue" in (receptors / "run" / "model" / "README.md").read_text()


def test_new_molecules_in_every_format(molecules: Path, tmp_path: Path) -> None:
    model, corpus = molecules / "run" / "model", Corpus.open(molecules / "corpus")
    options = ["generate", f"--model={model}", "--count=6", "--sampling.sweeps=1", "--device=cpu", "--seed=3"]
    for name in ("a.smi", "a.csv", "a.parquet"):
        page = tmp_path / "page.html"
        assert cli.main([*options, f"--out={tmp_path / name}", f"--report={page}"]) == 0
    with (tmp_path / "a.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [*rows[0]] == ["id", "smiles", "drawn", "score"] and len(rows) == 6
    assert [row["smiles"] for row in pq.read_table(tmp_path / "a.parquet").to_pylist()] == [r["smiles"] for r in rows]
    lines = (tmp_path / "a.smi").read_text().splitlines()
    assert lines == [f"{row['smiles']} {row['id']}" for row in rows]
    seen = {len(side[n]) for side in [corpus.split("train")] for n in range(len(side))}
    for row in rows:
        assert Chem.MolToSmiles(Chem.MolFromSmiles(row["smiles"])) == row["smiles"]
        assert len(corpus.alphabet.encode(row["smiles"])) and row["drawn"].count("[") in seen
    text = page.read_text()
    assert "random symbols" in text and "known molecules" in text and text.count("<div><svg") == 6


def test_figures_are_those_of_a_plain_count(molecules: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(molecules / "corpus")
    side = corpus.split("train")
    held = {corpus.alphabet.decode(side[n]) for n in range(len(side))}
    model = str(molecules / "run" / "model")
    made = biometro.generate(model, count=30, sampling=Sampling(sweeps=1, temperature=0.7), device="cpu")
    smiles = [row["smiles"] for row in made.rows]
    found = made.figures["generated"]
    new = [text for text in smiles if corpus.alphabet.written(text.encode()).decode() not in held]
    assert found["valid"] == 1 and found["novel"] == pytest.approx(len(new) / len(smiles))
    assert found["unique"] == pytest.approx(30 / found["candidates"])
    from rdkit.Chem import AllChem, DataStructs, Descriptors

    mols = [Chem.MolFromSmiles(text) for text in smiles]
    bits = [AllChem.GetMorganFingerprintAsBitVect(mol, 2, 2048) for mol in mols]
    pairs = [DataStructs.TanimotoSimilarity(a, b) for n, a in enumerate(bits) for b in bits[:n]]
    assert found["diversity"] == pytest.approx(1 - np.mean(pairs))
    assert found["weight"] == pytest.approx(np.mean([Descriptors.MolWt(mol) for mol in mols]))
    (tmp_path / "known.smi").write_text("".join(f"{text} m\n" for text in new[:3]))
    again = biometro.generate(
        model, count=30, sampling=Sampling(sweeps=1, temperature=0.7), device="cpu", known=str(tmp_path / "known.smi")
    )
    assert again.figures["generated"]["novel"] == pytest.approx(found["novel"] - 3 / 30)


def test_analogues_of_a_start(molecules: Path, tmp_path: Path) -> None:
    model = str(molecules / "run" / "model")
    (tmp_path / "lead.smi").write_text("OC(=O)c1ccccc1OC(C)=O aspirin\n")
    page = tmp_path / "page.html"
    made = biometro.generate(
        model, str(tmp_path / "lead.smi"), count=5, mutations="1-3", report=str(page), device="cpu", seed=1
    )
    direct = biometro.generate(model, ASPIRIN, count=5, mutations="1-3", device="cpu", seed=1)
    assert made.rows == direct.rows and set(made.figures) >= {"generated", "random substitutions"}
    from rdkit.Chem import AllChem, DataStructs

    def bits(text: str) -> object:
        return AllChem.GetMorganFingerprintAsBitVect(Chem.MolFromSmiles(text), 2, 2048)

    for row in made.rows:
        assert row["similarity"] == pytest.approx(DataStructs.TanimotoSimilarity(bits(ASPIRIN), bits(row["smiles"])))
        assert row["smiles"] != ASPIRIN
    text = page.read_text()
    assert "Analogues of aspirin" in text and text.index("the start") < text.index("molecule-1:")


def test_what_is_wrong_with_molecules_is_said(
    molecules: Path, receptors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = molecules / "run" / "model"
    moved = tmp_path / "moved"
    bundle = biometro.load(model)
    bundle.recipe["data"] = str(tmp_path / "gone")
    bundle.save(moved)
    cases = {
        "mutations and identity count from a start": [f"--model={model}", "--mutations=2"],
        "say how far": [f"--model={model}", f"--wildtype={ASPIRIN}"],
        "fixed is about residues": [f"--model={model}", "--fixed=1-3"],
        "reads as a protein": [f"--model={model}", "--wildtype=MKTAYIAKQRQISFV", "--mutations=1"],
        "a token that the vocabulary lacks": [f"--model={model}", "--wildtype=C[Se]C", "--mutations=1"],
        "is not known": [f"--model={moved}"],
        "give wildtype": [f"--model={receptors / 'run' / 'model'}", "--mutations=1"],
        "is out of place": [f"--model={receptors / 'run' / 'model'}", "--wildtype=CASF@Y|CAV", "--mutations=1"],
    }
    for message, options in cases.items():
        assert cli.main(["generate", *options, f"--out={tmp_path / 'x.csv'}", "--device=cpu"]) == 1, message
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1, told
    assert not (tmp_path / "x.csv").exists()
    with pytest.raises(UserError, match=r"\.smi"):
        biometro.generate(str(model), out=str(tmp_path / "x.fasta"))


def test_marks_of_a_receptor_stay(receptors: Path, tmp_path: Path) -> None:
    model = str(receptors / "run" / "model")
    marks = [n for n, letter in enumerate(RECEPTOR) if letter in "|:"]
    for sampling in (Sampling(rounds=2), Sampling("gibbs"), Sampling("proposals", tries=2)):
        made = biometro.generate(model, RECEPTOR, count=6, mutations=4, sampling=sampling, device="cpu")
        for row in made.rows:
            assert [n for n, letter in enumerate(row["sequence"]) if letter in "|:"] == marks
            assert sum(a != b for a, b in zip(row["sequence"], RECEPTOR, strict=True)) == 4
    (tmp_path / "wild.fasta").write_text(f">r1\n{RECEPTOR}\n")
    scored = biometro.score(model, str(tmp_path / "wild.fasta"), ["singles"], method=["masked", "pll"], device="cpu")
    assert len(scored.variants) == 19 * (len(RECEPTOR) - 2) and np.isfinite(scored.scores["masked"]).all()
    assert all(RECEPTOR[change.start] not in "|:" for v in scored.variants for change in v.changes)
    (tmp_path / "v.fasta").write_text(f">same\n{RECEPTOR}\n>one\n{RECEPTOR.replace('CAVR', 'CAVG')}\n")
    two = biometro.score(model, RECEPTOR, str(tmp_path / "v.fasta"), device="cpu", report=str(tmp_path / "p.html"))
    assert [len(v.changes) for v in two.variants] == [0, 1]
    for bad in ("W12_C14del", "W12_C14delinsWGC"):
        with pytest.raises(UserError, match="marks between chains stay"):
            biometro.score(model, RECEPTOR, [bad], device="cpu")


def test_an_antibody_of_two_chains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    objective = Metro(EncoderConfig(width=16, depth=1, head_size=8, vocab_size=immune.ANTIBODY.size), immune.ANTIBODY)
    Bundle(immune.ANTIBODY, objective.bundle_modules()).save(tmp_path / "model")
    made = biometro.generate(
        str(tmp_path / "model"), "EVQLVESGG|DIQMTQSPS", count=5, mutations=3, fixed="1-4", device="cpu"
    )
    assert all(row["sequence"][:4] == "EVQL" and row["sequence"][9] == "|" for row in made.rows)


def test_fine_tuning_draws_examples(molecules: Path, receptors: Path, tmp_path: Path) -> None:
    common = [
        "--training.epochs=1", "--split.by=random", "--split.identity=0", "--split.test=0.3", "--baselines=false",
        "--device=cpu",
    ]  # fmt: skip
    labels = ["halogen" if "Cl" in text or "F" in text else "none" for text in chains()]
    (tmp_path / "m.csv").write_text(
        "sequence,label\n" + "".join(f"{text},{label}\n" for text, label in zip(chains(), labels, strict=True))
    )
    command = ["finetune", "--labels.column=label", "--depth=probe", *common]
    cases = {
        "molecule": [f"--model={molecules / 'run' / 'model'}", f"--data={tmp_path / 'm.csv'}"],
        "tcr": [f"--model={receptors / 'run' / 'model'}", f"--data={receptors / 'all.csv'}"],
    }
    for kind, options in cases.items():
        run = tmp_path / kind
        assert cli.main([*command, *options, f"--run={run}"]) == 0
        said = json.loads((run / "results.json").read_text())
        page = (run / "report.html").read_text()
        (split,) = said["splits"].values()
        (only,) = split["methods"]["probe"]["runs"]
        if kind == "molecule":
            assert [(one["name"], len(one["items"])) for one in only["examples"]] == [("halogen", 4), ("none", 4)]
            assert all(0 <= item[2] <= 1 for one in only["examples"] for item in one["items"])
            assert page.count("<div><svg") == 8 and "Test molecules: probe" in page
        else:
            assert set(split["cdr3s"]) == {"R", "S"} and "CDR3s of R: beta chains" in page and not only["examples"]
