"""Antibodies and T-cell receptors: chains of residues, and what stands between them.

    heavy|light                    EVQLVESGG...|DIQMTQSPS...     an antibody's V domains
    alpha|beta:peptide@MHC         CAVRDSNYQLIW|CASSIRSSYEQYF:GILGFVFTL@YFAMYQENMAHTDANTLYIIYRDYTWVARVYRGY

A mark types what follows it, so that each part may be missing: `|CASSF` is a beta chain alone, `CAVF|:GIL` an alpha
chain and a peptide. A sequence without `|` is one chain of a kind that is not said, as in a plain FASTA file.

Tokens are ESM-2's, in its order, with one more for each mark: every character is one token, and what a model of
proteins knows of residues can be carried over row by row. Marks are read and never a target.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from biometro.alphabet import protein
from biometro.alphabet.alphabet import AlphabetError
from biometro.alphabet.protein import PROTEIN, Cleaned, ResiduePolicy

ImmuneKind = Literal["antibody", "tcr"]
CHAIN, PEPTIDE, MHC = "|", ":", "@"
"""What stands before a second chain (light, beta), a peptide, and the residues of an MHC molecule."""
PARTS: dict[str, tuple[str, ...]] = {"antibody": ("heavy", "light"), "tcr": ("alpha", "beta", "peptide", "mhc")}
"""The parts of a sequence of each kind, in their order."""
MARKS = frozenset({CHAIN, PEPTIDE, MHC})

ANTIBODY = replace(PROTEIN, name="antibody", tokens=(*PROTEIN.tokens, CHAIN))
TCR = replace(PROTEIN, name="tcr", tokens=(*PROTEIN.tokens, CHAIN, PEPTIDE, MHC))

_MARKS = {"antibody": CHAIN.encode(), "tcr": (CHAIN + PEPTIDE + MHC).encode()}
_SHAPE = {
    "antibody": re.compile(rb"([^|:@]*)(?:\|([^|:@]*))?"),
    "tcr": re.compile(rb"([^|:@]*)(?:\|([^|:@]*))?(?::([^|:@]*))?(?:@([^|:@]*))?"),
}
_MARK = re.compile(rb"([|:@])")
_USUAL = {
    "antibody": "heavy|light",
    "tcr": "alpha|beta:peptide@MHC",
}


def join(kind: ImmuneKind, parts: dict[str, str | None]) -> str:
    """Parts by name (`PARTS`) -> a sequence of the kind. Those that are missing or empty are left out; the mark of the
    second chain stays, since it says which chain is which."""
    heavy, light, *rest = (parts.get(name) or "" for name in PARTS[kind])
    text = f"{heavy}{CHAIN}{light}" if heavy or light else ""
    return text + "".join(mark + part for mark, part in zip((PEPTIDE, MHC), rest, strict=False) if part)


def split(letters: bytes) -> dict[str, bytes]:
    """A cleaned sequence -> its parts that are there: `first` and `second` chain, `peptide`, `mhc`."""
    found = _SHAPE["tcr"].fullmatch(letters)
    assert found is not None
    names = ("first", "second", "peptide", "mhc")
    return {name: part for name, part in zip(names, found.groups(), strict=True) if part}


def tidy(raw: bytes) -> bytes:
    """As `protein.tidy` of each part, with the marks between as they stand. Raises AlphabetError."""
    return b"".join(part if part in (b"|", b":", b"@") else protein.tidy(part) for part in _MARK.split(raw))


def clean(raw: bytes, kind: ImmuneKind, policy: ResiduePolicy) -> Cleaned:
    """A sequence as written -> its letters: each part as `protein.clean` has it, with the marks between.

    A mark with nothing behind it is left out, but for `|` behind a first chain. Raises AlphabetError for what is no
    residue, and marks that are out of order.
    """
    text = raw.strip()
    found = _SHAPE[kind].fullmatch(text)
    if found is None:
        wrong = next(m for m in _MARK.finditer(text) if _SHAPE[kind].fullmatch(text[: m.end()]) is None)
        raise AlphabetError(
            f"{wrong[0].decode()!r} at position {wrong.start() + 1} is out of place; {_name(kind)} is written "
            f"{_USUAL[kind]}",
            wrong.start() + 1,
            wrong[0].decode(),
        )
    letters, unusual = b"", 0
    for number, (mark, part) in enumerate(zip((b"", b"|", b":", b"@"), found.groups(), strict=False), 1):
        if part is None:
            continue
        try:
            one = protein.clean(part, policy)
        except AlphabetError as error:
            place = found.start(number) + error.position
            message = str(error).replace(f"position {error.position}", f"position {place}")
            if mark == b"@":
                message = (
                    f"the MHC part {part.decode('ascii', 'replace')[:30]!r} is no sequence of residues; give the "
                    "residues of the molecule (its pseudosequence, say), not the name of an allele, or leave it out"
                )
            raise AlphabetError(message, place, error.letter) from error
        unusual += one.unusual
        if one.dropped:
            return Cleaned(b"", unusual, one.dropped)
        if one.letters or (mark == b"|" and letters):
            letters += mark + one.letters
    return Cleaned(letters, unusual)


def _name(kind: ImmuneKind) -> str:
    return "an antibody" if kind == "antibody" else "a T-cell receptor"
