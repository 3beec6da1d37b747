"""On real proteins: what the simulated ones cannot show. Needs $BIOMETRO_DATA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import biometro
from biometro.data.corpus import Corpus
from biometro.data.loader import Loader, PackingConfig
from biometro.jobs.prepare import prepare
from biometro.training.tracking import read_metrics

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def proteins(real_data: Path) -> Path:
    return real_data / "protein" / "proteins.parquet"


@pytest.fixture(scope="module")
def corpus(proteins: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepare(str(proteins), str(tmp_path_factory.mktemp("c") / "proteins"), split_column="split")


def test_the_corpus_holds_what_an_independent_count_finds(proteins: Path, corpus: Corpus) -> None:
    table = pq.read_table(proteins, columns=["sequence", "split"])
    sides: dict[str, set[str]] = {"train": set(), "valid": set()}
    for letters, side in zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True):
        if side in sides:
            sides[side].add("".join(c if c in "ACDEFGHIKLMNPQRSTVWY" else "X" for c in letters.upper().rstrip("*")))
    sides["train"] -= sides["valid"]
    for name, expected in sides.items():
        assert corpus.info["splits"][name]["sequences"] == len(expected)
        assert corpus.info["splits"][name]["residues"] == sum(map(len, expected))
    split = corpus.split("valid")
    assert {corpus.alphabet.decode(split[i]) for i in range(len(split))} == sides["valid"]
    assert 2.8 < corpus.unigram_entropy("valid") < 2.95


def test_an_epoch_of_real_lengths(corpus: Corpus) -> None:
    split = corpus.split("valid")
    loader = Loader(split, corpus.alphabet, PackingConfig(8192, 510, reverse=0.1), 1)
    tokens = [loader.batch(n).tokens for n in range(loader.batches_per_epoch)]
    assert max(tokens) <= 8192
    assert sum(tokens) == int((np.minimum(split.lengths, 510) + 2).sum())
    assert np.mean(tokens) > 0.9 * 8192


def test_fasta_of_the_same_sequences_gives_the_same_corpus(proteins: Path, tmp_path: Path) -> None:
    letters = pq.read_table(proteins, columns=["sequence"]).column(0).to_pylist()[:3000]
    (tmp_path / "x.fasta").write_text(
        "".join(
            f">{i}\n" + "\n".join(s[k : k + 60] for k in range(0, len(s), 60)) + "\n" for i, s in enumerate(letters)
        )
    )
    (tmp_path / "x.csv").write_text("sequence\n" + "\n".join(reversed(letters)) + "\n")
    one = prepare(str(tmp_path / "x.fasta"), str(tmp_path / "one"))
    two = prepare(str(tmp_path / "x.csv"), str(tmp_path / "two"))
    assert one.digest == two.digest


@pytest.mark.long
@pytest.mark.parametrize("objective", ["mlm", "metro"])
def test_two_hundred_steps_beat_the_unigram_entropy(corpus: Corpus, tmp_path: Path, objective: str) -> None:
    from biometro.cli import main

    run = tmp_path / objective
    options = {
        "data": corpus.folder, "run": run, "objective": objective, "encoder.width": 64, "encoder.depth": 2,
        "encoder.head_size": 32, "packing.batch_tokens": 4096, "packing.crop": 126, "training.steps": 200,
        "encoder.init_std": 0.1, "training.valid_every": 200,
        "training.valid_batches": 32, "training.optimizer.lr": 3e-3, "training.optimizer.warmup": 20, "device": "cpu",
        "metro.clm_positions": "masked",  # at all positions it learns to copy first
    }  # fmt: skip
    assert main(["pretrain", *(f"--{k}={v}" for k, v in options.items())]) == 0
    valid = [row for row in read_metrics(run / "metrics.jsonl") if row["split"] == "valid"][-1]
    entropy = corpus.unigram_entropy("valid")
    assert valid["mlm_masked_loss" if objective == "mlm" else "aux_loss"] < entropy
    if objective == "metro":
        assert valid["clm_masked_loss"] < entropy
    assert biometro.embed(str(run / "model"), ["MKTAYIAKQR"]).matrix.shape == (1, 64)
