"""Spools in, the files of a corpus out.

256 buckets ─▶ each alone: sort, drop duplicates, split ─▶ tokens.bin, offsets.npy, corpus.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from biometro.alphabet import Alphabet
from biometro.data.corpus import FORMAT, corpus_digest
from biometro.data.spool import BUCKETS, BY_DIGEST, VALID, unique_sequences
from biometro.errors import UserError
from biometro.files import sha256_of

_AT_ONCE = 4096  # sequences


def build(
    work: Path,
    spools: Sequence[Path],
    alphabet: Alphabet,
    held_out: Callable[[np.ndarray], np.ndarray],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Deduplicate, split, and write the files of a corpus into the folder `work`; gives what corpus.json holds.

    Args:
        work: where to write (see `biometro.files.new_folder`, which puts it in place when all went well).
        spools: folders of `Spool`s, flushed. They are left as they are.
        alphabet: of the sequences.
        held_out: (n, 16) uint8 digests -> (n,) bool, for the sequences that were added without a side.
        provenance: stored in corpus.json as given.

    Raises UserError where nothing is left to train on.
    """
    tallies = {name: _Tally(work, name, alphabet.size) for name in ("train", "valid")}
    read = 0
    try:
        for bucket in range(BUCKETS):
            entries, starts, tokens, count = unique_sequences(spools, bucket)
            read += count
            given = entries["side"]
            held = np.where(given == BY_DIGEST, held_out(entries["digest"]), given == VALID)
            lengths = entries["length"].astype(np.int64)
            for name, chosen in (("train", ~held), ("valid", held)):
                tallies[name].add(tokens, starts[chosen], lengths[chosen])
    finally:
        for tally in tallies.values():
            tally.close()
    train, valid = tallies["train"], tallies["valid"]
    if train.sequences == 0:
        raise UserError("no sequence is left to train on: all are held out; lower the held-out share")
    tokens_path = train.tokens_path.rename(work / "tokens.bin")
    with tokens_path.open("ab") as out, valid.tokens_path.open("rb") as part:
        shutil.copyfileobj(part, out, 1 << 24)
    _write_offsets(work / "offsets.npy", [train.lengths_path, valid.lengths_path], train.sequences + valid.sequences)
    for path in (valid.tokens_path, train.lengths_path, valid.lengths_path):
        path.unlink()
    digests = {name: sha256_of(work / name) for name in ("tokens.bin", "offsets.npy")}
    digests["corpus"] = corpus_digest(digests, train.sequences)
    info = {
        "format": FORMAT,
        "alphabet": alphabet.to_json(),
        "sequences": train.sequences + valid.sequences,
        "duplicates": read - train.sequences - valid.sequences,
        "splits": {name: tally.to_json() for name, tally in tallies.items()},
        "digests": digests,
        **provenance,
    }
    (work / "corpus.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
    return info


def _write_offsets(path: Path, parts: list[Path], count: int) -> None:
    header = {"descr": "<i8", "fortran_order": False, "shape": (count + 1,)}
    total = 0
    with path.open("wb") as out:  # not a memory map: its pages would count as memory, eight bytes a sequence
        np.lib.format.write_array_header_1_0(out, header)
        out.write(bytes(8))
        for part in parts:
            with part.open("rb") as handle:
                while chunk := handle.read(4 << 20):
                    ends = np.cumsum(np.frombuffer(chunk, dtype="<u4"), dtype="<i8") + total
                    out.write(ends.tobytes())
                    total = int(ends[-1])


class _Tally:
    """Writes one split's tokens and lengths to temporary files and counts what passes."""

    def __init__(self, work: Path, name: str, alphabet_size: int):
        self.tokens_path, self.lengths_path = work / f"{name}.tokens", work / f"{name}.lengths"
        self._tokens, self._lengths = self.tokens_path.open("wb"), self.lengths_path.open("wb")
        self.counts = np.zeros(alphabet_size, dtype=np.int64)
        self.length_counts = np.zeros(1, dtype=np.int64)
        self.sequences = 0

    def add(self, tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
        for first in range(0, len(lengths), _AT_ONCE):  # or counting would take many times the bucket's memory
            block = slice(first, first + _AT_ONCE)
            self._add(tokens, starts[block], lengths[block])

    def _add(self, tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
        flat = np.concatenate([tokens[s : s + n] for s, n in zip(starts, lengths, strict=True)])
        self._tokens.write(flat.tobytes())
        self._lengths.write(lengths.astype("<u4").tobytes())
        self.counts += np.bincount(flat, minlength=len(self.counts))
        found = np.bincount(lengths)
        if len(found) > len(self.length_counts):
            found, self.length_counts = self.length_counts, found
        self.length_counts[: len(found)] += found
        self.sequences += len(lengths)

    def close(self) -> None:
        self._tokens.close()
        self._lengths.close()

    def to_json(self) -> dict[str, Any]:
        histogram, low = {}, 1
        while low < len(self.length_counts):
            high = max(low + 1, int(low * 1.5))
            number = int(self.length_counts[low:high].sum())
            if number:
                histogram[f"{low}-{high - 1}"] = number
            low = high
        cumulative = np.cumsum(self.length_counts)
        quantiles = {
            str(q): int(np.searchsorted(cumulative, q / 100 * self.sequences)) if self.sequences else 0
            for q in (5, 50, 95)
        }
        return {
            "sequences": self.sequences,
            "residues": int(self.counts.sum()),
            "longest": int(np.flatnonzero(self.length_counts)[-1]) if self.sequences else 0,
            "length_percentiles": quantiles,
            "length_histogram": histogram,
            "token_counts": self.counts.tolist(),
        }
