"""An alphabet maps the letters of a sequence to token numbers and back.

It is the only place that knows both sides; below it stand letters, above it integers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

UNENCODABLE = 255
_LONGEST_TOKEN = 60
_UNENCODABLE_BYTE = bytes([UNENCODABLE])


class AlphabetError(ValueError):
    """A letter has no token. `position` (1-based) and `letter` say which one."""

    def __init__(self, message: str, position: int, letter: str):
        super().__init__(message)
        self.position = position
        self.letter = letter


def _is_short_text(text: str) -> bool:
    return text.isascii() and text.isprintable() and 0 < len(text) <= _LONGEST_TOKEN


@dataclass(frozen=True)
class Alphabet:
    """Tokens of one kind of sequence, one letter a token (molecules: `molecule.MoleculeAlphabet`).

    Token numbers are positions in `tokens`. `standard` holds the letters a model is asked to predict, and
    that may replace one another; the other one-letter tokens (X, gaps) can be read but are never a target.
    `begin` and `end` frame every sequence; `reverse` stands in place of `begin` where a sequence is read back
    to front.
    """

    name: str
    tokens: tuple[str, ...]
    standard: str | tuple[str, ...]
    unknown: str
    begin: str = "<cls>"
    end: str = "<eos>"
    pad: str = "<pad>"
    mask: str = "<mask>"
    reverse: str = "<null_1>"

    def __post_init__(self) -> None:
        texts = [*self.tokens, self.name, *self.standard, self.unknown, self.begin, self.end, self.pad, self.mask]
        if not all(isinstance(text, str) and _is_short_text(text) for text in [*texts, self.reverse]):
            raise ValueError("alphabet: its name and tokens must be printable ASCII text of a word's length")
        if len(set(self.tokens)) != len(self.tokens):
            twice = next(token for token in self.tokens if self.tokens.count(token) > 1)
            raise ValueError(f"alphabet {self.name}: the token {twice!r} stands twice")
        needed = [*self.standard, self.unknown, self.begin, self.end, self.pad, self.mask, self.reverse]
        missing = [token for token in needed if token not in self.tokens]
        if missing:
            raise ValueError(f"alphabet {self.name}: no token for {missing[:5]}")
        if len(self.tokens) > UNENCODABLE:
            raise ValueError(f"alphabet {self.name}: {len(self.tokens)} tokens do not fit one byte")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the tokens that `encode_bytes` gives."""
        return np.dtype(np.uint8)

    @property
    def size(self) -> int:
        return len(self.tokens)

    def id(self, token: str) -> int:
        """The number of a token; KeyError where there is none."""
        return self._ids[token]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """Tokens that stand before every sequence."""
        return (self.id(self.begin),)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that stand after every sequence."""
        return (self.id(self.end),)

    @property
    def letter_is_token(self) -> bool:
        """Whether every letter is exactly one token, as work on single residues needs."""
        return True

    @cached_property
    def standard_ids(self) -> tuple[int, ...]:
        """Token numbers of the standard letters, ascending."""
        return tuple(sorted(self.id(letter) for letter in self.standard))

    @cached_property
    def _encode_table(self) -> bytes:
        table = bytearray([UNENCODABLE]) * 256
        for number, token in enumerate(self.tokens):
            if len(token) == 1:
                table[ord(token)] = number
        return bytes(table)

    @cached_property
    def _decode_table(self) -> np.ndarray:
        return np.array(self.tokens, dtype=object)

    def encode(self, letters: bytes | str) -> np.ndarray:
        """Letters -> token numbers, (L,) uint8, without begin and end. Raises AlphabetError."""
        return np.frombuffer(self.encode_bytes(letters), dtype=np.uint8)

    def encode_bytes(self, letters: bytes | str) -> bytes:
        """As `encode`, a byte for each token."""
        raw = letters.encode("ascii", "replace") if isinstance(letters, str) else letters
        numbers = raw.translate(self._encode_table)
        if _UNENCODABLE_BYTE in numbers:
            position = numbers.find(_UNENCODABLE_BYTE)
            letter = str(letters[position]) if isinstance(letters, str) else chr(raw[position])
            raise AlphabetError(
                f"the {self.name} alphabet has no token for {letter!r} at position {position + 1}",
                position + 1,
                letter,
            )
        return numbers

    def unknowns(self, letters: bytes) -> tuple[str, ...]:
        """Tokens of a cleaned sequence that are not in this alphabet and would be read as unknown."""
        return ()

    def written(self, letters: bytes) -> bytes:
        """Letters as `decode` writes what `encode` makes of them."""
        return letters

    def decode(self, numbers: np.ndarray) -> str:
        """Token numbers -> text; special tokens appear by name, as in `<cls>MKT<eos>`."""
        return "".join(self._decode_table[np.asarray(numbers, dtype=np.int64)])

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "tokens": list(self.tokens), "fingerprint": self.fingerprint}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Alphabet:
        fields = {key: value for key, value in data.items() if key != "fingerprint"}
        alphabet = cls(**{**fields, "tokens": tuple(fields["tokens"])})
        if data.get("fingerprint", alphabet.fingerprint) != alphabet.fingerprint:
            raise ValueError(f"alphabet {alphabet.name}: its fingerprint does not fit its tokens")
        return alphabet

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any token, letter class or special."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
