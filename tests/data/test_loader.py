"""Batches: a pure function of (seed, n), every sequence once an epoch, no padding, no budget overrun."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biometro.alphabet import PROTEIN
from biometro.data.batch import Batch
from biometro.data.corpus import Split
from biometro.data.loader import Loader, PackingConfig
from biometro.errors import UserError

BEGIN, END, REVERSE = (PROTEIN.id(t) for t in (PROTEIN.begin, PROTEIN.end, PROTEIN.reverse))


def split_of(lengths: list[int], seed: int = 0) -> Split:
    """Sequences in which every residue's place can be told: 4 + (place in the whole corpus) modulo 20."""
    offsets = np.cumsum([0, *lengths])
    return Split((4 + np.arange(offsets[-1]) % 20).astype(np.uint8), offsets)


def pieces(batch: Batch) -> list[np.ndarray]:
    packed = batch.sequence
    return [t.numpy() for t in packed.tokens.split(packed.lengths.tolist())]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=80),
    st.integers(1, 40),
    st.integers(84, 400),
    st.integers(0, 5),
)
def test_an_epoch_holds_every_sequence_once(lengths: list[int], crop: int, budget: int, seed: int) -> None:
    split = split_of(lengths)
    loader = Loader(split, PROTEIN, PackingConfig(budget, crop), seed)
    for epoch in (0, 3):
        numbers = range(epoch * loader.batches_per_epoch, (epoch + 1) * loader.batches_per_epoch)
        seen = np.concatenate([loader.members(n) for n in numbers])
        assert sorted(seen) == list(range(len(lengths)))
        for n in numbers:
            batch = loader.batch(n)
            packed = batch.sequence
            assert 0 < packed.tokens.numel() <= budget
            assert packed.max_len >= int(packed.lengths.max())
            for piece, number in zip(pieces(batch), loader.members(n), strict=True):
                assert piece[0] == BEGIN and piece[-1] == END
                whole = split[number]
                inner = piece[1:-1]
                assert len(inner) == min(len(whole), crop)
                starts = range(len(whole) - len(inner) + 1)
                assert any(np.array_equal(whole[s : s + len(inner)], inner) for s in starts)
            expected = np.concatenate([np.arange(k) for k in packed.lengths.tolist()])
            assert np.array_equal(packed.positions.numpy(), expected)


def test_a_batch_depends_on_seed_and_number_alone() -> None:
    split = split_of([30, 50, 70] * 20)
    config = PackingConfig(300, 40, reverse=0.5)
    one, two = Loader(split, PROTEIN, config, 7), Loader(split, PROTEIN, config, 7)
    expected = [one.batch(n).sequence.tokens for n in range(20)]
    for n in (13, 2, 19, 2, 0):  # any order, another process's view
        assert two.batch(n).sequence.tokens.equal(expected[n])
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
        for piece, number in zip(pieces(loader.batch(n)), loader.members(n), strict=True):
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
        for piece, number in zip(pieces(loader.batch(n)), loader.members(n), strict=True):
            inner = piece[1:-1][::-1] if piece[0] == REVERSE else piece[1:-1]
            starts = [s for s in range(8) if np.array_equal(split[number][s : s + 12], inner)]
            assert len(starts) == 1
            if piece[0] == REVERSE:
                firsts.append(starts[0])
    assert set(firsts) == set(range(8))


def test_ranks_share_an_epoch_without_overlap() -> None:
    split = split_of([10] * 200)
    loader = Loader(split, PROTEIN, PackingConfig(100, 50), 0)
    ranks = [{int(m) for n in range(rank, loader.batches_per_epoch, 4) for m in loader.members(n)} for rank in range(4)]
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
