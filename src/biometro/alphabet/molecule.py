"""Small molecules: SMILES in, canonical SMILES as letters, SELFIES or SMILES tokens out, and back.

    SMILES ─▶ RDKit ─▶ canonical SMILES (letters) ─┬─▶ SELFIES ─▶ one token a symbol                   notation selfies
                                                   └─▶ atoms, bonds, rings, branches: a token each     notation smiles

Letters are canonical SMILES in both notations, so that data, splits and baselines see one text for one molecule, and an
alphabet alone knows how its model reads it. Every character of a SMILES belongs to exactly one token. SELFIES (Krenn et
al. 2020, doi:10.1088/2632-2153/aba947) is written by the library of its authors (Lo et al. 2023,
doi:10.1039/D3DD00044C), from the letters and nothing else, atom for atom in their order; any row of its symbols is a
molecule. Vocabularies are learnt from a corpus (`learn`).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np

from biometro.alphabet.alphabet import UNENCODABLE, Alphabet, AlphabetError
from biometro.alphabet.protein import STANDARD, Cleaned
from biometro.errors import UserError

Notation = Literal["selfies", "smiles"]

SPECIALS = ("<cls>", "<pad>", "<eos>", "<unk>", "<null_1>", "<mask>")
MOST_TOKENS = UNENCODABLE - len(SPECIALS)
"""Symbols that a vocabulary can hold: a token is one byte in a corpus."""
LONGEST_SMILES = 2_000
"""Characters. RDKit takes minutes over some texts of twice as many; the longest of drugs and peptides have 1,700."""
_KEPT = 1 << 16  # molecules whose SELFIES are remembered
_MOST_RINGS = 99  # selfies writes ring bond 100 as %100, which is read as %10 and 0

_TOKEN = re.compile(
    r"\[[^\[\]]+\]"  # an atom in brackets: isotope, chirality, hydrogens, charge, map number
    r"|Cl|Br|[BCNOPSFIbcnops*]"  # the organic subset
    r"|%\d\d|%\(\d+\)|\d"  # ring bonds
    r"|->|<-"  # dative bonds, as RDKit has them between a donor and a metal
    r"|[-=#$:/\\~.()]"  # bonds, parts, branches
)
_SYMBOL = re.compile(r"\[[^\]]*\]|\.")
_MAPPED = re.compile(r":\d+\]")
_NOT_A_SMILES = re.compile(rb"[^A-Za-z0-9@+\-\[\]()=#$:/\\~.%*<>]")
_PROTEIN = set(STANDARD.encode() + b"X")
_SHORTEST_PROTEIN = 8


@dataclass(frozen=True)
class MoleculePolicy:
    """What is done with a molecule before it is read.

    Args:
        fragments: of salts and mixtures, keep all parts, or the largest (by heavy atoms).
        stereo: keep or drop chirality and the geometry of double bonds.
        isotopes: keep or drop isotope labels.
        invalid: what RDKit cannot read, or SELFIES cannot write: drop it, counted and listed, or fail.
        unknown: a molecule with a token that the model's vocabulary lacks: drop it, counted and listed; unk reads the
            token as `<unk>`; or fail.
    """

    fragments: Literal["keep", "largest"] = "keep"
    stereo: Literal["keep", "drop"] = "keep"
    isotopes: Literal["keep", "drop"] = "keep"
    invalid: Literal["drop", "fail"] = "drop"
    unknown: Literal["drop", "unk", "fail"] = "drop"


class NoSelfiesError(ValueError):
    """SELFIES cannot write a molecule."""


def chem() -> Any:
    """RDKit's `Chem`, its log off. Raises UserError, naming the extra, where it is not installed."""
    try:
        from rdkit import Chem, RDLogger
    except ImportError as error:
        raise UserError("molecules need RDKit and selfies: pip install 'biometro[molecules]'") from error
    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    return Chem


@lru_cache(maxsize=1)
def _selfies() -> Any:
    """The library. Its constraints, which are global to the process, are set to RDKit's valences: what RDKit reads can
    be written, and what is decoded RDKit can read."""
    Chem = chem()
    try:
        import selfies
        from selfies.constants import ELEMENTS
    except ImportError as error:
        raise UserError("molecules need RDKit and selfies: pip install 'biometro[molecules]'") from error
    default = selfies.get_preset_constraints("default")
    most = default["?"]

    def bonds(atom: str) -> int:
        def fits(count: int) -> bool:
            return Chem.MolFromSmiles(f"[{atom}]" + "(F)" * count) is not None

        return most if fits(most) else next(count for count in range(most) if not fits(count + 1))

    charges = ("", *(f"{charge:+d}" for charge in range(-4, 9) if charge))
    atoms = [element + charge for element in sorted(ELEMENTS) for charge in charges]
    selfies.set_semantic_constraints({**default, **{atom: bonds(atom) for atom in atoms}})
    return selfies


# Text ------------------------------------------------------------------------------------------------------------


def parse(smiles: str, longest: int = LONGEST_SMILES) -> Any:
    """RDKit's molecule; None where it is none, is empty, or has more than so many characters."""
    mol = chem().MolFromSmiles(smiles) if len(smiles) <= longest else None
    return None if mol is None or not mol.GetNumAtoms() else mol


def canonical(mol: Any, policy: MoleculePolicy = MoleculePolicy()) -> str:
    """Canonical SMILES of a molecule, as the policy wants it, without the map numbers of atoms."""
    Chem = chem()
    if policy.fragments == "largest":
        parts = Chem.GetMolFrags(mol, asMols=True)
        if len(parts) > 1:
            mol = max(parts, key=lambda part: (part.GetNumHeavyAtoms(), Chem.MolToSmiles(part)))
    text: str = Chem.MolToSmiles(mol)
    mapped = _MAPPED.search(text)
    if policy.isotopes == policy.stereo == "keep" and not mapped:
        return text
    mol = Chem.Mol(mol)
    for atom in mol.GetAtoms() if mapped or policy.isotopes == "drop" else ():
        atom.SetAtomMapNum(0)
        if policy.isotopes == "drop":
            atom.SetIsotope(0)
    if policy.stereo == "drop":
        Chem.RemoveStereochemistry(mol)
    text = Chem.MolToSmiles(mol)  # read anew: hydrogens that had a label or a side are no atoms any more
    again = Chem.MolFromSmiles(text)
    return text if again is None else Chem.MolToSmiles(again)


def random_forms(smiles: str, count: int) -> list[str]:
    """At most so many other SMILES of a molecule, atoms in random order, distinct; the same for the same text.

    Bjerrum 2017, arXiv 1703.07076.
    """
    Chem = chem()
    mol = Chem.MolFromSmiles(smiles)
    seed = int.from_bytes(smiles.encode()[-4:], "little") & 0x7FFFFFFF
    found = Chem.MolToRandomSmilesVect(mol, 2 * count, randomSeed=seed or 1) if count else []
    return [text for text in dict.fromkeys(found) if text != smiles][:count]


def smiles_tokens(smiles: str) -> list[str]:
    """A SMILES cut into atoms, bonds, ring bonds and branches; joined, they are the text again.

    Raises AlphabetError for a character that is part of none.
    """
    tokens = _TOKEN.findall(smiles)
    if len(smiles) != sum(map(len, tokens)):
        place = 0
        for token in tokens:
            if not smiles.startswith(token, place):
                break
            place += len(token)
        raise AlphabetError(
            f"{smiles[place]!r} at position {place + 1} is no part of a SMILES", place + 1, smiles[place]
        )
    return tokens


def selfies_tokens(text: str) -> list[str]:
    """SELFIES cut into its symbols."""
    return _SYMBOL.findall(text)


def to_selfies(smiles: bytes) -> str:
    """SELFIES of a SMILES, atoms in its order. Raises NoSelfiesError, with the cause, where there are none."""
    text, why = _encode_selfies(smiles)
    if why:
        raise NoSelfiesError(f"{why}: {smiles.decode('ascii', 'replace')}")
    return text


@lru_cache(maxsize=_KEPT)
def _encode_selfies(smiles: bytes) -> tuple[str, str]:
    """SELFIES, or why there are none."""
    selfies, letters = _selfies(), smiles.decode("ascii", "replace")
    try:
        text: str = selfies.encoder(letters)
    except selfies.EncoderError as error:
        for sign, why in _UNWRITABLE.items():
            if sign in letters:
                return "", why
        return "", "an atom with too many bonds" if "constraints" in str(error) else "no SMILES that SELFIES knows"
    return ("", f"more than {_MOST_RINGS} rings") if text.count("Ring") > _MOST_RINGS else (text, "")


_UNWRITABLE = {
    "->": "a dative bond",
    "<-": "a dative bond",
    "*": "a wildcard atom",
    "$": "a quadruple bond",
    "~": "a bond of no order",
    "@SP": "a chirality that is not tetrahedral",
    "@TB": "a chirality that is not tetrahedral",
    "@OH": "a chirality that is not tetrahedral",
    "@AL": "a chirality that is not tetrahedral",
    "%(": "more than 99 rings",
}


def from_selfies(text: str) -> str:
    """Canonical SMILES of SELFIES; empty where they stand for no atom, or a symbol is none. Rings beyond the 99th
    symbol for one are left open, as the library cannot number them."""
    rings = itertools.count()
    symbols = [token for token in selfies_tokens(text) if "Ring" not in token or next(rings) < _MOST_RINGS]
    try:
        mol = parse(_selfies().decoder("".join(symbols)), 2 * LONGEST_SMILES)  # its ring numbers are not used again
    except (_selfies().DecoderError, RecursionError):
        return ""
    return "" if mol is None else canonical(mol)


def clean(raw: bytes, policy: MoleculePolicy, alphabet: Any = None) -> Cleaned:
    """A SMILES as written -> canonical SMILES.

    Args:
        raw: the text; what stands behind white space (a name, as in .smi files) is left out.
        policy: what is done with it.
        alphabet: of the model that will read it, or of the corpus: whether SELFIES can write it, and whether the
            vocabulary has its tokens, is looked at too.

    Raises AlphabetError where the policy is to fail.
    """
    text = raw.split(None, 1)[0] if raw.strip() else b""
    if len(text) > LONGEST_SMILES:
        return _dropped(f"longer than {LONGEST_SMILES:,} characters", f"{len(text):,}", policy.invalid, text)
    mol = None if _NOT_A_SMILES.search(text) else parse(text.decode("ascii"))
    if mol is None:
        protein = len(text) >= _SHORTEST_PROTEIN and set(text.upper()) <= _PROTEIN
        reason = "reads as a protein, not as a SMILES" if protein else "no SMILES that RDKit can read"
        return _dropped(reason, text[:60].decode("ascii", "replace"), policy.invalid, text)
    letters = canonical(mol, policy).encode()
    if len(letters) > LONGEST_SMILES:  # so that what is clean stays so
        return _dropped(f"longer than {LONGEST_SMILES:,} characters", f"{len(letters):,}", policy.invalid, text)
    if not isinstance(alphabet, MoleculeAlphabet | Growing):
        return Cleaned(letters)
    if alphabet.notation == "selfies" and (why := _encode_selfies(letters)[1]):
        detail = f"{why}: {letters[:60].decode()}"
        return _dropped("a molecule that SELFIES cannot write", detail, policy.invalid, text)
    unknown = alphabet.unknowns(letters)
    if unknown and policy.unknown != "unk":
        what = "a token that the vocabulary lacks"
        return _dropped(what, ", ".join(unknown[:3]), policy.unknown, text)
    return Cleaned(letters, len(unknown))


def _dropped(reason: str, detail: str, how: str, text: bytes) -> Cleaned:
    if how == "fail":
        raise AlphabetError(f"{reason}: {detail!r}", 1, text[:1].decode("ascii", "replace"))
    return Cleaned(b"", 0, reason, detail)


# Alphabets -------------------------------------------------------------------------------------------------------


def tokens_of(letters: bytes, notation: Notation) -> list[str]:
    """A SMILES as tokens of a notation. Raises NoSelfiesError, AlphabetError."""
    if notation == "selfies":
        return selfies_tokens(to_selfies(letters))
    return smiles_tokens(letters.decode("ascii", "replace"))


@dataclass(frozen=True)
class MoleculeAlphabet(Alphabet):
    """Tokens of SELFIES or SMILES. `encode` takes SMILES; a token that it lacks is read as `<unk>`."""

    notation: Notation = "selfies"

    @classmethod
    def of(cls, symbols: Iterable[str], notation: Notation) -> MoleculeAlphabet:
        """An alphabet of these symbols, in their order. Raises ValueError for more than a byte can number."""
        symbols = tuple(symbols)
        tokens = (*SPECIALS[:4], *symbols, *SPECIALS[4:])
        return cls("molecule", tokens, symbols, "<unk>", notation=notation)

    @property
    def letter_is_token(self) -> bool:
        return False

    @cached_property
    def _unknown(self) -> int:
        return self.id(self.unknown)

    def encode_bytes(self, letters: bytes | str) -> bytes:
        """A molecule that cannot be written in the notation is one `<unk>`; `unknowns` says so beforehand."""
        raw = letters.encode("ascii", "replace") if isinstance(letters, str) else letters
        try:
            tokens = tokens_of(raw, self.notation)
        except (NoSelfiesError, AlphabetError):
            return bytes([self._unknown])
        ids, unknown = self._ids, self._unknown
        return bytes([ids.get(token, unknown) for token in tokens])

    def unknowns(self, letters: bytes) -> tuple[str, ...]:
        """Tokens of a SMILES that the vocabulary lacks; the SMILES itself where the notation cannot write it."""
        try:
            tokens = tokens_of(letters, self.notation)
        except (NoSelfiesError, AlphabetError):
            return (letters.decode("ascii", "replace"),)
        return tuple(dict.fromkeys(token for token in tokens if token not in self._ids))

    def written(self, letters: bytes) -> bytes:
        return self.decode(np.frombuffer(self.encode_bytes(letters), np.uint8)).encode()

    def smiles(self, numbers: np.ndarray) -> str:
        """Token numbers -> SMILES: canonical of SELFIES (special tokens are passed over), as written of SMILES."""
        text = "".join(self.tokens[int(n)] for n in numbers if self.tokens[int(n)] not in SPECIALS)
        return from_selfies(text) if self.notation == "selfies" else text

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "tokens": list(self.tokens), "standard": list(self.standard)} | {
            "fingerprint": self.fingerprint
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MoleculeAlphabet:
        notation, symbols = data["notation"], data["standard"]
        if notation not in ("selfies", "smiles"):
            raise ValueError(f"alphabet: there is no notation {str(notation)[:40]!r}")
        if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
            raise ValueError("alphabet: standard must be a list of symbols")
        found = super().from_json({**data, "standard": tuple(symbols)})
        cut = selfies_tokens if notation == "selfies" else _TOKEN.findall
        wrong = next((symbol for symbol in symbols if cut(symbol) != [symbol]), None)
        if wrong is not None:
            raise ValueError(f"alphabet: {wrong[:40]!r} is no symbol of {notation}")
        if found != cls.of(symbols, notation):
            raise ValueError("alphabet: its tokens are not those of an alphabet of molecules with these symbols")
        assert isinstance(found, MoleculeAlphabet)
        return found


class Growing:
    """A vocabulary that grows with what it encodes, before an alphabet is learnt. Numbers are uint16."""

    dtype = np.dtype("<u2")
    _MOST = 1 << 16

    def __init__(self, notation: Notation):
        self.notation = notation
        self.numbers: dict[str, int] = {}

    def start(self, symbols: list[str]) -> None:
        """Number these as they stand, before anything else."""
        if list(self.numbers)[: len(symbols)] != symbols[: len(self.numbers)]:
            raise ValueError("a vocabulary that has grown already numbers other symbols")
        self.numbers.update({symbol: number for number, symbol in enumerate(symbols)})

    def encode_bytes(self, letters: bytes) -> bytes:
        numbers = self.numbers
        found = [numbers.setdefault(token, len(numbers)) for token in tokens_of(letters, self.notation)]
        if len(numbers) > self._MOST:
            raise UserError(f"more than {self._MOST:,} different tokens: these are no molecules")
        return np.array(found, self.dtype).tobytes()

    def written(self, letters: bytes) -> bytes:
        return to_selfies(letters).encode() if self.notation == "selfies" else letters

    def unknowns(self, letters: bytes) -> tuple[str, ...]:
        """As an alphabet's: the SMILES itself where the notation cannot write it."""
        try:
            tokens_of(letters, self.notation)
        except (NoSelfiesError, AlphabetError):
            return (letters.decode("ascii", "replace"),)
        return ()


def learn(molecules_with: Counter[str], least: int, notation: Notation, most: int = MOST_TOKENS) -> MoleculeAlphabet:
    """An alphabet of the symbols that at least so many molecules have; of more than `most`, the commonest.

    Symbols stand by falling number of molecules, then by name, so that the order of the input plays no part.
    """
    order = sorted(molecules_with.items(), key=lambda item: (-item[1], item[0]))
    return MoleculeAlphabet.of([symbol for symbol, count in order if count >= least][:most], notation)
