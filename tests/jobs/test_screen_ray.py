"""Ranking on Ray: two workers on a local cluster give what one process gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import biometro
from biometro.alphabet import PROTEIN
from biometro.errors import UserError
from biometro.inference import cluster
from biometro.inference.cluster import Cluster
from biometro.inference.screen import rank
from biometro.inference.screen_ray import rank_on
from biometro.inference.store import About, Store, open_store, shard_name, write_about, write_shard
from biometro.jobs import index as index_job
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder, EncoderConfig

pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(300)

WIDTH = 24


@pytest.fixture(scope="module")
def connection() -> Iterator[Cluster]:
    with cluster.connect(2, None, "cpu") as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Eleven shards of uneven size, with copies of rows in other shards, so that ties cross them."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((600, WIDTH))
    rows = np.concatenate([rows, rows[::3]])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    folder, notes, start = tmp_path / "library", [], 0
    folder.mkdir()
    for place, size in enumerate([1, 99, 100, 50, 150, 3, 97, 100, 150, 40, 10]):
        part = rows[start : start + size].astype(np.float32)
        notes.append(write_shard(folder / shard_name(place, ["x"]), ["a"] * size, [b"A"] * size, part))
        start += size
    write_about(folder, About("m", "w", "ligand", "molecule"), WIDTH, notes)
    return open_store(folder)


@pytest.mark.parametrize("top", [40, *(pytest.param(top, marks=pytest.mark.long) for top in (1, 5000))])
def test_two_workers_give_the_same_bytes(connection: Cluster, store: Store, top: int) -> None:
    queries = store.vectors(np.arange(0, 800, 53))
    here, there = rank(store, queries, top), rank_on(store, queries, top, connection)
    assert here.numbers.tobytes() == there.numbers.tobytes() and here.scores.tobytes() == there.scores.tobytes()


@pytest.mark.long
def test_what_a_worker_finds_wrong_reads_as_here(connection: Cluster, store: Store) -> None:
    queries = store.vectors(np.arange(2))
    told = json.loads((store.folder / "store.json").read_text())
    (store.folder / "store.json").write_text(json.dumps(told | {"digest": "another"}))
    with pytest.raises(UserError, match="holds another index on"):
        rank_on(store, queries, 5, connection)
    (store.folder / "store.json").unlink()
    with pytest.raises(UserError, match="is no store of vectors"):
        rank_on(store, queries, 5, connection)


def test_the_job_writes_the_same_table(connection: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = str(tmp_path / "model")
    Bundle(PROTEIN, {"encoder": Encoder(EncoderConfig(width=16, depth=1, head_size=8))}).save(model)
    random = np.random.default_rng(0)
    letters = ["".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), n)) for n in random.integers(5, 40, 90)]
    (tmp_path / "x.fasta").write_text("".join(f">s{i}\n{row}\n" for i, row in enumerate(letters)))
    monkeypatch.setattr(index_job, "_CHUNK_SEQUENCES", 8)
    monkeypatch.setattr(index_job, "SHARD_NUMBERS", 16 * 20)
    index = str(biometro.index(model, str(tmp_path / "x.fasta"), str(tmp_path / "index"), device="cpu"))
    for name, more in {"one.csv": {}, "two.csv": {"workers": 2}}.items():
        biometro.screen(model, index, letters[:4], str(tmp_path / name), top=9, device="cpu", **more)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    rows = (tmp_path / "one.csv").read_text().splitlines()
    assert len(rows) == 37 and rows[0] == "query,rank,id,sequence,score" and ",1,s0," in rows[1]
