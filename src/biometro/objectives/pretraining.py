"""The objective of a pretraining recipe: which one, and an encoder that fits its alphabet."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from biometro.alphabet import Alphabet
from biometro.model.encoder import EncoderConfig
from biometro.objectives.metro import Metro, MetroConfig
from biometro.objectives.mlm import MLM, MLMConfig
from biometro.objectives.objective import Objective

Pretraining = Literal["metro", "mlm"]


def for_alphabet(encoder: EncoderConfig, alphabet: Alphabet) -> EncoderConfig:
    """The shape with the alphabet's number of tokens and its mask."""
    return replace(encoder, vocab_size=alphabet.size, mask_token=alphabet.id(alphabet.mask))


def pretraining(
    name: Pretraining, encoder: EncoderConfig, alphabet: Alphabet, metro: MetroConfig, mlm: MLMConfig
) -> Objective:
    """A fresh one of this name, for an encoder that fits the alphabet."""
    return Metro(encoder, alphabet, metro) if name == "metro" else MLM(encoder, alphabet, mlm)
