"""Which sequences are held out, and how much of what is held out has relatives in training.

    digests ─▶ by_hash ─▶ held out or not                    (corpora; train and valid)
    labels ─▶ random_split ─▶ sides                          (labelled sequences; train, valid and test)
    sequences ─▶ relatives ─▶ family_split ─▶ leak? ─▶ sides (the same, with no relatives across sides)
                                   ▲            │
                                   └── joined ──┘

A corpus is split by a function of sequence digests, which does not depend on the order of files, so that one sequence
falls on the same side in every corpus. Labelled sequences are split by the labels and relatives they have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from biometro.data import mmseqs
from biometro.data.components import by_first_appearance, components
from biometro.data.likeness import Likeness
from biometro.data.neighbours import Thresholds
from biometro.errors import UserError

SIDES = ("train", "valid", "test")
MORE_IDENTITY = "ask for more identity between relatives, or a larger share"
_PASSES = 20  # over all families, at most
_ROUNDS = 3  # times that `homology_split` assigns anew; after that, what leaks goes to train for good


@dataclass(frozen=True)
class Leak:
    """How many held-out sequences have a relative in the reference set.

    Fields:
        share: `count` / `of`; 0 where nothing is held out.
        count: held-out sequences with a relative in the reference set.
        of: held-out sequences, N.
        similarity: (N,) float32, each one's to its nearest neighbour there; 0 where there is none.
        examples: the first three that count: (place held out, place in the reference, similarity).
        measure: what a similarity is: identity, edit similarity, Tanimoto similarity.
        relatives: from where on two sequences are relatives, in words.
        threshold: the similarity from which they are; None where it is no similarity that decides.
        related: (N,) bool, which ones count.
    """

    share: float
    count: int
    of: int
    similarity: np.ndarray
    examples: tuple[tuple[int, int, float], ...]
    measure: str
    relatives: str
    threshold: float | None
    related: np.ndarray


def by_hash(digests: np.ndarray, valid: float) -> np.ndarray:
    """(N, 16) uint8 digests -> (N,) bool, True where held out; a share `valid` of all sequences in expectation.

    Reads the last 8 bytes: the first order the corpus, and must stay independent of the split.
    """
    numbers = np.ascontiguousarray(digests[:, 8:]).view(">u8").reshape(-1)
    return numbers < np.uint64(min(int(valid * 2.0**64), 2**64 - 1))


def by_name(name: bytes, valid: float) -> bool:
    """Whether all that has this name (a group, a scaffold) is held out: a share `valid` of names in expectation."""
    digest = hashlib.blake2b(name, digest_size=16).digest()
    return bool(by_hash(np.frombuffer(digest, np.uint8)[None], valid)[0])


def given(name: str | None) -> bool | None:
    """What a table's split column says: True for `valid`, False for `train`; None where it is neither."""
    return {"train": False, "valid": True}.get(name or "")


def random_split(
    labels: np.ndarray | None, shares: tuple[float, float], seed: int, count: int | None = None
) -> np.ndarray:
    """Sides at random, with every class in proportion on each: (N,) int8, places in `SIDES`.

    Sizes are exact to rounding, by largest remainders. A class of at least three sequences has at least one on every
    side; one that is smaller may be missing anywhere. Identical sequences may part: `leak` tells how many do.

    Args:
        labels: (N,) integers, the class of each sequence; None for no classes, and then `count` says N.
        shares: of valid and of test; train has the rest, which may not be nothing.

    Raises UserError where shares are no shares.
    """
    _check_shares(shares)
    if labels is None:
        if count is None:
            raise TypeError("without labels, count says how many sequences there are")
        labels = np.zeros(count, np.int64)
    random = np.random.default_rng(seed)
    _, label, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    held = _class_sizes(sizes, shares, random)
    sides = np.zeros(len(label), np.int8)
    order = random.permutation(len(label))
    for k in range(len(sizes)):
        members = order[label[order] == k]
        sides[members[: held[k, 0]]] = 1
        sides[members[held[k, 0] : held[k].sum()]] = 2
    return sides


def family_split(
    families: np.ndarray, labels: np.ndarray | None, shares: tuple[float, float], seed: int, hint: str = MORE_IDENTITY
) -> np.ndarray:
    """Whole families to sides: (N,) int8, places in `SIDES`.

    A family larger than a side is meant to be is not put there, so the largest are trained on. The others go, large
    ones first, where they bring sizes and class proportions nearest to what is wanted (the chi-square distance of
    counts to wanted counts grows least), and are moved until no move of a family brings them nearer. Sides of few or
    large families can miss their size, and lack a class whose families are few.

    Args:
        families: (N,) integers, the family of each sequence.
        labels: (N,) integers, the class of each sequence, or None.
        shares: of valid and of test; train has the rest, which may not be nothing.
        hint: what to do where a side stays empty.

    Raises UserError where shares are no shares, or a side that should have sequences gets none.
    """
    _check_shares(shares)
    count = len(families)
    _, family, sizes = np.unique(families, return_inverse=True, return_counts=True)
    _, label = np.unique(np.zeros(count, np.int64) if labels is None else labels, return_inverse=True)
    random = np.random.default_rng(seed)
    share = np.array([1 - sum(shares), *shares])
    wanted = np.outer(share, np.append(np.bincount(label), count))  # (3, classes + 1); the last column is the size
    fits = (sizes[:, None] <= np.maximum(wanted[:, -1].round(), 1)) & (share > 0)
    fits[:, 0] = True
    price = 1 / np.where(wanted > 0, wanted, 1)
    # Families of one power of two stand in random order, so that the seed decides about large ones too.
    order = np.lexsort((random.permutation(len(sizes)), -np.floor(np.log2(sizes))))
    members = np.split(np.argsort(family, kind="stable"), np.cumsum(sizes)[:-1])
    held = np.zeros_like(wanted)
    side_of = np.full(len(sizes), -1, np.int8)
    for _ in range(_PASSES):
        before = side_of.copy()
        for number in order:
            classes, counts = np.unique(label[members[number]], return_counts=True)
            classes, counts = np.append(classes, wanted.shape[1] - 1), np.append(counts, sizes[number])
            if side_of[number] >= 0:  # taken out, and put where it is best now that the others are placed
                held[side_of[number], classes] -= counts
            growth = counts * (counts + 2 * (held[:, classes] - wanted[:, classes])) * price[:, classes]
            side_of[number] = np.where(fits[number], growth.sum(1), np.inf).argmin()
            held[side_of[number], classes] += counts
        if np.array_equal(before, side_of):
            break
    sides = side_of[family] if count else np.zeros(0, np.int8)
    for side in (1, 2):
        if share[side] > 0 and not held[side, -1]:
            raise UserError(
                f"no family can be held out for {SIDES[side]}: {count} sequences are {len(sizes)} families, "
                f"the largest of {sizes.max(initial=0)}; {hint}"
            )
    return sides


def homology_split(
    sequences: Sequence[bytes],
    labels: np.ndarray | None,
    *,
    identity: float,
    coverage: float,
    shares: tuple[float, float],
    seed: int,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Sides between which no two sequences are relatives, and the families that this takes.

    Families are `mmseqs.relatives`. What MMseqs2 finds depends a little on what it searches, so the sides are then
    searched against one another; families between which a hit of that identity and coverage turns up are joined, and
    all assigned again. After three rounds, joined families go to train instead, until no search finds anything.

    Returns: sides, (N,) int8, places in `SIDES`; families, (N,) int64, each whole on one side.

    Raises UserError as `mmseqs.relatives` and `family_split` do, and where nothing remains held out.
    """
    _check_shares(shares)
    families = mmseqs.relatives(sequences, identity, coverage, threads=threads)
    sides = family_split(families, labels, shares, seed)
    tried = 0
    while (links := _across(sequences, sides, identity, coverage, threads)).shape[1]:
        tried += 1
        joined = components(int(families.max()) + 1, families[links])
        families = by_first_appearance(joined[families])
        if tried <= _ROUNDS:
            sides = family_split(families, labels, shares, seed)
        else:
            sides[np.isin(families, families[links[0]])] = 0
        for side in (1, 2):
            if shares[side - 1] > 0 and not (sides == side).any():
                raise UserError(f"no family remains for {SIDES[side]} that has no relatives elsewhere; {MORE_IDENTITY}")
    return sides, families


def leak(likeness: Likeness, held_out: Sequence[bytes], reference: Sequence[bytes], thresholds: Thresholds) -> Leak:
    """How many held-out sequences have a relative in the reference set, of any kind of split.

    Raises UserError as the kind's `Likeness.nearest` does.
    """
    found = likeness.nearest(held_out, reference, thresholds)
    places = np.flatnonzero(found.related)
    examples = tuple((int(i), int(found.place[i]), float(found.similarity[i])) for i in places[:3])
    return Leak(
        len(places) / max(len(held_out), 1), len(places), len(held_out), found.similarity, examples, likeness.measure,
        likeness.relatives(thresholds), likeness.threshold(thresholds), found.related,
    )  # fmt: skip


def _across(
    sequences: Sequence[bytes], sides: np.ndarray, identity: float, coverage: float, threads: int | None
) -> np.ndarray:
    """(2, M) pairs of relatives on different sides, as searches of valid and test in train, and test in valid find."""
    pairs = []
    for held, reference in ((sides > 0, sides == 0), (sides == 2, sides == 1)):
        at, among = np.flatnonzero(held), np.flatnonzero(reference)
        hits = mmseqs.search(
            [sequences[i] for i in at.tolist()],
            [sequences[i] for i in among.tolist()],
            identity=identity,
            coverage=coverage,
            most=max(len(among), 1),
            threads=threads,
        )
        pairs.append(np.stack([at[hits.query], among[hits.target]]))
    return np.concatenate(pairs, axis=1)


def _class_sizes(sizes: np.ndarray, shares: tuple[float, float], random: np.random.Generator) -> np.ndarray:
    """(classes,) sizes -> (classes, 2), how many of each are valid and test; sums by largest remainder where possible.

    Classes of three or more give at least one to each side that has a share, and keep one in train.
    """
    share = np.array(shares)
    ideal = sizes[:, None] * share
    least = (sizes[:, None] >= 3) & (share > 0)
    held = np.maximum(np.floor(ideal + 1e-9).astype(np.int64), least)
    whole = sizes.sum() * share
    total = np.floor(whole + 1e-9).astype(np.int64)
    total[np.argsort(total - whole, kind="stable")[: round(float((whole - total).sum()))]] += 1
    # Equal remainders are common (many small classes), and the seed decides among them.
    jitter = random.uniform(0, 1e-6, ideal.shape)
    for side in (0, 1):
        while (missing := total[side] - held[:, side].sum()) != 0:
            surplus = held[:, side] - ideal[:, side] + jitter[:, side]
            if missing > 0:
                room = sizes - held.sum(1) - (sizes >= 3)
                open_to = room > 0
                surplus = -surplus - 10.0 * (room < 2) * (sizes < 3)  # a class with nothing in train comes last
            else:
                open_to = held[:, side] > least[:, side]
            if not open_to.any():
                break  # the least of every class is more than the share, and comes first
            held[np.where(open_to, surplus, -np.inf).argmax(), side] += np.sign(missing)
    return held


def _check_shares(shares: tuple[float, float]) -> None:
    if min(shares) < 0 or sum(shares) >= 1:
        raise UserError(
            f"shares of valid and test: {shares[0]} and {shares[1]} leave nothing for train; give less than 1"
        )
