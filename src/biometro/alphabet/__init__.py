"""Floor 1: letters and token numbers."""

from biometro.alphabet.alphabet import Alphabet, AlphabetError
from biometro.alphabet.protein import PROTEIN, ResiduePolicy
from biometro.alphabet.tokenizer import TokenizerAlphabet

__all__ = ["PROTEIN", "Alphabet", "AlphabetError", "ResiduePolicy", "TokenizerAlphabet"]
