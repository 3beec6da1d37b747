"""Batches: a pure function of (seed, n), every sequence once an epoch, no padding, no budget overrun."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biometro.alphabet import PROTEIN
from biometro.data.batch import Batch
from biometro.data.corpus import Shard, Split
from biometro.data.loader import Loader, PackingConfig
from biometro.errors import UserError

BEGIN, END, REVERSE = (PROTEIN.id(t) for t in (PROTEIN.begin, PROTEIN.end, PROTEIN.reverse))


def split_of(*shards: list[int]) -> Split:
    """Shards of sequences of these lengths. Every residue's place can be told: 4 + (place in its shard) modulo 20."""
    made = []
    for lengths in shards:
        offsets = np.cumsum([0, *lengths])
        made.append(Shard((4 + np.arange(offsets[-1]) % 20).astype(np.uint8), offsets))
    return Split.of(*made)


def members(loader: Loader, split: Split, number: int) -> list[int]:
    """Numbers in the whole split of a micro-batch's sequences."""
    before = np.cumsum([0, *(h[:, 1].sum() for h in split.histograms)])
    shard, chosen = loader.members(number)
    return [int(before[shard] + i) for i in chosen]


def pieces(batch: Batch) -> list[np.ndarray]:
    packed = batch.sequence
    return [t.numpy() for t in packed.tokens.split(packed.lengths.tolist())]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=50), min_size=1, max_size=5),
    st.integers(1, 40),
    st.integers(84, 400),
    st.integers(0, 5),
)
def test_an_epoch_holds_every_sequence_once(shards: list[list[int]], crop: int, budget: int, seed: int) -> None:
    split = split_of(*shards)
    loader = Loader(split, PROTEIN, PackingConfig(budget, crop), seed)
    assert loader.tokens_per_epoch == sum(min(n, crop) + 2 for lengths in shards for n in lengths)
    for epoch in (0, 3):
        numbers = range(epoch * loader.batches_per_epoch, (epoch + 1) * loader.batches_per_epoch)
        seen = [i for n in numbers for i in members(loader, split, n)]
        assert sorted(seen) == list(range(len(split))) == list(range(sum(map(len, shards))))
        order = [shard for shard, _ in groupby(loader.members(n)[0] for n in numbers)]
        assert sorted(order) == list(range(len(shards)))  # one shard after the other, none of them twice
        for n in numbers:
            batch = loader.batch(n)
            packed = batch.sequence
            assert 0 < packed.tokens.numel() <= budget
            assert packed.max_len >= int(packed.lengths.max())
            for piece, number in zip(pieces(batch), members(loader, split, n), strict=True):
                assert piece[0] == BEGIN and piece[-1] == END
                whole = split[number]
                inner = piece[1:-1]
                assert len(inner) == min(len(whole), crop)
                starts = range(len(whole) - len(inner) + 1)
                assert any(np.array_equal(whole[s : s + len(inner)], inner) for s in starts)
            expected = np.concatenate([np.arange(k) for k in packed.lengths.tolist()])
            assert np.array_equal(packed.positions.numpy(), expected)


@pytest.mark.parametrize("shards", [1, 4])
def test_a_batch_depends_on_seed_and_number_alone(shards: int) -> None:
    split = split_of(*[[30, 50, 70] * (20 // shards)] * shards)
    config = PackingConfig(300, 40, reverse=0.5)
    one, two = Loader(split, PROTEIN, config, 7), Loader(split, PROTEIN, config, 7)
    expected = [one.batch(n).sequence.tokens for n in range(60)]
    for n in (13, 2, 59, 2, 0, 31, 17, 45):  # any order, another process's view
        assert two.batch(n).sequence.tokens.equal(expected[n])
        assert Loader(split, PROTEIN, config, 7).batch(n).sequence.tokens.equal(expected[n])
    other = Loader(split, PROTEIN, config, 8)
    assert not other.batch(0).sequence.tokens.equal(expected[0])
    assert not one.batch(0).sequence.tokens.equal(one.batch(one.batches_per_epoch).sequence.tokens)


def test_crops_fall_everywhere_uniformly() -> None:
    split = split_of([19])
    loader = Loader(split, PROTEIN, PackingConfig(100, 10), 0)
    firsts = np.array([int(loader.batch(n).sequence.tokens[1]) - 4 for n in range(3000)])
    counts = np.bincount(firsts, minlength=10)
    assert len(counts) == 10 and counts.min() > 230 and counts.max() < 380


def test_reversed_sequences_are_marked_and_are_the_same_window_backwards() -> None:
    split = split_of([15] * 400)
    loader = Loader(split, PROTEIN, PackingConfig(200, 100, reverse=0.3), 0)
    backwards = total = 0
    for n in range(loader.batches_per_epoch):
        for piece, number in zip(pieces(loader.batch(n)), members(loader, split, n), strict=True):
            total += 1
            whole = split[number]
            if piece[0] == REVERSE:
                backwards += 1
                assert np.array_equal(piece[1:-1], whole[::-1])
            else:
                assert piece[0] == BEGIN
                assert np.array_equal(piece[1:-1], whole)
    assert total == 400 and 80 < backwards < 160


def test_reversed_windows_of_long_sequences_are_windows_too() -> None:
    split = split_of([19] * 300)
    loader = Loader(split, PROTEIN, PackingConfig(200, 12, reverse=0.5), 0)
    firsts = []
    for n in range(loader.batches_per_epoch):
        for piece, number in zip(pieces(loader.batch(n)), members(loader, split, n), strict=True):
            inner = piece[1:-1][::-1] if piece[0] == REVERSE else piece[1:-1]
            starts = [s for s in range(8) if np.array_equal(split[number][s : s + 12], inner)]
            assert len(starts) == 1
            if piece[0] == REVERSE:
                firsts.append(starts[0])
    assert set(firsts) == set(range(8))


def test_ranks_share_an_epoch_without_overlap() -> None:
    split = split_of([10] * 120, [10] * 80)
    loader = Loader(split, PROTEIN, PackingConfig(100, 50), 0)
    ranks = [
        {m for n in range(rank, loader.batches_per_epoch, 4) for m in members(loader, split, n)} for rank in range(4)
    ]
    assert sum(map(len, ranks)) == 200 and len(set.union(*ranks)) == 200


def test_equal_lengths_stand_side_by_side() -> None:
    loader = Loader(split_of([10, 20, 30] * 30), PROTEIN, PackingConfig(600, 50), 0)
    lengths = loader.batch(0).sequence.lengths.tolist()
    assert lengths == sorted(lengths)


def test_too_small_a_budget_is_refused_with_the_number_to_give() -> None:
    with pytest.raises(UserError, match="at least 104"):
        Loader(split_of([200] * 10), PROTEIN, PackingConfig(100, 50), 0)
    with pytest.raises(UserError, match="no sequence"):
        Loader(split_of([]), PROTEIN, PackingConfig(), 0)


def test_at_most_two_shards_are_held_and_the_next_is_announced() -> None:
    whole = split_of(*[[10] * 50] * 6)
    calls: list[tuple[str, int]] = []

    def opened(number: int) -> Shard:
        calls.append(("open", number))
        return whole.shard(number)

    split = Split(whole.histograms, opened, lambda number: calls.append(("prefetch", number)))
    loader = Loader(split, PROTEIN, PackingConfig(100, 50), 0)
    held = []
    for n in range(2 * loader.batches_per_epoch):
        loader.batch(n)
        loader.batch(max(n - 3, 0))  # another micro-batch of the same step, perhaps still of the shard before
        held.append(len(loader._plans))
    assert max(held) == 2
    names, numbers = [name for name, _ in calls], [number for _, number in calls]
    assert names == ["open", "prefetch"] * 12  # each shard once an epoch
    assert numbers[1:-1:2] == numbers[2::2]  # what was announced is what came next
    assert sorted(numbers[:12:2]) == sorted(numbers[12::2]) == list(range(6)) and numbers[:12] != numbers[12:]


def test_shards_and_their_sequences_are_shuffled_anew_every_epoch() -> None:
    split = split_of(*[[10] * 40] * 8)
    loader = Loader(split, PROTEIN, PackingConfig(10_000, 50), 0)
    assert loader.batches_per_epoch == 8  # a shard smaller than the budget is one batch
    firsts = {tuple(loader.members(8 * epoch + k)[0] for k in range(8)) for epoch in range(20)}
    assert len(firsts) == 20
    lead = np.bincount([loader.members(8 * epoch)[0] for epoch in range(400)], minlength=8)
    assert lead.min() > 25 and lead.max() < 80


def test_a_split_is_the_sequence_of_its_shards() -> None:
    split = split_of([3, 4], [5], [1, 1, 9])
    assert len(split) == 6 and split.lengths.tolist() == [3, 4, 5, 1, 1, 9]
    assert [len(split[i]) for i in (5, 0, 2, 1, 4, 3)] == [9, 3, 5, 4, 1, 1]
    assert [split[i].tolist() for i in (1, 2)] == [[7, 8, 9, 10], [4, 5, 6, 7, 8]]
    for number in (6, -1):
        with pytest.raises(IndexError):
            split[number]


def test_lengths_that_are_not_those_that_were_promised_are_noticed() -> None:
    honest = split_of([10] * 20)
    other = split_of([11] * 20)
    with pytest.raises(UserError, match=r"shard: damaged corpus .*lengths"):
        Loader(Split(honest.histograms, other.shard), PROTEIN, PackingConfig(100, 50), 0).batch(0)
