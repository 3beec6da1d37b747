"""Where cleaned sequences wait, by content, until duplicates have met.

    letters ─▶ (digest, length, side, tokens) in 256 buckets by digest ─▶ per bucket: sort, drop duplicates

A spool is a folder of buckets on the disk with a buffer in memory. Several of them, filled by different processes or
machines, are read as one: equal sequences fall into the same bucket wherever they were read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from biometro.alphabet import Alphabet
from biometro.alphabet.molecule import Growing

BUCKETS = 256
DIGEST_BYTES = 16
ENTRY = np.dtype([("digest", np.uint8, (DIGEST_BYTES,)), ("length", "<u4"), ("side", np.uint8)])
BY_DIGEST, TRAIN, VALID = 0, 1, 2  # on which side of the split a sequence falls
_SYMBOLS = "symbols.json"
_SIDE = {None: bytes([BY_DIGEST]), False: bytes([TRAIN]), True: bytes([VALID])}  # by what `add` is told


class Spool:
    """Sequences by bucket.

    Args:
        folder: made if it is not there; buckets found in it are added to.
        alphabet: of the sequences, or a vocabulary that grows with them; its symbols are kept beside them.
        buffer_bytes: memory that may be used before sequences go to the disk.
    """

    def __init__(self, folder: Path, alphabet: Alphabet | Growing, *, buffer_bytes: int = 64 << 20):
        self.folder, self.alphabet, self.buffer_bytes = folder, alphabet, buffer_bytes
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(alphabet, Growing) and (folder / _SYMBOLS).exists():  # those of what waits there come first
            alphabet.start(json.loads((folder / _SYMBOLS).read_text(encoding="utf-8")))
        self._entries = [bytearray() for _ in range(BUCKETS)]
        self._tokens = [bytearray() for _ in range(BUCKETS)]
        self._token_bytes = alphabet.dtype.itemsize
        self._waiting = 0
        self.sequences = 0

    def add(self, letters: bytes, held_out: bool | None = None) -> None:
        """One sequence in letters of the alphabet. `held_out` None leaves the split to its digest; a sequence that
        comes twice and is held out once is held out."""
        digest = hashlib.blake2b(self.alphabet.written(letters), digest_size=DIGEST_BYTES).digest()
        bucket = digest[0]
        tokens = self.alphabet.encode_bytes(letters)
        length = len(tokens) // self._token_bytes
        self._entries[bucket] += digest + length.to_bytes(4, "little") + _SIDE[held_out]
        self._tokens[bucket] += tokens
        self.sequences += 1
        self._waiting += len(tokens) + ENTRY.itemsize
        if self._waiting > self.buffer_bytes:
            self.flush()

    def flush(self) -> None:
        """Write to the disk what waits in memory; call it at the end."""
        for bucket in range(BUCKETS):
            for kind, buffer in (("entries", self._entries[bucket]), ("tokens", self._tokens[bucket])):
                if buffer:
                    with (self.folder / f"{kind}-{bucket:03d}").open("ab") as handle:
                        handle.write(buffer)
                    buffer.clear()
        if isinstance(self.alphabet, Growing):
            (self.folder / _SYMBOLS).write_text(json.dumps(list(self.alphabet.numbers)), encoding="utf-8")
        self._waiting = 0


class Symbols:
    """The symbols of spools whose vocabularies grew apart, numbered anew for all of them together."""

    def __init__(self, spools: Sequence[Path]):
        own = [json.loads((spool / _SYMBOLS).read_text(encoding="utf-8")) for spool in spools]
        self.names: list[str] = sorted({symbol for symbols in own for symbol in symbols})
        numbers = {symbol: number for number, symbol in enumerate(self.names)}
        self._maps = {
            spool: np.array([numbers[symbol] for symbol in symbols], dtype=Growing.dtype)
            for spool, symbols in zip(spools, own, strict=True)
        }

    def __call__(self, spool: Path, tokens: bytes | bytearray) -> bytes:
        return self._maps[spool][np.frombuffer(tokens, Growing.dtype)].tobytes()


def unique_sequences(
    spools: Sequence[Path], bucket: int, symbols: Symbols | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The distinct sequences of one bucket of all spools, by digest.

    Gives their entries (n,), where each starts (n,), all tokens of the bucket (uint8; with `symbols`,
    which are those of growing vocabularies, uint16), and how many sequences were read.
    """
    entries = np.frombuffer(_joined(spools, "entries", bucket), dtype=ENTRY)
    if symbols is None:
        tokens = np.frombuffer(_joined(spools, "tokens", bucket), dtype=np.uint8)
    else:
        parts = [symbols(spool, _joined([spool], "tokens", bucket)) for spool in spools]
        tokens = np.frombuffer(b"".join(parts), dtype=Growing.dtype)
    starts = np.cumsum(entries["length"], dtype=np.int64) - entries["length"]
    words = np.ascontiguousarray(entries["digest"]).view(">u8").reshape(-1, 2)
    order = np.lexsort((VALID - entries["side"], words[:, 1], words[:, 0]))
    sorted_words = words[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (sorted_words[1:] != sorted_words[:-1]).any(axis=1)
    kept = order[first]
    return entries[kept], starts[kept], tokens, len(entries)


def _joined(spools: Sequence[Path], kind: str, bucket: int) -> bytearray:
    files = [file for spool in spools if (file := spool / f"{kind}-{bucket:03d}").exists()]
    joined = bytearray(sum(file.stat().st_size for file in files))
    view = memoryview(joined)
    for file in files:
        with file.open("rb") as handle:
            view = view[handle.readinto(view) :]
    return joined
