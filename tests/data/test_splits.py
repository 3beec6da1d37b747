"""Sides have the sizes, classes and families they should, and no relatives across them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mmseqs import aligned, mutated, random_sequence

from biometro.data import mmseqs, splits
from biometro.data.likeness import likeness_of
from biometro.data.sides import SplitConfig
from biometro.errors import UserError

SHARES = (0.1, 0.2)


def sizes_of(sides: np.ndarray) -> list[int]:
    return np.bincount(sides, minlength=3).tolist()


def test_random_split_without_labels() -> None:
    sides = splits.random_split(None, SHARES, 0, count=1003)
    assert sides.dtype == np.int8 and sizes_of(sides) == [702, 100, 201]
    assert np.array_equal(sides, splits.random_split(None, SHARES, 0, count=1003))
    assert not np.array_equal(sides, splits.random_split(None, SHARES, 1, count=1003))
    chosen = np.mean([splits.random_split(None, SHARES, seed, count=20) == 2 for seed in range(2000)], axis=0)
    assert np.abs(chosen - 0.2).max() < 0.05  # nobody is more likely to be held out than others


@settings(max_examples=100)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=30),
    st.tuples(st.floats(0, 0.45), st.floats(0, 0.45)),
    st.integers(0, 5),
)
def test_random_split_is_stratified(counts: list[int], shares: tuple[float, float], seed: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)) * 7 - 3, counts))
    sides = splits.random_split(labels, shares, seed)
    table = np.array([np.bincount(sides[labels == label], minlength=3) for label in np.unique(labels)])
    positive = [True, shares[0] > 0, shares[1] > 0]
    for row, size in zip(table, counts, strict=True):
        assert row.sum() == size
        if size >= 3:
            assert (row[positive] >= 1).all()
    assert not table[:, [not p for p in positive]].any()
    ideal = np.outer(counts, shares)
    # Sizes are right to rounding, unless the least that classes must have is more than that.
    least = np.maximum(np.floor(ideal + 1e-9), (np.array(counts)[:, None] >= 3) * np.array(positive[1:])).sum(0)
    totals = np.array(shares) * sum(counts)
    held = table[:, 1:].sum(0)
    assert (held <= np.maximum(least, np.ceil(totals + 1e-6))).all()
    every = np.outer(counts, [1 - sum(shares), *shares])
    if (every[np.array(counts) >= 3] >= 1).all():  # nothing is forced, on train neither
        assert (np.abs(held - totals) < 1 + 1e-6).all() or min(counts) < 3
        assert (np.abs(table[:, 1:] - ideal) < 2).all() or min(counts) < 3


def clustered(seed: int, largest: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Families of up to `largest`, each mostly of one class of five."""
    random = np.random.default_rng(seed)
    sizes = np.minimum(random.zipf(1.7, 400), largest)
    families = np.repeat(random.permutation(400) * 3, sizes)
    classes = np.repeat(random.choice(5, 400, p=[0.5, 0.2, 0.15, 0.1, 0.05]), sizes)
    order = random.permutation(len(families))
    return families[order], np.where(random.random(len(classes)) < 0.9, classes, 0)[order]


@pytest.mark.parametrize("seed", range(5))
def test_family_split_keeps_families_sizes_and_classes(seed: int) -> None:
    families, labels = clustered(seed)
    sides = splits.family_split(families, labels, SHARES, seed)
    for family in np.unique(families):
        assert len(set(sides[families == family].tolist())) == 1
    share = np.bincount(sides, minlength=3) / len(sides)
    assert np.abs(share - [0.7, 0.1, 0.2]).max() < 0.01
    for side in range(3):
        for label in range(5):
            assert abs((labels[sides == side] == label).mean() - (labels == label).mean()) < 0.03
    assert np.array_equal(sides, splits.family_split(families, labels, SHARES, seed))
    other = splits.family_split(families, labels, SHARES, seed + 100)
    large = np.isin(families, np.flatnonzero(np.bincount(families) > 8))
    assert not np.array_equal(sides[large], other[large])


def test_family_split_without_labels_and_with_one_share() -> None:
    families, _ = clustered(7)
    sides = splits.family_split(families, None, (0.0, 0.2), 0)
    assert set(sides.tolist()) == {0, 2} and abs((sides == 2).mean() - 0.2) < 0.01


def test_large_families_are_trained_on() -> None:
    families = np.concatenate([np.zeros(60, int), np.full(15, 1), np.arange(2, 27)])
    sides = splits.family_split(families, None, (0.1, 0.1), 0)
    assert not sides[:75].any() and sizes_of(sides) == [80, 10, 10]


def test_one_family_cannot_be_held_out() -> None:
    with pytest.raises(
        UserError, match=r"no family can be held out for valid: 50 .* largest of 50; ask for more identity"
    ):
        splits.family_split(np.zeros(50, int), None, SHARES, 0)
    with pytest.raises(UserError, match="2 families, the largest of 70"):  # the other is too large for a fifth as well
        splits.family_split(np.repeat([0, 1], [70, 30]), None, (0.0, 0.2), 0)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.2), (0.2, 0.9)])
def test_shares_must_leave_train_something(shares: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="leave nothing for train"):
        splits.random_split(None, shares, 0, count=10)


@pytest.fixture(scope="module")
def labelled() -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Families of members at 60 % to their ancestor, with copies; and what family and class each is of."""
    random = np.random.default_rng(0)
    sequences: list[bytes] = []
    for family in range(40):
        ancestor = random_sequence(random, 100)
        members = [mutated(random, ancestor, 0.6) for _ in range(1 + family % 5)]
        sequences += [ancestor, *members, members[0]]
    family = np.repeat(np.arange(40), [3 + f % 5 for f in range(40)])
    return sequences, family, family % 3


def brute(held: list[bytes], reference: list[bytes]) -> np.ndarray:
    """(N,) nearest identity at 80 % coverage, of all pairs."""
    nearest = np.zeros(len(held))
    for i, query in enumerate(held):
        for target in reference:
            identity, coverage, _ = aligned(query, target)
            if coverage >= 0.8:
                nearest[i] = max(nearest[i], identity)
    return nearest


def leak(held_out: list[bytes], reference: list[bytes], identity: float, coverage: float) -> splits.Leak:
    likeness = likeness_of("protein")
    assert likeness is not None
    return splits.leak(likeness, held_out, reference, SplitConfig(identity=identity, coverage=coverage))


@pytest.mark.long
def test_homology_split_leaves_no_relatives_across(labelled: tuple[list[bytes], np.ndarray, np.ndarray]) -> None:
    sequences, _, labels = labelled
    sides, families = splits.homology_split(sequences, labels, identity=0.4, coverage=0.8, shares=(0.15, 0.15), seed=0)
    assert np.abs(np.bincount(sides) / len(sides) - [0.7, 0.15, 0.15]).max() < 0.03
    assert all(len(set(sides[families == family])) == 1 for family in families)
    parts = [[s for s, side in zip(sequences, sides, strict=True) if side == k] for k in range(3)]
    assert leak(parts[1] + parts[2], parts[0], 0.4, 0.8).count == 0
    for held, reference in ((1, 0), (2, 0), (2, 1)):
        assert brute(parts[held][::3], parts[reference]).max() < 0.4


@pytest.mark.long
def test_leak_of_a_random_split_is_what_all_pairs_say(labelled: tuple[list[bytes], np.ndarray, np.ndarray]) -> None:
    sequences, _, labels = labelled
    sides = splits.random_split(labels, SHARES, 0)
    train = [s for s, side in zip(sequences, sides, strict=True) if side == 0]
    test = [s for s, side in zip(sequences, sides, strict=True) if side == 2]
    found = leak(test, train, 0.4, 0.8)
    nearest = brute(test, train)
    assert found.of == len(test) and found.share == found.count / len(test) > 0.8
    assert np.abs((found.similarity - nearest)[nearest > 0.4]).max() < 0.05
    assert abs(found.count - (nearest >= 0.4).sum()) <= 1
    assert np.array_equal(found.similarity == 1, [s in train for s in test])
    for i, j, identity in found.examples:
        assert abs(aligned(test[i], train[j])[0] - identity) < 0.05 and found.similarity[i] == np.float32(identity)
    assert len(found.examples) == 3


def test_identical_sequences_leak_whatever_they_are() -> None:
    found = leak([b"MKV", b"Q" * 60, b"MKVV", b"mkv"], [b"WW", b"Q" * 60, b"MKV", b"MKV"], 1.0, 1.0)
    assert found.similarity.tolist() == [1, 1, 0, 1] and (found.count, found.of, found.share) == (3, 4, 0.75)
    assert found.examples == ((0, 2, 1.0), (1, 1, 1.0), (3, 2, 1.0))
    nothing = leak([], [b"MKV"], 0.4, 0.8)
    assert (nothing.count, nothing.of, nothing.share, nothing.examples) == (0, 0, 0.0, ())
    assert leak([b"MKV"], [], 0.4, 0.8).similarity.tolist() == [0]


@pytest.mark.parametrize("rounds", [3, 0])
def test_links_that_a_later_search_finds_join_families(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`relatives` overlooks some; the searches across sides mend the split, by assigning anew or by moving to train."""
    true, labels = clustered(3, largest=10)
    first = np.unique(true, return_index=True)[1][:40]
    seen = true.copy()
    seen[first] = 10_000 + np.arange(40)  # parted from their families
    places = {b"%d" % i: i for i in range(len(true))}
    sequences = list(places)

    def search(queries: list[bytes], targets: list[bytes], **_: object) -> mmseqs.Hits:
        left, right = (np.array([true[places[name]] for name in names]) for names in (queries, targets))
        query, target = np.nonzero(left[:, None] == right)
        return mmseqs.Hits(query, target, *[np.ones(len(query), np.float32)] * 3)

    monkeypatch.setattr(mmseqs, "relatives", lambda *_, **__: mmseqs.by_first_appearance(seen))
    monkeypatch.setattr(mmseqs, "search", search)
    monkeypatch.setattr(splits, "_ROUNDS", rounds)
    sides, families = splits.homology_split(sequences, labels, identity=0.4, coverage=0.8, shares=SHARES, seed=0)
    assert all(len(set(sides[true == family])) == 1 for family in np.unique(true))
    assert all(len(set(sides[families == family])) == 1 for family in np.unique(families))
    assert len(np.unique(families)) < len(np.unique(seen))
    assert np.abs(np.bincount(sides) / len(sides) - [0.7, 0.1, 0.2]).max() < (0.01 if rounds else 0.1)
    seen[:] = np.arange(len(seen))  # relatives everywhere, and no family that could stay
    if not rounds:
        true[:] = 0
        with pytest.raises(UserError, match="no family remains"):
            splits.homology_split(sequences, labels, identity=0.4, coverage=0.8, shares=SHARES, seed=0)
