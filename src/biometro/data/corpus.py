"""A corpus: a memory-mapped folder of token sequences, built once in a stream.

A corpus is a set. Sequences stand in the order of their digests, so the same sequences give the same bytes
whatever the order of files (`spool.py`, `builder.py`).

The folder holds `tokens.bin` (uint8, no specials), `offsets.npy` (N+1, int64) and `corpus.json`. The training
sequences come first, then the held-out ones; `corpus.json` has the boundary.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from biometro.alphabet import Alphabet
from biometro.errors import UserError
from biometro.files import sha256_of

FORMAT = 1


@dataclass(frozen=True)
class Split:
    """Sequences `first` to `first + len` of a corpus. `tokens` is the memory map of the whole corpus."""

    tokens: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) int64 residues of each sequence."""
        return np.diff(self.offsets)

    def __getitem__(self, number: int) -> np.ndarray:
        """Token numbers of one sequence, (L,) uint8, without specials."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self.tokens[self.offsets[number] : self.offsets[number + 1]]


@dataclass(frozen=True)
class Corpus:
    folder: Path
    alphabet: Alphabet
    info: dict[str, Any]
    tokens: np.ndarray
    offsets: np.ndarray

    @classmethod
    def open(cls, folder: str | Path) -> Corpus:
        """Map a corpus folder. Raises UserError where it is none, or where its files do not fit one another."""
        folder = Path(folder)
        try:
            info = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
            if info["format"] != FORMAT:
                raise UserError(f"{folder}: corpus format {info['format']}; this version reads {FORMAT}")
            alphabet = Alphabet.from_json(info["alphabet"])
            offsets = np.load(folder / "offsets.npy", mmap_mode="r", allow_pickle=False)
            tokens = np.memmap(folder / "tokens.bin", dtype=np.uint8, mode="r")
            counts = [info["splits"][name]["sequences"] for name in ("train", "valid")]
            if min(counts) < 0 or not isinstance(info["digests"]["corpus"], str):
                raise ValueError("corpus.json makes no sense")
            info.setdefault("sources", [])
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{folder} is not a corpus folder: it has no {Path(error.filename).name}") from error
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, RecursionError) as error:
            raise UserError(f"{folder}: damaged corpus ({type(error).__name__}: {error})") from error
        if offsets.ndim != 1 or len(offsets) != sum(counts) + 1 or int(offsets[-1]) != len(tokens):
            raise UserError(f"{folder}: damaged corpus (tokens.bin, offsets.npy and corpus.json disagree)")
        return cls(folder, alphabet, info, tokens, offsets)

    def split(self, name: str) -> Split:
        """`train` or `valid`."""
        boundary = int(self.info["splits"]["train"]["sequences"])
        part = self.offsets[: boundary + 1] if name == "train" else self.offsets[boundary:]
        return Split(self.tokens, part)

    @property
    def digest(self) -> str:
        """Digest of tokens, boundaries and split, as recorded when the corpus was built."""
        return str(self.info["digests"]["corpus"])

    def verify(self) -> None:
        """Read everything and compare with the recorded digests. Raises UserError naming the damaged file."""
        for name in ("tokens.bin", "offsets.npy"):
            if sha256_of(self.folder / name) != self.info["digests"][name]:
                raise UserError(f"{self.folder / name}: damaged, or changed since it was built; prepare it again")
        if self.digest != corpus_digest(self.info["digests"], self.info["splits"]["train"]["sequences"]):
            raise UserError(f"{self.folder / 'corpus.json'}: damaged, or changed by hand; prepare the corpus again")

    def unigram_entropy(self, split: str) -> float:
        """Entropy in nats of the standard letters' frequencies: the loss of a model that knows only composition."""
        counts = np.array(self.info["splits"][split]["token_counts"], dtype=np.float64)
        counts = counts[list(self.alphabet.standard_ids)]
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log(shares)).sum())


def corpus_digest(digests: dict[str, str], train: int) -> str:
    """One digest of the files' digests and of where the split lies."""
    return hashlib.sha256(f"{digests['tokens.bin']} {digests['offsets.npy']} {train}".encode()).hexdigest()
