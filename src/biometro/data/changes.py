"""What a variant changes of its wild type, and the changes that lead from one sequence to another.

    (wild type, sequence) ─▶ equal ends off ─▶ residue by residue | alignment ─▶ changes ─▶ apply ─▶ sequence

Shapes: N residues of the wild type and M of the sequence once equal ends are off, K diagonals of the band.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

LETTER = "another letter in the wild type"
RANGE = "position outside the wild type"
STOP = "a stop"
FRAMESHIFT = "a frameshift"
NONSTANDARD = "a letter that is no standard residue"
TWICE = "the same position twice"
OVERLAP = "changes that overlap"
UNREADABLE = "cannot be read as a variant"
DISAGREE = "mutant and sequence disagree"
MARK = "a change of a mark between chains"
DIFFERENT = "too unlike the wild type"

_MOST_EDITS = 1000  # residues, of an alignment; whole stretches at either end are not counted
_MOST_CELLS = 1 << 26  # bytes
_GAP = 1  # for each gap, against
_EDIT = 1 << 20  # for each residue, so that gaps only choose between alignments of equally many residues
_FAR = 1 << 60


class BadVariantError(Exception):
    """Why a variant is of no use: `reason`, one of the above, and in words what is wrong with this one."""

    def __init__(self, reason: str, text: str):
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, order=True, slots=True)
class Change:
    """Residues [start, end) of the wild type, counted from 0, are replaced by `letters`.

    A substitution has one residue and one letter, a deletion no letter, an insertion (before residue `start`) no
    residue. What replaces several residues by as many is said as substitutions.
    """

    start: int
    end: int
    letters: str

    @property
    def substitution(self) -> bool:
        return self.end - self.start == 1 == len(self.letters)


def apply(changes: Sequence[Change], wildtype: str) -> str:
    """The wild type with all changes, which are ascending and do not overlap."""
    parts: list[str] = []
    done = 0
    for change in changes:
        parts += (wildtype[done : change.start], change.letters)
        done = change.end
    return "".join((*parts, wildtype[done:]))


def difference(wildtype: str, sequence: str) -> tuple[Change, ...]:
    """The changes that make the sequence (letters A to Z) of the wild type; the same every time.

    Of equal lengths, they are substitutions, unless an alignment changes fewer than half as many residues. Else they
    are those of a global alignment (Needleman and Wunsch 1970, doi:10.1016/0022-2836(70)90057-4, with the gaps of
    Gotoh 1982, doi:10.1016/0022-2836(82)90398-9) that changes the fewest residues, among those one with the fewest
    gaps, and gaps as near to the C terminus as they go (the 3' rule of HGVS). Changes that touch are one where lengths
    differ.

    Raises BadVariantError where an alignment would change more than 1,000 residues.
    """
    if wildtype == sequence:
        return ()
    a_N, b_M = _codes(wildtype), _codes(sequence)
    most = _MOST_EDITS
    single: tuple[Change, ...] = ()
    if len(a_N) == len(b_M):
        places = np.flatnonzero(a_N != b_M).tolist()
        single = tuple(Change(place, place + 1, sequence[place]) for place in places)
        most = min(most, (len(places) - 1) // 2)
        if most < 2:  # a deletion and an insertion at least
            return single
    head = _equal(a_N, b_M)
    tail = _equal(a_N[head:][::-1], b_M[head:][::-1])
    a, b = wildtype[head : len(wildtype) - tail], sequence[head : len(sequence) - tail]
    if not a or not b:
        return (Change(head, head + len(a), b),)
    edits = distance(a, b, most)
    if edits is None or len(a) * (2 * edits + 1) > _MOST_CELLS:
        if single:
            return single
        raise BadVariantError(DIFFERENT, f"more than {_MOST_EDITS:,} residues differ; is this the right wild type?")
    found: list[Change] = []
    for (i, j), (next_i, next_j) in pairwise([(-1, -1), *_kept(a, b, edits), (len(a), len(b))]):
        start, end, letters = head + i + 1, head + next_i, b[j + 1 : next_j]
        if end - start == len(letters):
            found += (Change(start + k, start + k + 1, letter) for k, letter in enumerate(letters))
        else:
            found.append(Change(start, end, letters))
    return tuple(found)


def _codes(letters: str) -> np.ndarray:
    return np.frombuffer(letters.encode("ascii"), dtype=np.uint8)


def _equal(a_N: np.ndarray, b_M: np.ndarray) -> int:
    """How many residues are the same at the beginning."""
    shorter = min(len(a_N), len(b_M))
    other = a_N[:shorter] != b_M[:shorter]
    return int(other.argmax()) if other.any() else shorter


def distance(a: str, b: str, most: int) -> int | None:
    """The fewest residues to substitute, delete or insert to make `b` of `a` (Levenshtein); None beyond `most`.

    Goes by how far each diagonal is reached with so many edits (Ukkonen 1985, doi:10.1016/S0019-9958(85)80046-2), in
    steps of their square.
    """
    n, m = len(a), len(b)
    goal = m - n
    reached = {0: _slide(a, b, 0, 0)}
    for edits in range(most + 1):
        if reached.get(goal, -1) == n:
            return edits
        left = most - edits - 1  # edits after the next
        further: dict[int, int] = {}
        for k in range(max(-edits - 1, goal - left), min(edits + 1, goal + left) + 1):
            i = max(reached.get(k, -2) + 1, reached.get(k + 1, -2) + 1, reached.get(k - 1, -2))
            i = min(i, n, m - k)
            if i >= max(0, -k):
                further[k] = _slide(a, b, i, i + k)
        reached = further
    return None


def _slide(a: str, b: str, i: int, j: int) -> int:
    """How far of `a`, from i on, is the same as `b` from j on."""
    while i + 32 <= len(a) and a[i : i + 32] == b[j : j + 32]:
        i, j = i + 32, j + 32
    while i < len(a) and j < len(b) and a[i] == b[j]:
        i, j = i + 1, j + 1
    return i


def _kept(a: str, b: str, band: int) -> list[tuple[int, int]]:
    """The pairs of equal residues (number in a, number in b) of the best alignment within `band` of the diagonal."""
    came_NK = _table(a, b, band)
    kept = []
    i, j, state = len(a), len(b), 0
    while i or j:
        came = int(came_NK[i, j - i + band])
        state = state or came & 3
        if state == 0:
            i, j = i - 1, j - 1
            if a[i] == b[j]:
                kept.append((i, j))
        elif state == 1:
            i, state = i - 1, 1 if came & 4 else 0
        else:
            j, state = j - 1, 2 if came & 8 else 0
    return kept[::-1]


def _table(a: str, b: str, band: int) -> np.ndarray:
    """(N + 1, K) uint8, how the best alignment of i residues of `a` and j = i + k of `b` ends, k from -band to band.

    0 two residues, 1 a deletion, 2 an insertion; 4 and 8 where a deletion or insertion that ends here goes on from
    the one before. Cells with j beyond the sequence hold numbers too, which no way to the end passes.
    """
    width = 2 * band + 1
    came_NK = np.zeros((len(a) + 1, width), dtype=np.uint8)
    codes_N = _codes(a)
    codes_M = np.concatenate((np.zeros(band, np.uint8), _codes(b), np.zeros(len(a) + width, np.uint8)))
    ramp_K = np.arange(width, dtype=np.int64) * _EDIT
    best_K = deleted_K = np.full(width, _FAR)
    for i in range(len(a) + 1):
        if i == 0:
            pair_K = np.full(width, _FAR)
            pair_K[band] = 0
            on_K = np.zeros(width, bool)
        else:
            pair_K = best_K + _EDIT * (codes_M[i - 1 : i - 1 + width] != codes_N[i - 1])
            opened_K = np.append(best_K[1:], _FAR) + (_EDIT + _GAP)
            gone_on_K = np.append(deleted_K[1:], _FAR) + _EDIT
            on_K = gone_on_K <= opened_K
            deleted_K = np.minimum(opened_K, gone_on_K)
        open_K = np.minimum(pair_K, deleted_K)
        inserted_K = np.append(_FAR, (np.minimum.accumulate(open_K - ramp_K) + ramp_K)[:-1] + (_EDIT + _GAP))
        best_K = np.minimum(open_K, inserted_K)
        row_K = came_NK[i]
        row_K[inserted_K == best_K] = 2
        row_K[deleted_K == best_K] = 1
        row_K |= on_K.astype(np.uint8) << 2
        row_K[1:] |= (inserted_K[:-1] + _EDIT == inserted_K[1:]).astype(np.uint8) << 3
        if i == 0:
            deleted_K = np.full(width, _FAR)
    return came_NK
