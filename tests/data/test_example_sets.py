"""example:receptors and example:molecules: what is said of them is true, by RDKit and by counting."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from biometro.alphabet import Reading
from biometro.data import example_molecules as molecules
from biometro.data import example_receptors as receptors
from biometro.data.labels import read_labelled
from biometro.data.sources import expand, read
from biometro.data.task import LabelConfig
from biometro.jobs.prepare import prepare


def test_molecules_are_molecules_and_acids_are_acids() -> None:
    Chem = pytest.importorskip("rdkit.Chem")
    acid = [Chem.MolFromSmarts(s) for s in ("[CX3](=O)[OX2H1]", "S(=O)(=O)[OX2H1]", "c1[nH]nnn1", "c1nn[nH]n1")]
    found = molecules.simulate()
    assert len(found) == len(molecules.SCAFFOLDS) * (len(molecules.OTHERS) + len(molecules.ACIDS)) ** 2
    for one in found:
        mol = Chem.MolFromSmiles(one.smiles)
        assert mol is not None, one
        assert any(mol.HasSubstructMatch(each) for each in acid) == (one.label == "acid"), one
    counts = Counter(one.label for one in found)
    assert 0.3 < counts["acid"] / len(found) < 0.5


def test_receptors_have_their_motifs_where_they_say() -> None:
    found = receptors.simulate(each=200)
    assert len({one.letters for one in found}) == len(found)
    kept = Counter[str]()
    for one in found:
        for chain, motif, start in zip((one.alpha, one.beta), receptors.EPITOPES[one.peptide], one.starts, strict=True):
            assert chain.startswith("C") and chain.endswith("F") and 8 <= len(chain) <= 20
            kept["bound" if one.bound else "not"] += sum(
                a == b for a, b in zip(chain[start : start + len(motif)], motif, strict=True)
            )
            kept["bound of" if one.bound else "not of"] += len(motif)
    # a mutated residue is its old self now and then
    assert kept["bound"] / kept["bound of"] == pytest.approx(1 - receptors.MUTATED * 0.94, abs=0.02)
    assert kept["not"] / kept["not of"] < 0.15
    assert sum(not one.bound for one in found) / len(found) == pytest.approx(receptors.NOISE, abs=0.02)
    assert receptors.simulate(each=5) == found[:20] and receptors.simulate(1, 5) != found[:20]


@pytest.mark.parametrize(
    ("name", "kind", "classes"),
    [("example:receptors", "tcr", sorted(receptors.EPITOPES)), ("example:molecules", "molecule", ["acid", "other"])],
)
def test_ids_carry_the_labels(name: str, kind: str, classes: list[str]) -> None:
    if kind == "molecule":
        pytest.importorskip("rdkit")
    records = list(read(expand(name)[0]))
    labelled = read_labelled(name, LabelConfig(field=1, conflicts="fail"), reading=Reading(kind))  # type: ignore[arg-type]
    assert sorted(labelled.task.names) == classes and not labelled.account.examples.keys() - {
        "identical sequence, counted once"
    }
    assert len(records) >= len(labelled) > 1000
    assert min(labelled.after.values()) > 200


@pytest.mark.parametrize(("name", "kind"), [("example:receptors", "tcr"), ("example:molecules", "molecule")])
def test_a_corpus_of_them(name: str, kind: str, tmp_path: Path) -> None:
    if kind == "molecule":
        pytest.importorskip("selfies")
    corpus = prepare(name, str(tmp_path / "c"), kind=kind, valid=0.1)  # type: ignore[arg-type]
    assert corpus is not None and corpus.info["intake"]["dropped"] == {}
    assert corpus.info["splits"]["train"]["sequences"] > 900
