"""Micro-batches of pairs: each sequence once, the targets of each pair, hard negatives, shares of data sets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from biometro.data.pair_examples import PairExamples, Side, sampler
from biometro.data.pairs import Pairs

A, B = 7, 9


def pairs_of(count: int, seed: int = 0) -> Pairs:
    random = np.random.default_rng(seed)
    return Pairs(
        [b"M" * (i + 2) for i in range(A)], [b"C" * (i + 1) for i in range(B)], random.integers(0, A, count),
        random.integers(0, B, count), random.normal(size=count).astype(np.float32),
        random.integers(-1, 2, count).astype(np.int8), random.integers(-1, 2, count).astype(np.int8), "pKd",
        [""] * count, np.zeros(count, np.int64), ["x"], (np.arange(count) % 3).astype(np.int64), (),
    )  # fmt: skip


def sides(vectors: bool) -> dict[str, Side]:
    random = np.random.default_rng(1)
    if vectors:
        return {"protein": Side(features=random.normal(size=(A, 4)).astype(np.float32)),
                "ligand": Side(features=random.normal(size=(B, 3)).astype(np.float32))}  # fmt: skip
    return {"protein": Side([np.full(A - i, 5 + i, np.uint8) for i in range(A)], (0,), (2,)),
            "ligand": Side([np.full(i % 3 + 1, 5 + i, np.uint8) for i in range(B)], (1,), ())}  # fmt: skip


@pytest.mark.parametrize("vectors", [False, True])
def test_a_batch_holds_each_sequence_once_and_what_each_pair_says(vectors: bool) -> None:
    pairs = pairs_of(40)
    examples = PairExamples(pairs, sides(vectors), pairs.value)
    members = np.array([3, 30, 7, 8, 21])
    batch = examples.batch(members)
    t = batch.targets
    assert t["a"][t["left"]].tolist() == pairs.a[members].tolist()
    assert t["b"][t["right"]].tolist() == pairs.b[members].tolist()
    assert len(t["a"].unique()) == len(t["a"]) == len(batch.views["protein"])
    assert (
        t["value"].tolist() == pairs.value[members].tolist() and t["bound"].tolist() == pairs.censored[members].tolist()
    )
    assert t["binds"].tolist() == (pairs.label[members] != 0).tolist()
    for name, key in (("protein", "a"), ("ligand", "b")):
        side = examples.sides[name]
        if vectors:
            assert side.features is not None
            assert torch.equal(t[f"{name}_features"], torch.from_numpy(side.features[t[key].numpy()]))
            continue
        assert side.tokens is not None
        view = batch.views[name]
        for start, stop, number in zip(view.cu_seqlens[:-1], view.cu_seqlens[1:], t[key], strict=True):
            expected = [*side.begin, *side.tokens[int(number)].tolist(), *side.end]
            assert view.tokens[start:stop].tolist() == expected
        assert view.lengths.tolist() == sorted(view.lengths.tolist())


def test_hard_negatives_are_of_the_same_sequence_and_depend_on_the_number_alone() -> None:
    pairs = pairs_of(200)
    examples = PairExamples(pairs, sides(True), pairs.value, negatives=2, seed=5)
    members = np.flatnonzero(pairs.label == 1)[:4]
    one, again, other = (examples.batch(members, n) for n in (3, 3, 4))
    assert torch.equal(one.targets["left"], again.targets["left"]) and torch.equal(one.targets["b"], again.targets["b"])
    assert not np.array_equal(one.targets["value"].numpy(), other.targets["value"].numpy())
    t = one.targets
    refused = ~t["binds"].numpy()
    anchors = {*pairs.a[members].tolist()}
    assert {*t["a"][t["left"]].numpy()[refused].tolist()} == anchors
    assert refused.sum() == len(
        {*zip(*(x.tolist() for x in (t["left"][refused], t["right"][refused], t["value"][refused])), strict=True)}
    )
    assert len(anchors) <= refused.sum() <= 2 * len(members)


def test_data_sets_have_the_shares_that_were_asked_for() -> None:
    pairs = replace(pairs_of(300), source=np.repeat([0, 1, 2], [240, 50, 10]).astype(np.int64))
    drawn = np.arange(300)
    plain = sampler(pairs, drawn, 30, 0)
    assert sorted(np.concatenate([plain.members(n) for n in range(plain.batches_per_epoch)]).tolist()) == [*range(300)]
    mixed = sampler(pairs, drawn, 30, 0, [1.0, 1.0, 2.0])
    found = np.concatenate([pairs.source[drawn[mixed.members(n)]] for n in range(100)])
    assert np.allclose(np.bincount(found) / len(found), [0.25, 0.25, 0.5], atol=0.03)
