"""Floor 1: letters and token numbers."""

from biometro.alphabet.alphabet import Alphabet, AlphabetError
from biometro.alphabet.kinds import Reading, SequenceKind, kind_of, read_alphabet
from biometro.alphabet.molecule import MoleculeAlphabet, MoleculePolicy
from biometro.alphabet.protein import PROTEIN, ResiduePolicy
from biometro.alphabet.tokenizer import TokenizerAlphabet

__all__ = [
    "PROTEIN", "Alphabet", "AlphabetError", "MoleculeAlphabet", "MoleculePolicy", "Reading", "ResiduePolicy",
    "SequenceKind", "TokenizerAlphabet", "kind_of", "read_alphabet",
]  # fmt: skip
