"""A corpus: a memory-mapped folder of token sequences, built once in a stream.

    letters ─▶ (digest, length, tokens) in 256 buckets by digest ─▶ per bucket: sort, drop duplicates, split ─▶ folder

A corpus is a set. Sequences stand in the order of their digests, so the same sequences give the same bytes
whatever the order of files, and duplicates meet in one bucket: memory is bounded by one bucket (1/256 of the data)
plus the spool, not by the number of sequences.

The folder holds `tokens.bin` (uint8, no specials), `offsets.npy` (N+1, int64) and `corpus.json`. The training
sequences come first, then the held-out ones; `corpus.json` has the boundary.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from biometro.alphabet import Alphabet
from biometro.errors import UserError
from biometro.files import sha256_of

FORMAT = 1
BUCKETS = 256
DIGEST_BYTES = 16
_ENTRY = np.dtype([("digest", np.uint8, (DIGEST_BYTES,)), ("length", "<u4"), ("side", np.uint8)])
_BY_DIGEST, _TRAIN, _VALID = 0, 1, 2  # on which side of the split a sequence falls


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
        if self.digest != _corpus_digest(self.info["digests"], self.info["splits"]["train"]["sequences"]):
            raise UserError(f"{self.folder / 'corpus.json'}: damaged, or changed by hand; prepare the corpus again")

    def unigram_entropy(self, split: str) -> float:
        """Entropy in nats of the standard letters' frequencies: the loss of a model that knows only composition."""
        counts = np.array(self.info["splits"][split]["token_counts"], dtype=np.float64)
        counts = counts[list(self.alphabet.standard_ids)]
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log(shares)).sum())


def _corpus_digest(digests: dict[str, str], train: int) -> str:
    return hashlib.sha256(f"{digests['tokens.bin']} {digests['offsets.npy']} {train}".encode()).hexdigest()


class CorpusBuilder:
    """Collects sequences and writes the files of a corpus into the empty folder `work`.

    Args:
        work: an empty folder (see `biometro.files.new_folder`, which puts it in place when all went well).
        alphabet: of the sequences.
        spool_bytes: memory that may be used before sequences wait on the disk.
    """

    def __init__(self, work: Path, alphabet: Alphabet, *, spool_bytes: int = 256 << 20):
        self.work, self.alphabet, self.spool_bytes = work, alphabet, spool_bytes
        self.spool = work / "spool"
        self.spool.mkdir()
        self._entries = [bytearray() for _ in range(BUCKETS)]
        self._tokens = [bytearray() for _ in range(BUCKETS)]
        self._spooled = 0
        self.sequences = 0

    def add(self, letters: bytes, held_out: bool | None = None) -> None:
        """One sequence in letters of the alphabet. `held_out` None leaves the split to its digest; a sequence that
        comes twice and is held out once is held out."""
        digest = hashlib.blake2b(letters, digest_size=DIGEST_BYTES).digest()
        tokens = self.alphabet.encode(letters)
        bucket = digest[0]
        side = _BY_DIGEST if held_out is None else _VALID if held_out else _TRAIN
        self._entries[bucket] += digest + len(letters).to_bytes(4, "little") + bytes([side])
        self._tokens[bucket] += tokens.tobytes()
        self.sequences += 1
        self._spooled += len(letters) + _ENTRY.itemsize
        if self._spooled > self.spool_bytes:
            self._spill()

    def _spill(self) -> None:
        for bucket in range(BUCKETS):
            for kind, buffer in (("entries", self._entries[bucket]), ("tokens", self._tokens[bucket])):
                if buffer:
                    with (self.spool / f"{kind}-{bucket:03d}").open("ab") as handle:
                        handle.write(buffer)
                    buffer.clear()
        self._spooled = 0

    def _bucket(self, kind: str, bucket: int, buffer: bytearray) -> bytes:
        spilled = self.spool / f"{kind}-{bucket:03d}"
        head = spilled.read_bytes() if spilled.exists() else b""
        return head + bytes(buffer)

    def _unique_buckets(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each bucket, the distinct sequences by digest: their entries (n,), starts (n,), and all tokens."""
        for bucket in range(BUCKETS):
            entries = np.frombuffer(self._bucket("entries", bucket, self._entries[bucket]), dtype=_ENTRY)
            if len(entries) == 0:
                continue
            tokens = np.frombuffer(self._bucket("tokens", bucket, self._tokens[bucket]), dtype=np.uint8)
            starts = np.cumsum(entries["length"], dtype=np.int64) - entries["length"]
            words = np.ascontiguousarray(entries["digest"]).view(">u8")
            order = np.lexsort((_VALID - entries["side"], words[:, 1], words[:, 0]))
            sorted_words = words[order]
            first = np.ones(len(order), dtype=bool)
            first[1:] = (sorted_words[1:] != sorted_words[:-1]).any(axis=1)
            kept = order[first]
            yield entries[kept], starts[kept], tokens
            self._entries[bucket].clear()
            self._tokens[bucket].clear()

    def finish(self, held_out: Callable[[np.ndarray], np.ndarray], provenance: dict[str, Any]) -> dict[str, Any]:
        """Deduplicate, split, write; gives what corpus.json holds.

        `held_out` ((n, 16) digests -> (n,) bool) decides on the sequences that were added without a side.

        `provenance` is stored in corpus.json as given. Raises UserError where nothing is left to train on.
        """
        tallies = {name: _Tally(self.spool, name, self.alphabet.size) for name in ("train", "valid")}
        try:
            for entries, starts, tokens in self._unique_buckets():
                given = entries["side"]
                held = np.where(given == _BY_DIGEST, held_out(entries["digest"]), given == _VALID)
                lengths = entries["length"].astype(np.int64)
                for name, chosen in (("train", ~held), ("valid", held)):
                    tallies[name].add(tokens, starts[chosen], lengths[chosen])
        finally:
            for tally in tallies.values():
                tally.close()
        train, valid = tallies["train"], tallies["valid"]
        if train.sequences == 0:
            raise UserError("no sequence is left to train on: all are held out; lower the held-out share")
        tokens_path = train.tokens_path.rename(self.work / "tokens.bin")
        with tokens_path.open("ab") as out, valid.tokens_path.open("rb") as part:
            shutil.copyfileobj(part, out, 1 << 24)
        self._write_offsets([train.lengths_path, valid.lengths_path], train.sequences + valid.sequences)
        digests = {name: sha256_of(self.work / name) for name in ("tokens.bin", "offsets.npy")}
        digests["corpus"] = _corpus_digest(digests, train.sequences)
        info = {
            "format": FORMAT,
            "alphabet": self.alphabet.to_json(),
            "sequences": train.sequences + valid.sequences,
            "duplicates": self.sequences - train.sequences - valid.sequences,
            "splits": {name: tally.to_json() for name, tally in tallies.items()},
            "digests": digests,
            **provenance,
        }
        (self.work / "corpus.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
        shutil.rmtree(self.spool)
        return info

    def _write_offsets(self, parts: list[Path], count: int) -> None:
        offsets = np.lib.format.open_memmap(self.work / "offsets.npy", mode="w+", dtype=np.int64, shape=(count + 1,))
        offsets[0] = total = done = 0
        for part in parts:
            with part.open("rb") as handle:
                while chunk := handle.read(4 << 20):
                    ends = np.cumsum(np.frombuffer(chunk, dtype="<u4"), dtype=np.int64) + total
                    offsets[done + 1 : done + 1 + len(ends)] = ends
                    done, total = done + len(ends), int(ends[-1])
        offsets.flush()


class _Tally:
    """Writes one split's tokens and lengths to temporary files and counts what passes."""

    def __init__(self, spool: Path, name: str, alphabet_size: int):
        self.tokens_path, self.lengths_path = spool / f"{name}.tokens", spool / f"{name}.lengths"
        self._tokens, self._lengths = self.tokens_path.open("wb"), self.lengths_path.open("wb")
        self.counts = np.zeros(alphabet_size, dtype=np.int64)
        self.length_counts = np.zeros(1, dtype=np.int64)
        self.sequences = 0

    def add(self, tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
        if len(lengths) == 0:
            return
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
