"""What is said of a model of pairs beside its controls."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from biometro.data.pairs import Pairs
from biometro.evaluation import pair_results


def pairs_of(count: int = 300, seed: int = 0) -> Pairs:
    random = np.random.default_rng(seed)
    a, b = random.integers(0, 12, count), random.integers(0, 30, count)
    value = random.normal(size=count).astype(np.float32)
    return Pairs(
        [b"M" * (i + 1) for i in range(12)], [b"C" * (i + 1) for i in range(30)], a, b, value,
        np.zeros(count, np.int8), (value > 0.5).astype(np.int8), "pKd", [""] * count, a, [f"t{i}" for i in range(12)],
        np.zeros(count, np.int64), (),
    )  # fmt: skip


def method(pairs: Pairs, scores: list[np.ndarray], control: bool) -> dict[str, Any]:
    test = np.arange(len(pairs))
    return {"control": control, "runs": [pair_results.judge(pairs, test, s, 0, scaled=True) for s in scores]}


def test_a_model_is_said_to_beat_its_best_control_or_not() -> None:
    random, pairs = np.random.default_rng(1), pairs_of()
    noise = [random.normal(size=len(pairs)) for _ in range(5)]
    good, fair, poor = pairs.value + 0.3 * noise[0], pairs.value + 1.2 * noise[1], noise[2]
    rivals = {"fair": method(pairs, [fair], True), "poor": method(pairs, [poor], True)}
    won = pair_results.verdicts({**rivals, "model": method(pairs, [good, pairs.value + 0.3 * noise[3]], False)})
    assert {one["figure"] for one in won} == {*pair_results.JUDGED}
    assert all(one["better"] and one["rival"] == "fair" and one["low"] > 0 for one in won)
    lost = pair_results.verdicts({"good": method(pairs, [good], True), "model": method(pairs, [fair], False)})
    assert all(one["worse"] and not one["better"] for one in lost)
    even = pair_results.verdicts({**rivals, "model": method(pairs, [fair], False)})
    assert not any(one["better"] or one["worse"] for one in even)
    assert all(one["difference"] == 0 for one in even)
    said = [pair_results.told(verdicts) for verdicts in (won, lost, even)]
    assert [[beats for _, beats in one] for one in said] == [[True], [False], [False]]
    assert "model is beaten by its best control in spearman (good, -" in said[1][0][0]
    assert "does not clearly beat" in said[2][0][0] and "model beats" in said[0][0][0]


def test_a_cosine_has_no_error_and_a_model_means_over_seeds() -> None:
    pairs = pairs_of()
    said = pair_results.judge(pairs, np.arange(len(pairs)), pairs.value, 0, scaled=False)
    assert "rmse" not in said["figures"] and said["figures"]["spearman"] == pytest.approx(1)
    found = pair_results.summarise([{"figures": {"x": 1.0, "y": None}}, {"figures": {"x": 3.0}}])
    assert found == {"x": (2.0, pytest.approx(math.sqrt(2)))}


def test_partners_are_found_in_a_pool_of_held_out_sequences() -> None:
    pairs = pairs_of(40)
    random = np.random.default_rng(0)
    a, b = (np.full((n, 8), np.nan, np.float32) for n in (12, 30))
    for at, vectors in ((pairs.a, a), (pairs.b, b)):
        for i in np.unique(at):
            vectors[i] = random.normal(size=8)
    values, about = pair_results.retrieval(pairs, pairs, a, b, 1000, 0)
    assert about["a_to_b"]["pool"] == len(np.unique(pairs.b)) and values["mrr"] == pytest.approx(
        (values["mrr_a_to_b"] + values["mrr_b_to_a"]) / 2
    )
    small, sizes = pair_results.retrieval(pairs, pairs, a, b, 5, 0)
    assert sizes["a_to_b"]["pool"] == 5 and pair_results.retrieval(pairs, pairs, a, b, 5, 0)[0] == small
    nothing = pair_results.retrieval(pairs.take(np.flatnonzero(pairs.label == 0)), pairs, a, b, 5, 0)
    assert nothing == ({}, {})


def test_all_of_a_class_are_partners_whichever_pairs_were_drawn() -> None:
    letters = [b"M" * (i + 1) for i in range(12)]
    classes = np.arange(12) % 3
    single = Pairs(
        letters, letters, np.arange(12), np.arange(12), np.full(12, np.nan, np.float32), np.zeros(12, np.int8),
        np.full(12, -1, np.int8), "", [""] * 12, np.zeros(12, np.int64), ["x"], np.zeros(12, np.int64), (), "protein",
        "protein", classes, ("p", "q", "r"),
    )  # fmt: skip
    drawn = single.of_classes(1)
    vectors = np.eye(3, dtype=np.float32)[classes]  # perfect: all of a class in one place
    values, about = pair_results.retrieval(drawn, drawn, vectors, vectors, 100, 0, classes)
    assert values["mrr"] == 1 and about["a_to_b"]["queries"] == 12
    assert pair_results.retrieval(drawn, drawn, vectors, vectors, 100, 0)[0]["mrr"] < 1


def test_probabilities_are_those_of_a_logistic_fit() -> None:
    random = np.random.default_rng(0)
    cosine = random.uniform(-1, 1, 4000)
    label = (random.random(4000) < 1 / (1 + np.exp(-(4 * cosine - 1)))).astype(np.int8)
    found = pair_results.probability(cosine, label)
    assert found is not None and found == (pytest.approx(4, abs=0.4), pytest.approx(-1, abs=0.2))
    assert pair_results.probability(cosine, np.ones(4000, np.int8)) is None
