"""Spools in, the files of a corpus out.

256 buckets ─▶ each alone: sort, drop duplicates, split ─▶ shards of train and valid, lengths.npy, corpus.json
     └─ of molecules first: count symbols ─▶ vocabulary, coverage
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from biometro.alphabet import Alphabet, MoleculeAlphabet
from biometro.alphabet.molecule import MOST_TOKENS, Notation, learn
from biometro.data import splits
from biometro.data.corpus import FORMAT, SPLITS, ShardInfo, corpus_digest, npy_header
from biometro.data.spool import BUCKETS, BY_DIGEST, VALID, Symbols, unique_sequences
from biometro.errors import UserError
from biometro.files import sha256_of

_AT_ONCE = 4096  # sequences: more would take many times a bucket's memory to count
SHARD_RESIDUES = 1 << 30
LARGEST_SHARD = 1 << 32  # residues; counts of lengths.npy are uint32


def build(
    work: Path,
    spools: Sequence[Path],
    alphabet: Alphabet | Learning,
    held_out: Callable[[np.ndarray], np.ndarray],
    provenance: dict[str, Any],
    *,
    shard_residues: int = SHARD_RESIDUES,
) -> dict[str, Any]:
    """Deduplicate, split, and write the files of a corpus into the folder `work`; gives what corpus.json holds.

    Sequences are written in the order of their digests, and a new shard begins where the next sequence would not fit
    into the present one. A digest says nothing about the sequence it was taken of, so every shard is a random sample
    of the whole corpus, whatever the order of files: reading shard after shard, each in random order, is as good for
    training as one shuffle of everything.

    Args:
        work: where to write (see `biometro.files.new_folder`, which puts it in place when all went well).
        spools: folders of `Spool`s, flushed. They are left as they are.
        alphabet: of the sequences; or how it is learnt from them, in a pass of its own.
        held_out: (n, 16) uint8 digests -> (n,) bool, for the sequences that were added without a side.
        provenance: stored in corpus.json as given.
        shard_residues: of a shard, at most (a longer sequence is a shard of its own); the last shard of a split has
            what is left. At most 2^32.

    Raises UserError where nothing is left to train on.
    """
    symbols = recode = None
    if isinstance(alphabet, Learning):
        symbols = Symbols(spools)
        alphabet, recode, provenance = _learn(spools, symbols, alphabet, provenance)
    sides = {name: _Side(work, name, alphabet.size, shard_residues) for name in SPLITS}
    read = dropped = 0
    try:
        for bucket in range(BUCKETS):
            entries, starts, tokens, count = unique_sequences(spools, bucket, symbols)
            if recode is not None:
                tokens, known = recode(entries, starts, tokens)
                dropped += int((~known).sum())
                entries, starts = entries[known], starts[known]
            read += count
            given = entries["side"]
            held = np.where(given == BY_DIGEST, held_out(entries["digest"]), given == VALID)
            lengths = entries["length"].astype(np.int64)
            for name, chosen in (("train", ~held), ("valid", held)):
                sides[name].add(tokens, starts[chosen], lengths[chosen])
    finally:
        for side in sides.values():
            side.close()
    train, valid = sides["train"], sides["valid"]
    if dropped and train.sequences == valid.sequences == 0:
        raise UserError(
            "no molecule is left: each has a symbol that is outside the vocabulary; lower vocabulary.least, raise "
            "vocabulary.most, or choose molecules.unknown: unk"
        )
    if train.sequences == 0:
        raise UserError("no sequence is left to train on: all are held out; lower the held-out share")
    histograms = [histogram for side in sides.values() for histogram in side.histograms]
    rows = [np.insert(histogram, 0, number, axis=1) for number, histogram in enumerate(histograms)]
    table = np.concatenate(rows).astype("<u4")
    (work / "lengths.npy").write_bytes(npy_header("<u4", table.shape) + table.tobytes())
    lengths_digest = sha256_of(work / "lengths.npy")
    info = {
        "format": FORMAT,
        "alphabet": alphabet.to_json(),
        "sequences": train.sequences + valid.sequences,
        "duplicates": read - dropped - train.sequences - valid.sequences,
        "splits": {name: side.to_json() for name, side in sides.items()},
        "length_rows": len(table),
        "digests": {
            "lengths.npy": lengths_digest,
            "corpus": corpus_digest([*train.shards, *valid.shards], lengths_digest),
        },
        **provenance,
    }
    (work / "corpus.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
    return info


def by_homology(
    spools: Sequence[Path], alphabet: Alphabet, valid: float, identity: float, coverage: float
) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    """What `build` asks who is held out, where whole families are: no held-out sequence has a relative in train.

    Beside it, how many families are on each side (`train`, `valid`), and the sequences of the largest that is held out.

    All sequences are in memory, and compared with one another (`splits.homology_split`, seed 0, in the order of their
    digests, so that the order of files changes nothing).

    Args:
        spools: folders of `Spool`s, flushed.
        alphabet: of the sequences, proteins.
        valid: share of sequences to hold out; 0 holds out none.
        identity, coverage: of an alignment from which two sequences are relatives; see `mmseqs.Hits`.

    Raises UserError as `splits.homology_split` does: where MMseqs2 is missing, say, or families are too large.
    """
    digests, letters = [], []
    for bucket in range(BUCKETS if valid else 0):
        entries, starts, tokens, _ = unique_sequences(spools, bucket)
        digests += [digest.tobytes() for digest in entries["digest"]]
        letters += [
            alphabet.decode(tokens[start : start + length]).encode()
            for start, length in zip(starts.tolist(), entries["length"].tolist(), strict=True)
        ]
    sides, families = splits.homology_split(
        letters, None, identity=identity, coverage=coverage, shares=(valid, 0.0), seed=0
    )
    held = {digest for digest, side in zip(digests, sides.tolist(), strict=True) if side}
    counts = {name: np.bincount(families[sides == side]) for side, name in enumerate(SPLITS)}
    facts = {name: int(np.count_nonzero(count)) for name, count in counts.items()}
    facts["largest_valid"] = int(counts["valid"].max(initial=0))
    return lambda asked: np.fromiter((digest.tobytes() in held for digest in asked), bool, len(asked)), facts


@dataclass(frozen=True)
class Learning:
    """How a vocabulary of molecules is learnt.

    notation: of the tokens. least: molecules that must have a symbol for it to be taken in. unknown: what becomes of a
    molecule with another symbol: `drop`, or `unk`, which reads the symbol so. most: symbols, at most; the commonest.
    """

    notation: Notation
    least: int = 1
    unknown: Literal["drop", "unk", "fail"] = "drop"
    most: int = MOST_TOKENS


Recode = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def _learn(
    spools: Sequence[Path], symbols: Symbols, how: Learning, provenance: dict[str, Any]
) -> tuple[MoleculeAlphabet, Recode, dict[str, Any]]:
    """The alphabet; what makes tokens of a bucket's symbols, and says which molecules stay; and the coverage report.

    Raises UserError where a molecule is not covered and the policy is to fail.
    """
    molecules, total = np.zeros(len(symbols.names), np.int64), 0
    for bucket in range(BUCKETS):
        entries, starts, numbers, _ = unique_sequences(spools, bucket, symbols)
        owner, where = _places(starts, entries["length"].astype(np.int64))
        pairs = np.unique(owner * len(symbols.names) + numbers[where])  # a molecule counts once, whatever it repeats
        molecules += np.bincount(pairs % len(symbols.names), minlength=len(symbols.names))
        total += len(entries)
    counted = Counter(dict(zip(symbols.names, molecules.tolist(), strict=True)))
    alphabet = learn(counted, how.least, how.notation, how.most)
    taken = set(alphabet.standard)
    lacking = [name for name in symbols.names if name not in taken]
    if lacking and how.unknown == "fail":
        raise UserError(
            f"{len(lacking)} symbols are outside the vocabulary ({', '.join(lacking[:10])}); lower vocabulary.least, "
            "or choose molecules.unknown: drop or unk"
        )
    unknown = alphabet.id(alphabet.unknown)
    number = np.array([alphabet.id(n) if n in taken else unknown for n in symbols.names], np.uint8)
    report: dict[str, Any] = {
        "notation": how.notation, "symbols": len(symbols.names), "kept": len(symbols.names) - len(lacking),
        "least": how.least, "molecules": total, "covered": total, "unknown": how.unknown,
        "lacking": {name: int(counted[name]) for name in sorted(lacking, key=lambda n: (-counted[n], n))[:100]},
        "examples": [],
    }  # fmt: skip

    def recode(entries: np.ndarray, starts: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        owner, where = _places(starts, entries["length"].astype(np.int64))
        tokens = number[numbers]
        strange = np.unique(owner[tokens[where] == unknown])
        report["covered"] -= len(strange)
        for place in strange[: 3 - len(report["examples"])].tolist():
            own = numbers[starts[place] : starts[place] + entries["length"][place]]
            report["examples"].append("".join(symbols.names[n] for n in own))
        known = np.ones(len(entries), dtype=bool)
        if how.unknown == "drop":
            known[strange] = False
        return tokens, known

    return alphabet, recode, {**provenance, "vocabulary": report}


def _places(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of sequences in a row of tokens: for each token whose it is, and where it stands."""
    owner = np.repeat(np.arange(len(starts)), lengths)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return owner, starts[owner] + within if len(owner) else owner


class _Side:
    """Writes the shards of one split, and counts what passes. Holds one shard's lengths on the disk, not in memory."""

    def __init__(self, work: Path, name: str, alphabet_size: int, shard_residues: int):
        self._work, self._name, self._shard_residues = work, name, shard_residues
        self.counts = np.zeros(alphabet_size, dtype=np.int64)
        self.length_counts = np.zeros(1, dtype=np.int64)
        self.sequences = 0
        self.shards: list[ShardInfo] = []
        self.histograms: list[np.ndarray] = []  # of each shard (K, 2): length, count
        self._shard: _Shard | None = None

    def add(self, tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
        while len(lengths):
            if self._shard is None:
                self._shard = _Shard(self._work, f"{self._name}-{len(self.shards):05d}")
            room = self._shard_residues - self._shard.residues
            count = int(np.searchsorted(np.cumsum(lengths), room, side="right"))
            if count == 0 and self._shard.sequences:
                self.close()
                continue
            count = min(max(count, 1), _AT_ONCE)
            flat = np.concatenate([tokens[s : s + n] for s, n in zip(starts[:count], lengths[:count], strict=True)])
            self._shard.add(flat, lengths[:count])
            self.counts += np.bincount(flat, minlength=len(self.counts))
            self.sequences += count
            starts, lengths = starts[count:], lengths[count:]

    def close(self) -> None:
        """End the present shard, if there is one."""
        shard, self._shard = self._shard, None
        if shard is None:
            return
        self.shards.append(shard.close())
        longer, shorter = self.length_counts, shard.length_counts
        if len(longer) < len(shorter):
            longer, shorter = shorter.copy(), longer
        longer[: len(shorter)] += shorter
        self.length_counts = longer
        found = np.flatnonzero(shard.length_counts)
        self.histograms.append(np.stack([found, shard.length_counts[found]], axis=1))

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
            "shards": [
                {
                    "sequences": shard.sequences,
                    "residues": shard.residues,
                    "sha256": dict(zip(("bin", "npy"), shard.digests, strict=True)),
                }
                for shard in self.shards
            ],
        }


class _Shard:
    """One shard being written."""

    def __init__(self, work: Path, name: str):
        self.name, self.path, self._lengths_path = name, work / name, work / f"{name}.lengths"
        self._tokens = Path(f"{self.path}.bin").open("wb")  # noqa: SIM115 (closed by `close`)
        self._lengths = self._lengths_path.open("wb")
        self._sha256 = hashlib.sha256()
        self.length_counts = np.zeros(1, dtype=np.int64)
        self.sequences = self.residues = 0

    def add(self, flat: np.ndarray, lengths: np.ndarray) -> None:
        data = flat.tobytes()
        self._tokens.write(data)
        self._sha256.update(data)
        self._lengths.write(lengths.astype("<u4").tobytes())
        found = np.bincount(lengths, minlength=len(self.length_counts))
        found[: len(self.length_counts)] += self.length_counts
        self.length_counts = found
        self.sequences += len(lengths)
        self.residues += len(flat)

    def close(self) -> ShardInfo:
        self._tokens.close()
        self._lengths.close()
        offsets_path, last = Path(f"{self.path}.npy"), 0
        with self._lengths_path.open("rb") as lengths, offsets_path.open("wb") as offsets:
            offsets.write(npy_header("<i8", (self.sequences + 1,)) + bytes(8))
            while chunk := lengths.read(4 << 20):
                ends = np.cumsum(np.frombuffer(chunk, dtype="<u4"), dtype="<i8") + last
                offsets.write(ends.tobytes())
                last = int(ends[-1])
        self._lengths_path.unlink()
        digests = self._sha256.hexdigest(), sha256_of(offsets_path)
        return ShardInfo(self.name, self.sequences, self.residues, digests)
