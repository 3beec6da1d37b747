"""The kinds of sequence, and for each how a record's text becomes letters.

    raw text ─▶ Reading(kind, policies) ─▶ cleaner ─▶ letters, or why there are none

Everything above asks here and knows no kinds: a model's alphabet says what it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from biometro.alphabet import immune, molecule, protein
from biometro.alphabet.alphabet import Alphabet
from biometro.alphabet.molecule import Growing, MoleculeAlphabet, MoleculePolicy
from biometro.alphabet.protein import PROTEIN, Cleaned, ResiduePolicy
from biometro.alphabet.tokenizer import TokenizerAlphabet
from biometro.errors import UserError

SequenceKind = Literal["protein", "antibody", "tcr", "molecule", "text"]
"""text: sequences of any kind, read as they stand by a model's own tokenizer."""
AnyAlphabet = Alphabet | TokenizerAlphabet
Cleaner = Callable[[bytes], Cleaned]
"""A record's text -> what becomes of it. Raises AlphabetError for what is no sequence of the kind."""

ALPHABETS: dict[str, Alphabet] = {"protein": PROTEIN, "antibody": immune.ANTIBODY, "tcr": immune.TCR}
"""Of the kinds whose alphabet is known beforehand; that of molecules is learnt."""
PLURALS = {"protein": "proteins", "antibody": "antibodies", "tcr": "T-cell receptors", "molecule": "molecules"}
UNITS = {"molecule": "tokens", "text": "characters"}  # what lengths count; residues elsewhere


@dataclass(frozen=True)
class Reading:
    """How records are read: what kind of sequence they hold, and what is done with what is unusual in it."""

    kind: SequenceKind = "protein"
    residues: ResiduePolicy = "as_is"
    molecules: MoleculePolicy = field(default_factory=MoleculePolicy)

    @property
    def unit(self) -> str:
        """What lengths count: residues, tokens or characters."""
        return UNITS.get(self.kind, "residues")

    def cleaner(self, alphabet: AnyAlphabet | Growing | None = None) -> Cleaner:
        """Makes letters of text.

        Args:
            alphabet: of the model that reads the molecules: those that it has no tokens for are dropped by the policy.
        """
        if self.kind == "protein":
            return partial(protein.clean, policy=self.residues)
        if self.kind == "molecule":
            molecule.chem()  # its absence is an error once, not in every record
            return partial(molecule.clean, policy=self.molecules, alphabet=alphabet)
        if self.kind == "text":
            return _as_it_stands
        return partial(immune.clean, kind=self.kind, policy=self.residues)

    def length(self, letters: bytes) -> int:
        """Of a cleaned sequence, in `unit`s: those of a molecule are atoms, bonds, rings and branches of its SMILES."""
        return len(molecule.smiles_tokens(letters.decode())) if self.kind == "molecule" else len(letters)


def _as_it_stands(raw: bytes) -> Cleaned:
    return Cleaned(raw.strip())


def kind_of(alphabet: AnyAlphabet, asked: SequenceKind | None, model: str) -> SequenceKind:
    """What kind of sequence a model reads, where `asked` does not say it.

    A tokenizer that reads text reads molecules when asked for them. A model of antibodies or T-cell receptors reads
    proteins too: chains without marks. Raises UserError where a model cannot read the kind asked for.
    """
    own: SequenceKind = alphabet.name  # type: ignore[assignment]
    if asked is None or asked == own:
        return own
    letters = {"protein", "antibody", "tcr"}
    if own == "text" or (own in letters and asked == "protein") or (asked == "text" and own != "molecule"):
        return asked
    if own == "protein" and asked in letters:  # single chains; a mark is refused with its place
        return asked
    raise UserError(f"{model}: is a model of {PLURALS.get(own, own)}, and cannot read {PLURALS.get(asked, asked)}")


def read_alphabet(data: dict[str, Any]) -> Alphabet:
    """An alphabet from its JSON. Raises ValueError, KeyError or TypeError for what makes no sense."""
    if not isinstance(data, dict):
        raise TypeError("alphabet: not an object of named values")
    if "notation" in data:
        return MoleculeAlphabet.from_json(data)
    found = Alphabet.from_json(data)
    if found.name not in ALPHABETS:
        raise ValueError(f"alphabet: there is no kind of sequence {found.name!r} with one letter to a token")
    if lacking := [
        letter for letter in ALPHABETS[found.name].tokens if len(letter) == 1 and letter not in found.tokens
    ]:
        raise ValueError(f"alphabet: no token for {lacking[:5]}, which a sequence of kind {found.name} may have")
    return found
