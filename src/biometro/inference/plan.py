"""What to embed and how, cut into chunks: each chunk becomes one part file, whoever makes it.

    records ─▶ chunks of about a thousand sequences ─▶ Embedder ─▶ NNNNNNNN-digest.parquet

A part is named by its place and the digest of what it holds, in a folder named by the model and the options. So any
process can make any part, a run that was interrupted finds what it had done, and nothing that does not fit is taken up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from biometro.alphabet import MoleculeAlphabet, Reading
from biometro.data.intake import Account, clean
from biometro.data.sources import ReadOptions, Source
from biometro.errors import UserError
from biometro.inference.embed import Embedder, Pooling, Precision
from biometro.inference.vectors import Embeddings
from biometro.model.bundle import Bundle

LongPolicy = Literal["full", "window", "error"]


@dataclass(frozen=True)
class Chunk:
    """Some sequences in input order: the name of their part file, identifiers, letters."""

    part: str
    ids: list[str]
    letters: list[bytes]

    @property
    def residues(self) -> int:
        return sum(len(letters) for letters in self.letters)


@dataclass(frozen=True)
class Done:
    """A part that exists: its name, what it holds, and whether it was `found` from before or made now."""

    name: str
    sequences: int
    residues: int
    found: bool


@dataclass(frozen=True)
class Plan:
    """All that a process must know to make parts; plain data, so that it can travel.

    Args:
        model: as the user named it.
        weights: the model's fingerprint; empty where no part is written.
        sources, options, reading: what to read, and how.
        pooling, long, max_length, precision, batch_tokens: of the embedding, see `Embedder`.
        chunk_sequences, chunk_residues: a chunk ends at whichever comes first.
        vocabulary: of a model of molecules: those that it has no tokens for go by the policy.
    """

    model: str
    weights: str
    sources: list[Source]
    options: ReadOptions
    reading: Reading
    pooling: Pooling
    long: LongPolicy
    max_length: int
    precision: Precision
    batch_tokens: int | None
    chunk_sequences: int
    chunk_residues: int
    vocabulary: MoleculeAlphabet | None = None

    def settings(self, device: str) -> str:
        """Hex digest of the model and the options that vectors depend on, the type of device among them."""
        text = f"{self.weights} {self.pooling} {self.long} {self.max_length} {self.precision} {device} {self.reading}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def chunks(self, account: Account) -> Iterator[Chunk]:
        """The input from its beginning, in a stream; fills in the account on the way.

        Raises UserError for input that cannot be read, and for a sequence over the limit under long: error.
        """
        ids: list[str] = []
        letters: list[bytes] = []
        number = total = 0
        fresh = [Source(source.name, source.format) for source in self.sources]  # reading counts in them
        for record, sequence in clean(fresh, self.options, self.reading, account, alphabet=self.vocabulary):
            if self.long == "error" and len(sequence) > self.max_length:
                raise UserError(
                    f"{record.where} ({record.id}): {len(sequence)} residues, more than max_length {self.max_length}; "
                    "choose long: full or window"
                )
            ids.append(record.id)
            letters.append(sequence)
            total += len(sequence)
            if len(ids) == self.chunk_sequences or total >= self.chunk_residues:
                yield _chunk(number, ids, letters)
                ids, letters = [], []
                number, total = number + 1, 0
        if ids:
            yield _chunk(number, ids, letters)

    def embedder(self, bundle: Bundle, device: torch.device | str) -> Embedder:
        """The model on a device. Raises UserError where the options do not go together."""
        return Embedder(
            bundle,
            pooling=self.pooling,
            long="window" if self.long == "window" else "full",
            max_length=self.max_length,
            precision=self.precision,
            device=device,
            batch_tokens=self.batch_tokens,
        )

    def run(self, chunk: Chunk, embedder: Embedder) -> Embeddings:
        """A chunk's vectors. Raises UserError for a sequence that is too long for the model, and where the vectors are
        not finite."""
        tokens = [embedder.alphabet.encode(letters) for letters in chunk.letters]
        embedder.check_lengths([len(sequence) for sequence in tokens], chunk.ids)
        found = embedder.embed(tokens)
        if not all(np.isfinite(vector).all() for vector in found):
            raise UserError(f"{self.model}: this model gives vectors that are not finite; its weights are damaged")
        return Embeddings(chunk.ids, found, self.pooling == "residues")


def _chunk(number: int, ids: list[str], letters: list[bytes]) -> Chunk:
    digest = hashlib.sha256()
    for id_, sequence in zip(ids, letters, strict=True):
        digest.update(f"{len(id_)} {id_} {len(sequence)} ".encode() + sequence)
    return Chunk(f"{number:08d}-{digest.hexdigest()[:32]}.parquet", ids, letters)
