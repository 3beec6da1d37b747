"""Vectors of sequences kept on the disk by what they are of, so that a frozen encoder reads a sequence once.

    letters ─▶ digest ─▶ in the store? ─▶ vectors
                 └─ no ─▶ Embedder, a thousand at a time ─▶ a part of the store

A store is a folder named by the digest of the model and the options; a part of it is a folder named by the digest of
its own content: digests (N, 16) of sequences, lengths (N,) in vectors, vectors (R, D) float32. So what is found under a
name is what was written, any number of processes may add parts, and a run that was stopped keeps those it had made.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from biometro.alphabet import AlphabetError
from biometro.data.cache import Cache
from biometro.errors import UserError
from biometro.files import new_folder
from biometro.inference.embed import Embedder

_PART = 1024  # sequences
_PART_NUMBERS = 1 << 26
_FILES = ("digests.npy", "lengths.npy", "vectors.npy")


class Features:
    """The vectors that one embedder gives, computed once.

    Args:
        embedder: reads what is not in the store; made when it is needed.
        settings: all that vectors depend on, in words: the model's fingerprint, pooling, precision, device.
        folder: of all stores; default: `features` in the cache ($BIOMETRO_CACHE).
        limit: bytes; the longest unused parts go when a new one would pass it. Default $BIOMETRO_CACHE_BYTES.
    """

    def __init__(
        self, embedder: Callable[[], Embedder], settings: str, folder: Path | None = None, limit: int | None = None
    ):
        cache = Cache(limit=limit)
        self.root = folder or cache.folder / "features"
        self.store = self.root / hashlib.sha256(settings.encode()).hexdigest()[:32]
        self.limit, self.embedder = cache.limit, embedder
        self.computed = 0
        """Sequences that were not in the store."""

    def of(self, letters: Sequence[bytes], say: Callable[[int, int], None] = lambda done, of: None) -> list[np.ndarray]:
        """(D,) vectors, or (L, D) of residues, in the order of the sequences; `say` hears how far it has come.

        Raises UserError where the model gives vectors that are not finite, or the disk refuses.
        """
        digests = [hashlib.sha256(sequence).digest()[:16] for sequence in letters]
        found: dict[bytes, np.ndarray] = {}
        wanted = {*digests}
        for part in sorted(self.store.glob("[0-9a-f]*")):
            found |= _read(part, wanted)
        missing = {d: s for d, s in zip(digests, letters, strict=True) if d not in found}
        self.computed += len(missing)
        if missing:
            embedder = self.embedder()
            done = 0
            for chunk in _chunks(missing, embedder.width):
                vectors = embedder.embed([_encode(embedder, sequence) for _, sequence in chunk])
                if not all(np.isfinite(vector).all() for vector in vectors):
                    raise UserError("this model gives vectors that are not finite; its weights are damaged")
                self._write([digest for digest, _ in chunk], vectors)
                found |= {digest: vector for (digest, _), vector in zip(chunk, vectors, strict=True)}
                done += len(chunk)
                say(done, len(missing))
        return [found[digest] for digest in digests]

    def _write(self, digests: list[bytes], vectors: list[np.ndarray]) -> None:
        rows = [np.atleast_2d(vector) for vector in vectors]
        arrays: tuple[np.ndarray, ...] = (
            np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 16),
            np.array([len(vector) if vector.ndim == 2 else 0 for vector in vectors], dtype=np.int64),
            np.concatenate(rows).astype(np.float32, copy=False),
        )
        self._make_room(sum(array.nbytes for array in arrays))
        with new_folder(self.store / _name(arrays)) as work:
            for name, array in zip(_FILES, arrays, strict=True):
                np.save(work / name, array, allow_pickle=False)

    def _make_room(self, size: int) -> None:
        parts = []
        for part in self.root.glob("*/[0-9a-f]*"):
            try:
                parts.append((part.stat().st_mtime, sum(file.stat().st_size for file in part.iterdir()), part))
            except OSError:
                continue  # another process removed it
        excess = sum(length for _, length, _ in parts) + size - self.limit
        for _, length, part in sorted(parts):
            if excess <= 0:
                break
            shutil.rmtree(part, ignore_errors=True)
            excess -= length


def _chunks(missing: dict[bytes, bytes], width: int) -> Iterator[list[tuple[bytes, bytes]]]:
    chunk: list[tuple[bytes, bytes]] = []
    total = 0
    for item in sorted(missing.items(), key=lambda item: len(item[1])):
        chunk.append(item)
        total += len(item[1]) * width
        if len(chunk) == _PART or total > _PART_NUMBERS:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


def _encode(embedder: Embedder, letters: bytes) -> np.ndarray:
    try:
        return embedder.alphabet.encode(letters)
    except AlphabetError as error:
        raise UserError(f"{letters[:20].decode('ascii', 'replace')}...: {error}") from error


def _name(arrays: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


def _read(part: Path, wanted: set[bytes]) -> dict[bytes, np.ndarray]:
    """What a part holds of the sequences wanted; nothing, and the part removed, where it is damaged."""
    try:
        digests = np.load(part / _FILES[0], allow_pickle=False)
        names = [row.tobytes() for row in digests]
        if wanted.isdisjoint(names):
            return {}
        lengths = np.load(part / _FILES[1], allow_pickle=False)
        vectors = np.load(part / _FILES[2], allow_pickle=False)
        sound = _name((digests, lengths, vectors)) == part.name
    except (OSError, ValueError, EOFError):
        sound = False
    if not sound:
        shutil.rmtree(part, ignore_errors=True)
        return {}
    os.utime(part)
    ends = np.cumsum(np.maximum(lengths, 1))
    return {
        name: vectors[end - max(length, 1) : end] if length else vectors[end - 1]
        for name, length, end in zip(names, lengths.tolist(), ends.tolist(), strict=True)
        if name in wanted
    }
