"""Precision of contacts against a plain version, baselines where the answer is known, and the exam as a whole."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from biometro.alphabet import PROTEIN
from biometro.data.contacts import Protein, simulated
from biometro.errors import UserError
from biometro.evaluation.contacts import (
    FIGURES,
    ContactsConfig,
    ContactsExam,
    mutual_information,
    precision,
    precisions,
    read_exam,
)
from biometro.evaluation.protocol import Subject
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.heads import ContactWeights, ContactWeightsConfig, VocabularyHead, VocabularyHeadConfig


def random_protein(seed: int, length: int = 60, contacts: int = 80) -> Protein:
    random = np.random.default_rng(seed)
    i, j = np.triu_indices(length, 1)
    chosen = np.sort(random.choice(len(i), contacts, replace=False))
    letters = "".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), length))
    return Protein(f"p{seed}", letters.encode(), np.stack([i[chosen], j[chosen]], 1), random.random(length) > 0.1)


def plain_precisions(scores: np.ndarray, protein: Protein) -> dict[str, float]:
    found = {}
    contacts = {tuple(pair) for pair in protein.pairs.tolist()}
    length = int(protein.known.sum())
    for name, low, high in (("short", 6, 11), ("medium", 12, 23), ("long", 24, 10**9), ("all", 6, 10**9)):
        pairs = [
            (scores[i, j], (i, j) in contacts)
            for i in range(len(protein))
            for j in range(i + 1, len(protein))
            if protein.known[i] and protein.known[j] and low <= j - i <= high
        ]
        pairs.sort(key=lambda pair: -pair[0])
        total = sum(true for _, true in pairs)
        for cut, k in (("L", length), ("L2", length // 2), ("L5", length // 5), ("C", total)):
            top = pairs[:k]
            found[f"precision_{name}_{cut}"] = sum(true for _, true in top) / len(top) if total else np.nan
    return found


@pytest.mark.parametrize("length", [12, 31, 60])
def test_precisions_are_those_of_a_plain_count(length: int) -> None:
    for seed in range(5):
        protein = random_protein(seed, length, length)
        scores = np.random.default_rng(seed + 50).normal(size=(length, length))
        found, expected = precisions(scores, protein), plain_precisions(scores, protein)
        assert tuple(found) == FIGURES
        assert found == pytest.approx(expected, nan_ok=True)
    if length == 12:
        assert np.isnan(found["precision_long_L"])  # no such pairs
    assert precisions(protein.matrix(), protein)["precision_all_C"] == 1


def test_level_scores_count_as_all_their_orders_do() -> None:
    score, true = np.array([3.0, 2, 2, 2, 1]), np.array([True, False, True, False, True])
    for k in range(1, 6):
        orders = [
            o for o in itertools.permutations(range(5)) if all(score[a] >= score[b] for a, b in itertools.pairwise(o))
        ]
        expected = np.mean([true[list(order[:k])].mean() for order in orders])
        assert precision(score, true, k) == pytest.approx(expected)
    assert precision(score, true, 99) == pytest.approx(0.6)
    assert np.isnan(precision(np.array([1.0, np.nan]), np.array([True, False]), 1))


def test_mutual_information_is_scikit_learns_before_its_correction() -> None:
    random = np.random.default_rng(0)
    rows = random.integers(0, 4, (50, 5)).astype(np.uint8)
    rows[:, 3] = (rows[:, 1] + (random.random(50) < 0.2)) % 4
    rows[random.random(rows.shape) < 0.1] = 20
    plain = np.zeros((5, 5))
    for i, j in itertools.permutations(range(5), 2):
        both = (rows[:, i] < 20) & (rows[:, j] < 20)
        plain[i, j] = mutual_info_score(rows[both, i], rows[both, j])
    plain -= np.outer(plain.sum(1), plain.sum(0)) / plain.sum()
    np.testing.assert_allclose(mutual_information(rows), plain, atol=1e-9)


def test_coupled_pairs_are_found_in_the_alignment_and_not_in_the_control() -> None:
    config = ContactsConfig(metric="precision_all_C")
    found = ContactsExam(simulated(0, 4, 256), config=config, resamples=100).baselines()
    control = ContactsExam(simulated(0, 4, 256, coupling=0), config=config, resamples=100).baselines()
    assert found["mutual information"].figures["precision_all_C"] > 0.3
    assert control["mutual information"].figures["precision_all_C"] < 0.1
    assert found["random"].figures["precision_all_C"] < 0.01


def test_baselines_without_an_alignment() -> None:
    proteins = [random_protein(seed) for seed in range(3)]
    scores = ContactsExam(proteins, resamples=50).baselines()
    assert set(scores) == {"random", "separation"}
    expected = []
    for protein in proteins:  # in random order, as often as contacts are
        known = np.flatnonzero(protein.known)
        pairs = [(i, j) for i in known for j in known if j - i >= 24]
        expected.append(np.mean([protein.matrix()[pair] for pair in pairs]))
    assert scores["random"].figures["precision_long_L"] == pytest.approx(np.mean(expected))


def test_replicates_are_means_over_drawn_proteins() -> None:
    proteins = [random_protein(seed, 30 if seed == 2 else 60, 30) for seed in range(6)]
    proteins[2] = Protein("none", proteins[2].letters, np.zeros((0, 2), np.int64), proteins[2].known)
    score = ContactsExam(proteins, resamples=200, seed=3).baselines()["separation"]
    values = np.array([v if v is not None else np.nan for v in score.details["proteins"].values()])
    assert np.isnan(values[2]) and len(values) == 6
    random = np.random.default_rng(3)
    expected = [np.nanmean(values[random.integers(6, size=6)]) for _ in range(200)]
    np.testing.assert_allclose(score.replicates, expected)
    assert score.figures["precision_long_L"] == pytest.approx(np.nanmean(values))
    json.dumps(score.details, allow_nan=False)


def subject_of(*roles: str) -> Subject:
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(width=16, depth=2, head_size=8))
    contact = ContactWeights(ContactWeightsConfig(4))
    torch.nn.init.ones_(contact.regression.weight)
    heads = {"vocabulary": VocabularyHead(VocabularyHeadConfig(16, 33)), "contact": contact}
    bundle = Bundle(PROTEIN, {"encoder": encoder, **{role: heads[role] for role in roles}})
    return Subject("tiny", "tiny", bundle, "0", torch.device("cpu"))


def test_a_model_is_read_in_every_way_it_can_be() -> None:
    proteins = [random_protein(seed) for seed in range(4)]
    exam = ContactsExam(proteins[:3], proteins[2:], resamples=20)
    assert [p.name for p in exam.train] == ["p3"]  # the other is examined
    said: list[str] = []
    scores = exam.model(subject_of("vocabulary", "contact"), said.append)
    assert set(scores) == {"attention head", "attention regression", "categorical Jacobian"}
    assert any("FLOPs" in text for text in said) and scores["categorical Jacobian"].details["flops"] > 0
    for score in scores.values():
        assert set(score.figures) == set(FIGURES) and score.replicates.shape == (20,) and not score.note
    only = exam.model(subject_of("contact"), said.append)
    assert (
        set(only) == {"attention head", "attention regression"} and "no head over tokens" in only["attention head"].note
    )
    with pytest.raises(UserError, match=r"no contact head.*no head over tokens"):
        ContactsExam(proteins).model(subject_of(), said.append)


def test_what_is_examined_and_what_is_left_out() -> None:
    proteins = [random_protein(0), random_protein(1, 80), random_protein(0)]
    exam = ContactsExam(proteins, config=ContactsConfig(longest=70))
    assert exam.test == [proteins[0].letters]
    assert exam.facts["left out"] == "1 longer than 70 residues, 1 repeated"
    with pytest.raises(UserError, match="none of 1 proteins"):
        ContactsExam(proteins[1:2], config=ContactsConfig(longest=70))


def test_exams_are_read_from_families_tables_and_structures(tmp_path: Path) -> None:
    config = ContactsConfig(metric="precision_all_C", families=5, members=8)
    exam = read_exam("example:families", config)
    assert len(exam.proteins) == 4 and len(exam.train) == 1 and "mutual information" in exam.baselines()
    rows = ["MKTAYIAKQRQISFVK,1-9,train", "GSHMKTAYIAKQRQIS,2-12,test", "MKTAYIWWWWQISFVK,3-10,test", "MKV,1-2,valid"]
    table = tmp_path / "x.csv"
    table.write_text("\n".join(["sequence,pairs,split", *rows]))
    config = ContactsConfig(metric="precision_all_L5", split_column="split")
    exam = read_exam(str(table), config)
    assert exam.test == [b"GSHMKTAYIAKQRQIS", b"MKTAYIWWWWQISFVK"] and len(exam.train) == 1
    exam = read_exam(str(table), ContactsConfig(metric="precision_all_L5", train=1, test=2))
    assert len(exam.proteins) <= 2 and len(exam.train) == 1
    with pytest.raises(UserError, match="train is 4"):
        read_exam(str(table), ContactsConfig(train=4))
    pytest.importorskip("gemmi")
    for name in "ab":
        lines = [
            f"ATOM  {n:5d}  CB  {'ALA' if n % 3 else 'TRP'} A{n:4d}    {3.8 * min(n, 20 - n):8.3f}{5.0 * (n > 10):8.3f}"
            f"{0:8.3f}  1.00  0.00           C"
            for n in range(1 if name == "a" else 2, 20)
        ]
        (tmp_path / f"{name}.pdb").write_text("\n".join(lines))
    exam = read_exam(str(tmp_path), ContactsConfig(metric="precision_all_L", train=0))
    assert [protein.name for protein in exam.proteins] == ["a_A", "b_A"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"metric": "precision"}, "precision_long_L5"),
        ({"methods": ["attention", "x"]}, "jacobian"),
        ({"methods": "jacobian"}, "list"),
        ({"chain": "first"}, "longest"),
        ({"train": -1}, "train"),
        ({"test": 0}, "test"),
        ({"longest": True}, "longest"),
        ({"distance": float("nan")}, "distance"),
    ],
)
def test_settings_are_checked(change: dict[str, object], word: str) -> None:
    with pytest.raises(UserError, match=word):
        ContactsConfig(**change)  # type: ignore[arg-type]
