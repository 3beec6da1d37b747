"""Fingerprints, neighbours and clusters are RDKit's."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator
from rdkit.Chem.Scaffolds import MurckoScaffold
from rdkit.ML.Cluster import Butina

from biometro.data import fingerprints


@pytest.fixture(scope="module")
def molecules() -> list[bytes]:
    rings = ["c1ccccc1", "C1CCCCC1", "c1ccncc1", "C1CCNCC1", "c1ccsc1", "c1ccc2ccccc2c1", ""]
    links = ["", "C", "CC", "CO", "C(=O)N", "C#C"]
    tails = ["C", "O", "CCN", "C(=O)O", "Cl", "C(F)(F)F", "CC(C)C", "c1ccccc1"]
    return ["".join(parts).encode() for parts in product(rings, links, tails)]


@pytest.fixture(scope="module")
def rdkits(molecules: list[bytes]) -> list[DataStructs.ExplicitBitVect]:
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    return [generator.GetFingerprint(Chem.MolFromSmiles(row.decode())) for row in molecules]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_QUERIES", 70)
    monkeypatch.setattr(fingerprints, "_REFERENCES", 90)


def test_bits_are_rdkits(molecules: list[bytes], rdkits: list[DataStructs.ExplicitBitVect]) -> None:
    bits = np.unpackbits(fingerprints.fingerprints([*molecules, b"no molecule"]), axis=1)
    for row, wanted in zip(bits, rdkits, strict=False):
        assert np.flatnonzero(row).tolist() == list(wanted.GetOnBits())
    assert not bits[-1].any()


@pytest.mark.usefixtures("small_blocks")
def test_neighbours_are_rdkits(molecules: list[bytes], rdkits: list[DataStructs.ExplicitBitVect]) -> None:
    table = np.array([DataStructs.BulkTanimotoSimilarity(one, rdkits[200:]) for one in rdkits[:200]])
    found = fingerprints.nearest(molecules[:200], molecules[200:], 0.6)
    np.testing.assert_array_equal(found.place, table.argmax(1))
    np.testing.assert_allclose(found.similarity, table.max(1), rtol=1e-6)
    np.testing.assert_array_equal(found.related, table.max(1) >= 0.6)
    for most in (1, 4, 1000):
        hits = fingerprints.search(molecules[:200], molecules[200:], most=most)
        order = np.argsort(-table, axis=1, kind="stable")[:, :most]
        wanted = [(q, t) for q in range(200) for t in order[q].tolist() if table[q, t] > 0]
        assert list(zip(hits.query.tolist(), hits.target.tolist(), strict=True)) == wanted
        np.testing.assert_allclose(hits.similarity, [table[pair] for pair in wanted], rtol=1e-6)
    assert len(fingerprints.search([], molecules).query) == len(fingerprints.search(molecules, []).query) == 0
    with pytest.raises(ValueError, match="align no atoms"):
        fingerprints.search(molecules, molecules, alignments=True)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("tanimoto", [0.3, 0.5, 0.6, 0.99])
def test_clusters_are_rdkits(
    tanimoto: float, molecules: list[bytes], rdkits: list[DataStructs.ExplicitBitVect]
) -> None:
    random = np.random.default_rng(0).permutation(len(molecules))
    chosen = [rdkits[i] for i in random]
    similarity = np.array([DataStructs.BulkTanimotoSimilarity(one, chosen) for one in chosen])
    wanted = np.zeros(len(chosen), np.int64)
    for number, members in enumerate(Butina.ClusterData(1 - similarity, len(chosen), 1 - tanimoto, isDistData=True)):
        wanted[list(members)] = number
    found = fingerprints.butina([molecules[i] for i in random], tanimoto)
    np.testing.assert_array_equal(found, fingerprints.by_first_appearance(wanted))


def test_scaffolds_are_murckos_and_acyclic_molecules_one_family(molecules: list[bytes]) -> None:
    found = fingerprints.scaffold_families(molecules)
    names = [MurckoScaffold.MurckoScaffoldSmiles(smiles=row.decode(), includeChirality=False) for row in molecules]
    assert len({*zip(names, found.tolist(), strict=True)}) == len({*names}) == found.max() + 1
    assert names.count("") == 42 and len({int(f) for f, name in zip(found, names, strict=True) if not name}) == 1
