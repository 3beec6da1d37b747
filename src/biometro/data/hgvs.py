"""Variants as people write them: A24G:K30R, p.(Ala24Gly), p.[Ala24Gly;Lys30del], A24_K25insGG.

    text ─▶ accession, p., brackets off ─▶ parts ─▶ residues, positions, what happens ─▶ changes ─▶ text (write)

The notation is that of the HGVS for proteins (Hart et al. 2024, doi:10.1186/s13073-024-01421-5;
hgvs-nomenclature.org), with letters or names of residues, and ProteinGym's and Enrich2's for several changes and none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NoReturn

import numpy as np

from biometro.alphabet.protein import STANDARD
from biometro.data.changes import (
    FRAMESHIFT,
    LETTER,
    NONSTANDARD,
    OVERLAP,
    RANGE,
    STOP,
    TWICE,
    UNREADABLE,
    BadVariantError,
    Change,
)

WILDTYPE = ("=", "wt", "WT", "_wt")
NAMES = {
    "Ala": "A", "Cys": "C", "Asp": "D", "Glu": "E", "Phe": "F", "Gly": "G", "His": "H", "Ile": "I", "Lys": "K",
    "Leu": "L", "Met": "M", "Asn": "N", "Pro": "P", "Gln": "Q", "Arg": "R", "Ser": "S", "Thr": "T", "Val": "V",
    "Trp": "W", "Tyr": "Y", "Sec": "U", "Pyl": "O", "Asx": "B", "Glx": "Z", "Xle": "J", "Xaa": "X", "Ter": "*",
}  # fmt: skip
FORMS = "write A24G, p.Ala24Gly, A24del, A24_K26del, A24_K25insGG, A24_K26delinsGG or A24dup; several with : between"

_RESIDUE = r"[A-Z][a-z]{2}|[A-Z*]"
_CHANGE = re.compile(
    rf"({_RESIDUE})?(-?[0-9]{{1,9}})(?:_({_RESIDUE})?(-?[0-9]{{1,9}}))?(delins|del|ins|dup|=)?(.*)", re.DOTALL
)
_PLAIN = re.compile(r"[A-Z]-?[0-9]{1,9}[A-Z*](?:[:,;/][A-Z]-?[0-9]{1,9}[A-Z*])*")
_ACCESSION = re.compile(r"(?<![^\s:,;/\[(])([^\s:,;/\[\]]+):(?=p\.)")
_SEPARATORS = re.compile(r"\s*[:,;/]\s*")
_STATED = re.compile(r"(?<![A-Za-z0-9])([A-Z][a-z]{2}|[A-Z])(-?[0-9]{1,9})(?=[A-Z*=_]|del|ins|dup)")
_FEWEST = 3  # residues that must agree with another numbering before it is spoken of
_MOST_STATED = 1000  # residues that are tried


def is_plain(text: str) -> bool:
    """Whether it is substitutions written by letters, A24G:K30R, and nothing else."""
    return _PLAIN.fullmatch(text) is not None


def _unreadable(text: str) -> NoReturn:
    raise BadVariantError(UNREADABLE, text)


class Notation:
    """Reads variants of one wild type, whose first residue has the number `first`."""

    def __init__(self, wildtype: str, first: int = 1):
        self.wildtype, self.first = wildtype, first
        self._known: dict[str, Change] = {}  # substitutions that were read: few, and met many times

    def changes(self, text: str) -> tuple[Change, ...]:
        """The changes of a variant, ascending. Raises BadVariantError."""
        known = [self._known.get(part) for part in text.split(":")]
        if all(known):
            return _settle([change for change in known if change is not None], self)
        body = _body(text.strip())
        if not body:
            _unreadable("it is empty; the wild type itself is written WT")
        if body in WILDTYPE:
            return ()
        found: list[Change] = []
        for part in _SEPARATORS.split(body):
            if part in self._known:
                found.append(self._known[part])
                continue
            changes = self._part(_bare(part.removeprefix("p.")), part)
            if len(changes) == 1 and changes[0].substitution:
                self._known[part] = changes[0]
            found += changes
        return _settle(found, self)

    def _part(self, part: str, shown: str) -> list[Change]:
        match = _CHANGE.fullmatch(part)
        if match is None:
            _unreadable(_advice(part, shown))
        letter, number, other, second, what, rest = match.groups()
        if re.search("fs|Ter[0-9]|ext", rest):
            if "fs" in rest:
                raise BadVariantError(FRAMESHIFT, "what a frameshift puts in place of the rest cannot be scored")
            _unreadable("extensions and lengths of insertions do not say which residues they add")
        if letter == "*" or letter == "Ter":
            raise BadVariantError(STOP, "the stop codon is no residue of the wild type")
        if what == "ins":
            return self._insertion(letter, number, other, second, rest, shown)
        if letter is None or (second is not None and other is None):
            _unreadable(f"{shown!r:.60} does not say which residue of the wild type it changes; {FORMS}")
        start = self._place(letter, number)
        end = start + 1 if second is None else self._place(other, second) + 1
        if second is not None and end < start + 2:
            _unreadable(f"the range {number} to {second} does not go up")
        if what in ("del", "dup", "="):
            if rest:
                _unreadable(f"{rest!r:.60} after {what}; {FORMS}")
            if what == "=":
                return [Change(place, place + 1, self.wildtype[place]) for place in range(start, end)]
            return [Change(start, end, "")] if what == "del" else [Change(end, end, self.wildtype[start:end])]
        letters = _letters(rest, shown)
        if what is None and (second is not None or len(letters) != 1):
            _unreadable(
                f"{shown!r:.60} puts {len(letters)} residues in place of {end - start}; is it a delins? {FORMS}"
            )
        if len(letters) == end - start:
            return [Change(start + k, start + k + 1, letter) for k, letter in enumerate(letters)]
        return [Change(start, end, letters)]

    def _insertion(
        self, letter: str | None, number: str, other: str | None, second: str | None, rest: str, shown: str
    ) -> list[Change]:
        """Between two neighbours; beyond the ends of the chain, where none stands, a number is enough."""
        if second is None or int(second) != int(number) + 1:
            _unreadable(f"{shown!r:.60}: an insertion stands between two neighbours, as in A24_K25insGG")
        place = int(second) - self.first
        if letter is not None or place != 0:
            self._place(letter, number)
        if other is not None or place != len(self.wildtype):
            self._place(other, second)
        return [Change(place, place, _letters(rest, shown))]

    def _place(self, letter: str | None, number: str) -> int:
        """The number of a residue, from 0, if it is the one that stands there."""
        place, length = int(number) - self.first, len(self.wildtype)
        if not 0 <= place < length:
            last = self.first + length - 1
            raise BadVariantError(RANGE, f"there is no residue {number}; they have the numbers {self.first} to {last}")
        if letter is None:
            _unreadable(f"residue {number} lacks its letter; {FORMS}")
        if self.wildtype[place] != _one(letter):
            raise BadVariantError(LETTER, f"residue {number} is {self.wildtype[place]}, not {_one(letter)}")
        return place


def _body(text: str) -> str:
    """Without an accession, p., and what stands around the whole."""
    accessions: set[str] = set()

    def leave_out(match: re.Match[str]) -> str:
        name = match[1].removeprefix("p.").strip("()")
        if name in WILDTYPE or _CHANGE.fullmatch(name):
            return match[0]
        accessions.add(match[1])
        return ""

    if ":p." in text:
        text = _ACCESSION.sub(leave_out, text)
        if len(accessions) > 1:
            _unreadable(f"these are changes of several proteins: {', '.join(sorted(accessions))}")
    text = text.removeprefix("p.")
    if text in ("?", "0", "0?", "(?)"):
        _unreadable("no protein, or none that is known")
    if "];[" in text or "(;)" in text or "^" in text:
        _unreadable("changes of two alleles, or of which it is not known whether they meet in one protein")
    if re.search(r"\[[^\]]*,", text):
        _unreadable("in brackets, a comma stands between two proteins of one allele; give each a line")
    before = None
    while before != text:
        before, text = text, _bare(text)
    return text


def _bare(text: str) -> str:
    """Without the brackets or parentheses around all of it."""
    for opening, closing in ("[]", "()"):
        inner = text[1:-1]
        if text.startswith(opening) and text.endswith(closing) and not {opening, closing} & {*inner}:
            return inner.strip()
    return text


def _one(residue: str) -> str:
    """The letter of a residue."""
    if residue not in NAMES and len(residue) > 1:
        raise BadVariantError(NONSTANDARD, f"{residue} is no amino acid")
    return NAMES.get(residue, residue)


def _letters(text: str, shown: str) -> str:
    """The letters of residues that come in, written by letters or by names."""
    names = re.fullmatch(r"(?:[A-Z][a-z]{2})+", text) is not None
    if not names and re.fullmatch("[A-Z*]+", text) is None:
        _unreadable(_advice(text, shown))
    letters = "".join(map(_one, re.findall("...", text))) if names else text
    if "*" in letters:
        raise BadVariantError(STOP, "the protein ends at a stop, and what is cut short cannot be scored")
    for letter in letters:
        if letter not in STANDARD:
            old = " (or a stop, in old notation)" if letter == "X" else ""
            raise BadVariantError(NONSTANDARD, f"{letter}{old} is none of the 20 standard residues")
    return letters


def _advice(text: str, shown: str) -> str:
    if text != text.upper() and re.fullmatch("[a-z]-?[0-9]+[a-zA-Z]|[A-Z]-?[0-9]+[a-z]", text):
        return f"{shown!r:.60}: residues are written by capital letters; {FORMS}"
    if len(text) >= 10 and text.isalpha():
        return (
            f"{shown!r:.60} looks like a whole sequence; give a FASTA file, or of a table, column: null and "
            "sequence_column"
        )
    return f"{shown!r:.60} is no change of a residue; {FORMS}"


def _settle(changes: list[Change], notation: Notation) -> tuple[Change, ...]:
    """Ascending, without those that change nothing. Raises BadVariantError where two meet."""
    if any(b.start < a.end or b.start == a.start for a, b in pairwise(changes)):
        changes = sorted(changes)
        for a, b in pairwise(changes):
            if a == b or (a.start == b.start and a.end == b.end):
                raise BadVariantError(TWICE, f"position {a.start + notation.first} is named twice")
            if b.start < a.end:
                raise BadVariantError(OVERLAP, f"two changes meet at position {b.start + notation.first}")
    wildtype = notation.wildtype
    return tuple([c for c in changes if c.end - c.start != 1 or c.letters != wildtype[c.start]])


def write(changes: Sequence[Change], wildtype: str, first: int = 1) -> str:
    """A variant as text that is read as the same changes: A24G:K30R, A24del, A24_K26del, A24_K25insGG,
    A24_K26delinsGG, WT. Before the first and after the last residue, a number stands alone: 0_M1insGG."""

    def residue(place: int) -> str:
        letter = wildtype[place] if 0 <= place < len(wildtype) else ""
        return f"{letter}{place + first}"

    parts: list[str] = []
    for change in changes:
        start, end, letters = change.start, change.end, change.letters
        size = end - start
        if size == 1 == len(letters):
            parts.append(f"{wildtype[start]}{start + first}{letters}")
        elif size == 0:
            parts.append(f"{residue(start - 1)}_{residue(start)}ins{letters}")
        elif size == len(letters):
            parts += (f"{residue(start + k)}{letter}" for k, letter in enumerate(letters))
        else:
            across = residue(start) if size == 1 else f"{residue(start)}_{residue(end - 1)}"
            parts.append(f"{across}del" if not letters else f"{across}delins{letters}")
    return ":".join(parts) or "WT"


def numbering(texts: Iterable[str], wildtype: str, first: int) -> str | None:
    """A sentence where residues that the variants name stand in the wild type under another number of the first.

    Args:
        texts: variants as they were written.
        wildtype: letters.
        first: the number that was assumed.
    """
    stated: dict[tuple[str, int], None] = {}
    for text in texts:
        for name, number in _STATED.findall(text):
            stated[NAMES.get(name, name), int(number)] = None
        if len(stated) >= _MOST_STATED:
            break
    pairs = list(stated)[:_MOST_STATED]
    places = {letter: np.flatnonzero([c == letter for c in wildtype]) for letter in {letter for letter, _ in pairs}}
    offsets = [number - places[letter] for letter, number in pairs]
    if not offsets or len(pairs) < _FEWEST:
        return None
    values, counts = np.unique(np.concatenate(offsets), return_counts=True)
    if not len(values):
        return None
    best = int(counts.argmax())
    if values[best] == first or counts[best] < max(_FEWEST, 0.95 * len(pairs)) or (counts == counts[best]).sum() > 1:
        return None
    number = values[best]
    return f"{counts[best]:,} of {len(pairs):,} match if the first residue is number {number} (first: {number})"
