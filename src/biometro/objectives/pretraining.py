"""The objective of a pretraining recipe: which one, and an encoder that fits its alphabet."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from biometro.alphabet import Alphabet
from biometro.errors import UserError
from biometro.model.attention import Backend
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.heads import VocabularyHead
from biometro.model.load import load
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
    """A fresh one of this name, for an encoder of the alphabet. Raises UserError for an auxiliary that is none."""
    if name == "mlm":
        return MLM(encoder, alphabet, mlm)
    opened = None if metro.auxiliary is None else _auxiliary(metro.auxiliary, alphabet, encoder.attention)
    return Metro(encoder, alphabet, metro, opened)


def _auxiliary(folder: str, alphabet: Alphabet, attention: Backend) -> tuple[Encoder, VocabularyHead]:
    """What fills in masked residues in a model folder. Raises UserError where there is none of the alphabet."""
    bundle = load(folder)
    role, head = ("auxiliary", "auxiliary_vocabulary") if "auxiliary" in bundle.modules else ("encoder", "vocabulary")
    encoder, vocabulary = bundle.modules[role], bundle.modules.get(head)
    if not isinstance(encoder, Encoder) or not isinstance(vocabulary, VocabularyHead) or bundle.base is not None:
        raise UserError(f"{folder}: metro.auxiliary must be a whole model with a head over tokens")
    if not isinstance(bundle.alphabet, Alphabet) or bundle.alphabet.to_json() != alphabet.to_json():
        raise UserError(f"{folder}: its tokens are not those of the corpus; metro.auxiliary must be of one alphabet")
    plain = Encoder(replace(encoder.config, dropout=0.0, attention=attention))
    plain.load_state_dict(encoder.state_dict(), assign=True)
    return plain, vocabulary
