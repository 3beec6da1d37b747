"""The protein alphabet of ESM-2, and what is done with letters that are no standard residue.

Token order and special tokens are those of ESM-2 (Lin et al. 2023, doi:10.1126/science.ade2574), so that its
checkpoints load and our models export without a change of vocabulary. Its spare token `<null_1>` marks a
sequence that is read back to front.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from biometro.alphabet.alphabet import Alphabet, AlphabetError

STANDARD = "ACDEFGHIKLMNPQRSTVWY"
NONSTANDARD = "UOBZJX"  # selenocysteine, pyrrolysine, Asx, Glx, Leu-or-Ile, unknown

PROTEIN = Alphabet(
    name="protein",
    tokens=("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"),
    standard=STANDARD,
    unknown="X",
)

ResiduePolicy = Literal["as_is", "keep_as_x", "drop_sequence", "fail"]
"""What to do with U O B Z J X and with a stop (`*`) inside a sequence.

as_is: a letter that has a token of its own keeps it (U O B Z X), the rest become X;
keep_as_x: all become X; drop_sequence: the sequence is left out and counted; fail: stop with an error.
"""


class Cleaned(NamedTuple):
    """What became of a record's text.

    letters: as the alphabet wants them. unusual: letters outside the standard ones. dropped: why it is left out, empty
    where it is not; `detail` says more of this one. nucleotide_like: whether it reads as DNA or RNA.
    """

    letters: bytes
    unusual: int = 0
    dropped: str = ""
    detail: str = ""
    nucleotide_like: bool = False


_NUCLEOTIDES = b"ACGTUN"
_TIDY = bytes.maketrans(b"abcdefghijklmnopqrstuvwxyz", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_REMOVED = b"-. \t\r\n"  # alignment gaps and white space carry no residue
_LEGAL = (STANDARD + NONSTANDARD + "*").encode()
_TO_X = bytes.maketrans(b"UOBZJX*", b"XXXXXXX")
_TO_X_AS_IS = bytes.maketrans(b"J*", b"XX")
_STANDARD = STANDARD.encode()


def tidy(raw: bytes) -> bytes:
    """Upper-case letters without gaps, white space and the terminal stop.

    Raises AlphabetError for a character that is neither a residue letter nor `*`.
    """
    letters = raw.translate(_TIDY, _REMOVED).rstrip(b"*")
    unusual = letters.translate(None, _STANDARD)
    if unusual and unusual.translate(None, _LEGAL):
        for position, code in enumerate(raw.translate(_TIDY), 1):
            if code not in _LEGAL and code not in _REMOVED:
                letter = ascii(chr(code))
                raise AlphabetError(
                    f"{letter} at position {position} is not the letter of a residue", position, chr(code)
                )
    return letters


def count_nonstandard(letters: bytes) -> int:
    """Number of letters outside the 20 standard residues in a tidied sequence."""
    return len(letters.translate(None, _STANDARD))


def apply_policy(letters: bytes, policy: ResiduePolicy) -> bytes | None:
    """A tidied sequence as the policy wants it, or None where the policy drops it.

    Raises AlphabetError under `fail`. Call it only where `count_nonstandard` is not 0.
    """
    if policy == "drop_sequence":
        return None
    if policy == "fail":
        position = next(i for i, code in enumerate(letters, 1) if code not in _STANDARD)
        letter = chr(letters[position - 1])
        raise AlphabetError(
            f"non-standard residue {letter!r} at position {position} (choose another residue policy: "
            "as_is, keep_as_x or drop_sequence)",
            position,
            letter,
        )
    return letters.translate(_TO_X if policy == "keep_as_x" else _TO_X_AS_IS)


def clean(raw: bytes, policy: ResiduePolicy) -> Cleaned:
    """A sequence as written -> tidied letters, as the policy wants them. Raises AlphabetError as `tidy` and
    `apply_policy` do."""
    letters = tidy(raw)
    # Few proteins begin so; the whole is looked at only where one does.
    nucleotide_like = not letters[:8].translate(None, _NUCLEOTIDES) and not letters.translate(None, _NUCLEOTIDES)
    unusual = len(letters.translate(None, _STANDARD))
    if unusual:
        kept = apply_policy(letters, policy)
        if kept is None:
            return Cleaned(b"", unusual, "non-standard residue")
        letters = kept
    return Cleaned(letters, unusual, nucleotide_like=nucleotide_like)
