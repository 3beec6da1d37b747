"""Retrieval figures against plain versions and scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity

from biometro.data.task import LabelConfig
from biometro.errors import UserError
from biometro.evaluation import retrieval
from biometro.evaluation.retrieval import PairsConfig, RetrievalConfig


def plain(score: np.ndarray, family: np.ndarray, query: int) -> tuple[float, float, float]:
    """Walk down the list, others of equal score first."""
    order = sorted((i for i in range(len(family)) if i != query), key=lambda i: (-score[i], family[i] == family[query]))
    hits = [family[i] == family[query] for i in order]
    precisions = [sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit]
    return float(hits[0]), 1 / (1 + hits.index(True)), float(np.mean(precisions))


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_ranks_are_those_of_a_walk_down_the_list(seed: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    family = np.repeat(np.arange(4), [2, 3, 4, 5])
    score = random.integers(levels, size=(14, 14)).astype(np.float32)  # few levels: many ties
    found = np.array(retrieval.rank_figures(score, family, np.arange(14))).T
    np.testing.assert_allclose(found, [plain(score[q], family, q) for q in range(14)])


def test_average_precision_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    family, score = random.integers(5, size=60), random.normal(size=(60, 60)).astype(np.float32)
    _, _, found = retrieval.rank_figures(score, family, np.arange(60))
    for query in range(60):
        others = np.arange(60) != query
        expected = average_precision_score(family[others] == family[query], score[query, others])
        assert found[query] == pytest.approx(expected)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    exam = retrieval.read("retrieval", ["example:families"], families(5), "map", resamples=100)
    vectors = np.random.default_rng(1).normal(size=(len(exam.letters), 8))
    whole = exam._near(vectors)
    monkeypatch.setattr(retrieval, "_BLOCK", 3 * len(exam.letters))
    blocks = exam._near(vectors)
    assert whole.figures == blocks.figures
    np.testing.assert_array_equal(whole.replicates, blocks.replicates)


def families(most: int) -> RetrievalConfig:
    labels = LabelConfig(separator="/", field=0, max_per_class=most, min_per_class=1)
    return RetrievalConfig(labels)


def test_cosine_and_composition() -> None:
    rows = np.random.default_rng(2).normal(size=(9, 5))
    np.testing.assert_allclose(
        retrieval.cosines(retrieval.unit(rows))(np.arange(4)), cosine_similarity(rows)[:4], atol=1e-6
    )
    letters = [b"MKTAYIAKQR", b"MKTAYIAKQW", b"GGGGPPPP"]
    near = retrieval.cosines(retrieval.kmers(letters))(np.arange(3))
    assert near[0, 1] == pytest.approx(7 / 8) and near[0, 2] == 0 and near[2, 2] == pytest.approx(1)


def table(path: Path, **columns: list[str]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_sequences_alone_in_their_family_are_no_queries_but_are_found(tmp_path: Path) -> None:
    letters = ["MKTAYIAKQR", "MKTAYIAKQW", "WWCCHHPPGG", "WWCCHHPPGD"]
    path = table(tmp_path / "a.parquet", sequence=letters, label=["a", "a", "b", "c"])
    exam = retrieval.read("retrieval", [path], RetrievalConfig(), "top1", resamples=100)
    assert exam.queries.tolist() == [0, 1]
    assert exam._near(np.array([[1, 0], [0, 1], [1, 0.1], [0, 1]])).figures["top1"] == 0
    lonely = table(tmp_path / "b.parquet", sequence=letters, label=list("abcd"))
    with pytest.raises(UserError, match="nothing to find"):
        retrieval.read("retrieval", [lonely], RetrievalConfig(), "top1")
    with pytest.raises(UserError, match="choose from top1, mrr, map"):
        retrieval.read("retrieval", [path], RetrievalConfig(), "accuracy")


def pairs(tmp_path: Path) -> tuple[list[str], list[str]]:
    random = np.random.default_rng(3)
    letters = ["".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), 30)) for _ in range(30)]
    ids = [f"s{i}" for i in range(30)]
    chosen = random.choice(435, 80, replace=False)  # each pair once: two of one score would be ranked by rounding
    a, b = ([ids[i] for i in side[chosen]] for side in np.triu_indices(30, 1))
    label = random.choice(["family", "clan", "none"], 80, p=[0.3, 0.2, 0.5]).tolist()
    sequences = table(tmp_path / "s.parquet", id=ids, sequence=letters)
    return [sequences, table(tmp_path / "p.parquet", a=a, b=b, label=label)], label


def test_pairs_are_ranked_as_scikit_learn_does(tmp_path: Path) -> None:
    files, label = pairs(tmp_path)
    exam = retrieval.read_pairs("pairs", files, PairsConfig(unrelated=["none"], top=10), "auroc", resamples=200)
    related = np.array(label) != "none"
    vectors = np.random.default_rng(4).normal(size=(len(exam.test), 6))
    score = cosine_similarity(vectors)[tuple(exam.pair_P2.T)]
    found = exam._cosine(retrieval.unit(vectors))
    assert found.figures["auroc"] == pytest.approx(roc_auc_score(related, score), abs=1e-6)
    assert found.figures["auprc"] == pytest.approx(average_precision_score(related, score), abs=1e-6)
    assert found.figures["precision_at_k"] == related[np.argsort(-score)[:10]].mean()
    clan = np.isin(label, ["clan", "none"])
    assert found.details["auroc of clan"] == pytest.approx(roc_auc_score(related[clan], score[clan]), abs=1e-6)
    assert abs(np.mean(found.replicates) - found.figures["auroc"]) < 0.05 and len(found.replicates) == 200
    baselines = exam.baselines()
    assert set(baselines) >= {"length", "composition", "k-mers"}
    assert baselines["length"].figures["auroc"] == 0.5  # all sequences are of one length here


def test_pairs_that_cannot_be_examined(tmp_path: Path) -> None:
    files, _ = pairs(tmp_path)
    with pytest.raises(UserError, match="two files"):
        retrieval.read_pairs("pairs", files[:1], PairsConfig(unrelated=["none"]), "auroc")
    with pytest.raises(UserError, match="all pairs are related"):
        retrieval.read_pairs("pairs", files, PairsConfig(unrelated=["nonhom"]), "auroc")
    with pytest.raises(UserError, match="auroc or auprc"):
        retrieval.read_pairs("pairs", files, PairsConfig(unrelated=["none"]), "map")
    odd = table(tmp_path / "odd.parquet", a=["s1"], b=["nobody"], label=["none"])
    with pytest.raises(UserError, match=r"no sequence 'nobody'"):
        retrieval.read_pairs("pairs", [files[0], odd], PairsConfig(unrelated=["none"]), "auroc")
