"""Which variants of a wild type are wanted: how many mutations, where, and to what.

    wild type, mutations or identity, fixed positions, excluded residues ─▶ Space ─▶ the samplers of `generate.py`

A mutation here is a substitution by another standard residue. Positions whose wild-type letter is none of the 20
standard residues stay as they are. Users number positions from `first`; inside, places count from 0.

Shape letters: L places of the wild type, F places that are free.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from biometro.alphabet.protein import STANDARD
from biometro.data.variants import Change, write
from biometro.errors import UserError

_MANY = 10**15  # variants; nobody asks for more, and beyond they are not counted
_SPAN = re.compile(r"(-?\d+)(?:-(-?\d+))?")
_CODES = np.full(256, -1, dtype=np.int64)
_CODES[list(STANDARD.encode())] = np.arange(len(STANDARD))
_LETTERS = np.frombuffer(STANDARD.encode(), dtype=np.uint8)


@dataclass(frozen=True, eq=False)  # eq would ask arrays for one truth value
class Space:
    """All variants with `least` to `most` substitutions of `wildtype`, each one that `allowed` allows.

    wildtype: letters. allowed: (L, A) bool in the order of the A symbols (of residues STANDARD), which residues may
    replace the wild type's; never its own. first: number of the first position, for messages and names.
    """

    wildtype: bytes
    allowed: np.ndarray
    least: int
    most: int
    first: int = 1

    @cached_property
    def free(self) -> np.ndarray:
        """(F,) int64 places that may change, ascending."""
        return np.flatnonzero(self.allowed.any(1))

    @cached_property
    def codes(self) -> np.ndarray:
        """(L,) int64 wild-type residues, -1 for what is no standard residue."""
        return encode(self.wildtype)

    def read(self, codes_L: np.ndarray) -> bytes | np.ndarray:
        """A variant as a model reads it."""
        return decode(codes_L, self.wildtype)

    def size(self) -> int:
        """How many variants there are, or 10^15 where there are more.

        Those with m mutations are the elementary symmetric polynomial of degree m of the numbers of residues that
        each place allows.
        """
        counts = np.zeros(self.most + 1, np.int64)
        counts[0] = 1
        for choices in self.allowed[self.free].sum(1).tolist():
            counts[1:] = np.minimum(_MANY, counts[1:] + choices * counts[:-1])  # below 2^63: at most 20 times as many
        return min(_MANY, sum(counts[self.least :].tolist()))

    def names(self, variant: bytes) -> str:
        """The mutations of a variant, as in `A24G:K30R`."""
        pairs = enumerate(zip(self.wildtype, variant.decode(), strict=True))
        changes = tuple(Change(i, i + 1, new) for i, (old, new) in pairs if chr(old) != new)
        return write(changes, self.wildtype.decode(), self.first)


def encode(letters: bytes) -> np.ndarray:
    """(L,) int64 in the order of STANDARD, -1 for other letters."""
    codes: np.ndarray = _CODES[np.frombuffer(letters, dtype=np.uint8)]
    return codes


def decode(codes_L: np.ndarray, wildtype: bytes) -> bytes:
    """Letters of these residues; where the code is -1 the wild type's letter stands."""
    own_L = np.frombuffer(wildtype, dtype=np.uint8)
    return bytes(np.where(codes_L < 0, own_L, _LETTERS[codes_L]).astype(np.uint8))


def space_of(
    wildtype: bytes,
    mutations: int | str | None = None,
    identity: float | None = None,
    fixed: str = "",
    exclude: str = "",
    exclude_at: str = "",
    first: int = 1,
) -> Space:
    """What a user's options allow.

    Args:
        wildtype: letters, upper case.
        mutations: number, or range as in `3-8`.
        identity: to the wild type, as a share; stands for round((1 - identity) L) mutations.
        fixed: positions that stay, as in `1-10,45`.
        exclude: residues that are never put in; those of the wild type stay.
        exclude_at: the same for some positions, as in `24:CP,30-35:G`.
        first: number of the wild type's first position.

    Raises UserError for options that cannot be read, and where no variant fits them.
    """
    length = len(wildtype)
    least, most = wanted(mutations, identity, length)
    allowed_L20 = np.ones((length, len(STANDARD)), dtype=bool)
    allowed_L20[:, _residues(exclude, "exclude")] = False
    for part in filter(None, (part.strip() for part in exclude_at.split(","))):
        where, mark, letters = part.partition(":")
        if not mark or not letters:
            raise UserError(f"exclude_at: {part!r} is not POSITIONS:RESIDUES, as in 24:CP,30-35:G")
        places = _places(where, "exclude_at", length, first)
        allowed_L20[np.ix_(places, _residues(letters, "exclude_at"))] = False
    codes_L = encode(wildtype)
    standard_L = codes_L >= 0
    allowed_L20[standard_L, codes_L[standard_L]] = False
    if not allowed_L20.any():
        raise UserError("exclude leaves no residue that a mutation could put in; exclude fewer")
    closed_L = ~allowed_L20.any(1)
    fixed_L = np.zeros(length, dtype=bool)
    fixed_L[_places(fixed, "fixed", length, first)] = True
    allowed_L20[fixed_L | ~standard_L] = False
    space = Space(wildtype, allowed_L20, least, most, first)
    if most > len(space.free):
        raise UserError(
            f"{most} mutations are asked for, but of {length} positions only {len(space.free)} may change "
            f"({int(fixed_L.sum())} are fixed, {int((~standard_L & ~fixed_L).sum())} hold no standard residue, at "
            f"{int((closed_L & ~fixed_L & standard_L).sum())} every other residue is excluded); ask for fewer"
        )
    return space


def wanted(
    mutations: int | str | None, identity: float | None, length: int, unit: str = "residues"
) -> tuple[int, int]:  # fmt: skip
    """Least and most mutations of a start of `length` units. Raises UserError for what cannot be read."""
    if (mutations is None) == (identity is None):
        raise UserError("say how far from the wild type: either mutations (5, or 3-8) or identity (0.95)")
    if identity is not None:
        if not 0 <= identity < 1:
            raise UserError(f"identity is {identity}; it must be at least 0 and below 1, for 1 is the wild type itself")
        count = round((1 - identity) * length)
        if count < 1:
            raise UserError(
                f"identity {identity} of {length} {unit} leaves no mutation; the nearest variant has identity "
                f"{1 - 1 / length:.4f}"
            )
        return count, count
    found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", str(mutations))
    if found is None:
        raise UserError(f"mutations is {mutations!r}; give a number, or a range as in 3-8")
    least, most = int(found[1]), int(found[2] or found[1])
    if not 1 <= least <= most:
        raise UserError(f"mutations is {mutations}; it must be at least 1, and a range ascends")
    return least, most


def _places(text: str, option: str, length: int, first: int) -> list[int]:
    """Places, from 0, of positions such as `1-10,45`."""
    places: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = _SPAN.fullmatch(part)
        if found is None:
            raise UserError(f"{option}: {part!r} is neither a position nor a range, as in 1-10,45")
        start, end = int(found[1]), int(found[2] or found[1])
        if not first <= start <= end < first + length:
            raise UserError(
                f"{option}: {part} does not lie within positions {first} to {first + length - 1} of the wild type "
                "(`first` is the number of its first residue)"
            )
        places.update(range(start - first, end - first + 1))
    return sorted(places)


def _residues(text: str, option: str) -> Sequence[int]:
    """Columns of these residues."""
    letters = [letter for letter in text.upper() if letter not in ", "]
    for letter in letters:
        if letter not in STANDARD:
            raise UserError(f"{option}: {letter!r} is none of the 20 standard residues {STANDARD}")
    return [STANDARD.index(letter) for letter in letters]
