"""Two baselines to stand beside a result on the same split: what letters alone give, and what the nearest homologue.

letters ─▶ frequencies of k-mers, or windows of residues ─▶ linear model ─▶ predictions    KmerBaseline
letters ─▶ search in the training sequences ─▶ the best hit's truth      ─▶ predictions    NearestNeighbour

Both take the kinds, truths and predictions that `metrics` tables. A model that does not beat them has learnt no more
than composition, or than what its test sequences share with single training sequences.

Shapes: N sequences, L residues of one, M residues of all, K classes, labels or columns, F features, W window.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from biometro.alphabet import SequenceKind
from biometro.data.likeness import likeness_of
from biometro.data.mmseqs import installed
from biometro.evaluation import linear
from biometro.evaluation.fingerprint_baselines import FingerprintBaseline
from biometro.evaluation.metrics import check_kind

LONGEST_KMER = 3
WINDOW = 15  # residues, an odd number; as wide as PSIPRED's (Jones 1999, J. Mol. Biol. 292, 195)
MOST_RESIDUES = 200_000  # that a model of residues is fitted to
_MOST_WEIGHTS = 5_000_000  # of a logistic regression, whose solver keeps some twenty copies
_FEWEST_WITH = 3  # training sequences that have a k-mer which counts; scaled, a rarer one would outweigh all others
_BLOCK = 200_000  # residues predicted at once

NEIGHBOURS = 5  # that vote on a T-cell receptor or a molecule
_LEAST_DISTANCE = 0.05  # of a neighbour, as its vote counts
SMOOTHING = 0.05  # the probability that a neighbour's truth leaves to the others
_PIECE = re.compile(r"(\d+)([MID])")
_CIGAR = re.compile(r"(\d+[MID])+")


class KmerBaseline:
    """A linear model of k-mer frequencies (k = 1, 2, 3), or of the window of 15 residues around each residue.

    - Sequences: counts of k-mers over their sum, each divided by its standard deviation in the training set; k-mers of
      fewer than 3 training sequences are left out (unless there are fewer than 100 sequences). Logistic
      regression with C = 0.01, classes weighted alike (on resistance genes as accurate as unweighted, and better at
      rare classes); one for each label, unweighted, on the sequences where it is known; ridge regression for columns.
    - Residues: one-hot letters in the window, a place past an end being a letter of its own. Logistic (C = 1,
      unweighted) or ridge regression on at most 200,000 known residues drawn under the seed.
    - The penalty of a ridge regression is the best of four on a fifth of the training set drawn under the seed; its
      predictions are kept within the range of the training set.

    Letters may be any bytes, so SMILES will do. A class absent from training has probability 0, a label of one known
    outcome that outcome's rate, and a column without a known value is predicted as NaN. With so many classes that a
    logistic regression would have more than 5 million weights, k stops at 2, or at 1.

    Args:
        kind: see `metrics`.
        names: of the K classes, labels or columns.
        seed: of what is drawn.

    Raises:
        UserError: for a kind that does not exist.
    """

    def __init__(self, kind: str, names: Sequence[str], seed: int = 0):
        check_kind(kind)
        self.kind, self.names, self.seed = kind, tuple(names), seed
        self._features: _Kmers | _Windows
        self._model: linear.Model

    def fit(self, letters: Sequence[bytes], truth: Any) -> KmerBaseline:
        """Fits to N sequences and their truth; returns itself.

        Raises:
            ValueError: where letters and truth differ in length, or no truth is known.
        """
        if len(letters) != len(truth):
            raise ValueError(f"{len(letters)} sequences but {len(truth)} truths")
        if self.kind.startswith("residue_"):
            self._features = _Windows(letters)
            rows, values = self._drawn(letters, truth)
            features = self._features(letters, rows)
        else:
            classes = len(self.names) if self.kind == "classification" else 1
            self._features = _Kmers(letters, classes)
            features, values = self._features(letters), np.asarray(truth)
        if self.kind == "classification":
            self._model = linear.classes(features, values, len(self.names), C=0.01, balanced=True)
        elif self.kind == "residue_classification":
            self._model = linear.classes(features, values, len(self.names), C=1.0, balanced=False)
        elif self.kind == "multilabel":
            self._model = linear.labels(features, values, C=0.01)
        else:
            self._model = linear.columns(features, values.reshape(features.shape[0], -1), self.seed)
        return self

    def predict(self, letters: Sequence[bytes]) -> Any:
        """Predictions for N sequences as `metrics` tables them: (N, K) float32, or N arrays (L, K), (L,) float32."""
        if isinstance(self._features, _Kmers):
            return self._model(self._features(letters)) if letters else np.empty((0, len(self.names)), np.float32)
        found: list[np.ndarray] = []
        for block in _blocks(letters):
            predicted_M = self._model(self._features(block))
            if self.kind == "residue_regression":
                predicted_M = predicted_M[:, 0]
            found += np.split(predicted_M, np.cumsum([len(row) for row in block])[:-1])
        return found

    def _drawn(self, letters: Sequence[bytes], truth: Any) -> tuple[np.ndarray, np.ndarray]:
        """Which residues the model is fitted to, counted over all sequences, and their truth."""
        if [len(row) for row in letters] != [len(row) for row in truth]:
            raise ValueError("letters and truth differ in the residues of a sequence")
        truth_M = np.concatenate([np.asarray(row) for row in truth]) if len(truth) else np.empty(0)
        known_M = np.flatnonzero(truth_M >= 0 if self.kind == "residue_classification" else np.isfinite(truth_M))
        if len(known_M) > MOST_RESIDUES:
            known_M = np.sort(np.random.default_rng(self.seed).choice(known_M, MOST_RESIDUES, replace=False))
        return known_M, truth_M[known_M]


class _Kmers:
    """Letters to (N, F) sparse float64 k-mer frequencies of unit variance in the sequences it was made from."""

    def __init__(self, letters: Sequence[bytes], classes: int):
        from sklearn.preprocessing import StandardScaler

        for longest in range(LONGEST_KMER, 0, -1):
            self._counter = self._counting(longest, len(letters)).fit(letters)
            if len(self._counter.vocabulary_) * classes <= _MOST_WEIGHTS:
                break
        # Taking means away would fill the zeros, and an intercept does as much.
        self._scaler = StandardScaler(with_mean=False).fit(self._frequencies(letters))

    def __call__(self, letters: Sequence[bytes]) -> Any:
        return self._scaler.transform(self._frequencies(letters))

    def _frequencies(self, letters: Sequence[bytes]) -> Any:
        from sklearn.preprocessing import normalize

        return normalize(self._counter.transform(letters), norm="l1")

    @staticmethod
    def _counting(longest: int, count: int) -> Any:
        from sklearn.feature_extraction.text import CountVectorizer

        fewest = _FEWEST_WITH if count >= 100 else 1
        # Case tells an aromatic atom of a SMILES from an aliphatic one; latin-1 knows every byte.
        return CountVectorizer(
            analyzer="char",
            ngram_range=(1, longest),
            lowercase=False,
            encoding="latin-1",
            dtype=np.float64,
            min_df=fewest,
        )


class _Windows:
    """Letters to (M, F) sparse float64 one-hot windows around residues, by the letters it was made from."""

    def __init__(self, letters: Sequence[bytes]):
        seen = sorted(set().union(*letters))
        self._beyond, self._size = len(seen) + 1, len(seen) + 2  # len(seen) stands for letters not seen
        self._code = np.full(256, len(seen), np.int32)
        self._code[seen] = np.arange(len(seen))

    def __call__(self, letters: Sequence[bytes], rows: np.ndarray | None = None) -> Any:
        """Windows of all residues of all sequences, or of those rows among them."""
        from scipy.sparse import csr_array

        side = WINDOW // 2
        gap = np.full(side, self._beyond, np.int32)
        parts = [gap]
        for row in letters:
            parts += [self._code[np.frombuffer(row, np.uint8)], gap]
        lengths = [len(row) for row in letters]
        place_M = np.arange(sum(lengths)) + side * np.repeat(np.arange(len(lengths)), lengths)
        if rows is not None:
            place_M = place_M[rows]
        letter_MW = np.concatenate(parts)[place_M[:, None] + np.arange(WINDOW)]
        feature_MW = letter_MW + self._size * np.arange(WINDOW)
        ends = np.arange(0, feature_MW.size + 1, WINDOW)
        shape = (len(place_M), WINDOW * self._size)
        return csr_array((np.ones(feature_MW.size), feature_MW.ravel(), ends), shape=shape)


def _blocks(letters: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The sequences in runs of about `_BLOCK` residues."""
    block: list[bytes] = []
    residues = 0
    for row in letters:
        block.append(row)
        residues += len(row)
        if residues >= _BLOCK:
            yield block
            block, residues = [], 0
    if block:
        yield block


class Baseline(Protocol):
    """What answers without a language model."""

    def fit(self, letters: Sequence[bytes], truth: Any) -> Baseline: ...

    def predict(self, letters: Sequence[bytes]) -> Any: ...


def beside(
    kind: SequenceKind, task: str, names: Sequence[str], seed: int, *, aligned: bool = True
) -> dict[str, Callable[[], Baseline]]:
    """The baselines that stand beside a model of sequences of this kind, by name.

    - proteins, antibodies: `nearest neighbour` by alignment (where MMseqs2 is installed), `k-mers`.
    - T-cell receptors: `edit-distance neighbour`, the five nearest by `data.edits`, in the manner of TCRdist's
      classifier; `k-mers`.
    - molecules: `ECFP4 + logistic regression` (for columns of numbers `ECFP4 + ridge regression`), `ECFP4 + random
      forest`, and `Tanimoto neighbour`, the five nearest.
    - text: `k-mers`.

    Args:
        kind: of the sequences.
        task: see `metrics`; residues of molecules have no baseline.
        names: of the K classes, labels or columns.
        seed: of what is drawn.
        aligned: whether proteins and antibodies may be aligned.
    """
    kmers: dict[str, Callable[[], Baseline]] = {"k-mers": lambda: KmerBaseline(task, names, seed)}
    likeness = likeness_of(kind)
    if likeness is None:
        return kmers
    several = 1 if task.startswith("residue_") else NEIGHBOURS

    def nearest(neighbours: int) -> Callable[[], Baseline]:
        return lambda: NearestNeighbour(task, names, likeness.search, neighbours)

    if kind == "molecule":
        if task.startswith("residue_"):
            return {}
        regression = "ridge" if task == "regression" else "logistic"
        return {
            f"ECFP4 + {regression} regression": lambda: FingerprintBaseline(task, names, "linear", seed),
            "ECFP4 + random forest": lambda: FingerprintBaseline(task, names, "forest", seed),
            "Tanimoto neighbour": nearest(several),
        }
    if kind == "tcr":
        return {"edit-distance neighbour": nearest(several), **kmers}
    return {"nearest neighbour": nearest(1), **kmers} if aligned and installed() else kmers


class Hits(Protocol):
    """What a search found: H hits, the best of each query before its others."""

    @property
    def query(self) -> np.ndarray: ...  # (H,) int64

    @property
    def target(self) -> np.ndarray: ...  # (H,) int64

    @property
    def similarity(self) -> Any: ...  # (H,) 0 to 1, where several neighbours vote

    @property
    def query_start(self) -> Any: ...  # (H,) int64 from 0, where alignments were asked for

    @property
    def target_start(self) -> Any: ...  # (H,) int64 from 0

    @property
    def cigar(self) -> Any: ...  # H strings such as 10M2I5M3D, see `aligned`


Search = Callable[..., Hits]  # (queries, targets, *, most, alignments)


class NearestNeighbour:
    """Predicts for each sequence the truth of its best hit in the training set, or of its best few.

    - Classes and labels: probability 0.95 for the neighbour's truth, and 0.05 shared out by the frequencies in
      training, so that the log-loss is finite. Values: the neighbour's.
    - Residues: the truth of the neighbour's residue that each is aligned with.
    - Where there is no hit, no aligned residue, or the neighbour's truth is unknown: the frequencies in training (with
      one more of each class or outcome than were seen), or the column's mean, NaN if it has none.
    - Several neighbours are averaged, each weighted by 1 / (0.05 + 1 - similarity), so that one which is the same
      counts twenty times one that has next to nothing in common; of each label or column, those whose truth is known.
      Receptors and molecules have many near neighbours, whose labels are noisy.

    Args:
        kind: see `metrics`.
        names: of the K classes, labels or columns.
        search: (queries, targets, most=..., alignments=...) -> Hits, of lists of letters, as `Likeness.search` is.
        neighbours: of each sequence that are asked; 1 where residues have labels.

    Raises:
        UserError: for a kind that does not exist.
    """

    def __init__(self, kind: str, names: Sequence[str], search: Search, neighbours: int = 1):
        check_kind(kind)
        self.kind, self.names, self.search, self.neighbours = kind, tuple(names), search, neighbours
        self._letters: list[bytes] = []
        self._answers: list[np.ndarray] = []
        self._known: list[np.ndarray] = []
        self._otherwise_K = np.empty(0, np.float32)

    def fit(self, letters: Sequence[bytes], truth: Any) -> NearestNeighbour:
        """Remembers N sequences and their truth; returns itself.

        Raises:
            ValueError: where letters and truth differ in length.
        """
        residues = self.kind.startswith("residue_")
        if len(letters) != len(truth):
            raise ValueError(f"{len(letters)} sequences but {len(truth)} truths")
        if residues and [len(row) for row in letters] != [len(row) for row in truth]:
            raise ValueError("letters and truth differ in the residues of a sequence")
        rows = [np.asarray(row) if residues else np.asarray(row)[None] for row in truth]
        self._letters = list(letters)
        self._otherwise_K = self._frequencies(np.concatenate(rows) if rows else np.empty(0))
        self._known = [self._is_known(row) for row in rows]
        self._answers = [self._answer(row) for row in rows]
        return self

    def predict(self, letters: Sequence[bytes]) -> Any:
        """Predictions for N sequences as `metrics` tables them: (N, K) float32, or N arrays (L, K), (L,) float32.

        Raises:
            ValueError: for an alignment that leaves its sequences.
        """
        residues = self.kind.startswith("residue_")
        hits = self.search(list(letters), self._letters, most=self.neighbours, alignments=residues)
        if not residues:
            return self._votes(len(letters), hits)
        found = [np.tile(self._otherwise_K, (len(row), 1)) for row in letters]
        queries, best = np.unique(hits.query, return_index=True)
        for query, hit in zip(queries.tolist(), best.tolist(), strict=True):
            target = int(hits.target[hit])
            here, there = aligned(hits.cigar[hit], int(hits.query_start[hit]), int(hits.target_start[hit]))
            if len(here) and (here[-1] >= len(letters[query]) or there[-1] >= len(self._letters[target])):
                raise ValueError(f"the alignment of query {query} with target {target} leaves its sequences")
            found[query][here] = self._answers[target][there]
        return [row[:, 0] for row in found] if self.kind == "residue_regression" else found

    def _votes(self, count: int, hits: Hits) -> np.ndarray:
        """(N, K) float32: the answers of each query's first hits, weighted."""
        K = len(self._otherwise_K)
        first = np.arange(len(hits.query)) - np.searchsorted(hits.query, hits.query) < self.neighbours
        query_H, target_H, weight_H = hits.query[first], hits.target[first].tolist(), np.ones(int(first.sum()))
        if self.neighbours > 1:
            weight_H = 1 / (_LEAST_DISTANCE + 1 - hits.similarity[first].astype(np.float64))
        answer_NK, total_NK = np.zeros((count, K)), np.zeros((count, K))
        if target_H:
            answer_HK, known_HK = (np.concatenate([rows[i] for i in target_H]) for rows in (self._answers, self._known))
            weight_HK = weight_H[:, None] * known_HK
            np.add.at(answer_NK, query_H, weight_HK * np.nan_to_num(answer_HK))
            np.add.at(total_NK, query_H, weight_HK)
        otherwise_NK = np.tile(self._otherwise_K.astype(np.float64), (count, 1))
        return np.divide(answer_NK, total_NK, out=otherwise_NK, where=total_NK > 0).astype(np.float32)

    def _frequencies(self, truth: np.ndarray) -> np.ndarray:
        """(K,) float32: what is answered when nothing is known of a sequence."""
        K = len(self.names)
        if self.kind.endswith("classification"):
            counts_K = np.bincount(truth[truth >= 0].astype(np.int64), minlength=K) + 1
            return (counts_K / counts_K.sum()).astype(np.float32)
        columns_MK = truth.reshape(-1, 1 if self.kind == "residue_regression" else K).astype(np.float64)
        known_K, sums_K = np.isfinite(columns_MK).sum(0), np.nansum(columns_MK, 0)
        if self.kind == "multilabel":
            return ((sums_K + 1) / (known_K + 2)).astype(np.float32)
        return np.divide(sums_K, known_K, out=np.full(len(known_K), np.nan), where=known_K > 0).astype(np.float32)

    def _answer(self, truth: np.ndarray) -> np.ndarray:
        """(M, K) float32: what the truth of a neighbour, (M,) or (M, K), says of a sequence like it."""
        if self.kind.endswith("classification"):
            hot = np.eye(len(self.names) + 1, dtype=np.float32)[truth.astype(np.int64), :-1]  # -1 is a row of zeros
        else:
            hot = truth.reshape(len(truth), -1).astype(np.float32)
        if not self.kind.endswith("regression"):
            hot = (1 - SMOOTHING) * hot + SMOOTHING * self._otherwise_K
        return np.where(self._is_known(truth), hot, self._otherwise_K)

    def _is_known(self, truth: np.ndarray) -> np.ndarray:
        """(M, K) or (M, 1) bool: of which classes, labels or columns a neighbour says something."""
        if self.kind.endswith("classification"):
            return (truth >= 0)[:, None]
        return np.isfinite(truth.reshape(len(truth), -1).astype(np.float32))


def aligned(cigar: str, query_start: int, target_start: int) -> tuple[np.ndarray, np.ndarray]:
    """Which residues of the query stand on which of the target: two arrays of places, from 0.

    Args:
        cigar: of MMseqs2: M residues of both, I of the query alone, D of the target alone (as in SAM, with the target
            as the reference).
        query_start: the first aligned residue of the query, from 0.
        target_start: that of the target.

    Raises:
        ValueError: for anything else in the text.
    """
    if not _CIGAR.fullmatch(cigar):
        raise ValueError(f"not an alignment: {cigar[:80]!r}")
    here, there = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for length, move in ((int(number), move) for number, move in _PIECE.findall(cigar)):
        if move == "M":
            here.append(np.arange(query_start, query_start + length))
            there.append(np.arange(target_start, target_start + length))
        query_start += length if move in "MI" else 0
        target_start += length if move in "MD" else 0
    return np.concatenate(here), np.concatenate(there)
