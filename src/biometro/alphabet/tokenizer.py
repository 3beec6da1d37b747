"""The alphabet of a Hugging Face model: its own tokenizer, behind what a model needs to know of an `Alphabet`.

    letters ─▶ a table of one token for each residue (proteins) | the tokenizer itself (text, e.g. SMILES) ─▶ tokens

How residues become tokens, and what frames a sequence, is found by asking the tokenizer and not by the model's name:
ProtBert reads "M K T", Ankh "MKT", and the one puts [CLS] and [SEP] around it, the other </s> behind.
"""

from __future__ import annotations

import hashlib
import json
import string
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from biometro.alphabet.protein import STANDARD
from biometro.errors import UserError
from biometro.untrusted import inside, read_json

Way = Literal["spaced", "plain", "words", "text"]
"""How letters are put to the tokenizer: "M K T", "MKT", ["M", "K", "T"]; or as text of which nothing is known."""

_PAIRS = "".join(a + b for a in STANDARD for b in STANDARD)  # every residue after every other: no pair may merge
_RARE = "UZOBJ"
_MARKS = "▁Ġ"  # what SentencePiece and byte-level BPE put in place of a space


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the log, the progress bars and the warnings of transformers off the screen."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()


class TokenizerAlphabet:
    """A tokenizer of transformers as an alphabet. Tokens are int64, and vocabularies may be of any size.

    Where each of the 20 standard residues is one token, always the same, sequences are proteins and are encoded by a
    table; U Z O B J are then read as X where X has a token, as ProtTrans' models were trained (Elnaggar et al. 2022,
    doi:10.1109/TPAMI.2021.3095381). Other tokenizers encode the text as it is, without truncation.

    name: protein or text. way: how letters are put to the tokenizer. begin_ids, end_ids: tokens that it puts before and
    after every sequence. letter_is_token: whether every letter is exactly one token. size: one more than the largest
    token that `encode` and the frame can give. fingerprint: 16 hex digits that change with the
    vocabulary and with all of these.

    Raises UserError where the tokenizer reads neither residues nor text.
    """

    def __init__(self, tokenizer: Any, where: Path | str):
        self.tokenizer, self.where = tokenizer, where
        ways: tuple[Way, ...] = ("spaced", "plain", "words")
        found = next(((way, ids) for way in ways if (ids := self._residues(way))), None)
        self.way: Way = found[0] if found else "text"
        self.letter_is_token = found is not None
        self.name = "protein" if found else "text"
        self.begin_ids, self.end_ids = self._frame()
        self._table = self._letters(found[1]) if found else None
        vocabulary = tokenizer.get_vocab()
        largest = max(vocabulary.values(), default=-1) if self._table is None else int(self._table.max())
        self.size = max(largest, *self.begin_ids, *self.end_ids, 0) + 1
        table = None if self._table is None else self._table.tolist()
        text = json.dumps([self.way, self.begin_ids, self.end_ids, table, sorted(vocabulary.items())])
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]

    def encode(self, letters: bytes | str) -> np.ndarray:
        """Letters -> token numbers, (L,) int64, without begin and end.

        A letter without a token gives the unknown token. Raises UserError where the tokenizer has none.
        """
        if self._table is None:
            return self._encode_text(letters if isinstance(letters, str) else letters.decode("utf-8", "replace"))
        raw = letters.encode("ascii", "replace") if isinstance(letters, str) else letters
        tokens: np.ndarray = self._table[np.frombuffer(raw, dtype=np.uint8)]
        if tokens.size and tokens.min() < 0:
            self._refuse(chr(raw[int(tokens.argmin())]))
        return tokens

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        with quiet():
            self.tokenizer.save_pretrained(str(folder))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name, "tokenizer": type(self.tokenizer).__name__, "way": self.way,
            "begin_ids": list(self.begin_ids), "end_ids": list(self.end_ids), "fingerprint": self.fingerprint,
        }  # fmt: skip

    def _tokens(self, text: str, way: Way, special: bool = False) -> list[int]:
        """What the tokenizer itself makes of a text, with or without begin and end."""
        given: str | list[str] = " ".join(text) if way == "spaced" else list(text) if way == "words" else text
        try:
            with quiet():
                found = self.tokenizer(
                    given,
                    add_special_tokens=special,
                    is_split_into_words=way == "words",
                    truncation=False,
                    padding=False,
                )
            return [int(token) for token in found["input_ids"]]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the tokenizers library is no Exception
            raise UserError(f"{self.where}: its tokenizer cannot read {text[:20]!r} ({error})") from error

    def _residues(self, way: Way) -> dict[str, int] | None:
        """Token of each standard residue, or None where they are not one token each, the same in every place."""
        try:
            ids = self._tokens(_PAIRS, way)
        except UserError:
            return None
        table = dict(zip(_PAIRS, ids, strict=False))
        if len(ids) != len(_PAIRS) or any(table[letter] != token for letter, token in zip(_PAIRS, ids, strict=True)):
            return None
        pieces = {letter: _bare(self.tokenizer.convert_ids_to_tokens(token)) for letter, token in table.items()}
        if any(piece.upper() != letter for letter, piece in pieces.items()):
            return None  # unknown tokens, for example
        if way != "spaced":  # words are read one by one, and pairs do not merge, but longer tokens might
            special, letters = set(self.tokenizer.all_special_tokens), set(pieces.values())
            for token in self.tokenizer.get_vocab():
                if token not in special and len(_bare(token)) > 1 and set(_bare(token)) <= letters:
                    return None
        return table

    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens that stand before and after every sequence."""
        bare, framed = self._tokens(STANDARD, self.way), self._tokens(STANDARD, self.way, special=True)
        unknown = self.tokenizer.unk_token_id
        if not bare or (self.way == "text" and all(token == unknown for token in self._tokens("CCO", "text"))):
            raise UserError(f"{self.where}: its tokenizer knows neither the letters of residues nor those of SMILES")
        for start in range(len(framed) - len(bare) + 1):
            if framed[start : start + len(bare)] == bare:
                return tuple(framed[:start]), tuple(framed[start + len(bare) :])
        raise UserError(f"{self.where}: its tokenizer changes a sequence when it puts special tokens around it")

    def _letters(self, residues: dict[str, int]) -> np.ndarray:
        """(256,) int64: byte -> token, -1 where there is none."""
        unknown = self.tokenizer.unk_token_id
        table = np.full(256, -1 if unknown is None else unknown, dtype=np.int64)
        for letter in string.ascii_uppercase:
            ids = self._tokens(f"A{letter}A", self.way)
            if len(ids) == 3 and ids[0] == ids[2] == residues["A"]:
                table[ord(letter)] = ids[1]
        if table[ord("X")] not in (-1, unknown):
            table[[ord(letter) for letter in _RARE]] = table[ord("X")]
        return table

    def _encode_text(self, text: str) -> np.ndarray:
        tokens = self._tokens(text, "text")
        if self.tokenizer.unk_token_id is None and self.tokenizer.is_fast:  # what has no token is left out silently
            offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            covered = {place for start, end in offsets["offset_mapping"] for place in range(start, end)}
            for place, letter in enumerate(text):
                if place not in covered and not letter.isspace():
                    self._refuse(letter)
        return np.array(tokens, dtype=np.int64)

    def _refuse(self, letter: str) -> None:
        raise UserError(f"{self.where}: its tokenizer has no token for {letter!r}, and none for unknown letters")


def _bare(token: str) -> str:
    """A token without the marks of a word's beginning or middle."""
    return token.lstrip(_MARKS).removeprefix("##")


def read_tokenizer(folder: Path) -> TokenizerAlphabet:
    """The tokenizer of a Hugging Face folder. Nothing outside the folder is read, and no code of the folder runs.

    Raises UserError where there is none, where it needs code of its own, or is damaged.
    """
    names = sorted(path.name for path in folder.iterdir() if not path.is_dir())
    for name in names:
        inside(folder, name)
    for name in (name for name in names if name.endswith(".json")):
        found = read_json(folder / name)
        if name == "tokenizer_config.json" and isinstance(found, dict) and "auto_map" in found:
            raise UserError(f"{folder}: its tokenizer brings code of its own (auto_map), which is never run")
    from transformers import AutoTokenizer
    from transformers.utils import is_sentencepiece_available

    pieces = [name for name in names if name.endswith(".model")]
    if pieces and "tokenizer.json" not in names and not is_sentencepiece_available():
        raise UserError(
            f"{folder}: its tokenizer is a SentencePiece model ({pieces[0]}); to read it, pip install sentencepiece"
        )
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        raise UserError(f"{folder}: its tokenizer cannot be read ({type(error).__name__}: {error})") from error
    files = {"tokenizer.json", *getattr(tokenizer, "vocab_files_names", {}).values()}
    if not files & set(names):  # transformers would go on with an empty vocabulary
        raise UserError(f"{folder}: has no tokenizer (none of the files {', '.join(sorted(files))})")
    return TokenizerAlphabet(tokenizer, folder)
