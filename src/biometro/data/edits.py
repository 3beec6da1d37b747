"""T-cell receptors as they are compared: chain by chain, by edit distance.

    letters ─▶ alpha, beta, peptide ─┬─▶ receptors ─▶ masks and deletions of each ─▶ components ─▶ families
                                     ├─▶ receptors ─▶ distances, block by block ─▶ nearest
                                     └─▶ receptors and peptides ─▶ distances ─▶ best hits

The distance of two receptors is the sum of Levenshtein distances over the chains that both have, alpha against alpha
and beta against beta: TCRdist (Dash et al. 2017, doi:10.1038/nature22383) with edits in place of substitution scores,
on CDR3s. A chain whose kind is not said (no `|`) is taken for a beta chain, as most lists of CDR3s are. A chain that
one of the two lacks says nothing, so that a beta chain alone is a relative of every pair with one like it; receptors
without a chain in common are no relatives. Similarity is 1 - distance / the longer letters of what was compared.

Relatives are receptors: peptide and MHC play no part, since one receptor is written down with many peptides, and a
model that has seen it has seen it. Where neighbours answer for a sequence (`search`) peptides count like chains, since
whether a receptor binds depends on them; MHC does not, as a pseudosequence differs little between alleles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from biometro.alphabet import immune
from biometro.data.components import by_first_appearance, components
from biometro.data.neighbours import Hits, Nearest, best_hits

MOST_EDITS = 2
"""Up to which distance families are found."""
_BLOCK = 1 << 21  # pairs compared at once, so that they stay near the processor
_PENDING = 1 << 23  # links kept before components are told anew
_CHAIN = immune.CHAIN.encode()
_Text = TypeVar("_Text")


def parts(letters: bytes) -> tuple[str, str, str]:
    """Alpha chain, beta chain and peptide of a T-cell receptor; empty where there is none."""
    found = immune.split(letters)
    first, second, peptide = (found.get(name, b"").decode("latin-1") for name in ("first", "second", "peptide"))
    return (first, second, peptide) if _CHAIN in letters else ("", first, peptide)


# Distances -------------------------------------------------------------------------------------------------------


def nearest(queries: Sequence[bytes], references: Sequence[bytes], edits: int) -> Nearest:
    """Of each query the receptor of fewest edits, of several the most similar one; related: within `edits`."""
    asked, number_q = _distinct([parts(row)[:2] for row in queries])
    among, number_r = _distinct([parts(row)[:2] for row in references])
    if not asked or not among:
        return Nearest.none(len(queries))
    found = Nearest.none(len(asked))
    for rows, distance_QR, longest_QR in _distances(asked, among):
        # of equal distances, that over more letters is the more similar one
        key_QR = distance_QR.astype(np.int32) * (2 * int(longest_QR.max()) + 1) - longest_QR
        key_QR[longest_QR == 0] = np.iinfo(np.int32).max
        place = key_QR.argmin(1)
        distance, longest = (table[np.arange(len(place)), place] for table in (distance_QR, longest_QR))
        found.place[rows] = place
        found.similarity[rows] = np.where(longest > 0, 1 - distance / np.maximum(longest, 1), 0)
        found.related[rows] = (longest > 0) & (distance <= edits)
    first = np.unique(number_r, return_index=True)[1]
    return Nearest(found.similarity, first[found.place], found.related).take(number_q)


def search(queries: Sequence[bytes], targets: Sequence[bytes], *, most: int = 1, alignments: bool = False) -> Hits:
    """The `most` most similar targets of each query, peptides included.

    Args:
        queries, targets: letters of T-cell receptors.
        most: hits of each query.
        alignments: whether starts and cigars are wanted: of whole letters, by fewest edits.
    """
    asked, among = [parts(row) for row in queries], [parts(row) for row in targets]
    query, target, similarity = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for rows, distance_QT, longest_QT in _distances(asked, among) if asked and among else ():
        similarity_QT = 1 - distance_QT / np.maximum(longest_QT, 1, dtype=np.float32)
        similarity_QT[longest_QT == 0] = 0
        here, there = best_hits(similarity_QT, most)
        query.append(here + rows.start)
        target.append(there)
        similarity.append(similarity_QT[here, there])
    hits = Hits(np.concatenate(query), np.concatenate(target), np.concatenate(similarity))
    if not alignments:
        return hits
    start = np.zeros(len(hits.query), np.int64)
    cigar = [_cigar(queries[i], targets[j]) for i, j in zip(hits.query.tolist(), hits.target.tolist(), strict=True)]
    return Hits(hits.query, hits.target, hits.similarity, start, start, cigar)


def _distances(
    queries: Sequence[tuple[str, ...]], references: Sequence[tuple[str, ...]]
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Blocks of queries: which, their distances to all references (Q, R), and the longer letters compared (Q, R)."""
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    step = max(1, _BLOCK // len(references))
    columns = [_distinct(column) for column in zip(*references, strict=True)]
    for start in range(0, len(queries), step):
        block = queries[start : start + step]
        distance_QR = np.zeros((len(block), len(references)), np.int16)
        longest_QR = np.zeros_like(distance_QR)
        for own, (texts, number) in zip(zip(*block, strict=True), columns, strict=True):
            asked, number_q = _distinct(own)
            if asked == [""] or texts == [""]:
                continue
            found = cdist(asked, texts, scorer=Levenshtein.distance, dtype=np.int16, workers=-1)
            long_q, long_r = (np.array([len(text) for text in side], np.int16) for side in (asked, texts))
            longest = np.maximum(long_q[:, None], long_r)
            for table in (found, longest):
                table[long_q == 0], table[:, long_r == 0] = 0, 0
            if len(asked) < len(block):
                found, longest = found[number_q], longest[number_q]
            if len(texts) < len(references):
                found, longest = found[:, number], longest[:, number]
            distance_QR += found
            longest_QR += longest
        yield slice(start, start + len(block)), distance_QR, longest_QR


def _cigar(query: bytes, target: bytes) -> str:
    from rapidfuzz.distance import Levenshtein

    moves = {"equal": "M", "replace": "M", "delete": "I", "insert": "D"}  # what makes a target of the query
    runs: list[tuple[str, int]] = []
    for step in Levenshtein.opcodes(query, target):
        letter, length = moves[step.tag], max(step.src_end - step.src_start, step.dest_end - step.dest_start)
        if runs and runs[-1][0] == letter:
            length += runs.pop()[1]
        runs.append((letter, length))
    return "".join(f"{length}{letter}" for letter, length in runs)


def _distinct(texts: Sequence[_Text]) -> tuple[list[_Text], np.ndarray]:
    """What is distinct, by first appearance, and the place of each among it."""
    places: dict[_Text, int] = {}
    number = np.array([places.setdefault(text, len(places)) for text in texts], np.int64)
    return list(places), number


# Families --------------------------------------------------------------------------------------------------------


def families(letters: Sequence[bytes], edits: int) -> np.ndarray:
    """(N,) int64, numbered by first appearance: connected components of receptors within `edits` of one another.

    Two texts are within one edit when they agree after one letter of each is masked, or one deleted in the longer; two
    edits take two such steps. So relatives meet in a table of masked and shortened texts, and no pairs are compared:
    time grows with the number of receptors (and, for two edits, with the square of their length). The table holds
    64-bit hashes: two that were equal by chance would join two families, and can never part relatives.

    Args:
        letters: of T-cell receptors.
        edits: 0, 1 or 2.
    """
    if not 0 <= edits <= MOST_EDITS:
        raise ValueError(f"families are found within 0 to {MOST_EDITS} edits, not {edits}")
    receptors, number = _distinct([parts(row)[:2] for row in letters])
    links = _Links(len(receptors))
    paired = [place for place, (alpha, beta) in enumerate(receptors) if alpha and beta]
    texts = [f"{receptors[place][0]}|{receptors[place][1]}" for place in paired]
    _link(texts, np.array(paired, np.int64), np.ones(len(paired), bool), edits, links.add)
    for chain in (0, 1):
        having = [place for place, receptor in enumerate(receptors) if receptor[chain]]
        # pairs that have the other chain too are compared above; here one of two must have this one alone
        alone = np.array([not receptors[place][1 - chain] for place in having], bool)
        if alone.any():
            _link([receptors[place][chain] for place in having], np.array(having, np.int64), alone, edits, links.add)
    return by_first_appearance(links.component()[number])


class _Links:
    """Pairs of things, and the components that they make; pairs within a component are forgotten as they come."""

    def __init__(self, count: int):
        self._label = np.arange(count)
        self._pending: list[np.ndarray] = []
        self._waiting = 0

    def add(self, left: np.ndarray, right: np.ndarray) -> None:
        pair = np.stack([self._label[left], self._label[right]])
        pair = pair[:, pair[0] != pair[1]]
        self._pending.append(pair)
        self._waiting += pair.shape[1]
        if self._waiting > _PENDING:
            self.component()

    def component(self) -> np.ndarray:
        """(count,) int64."""
        if self._waiting:
            self._label = components(len(self._label), np.concatenate(self._pending, axis=1))[self._label]
        self._pending, self._waiting = [], 0
        return self._label


def _link(
    texts: list[str], place: np.ndarray, hub: np.ndarray, edits: int, add: Callable[[np.ndarray, np.ndarray], None]
) -> None:
    """Links that connect all texts within `edits` of one another, of which at least one is a hub.

    Args:
        texts: of the things; a mark `|` in them is neither masked nor deleted, so that edits stay within chains.
        place: (N,) numbers of the things, which are linked.
        hub: (N,) bool.
        edits: 0, 1 or 2.
        add: takes the pairs.
    """
    lengths = np.array([len(text) for text in texts], np.int64)
    groups: dict[int, _Texts] = {}
    random = np.random.default_rng(0)
    table = random.integers(1 << 63, size=(int(lengths.max(initial=0)) + 1, 256), dtype=np.uint64)
    for length in np.unique(lengths).tolist():
        own = np.flatnonzero(lengths == length)
        groups[length] = _Texts([texts[i] for i in own.tolist()], place[own], hub[own], table)
    for length, group in groups.items():
        _among([group.whole()], add)
        if edits >= 1:
            for p in range(length):
                _among([group.masked(p)], add)
        if edits >= 2:
            for p in range(length):
                _among([group.masked(p, q) for q in range(p + 1, length)], add)
            _among([group.deleted(p) for p in range(length)], add)
        for longer in (length + 1, length + 2):
            if longer not in groups or longer - length > edits:
                continue
            other = groups[longer]
            if longer == length + 2:
                _between(
                    [other.deleted(p, q) for p in range(longer) for q in range(p + 1, longer)], [group.whole()], add
                )
                continue
            _between([other.deleted(p) for p in range(longer)], [group.whole()], add)
            for q in range(length if edits >= 2 else 0):
                _between([other.deleted(p, masked=q) for p in range(longer)], [group.masked(q)], add)


_Keys = tuple[np.ndarray, np.ndarray, np.ndarray]  # (M,) uint64 hashes of texts, the places of their things, hubs


class _Texts:
    """Texts of one length L, and hashes of what is left of them: sums of a random number for each letter and place."""

    def __init__(self, texts: list[str], place: np.ndarray, hub: np.ndarray, table: np.ndarray):
        self._letter_NL = np.frombuffer("".join(texts).encode("latin-1"), np.uint8).reshape(len(texts), -1)
        self._mark_NL = self._letter_NL == ord("|")
        self._place, self._hub, self._table = place, hub, table
        self.length = self._letter_NL.shape[1]
        # sums over the first letters, which stand where they stood, and one or two places further to the front
        self._sum = [self._sums(shift) for shift in range(min(3, self.length + 1))]

    def _sums(self, shift: int) -> np.ndarray:
        sum_NL = np.zeros((len(self._letter_NL), self.length + 1), np.uint64)
        for p in range(shift, self.length):
            sum_NL[:, p + 1] = sum_NL[:, p] + self._table[p - shift, self._letter_NL[:, p]]
        return sum_NL

    def _keys(self, key_N: np.ndarray, kept_N: np.ndarray) -> _Keys:
        return key_N[kept_N], self._place[kept_N], self._hub[kept_N]

    def whole(self) -> _Keys:
        return self._keys(self._sum[0][:, -1], np.ones(len(self._place), bool))

    def _mask(self, p: int, at: int) -> np.ndarray:
        """What masking letter p, which stands at place `at`, adds to a hash."""
        mask_N: np.ndarray = self._table[at, 0] - self._table[at, self._letter_NL[:, p]]
        return mask_N

    def masked(self, p: int, q: int | None = None) -> _Keys:
        """Of texts whose letters p and q are masked, without those that have a mark there."""
        key_N, kept_N = self._sum[0][:, -1] + self._mask(p, p), ~self._mark_NL[:, p]
        if q is not None:
            key_N, kept_N = key_N + self._mask(q, q), kept_N & ~self._mark_NL[:, q]
        return self._keys(key_N, kept_N)

    def deleted(self, p: int, q: int | None = None, masked: int | None = None) -> _Keys:
        """Of texts without letters p < q, and with a mask at the place `masked` of what is left."""
        still, moved = self._sum[:2]
        key_N, kept_N = still[:, p].copy(), ~self._mark_NL[:, p]
        if q is None:
            key_N += moved[:, -1] - moved[:, p + 1]
        else:
            key_N += (moved[:, q] - moved[:, p + 1]) + (self._sum[2][:, -1] - self._sum[2][:, q + 1])
            kept_N = kept_N & ~self._mark_NL[:, q]
        if masked is not None:
            source = masked + (masked >= p)
            key_N, kept_N = key_N + self._mask(source, masked), kept_N & ~self._mark_NL[:, source]
        return self._keys(key_N, kept_N)


def _among(found: list[_Keys], add: Callable[[np.ndarray, np.ndarray], None]) -> None:
    """Links everything to the first hub with the same key."""
    if found:
        key, place, hub = (np.concatenate(column) for column in zip(*found, strict=True))
        _to_first(key, place, key[hub], place[hub], add)


def _between(left: list[_Keys], right: list[_Keys], add: Callable[[np.ndarray, np.ndarray], None]) -> None:
    """Links each of the left to those of the right with the same key, one of the two being a hub."""
    for here, there in ((left, right), (right, left)):
        key, place, hub = (np.concatenate(column) for column in zip(*here, strict=True))
        others, among, hubs = (np.concatenate(column) for column in zip(*there, strict=True))
        _to_first(key, place, others[hubs], among[hubs], add)  # anything to a hub
        _to_first(key[hub], place[hub], others, among, add)  # a hub to anything


def _to_first(
    key: np.ndarray, place: np.ndarray, others: np.ndarray, among: np.ndarray,
    add: Callable[[np.ndarray, np.ndarray], None],
) -> None:  # fmt: skip
    """Links each to the first of the others that has its key."""
    if not len(key) or not len(others):
        return
    known, first = np.unique(others, return_index=True)
    at = np.minimum(np.searchsorted(known, key), len(known) - 1)
    same = known[at] == key
    add(place[same], among[first[at[same]]])
