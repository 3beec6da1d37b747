"""`index` and `screen`, from files to the table and the page."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import biometro
from biometro import cli
from biometro.alphabet import PROTEIN
from biometro.alphabet.molecule import MoleculeAlphabet
from biometro.data.pair_config import PairConfig
from biometro.errors import UserError
from biometro.inference import store as stores
from biometro.inference.store import open_store
from biometro.inference.towers import TowerReader
from biometro.jobs import index as index_job
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.pairing import PairHead, PairHeadConfig, Projection, ProjectionConfig
from biometro.model.towers import PairAnswers, Towers, load_towers

pytest.importorskip("rdkit")

TARGETS = {"t1": "MKTAYIAKQR", "t2": "GAVLIMCFYWHKRQN"}


def save_towers(folder: Path, seed: int = 0, answers: PairAnswers = PairAnswers("pKd", 0.8, (3.0, -1.0))) -> str:
    torch.manual_seed(seed)
    alphabets = {"protein": PROTEIN, "ligand": MoleculeAlphabet.of(["[C]", "[O]", "[N]"], "selfies")}
    found = {}
    for name, alphabet in alphabets.items():
        encoder = Encoder(
            EncoderConfig(vocab_size=alphabet.size, mask_token=alphabet.id("<mask>"), width=16, depth=1, head_size=8)
        )
        found[name] = Bundle(alphabet, {"encoder": encoder, "projection": Projection(ProjectionConfig(16, 12))})
    head = PairHead(PairHeadConfig(12, 8))
    Towers(found, head, answers).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_towers(tmp_path_factory.mktemp("model") / "towers")


@pytest.fixture(scope="module")
def smiles() -> list[str]:
    """351 chains of C, N and O, among them some that are one molecule read from either end."""
    return ["".join(row) for n in (3, 4, 5) for row in itertools.product("CNO", repeat=n)]


@pytest.fixture(scope="module")
def library(smiles: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "library.smi"
    path.write_text("".join(f"{row} m{i}\n" for i, row in enumerate(smiles)))
    return path


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "targets.fasta"
    path.write_text("".join(f">{name}\n{row}\n" for name, row in TARGETS.items()))
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 16 sequences, shards of 40: ten shards, the last one short."""
    monkeypatch.setattr(index_job, "_CHUNK_SEQUENCES", 16)
    monkeypatch.setattr(index_job, "SHARD_NUMBERS", 40 * 12)


@pytest.fixture
def index(model: str, library: Path, small: None, tmp_path: Path) -> str:
    biometro.index(model, str(library), str(tmp_path / "index"), device="cpu")
    return str(tmp_path / "index")


def expected(model: str, index: str, sequence: str) -> tuple[list[str], np.ndarray]:
    """All of the library by score, from vectors that are read again, one by one."""
    towers = load_towers(model)
    query = TowerReader(towers.towers["protein"]).embed([PROTEIN.encode(sequence.encode())])[0]
    store, reader = open_store(index), TowerReader(towers.towers["ligand"])
    entries = store.entries(np.arange(store.count))
    rows = np.concatenate([reader.embed([reader.alphabet.encode(letters)]) for _, letters in entries])
    scores = (rows.astype(np.float64) * query).sum(1).astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    return [entries[i][0] for i in order], scores[order]


def test_a_target_gets_its_ligands(model: str, index: str, targets: Path, tmp_path: Path, smiles: list[str]) -> None:
    found = biometro.screen(model, index, str(targets), str(tmp_path / "hits.csv"), top=7, device="cpu")
    rows = list(csv.DictReader((tmp_path / "hits.csv").open()))
    assert [*rows[0]] == ["query", "rank", "id", "smiles", "score", "affinity (pKd)", "probability"]
    assert len(rows) == 14 and [row["rank"] for row in rows[:7]] == [str(i) for i in range(1, 8)]
    for name, sequence in TARGETS.items():
        mine = [row for row in rows if row["query"] == name]
        ids, scores = expected(model, index, sequence)
        assert [float(row["score"]) for row in mine] == pytest.approx(scores[:7], abs=1e-5)
        assert {row["id"] for row in mine[:3]} <= {*ids[:7]}
        assert float(mine[0]["probability"]) == pytest.approx(1 / (1 + np.exp(1 - 3 * scores[0])), abs=1e-4)
    store = open_store(index)
    assert store.count == len(smiles) and len(store.shards) == 8 and store.about.tower == "ligand"
    page = (tmp_path / "hits.html").read_text()
    assert found.report == tmp_path / "hits.html" and page.count("<svg") == 14 and "pKd" in page and "exact" in page


def test_a_ligand_gets_its_targets_by_the_same_affinity(model: str, index: str, targets: Path, tmp_path: Path) -> None:
    biometro.index(model, str(targets), str(tmp_path / "proteins"), device="cpu")
    queries = tmp_path / "q.smi"
    queries.write_text("CCO ethanol\n")
    backward = biometro.screen(model, str(tmp_path / "proteins"), str(queries), device="cpu").rows
    assert [row["id"] for row in sorted(backward, key=lambda row: row["id"])] == ["t1", "t2"]
    assert backward[0]["sequence"] in TARGETS.values()
    forward = biometro.screen(model, index, str(targets), top=1000, device="cpu").rows
    for row in backward:
        same = next(each for each in forward if each["query"] == row["id"] and each["smiles"] == "CCO")
        assert row["affinity (pKd)"] == pytest.approx(same["affinity (pKd)"], abs=1e-5)
        assert row["score"] == pytest.approx(same["score"], abs=1e-6)


def test_likes_are_found_within_one_tower_and_by_any_model(
    model: str, index: str, tmp_path: Path, targets: Path
) -> None:
    queries = tmp_path / "q.smi"
    queries.write_text("CCO ethanol\n")
    rows = biometro.screen(model, index, str(queries), top=3, tower="ligand", device="cpu").rows
    assert rows[0]["smiles"] == "CCO" and rows[0]["score"] == pytest.approx(1, abs=1e-5)
    assert not any("affinity" in name or "probability" in name for name in rows[0])
    single = str(Path(model) / "protein")
    biometro.index(single, str(targets), str(tmp_path / "alone"), device="cpu")
    rows = biometro.screen(single, str(tmp_path / "alone"), [TARGETS["t2"]], device="cpu").rows
    assert [row["id"] for row in rows] == ["t2", "t1"] and rows[0]["query"]


def test_an_interrupted_index_goes_on(
    model: str, library: Path, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "index", []
    embed = TowerReader.embed

    def counted(self: TowerReader, tokens: Any) -> np.ndarray:
        calls.append(len(tokens))
        if len(calls) == 9:  # in the third shard
            raise KeyboardInterrupt
        return embed(self, tokens)

    monkeypatch.setattr(TowerReader, "embed", counted)
    with pytest.raises(KeyboardInterrupt):
        biometro.index(model, str(library), str(out), device="cpu")
    assert not out.exists() and len(list(tmp_path.rglob("shard.json"))) == 2
    half = next(tmp_path.rglob("shards")) / "00000002-half"
    half.mkdir()  # of no use, and must not become part of the store
    broken = sorted(tmp_path.rglob("codes.npy"))[0]
    broken.write_bytes(broken.read_bytes()[:-1])
    done = calls.copy()
    biometro.index(model, str(library), str(out), device="cpu")
    again = sum(calls[len(done) :])
    assert again == 351 - 48 - 32, "all but one whole shard and two parts"
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    monkeypatch.setattr(TowerReader, "embed", embed)
    biometro.index(model, str(library), str(tmp_path / "whole"), device="cpu")
    assert files(out) == files(tmp_path / "whole")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_options_that_change_vectors_take_up_nothing(
    model: str, library: Path, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stores, "write_about", lambda *args: (_ for _ in ()).throw(UserError("full")))
        with pytest.raises(UserError, match="kept for the next try"):
            biometro.index(model, str(library), str(tmp_path / "index"), device="cpu")
    biometro.index(model, str(library), str(tmp_path / "index"), max_length=2, device="cpu")
    store = open_store(tmp_path / "index")
    cut = TowerReader(load_towers(model).towers["ligand"], max_length=2)
    letters = store.entries(np.array([200]))[0][1]
    np.testing.assert_allclose(store.vectors(np.array([200])), cut.embed([cut.alphabet.encode(letters)]), atol=1e-6)


@pytest.mark.parametrize("suffix", [".tsv", ".parquet"])
def test_tables_of_other_formats(model: str, index: str, targets: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"hits{suffix}"
    assert cli.main(["screen", f"--model={model}", f"--index={index}", f"--data={targets}", f"--out={out}",
                     "--top=3", "--device=cpu", f"--report={tmp_path / 'r.html'}"]) == 0  # fmt: skip
    if suffix == ".parquet":
        assert pq.read_table(out).column("rank").to_pylist() == [1, 2, 3] * 2
    else:
        assert len(out.read_text().splitlines()) == 7
    assert (tmp_path / "r.html").exists()


def test_mistakes_are_said(model: str, index: str, library: Path, targets: Path, tmp_path: Path) -> None:
    other = save_towers(tmp_path / "other", seed=1)
    table = tmp_path / "t.csv"
    table.write_text("sequence\nMKT\n")
    ring = tmp_path / "ring.csv"
    ring.write_text("sequence\nc1ccc(=O)cc1\n")
    nan = load_towers(model)
    torch.nn.init.constant_(nan.towers["ligand"].encoder.embedding.weight, float("nan"))
    nan.save(tmp_path / "nan")
    out = str(tmp_path / "x")
    cases: list[tuple[str, Any]] = [
        ("was made by another model", lambda: biometro.screen(other, index, str(targets))),
        ("is no store of vectors", lambda: biometro.screen(model, str(tmp_path), str(targets))),
        ("there is no tower 'ligands'", lambda: biometro.screen(model, index, str(targets), tower="ligands")),
        ("--tower ligand reads the other kind", lambda: biometro.screen(model, index, str(ring))),
        ("top is 0", lambda: biometro.screen(model, index, str(targets), top=0)),
        ("leave out `workers`", lambda: biometro.screen(model, index, str(targets), workers=2, approximate=True)),
        ("say with `workers`", lambda: biometro.screen(model, index, str(targets), cluster="auto")),
        ("must end in one of", lambda: biometro.screen(model, index, str(targets), str(tmp_path / "x.txt"))),
        ("do not say which tower", lambda: biometro.index(model, str(table), out)),
        ("there is no tower 'shared'", lambda: biometro.index(model, str(table), out, tower="shared")),
        ("exists", lambda: biometro.index(model, str(library), index)),
        ("is no store, and would be", lambda: biometro.index(model, str(library), str(tmp_path), overwrite=True)),
        ("without a direction", lambda: biometro.index(str(tmp_path / "nan"), str(library), out, device="cpu")),
        ("no tower 'protein'", lambda: biometro.index(f"{model}/protein", str(targets), out, tower="protein")),
    ]  # fmt: skip
    for message, job in cases:
        with pytest.raises(UserError, match=message):
            job()
    assert not Path(out).exists()


def test_an_approximate_ranking_tells_its_recall(
    model: str, index: str, targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setenv("BIOMETRO_CACHE", str(tmp_path / "cache"))
    exact = biometro.screen(model, index, str(targets), top=10, device="cpu")
    for _ in range(2):  # made, and found in the cache
        found = biometro.screen(
            model, index, str(targets), str(tmp_path / "a.parquet"), top=10, device="cpu", approximate=True
        )
        assert found.recall is not None and 0.5 <= found.recall <= 1
        scores = {(row["query"], row["id"]): row["score"] for row in pq.read_table(tmp_path / "a.parquet").to_pylist()}
        shared = [row for row in exact.rows if (row["query"], row["id"]) in scores]
        assert len(shared) >= 5 and all(row["score"] == scores[row["query"], row["id"]] for row in shared)
    (kept,) = (tmp_path / "cache" / "approximate").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    assert biometro.screen(model, index, str(targets), top=10, approximate=True).recall == found.recall
    assert f"recall {found.recall:.4f}" in (tmp_path / "a.html").read_text()


def test_the_extra_is_named(model: str, index: str, targets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'biometro\[approximate\]'"):
        biometro.screen(model, index, str(targets), approximate=True)


def test_hits_are_told_their_nearest_known_binder(
    model: str, index: str, targets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rdkit import Chem, DataStructs
    from rdkit.Chem import rdFingerprintGenerator

    known = tmp_path / "known.csv"
    known.write_text(
        "protein_sequence,smiles,binds\n"
        f"{TARGETS['t1']},CCO,1\n{TARGETS['t1']},OCC,1\n{TARGETS['t1']},CNCNC,1\n{TARGETS['t1']},NNN,0\n"
        "MMMMMM,OOO,1\n"
    )
    found = biometro.screen(
        model, index, str(targets), str(tmp_path / "hits.parquet"), top=1000, device="cpu", known=str(known),
        pairs=PairConfig(label="binds"),
    )  # fmt: skip
    rows = pq.read_table(tmp_path / "hits.parquet").to_pylist()
    prints = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    ecfp = {s: prints.GetFingerprint(Chem.MolFromSmiles(s)) for s in ("CCO", "CNCNC")}
    for row in rows:
        if row["query"] == "t2":
            assert row["nearest known"] is None and row["similarity"] is None
            continue
        mine = prints.GetFingerprint(Chem.MolFromSmiles(row["smiles"]))
        alike = {s: DataStructs.TanimotoSimilarity(mine, other) for s, other in ecfp.items()}
        assert row["similarity"] == pytest.approx(max(alike.values()), abs=1e-6)
        assert row["nearest known"] == "" or alike[row["nearest known"]] == max(alike.values())
    assert found.report is not None and "2 known binders" in found.report.read_text()
    said = capsys.readouterr().err
    assert "1 of 2 queries have known binders" in said and "a pair that stands there already): 1" in said
    assert "every pair of `known`" not in said
    biometro.screen(
        model, index, str(targets), str(tmp_path / "all.csv"), known=str(known), pairs=PairConfig(), device="cpu"
    )
    assert "every pair of `known` counts as one that binds" in capsys.readouterr().err
    with pytest.raises(UserError, match="here pairs are of protein and molecule"):
        biometro.screen(model, index, str(targets), known=str(known), pairs=PairConfig(kind_b="protein"), device="cpu")
