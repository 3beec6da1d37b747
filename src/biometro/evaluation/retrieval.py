"""Retrieval: whether relatives are near one another in a model's space, without any training.

    sequences, families ─▶ vectors, of length one ─▶ products, block by block ─▶ rank of each relative ─▶ figures
    pairs, related or not ─▶ cosine of each pair ─▶ figures of its ranking

Beside it stand the same from composition and 3-mers, the likeness of the kind (MMseqs2's scores of alignments, edits,
Tanimoto) and, for pairs, how near their lengths are. Sequences that are not told apart by a score rank in the worst
order, so that a method gains nothing by having no opinion.

Shapes: N sequences, Q queries of a block, F features, P pairs, U units of resampling.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from biometro.alphabet import MoleculePolicy, Reading, SequenceKind
from biometro.data import mmseqs
from biometro.data.intake import Account, clean
from biometro.data.labels import Labelled, read_labelled
from biometro.data.likeness import Likeness, likeness_of, unmarked
from biometro.data.mmseqs import installed
from biometro.data.sources import ReadOptions, expand
from biometro.data.sources import read as read_records
from biometro.data.task import LabelConfig
from biometro.errors import UserError
from biometro.evaluation import resampling
from biometro.evaluation.probes import Say, composition
from biometro.evaluation.protocol import RESAMPLES, Score, Subject

FAMILIES = ("top1", "mrr", "map")
PAIRS = ("auroc", "auprc", "precision_at_k")
_BLOCK = 4_000_000  # scores in memory at once
_MOST_HITS = 300  # of MMseqs2, for each query
_MOST_PAIRS = 1 << 24  # of other likenesses that are kept

Scores = Callable[[np.ndarray], np.ndarray]  # queries (Q,) -> their scores with all sequences (Q, N)


@dataclass(frozen=True)
class RetrievalConfig:
    """What the file of a retrieval task says beside what all files say.

    Args:
        labels: where families stand, as for a classification. A sequence alone in its family is found, but is no query.
        sequences, molecules: what the data hold, and what is done with molecules, as in `probes.ProbeConfig`.
        column: of tables, the one that holds the sequence; of receptors, columns by part (`ReadOptions.column`).
        id_column: of tables, the one that holds the identifier.
    """

    labels: LabelConfig = field(default_factory=lambda: LabelConfig(min_per_class=1))
    sequences: SequenceKind = "protein"
    molecules: MoleculePolicy = field(default_factory=MoleculePolicy)
    column: str | dict[str, str] = "sequence"
    id_column: str | None = None


@dataclass(frozen=True)
class PairsConfig:
    """What the file of a task of pairs says; its data are a table of sequences, then one of pairs.

    Args:
        a: column of the table of pairs with the identifier of the first sequence.
        b: that of the second.
        label: column that says what the pair is.
        unrelated: what it says of pairs that are not related; all others are.
        sequences, molecules: what the table of sequences holds, and what is done with molecules.
        column: of the table of sequences, the one that holds the sequence, or columns by part.
        id_column: the one that holds the identifier.
        top: pairs among which, by score, `precision_at_k` counts the related ones.
    """

    unrelated: list[str]
    a: str = "a"
    b: str = "b"
    label: str = "label"
    sequences: SequenceKind = "protein"
    molecules: MoleculePolicy = field(default_factory=MoleculePolicy)
    column: str | dict[str, str] = "sequence"
    id_column: str = "id"
    top: int = 1000

    def __post_init__(self) -> None:
        if self.top < 1:
            raise UserError(f"top is {self.top}; it must be at least 1")


def read(
    kind: str, data: Sequence[str], config: RetrievalConfig, metric: str, *, seed: int = 0, resamples: int = RESAMPLES,
    keep: Path | None = None,
) -> RetrievalExam:  # fmt: skip
    """The exam of a retrieval task; arguments and errors as for `probes.read`."""
    if metric not in FAMILIES:
        raise UserError(f"a {kind} task has no figure {metric!r}; choose from {', '.join(FAMILIES)}")
    labels = replace(config.labels, task="classification")
    options = ReadOptions("auto", config.column, config.id_column, kind=config.sequences)
    labelled = read_labelled(list(data), labels, options, Reading(config.sequences, molecules=config.molecules))
    return RetrievalExam(labelled, metric, seed, resamples)


class RetrievalExam:
    """For each sequence, the others by likeness: are members of its family first? See `protocol.Exam`.

    Figures, means over queries: top1, whether the nearest is of the family; mrr, one over the rank of the first that
    is; map, the mean of precision at the rank of each member (average precision). Whole families are drawn, so that a
    family of many members does not make the interval narrow.
    """

    def __init__(self, labelled: Labelled, metric: str, seed: int, resamples: int):
        assert labelled.classes is not None
        self.letters, self.family, self.sequences = labelled.letters, labelled.classes, labelled.kind
        self.metric, self.seed, self.resamples = metric, seed, resamples
        sizes = np.bincount(self.family)
        self.queries = np.flatnonzero(sizes[self.family] > 1)
        if not len(self.queries):
            raise UserError("no family has two sequences, so there is nothing to find")
        self.test = self.letters
        self.facts = {
            "sequences": f"{len(labelled):,} of {labelled.account.read:,} records",
            "families": f"{int((sizes > 0).sum()):,}, of {sizes[sizes > 0].min():,} to {sizes.max():,} sequences",
            "queries": f"{len(self.queries):,}; sequences that are alone in their family are none",
            "chance": f"top1 {((sizes - 1) * sizes).sum() / (len(self.queries) * (len(self.family) - 1)):.3f}",
            "resampled": "families",
        }
        for reason, count in labelled.account.dropped.items():
            self.facts[f"left out ({reason})"] = f"{count:,}"

    def baselines(self) -> dict[str, Score]:
        found = {
            "composition": self._near(composition(self.letters, self.sequences)[:, :-1]),
            "k-mers": self._scored(lambda: cosines(kmers(self.letters))),
        }
        rival = neighbours(self.sequences)
        if rival is not None:
            found[rival[0]] = self._scored(lambda: rival[1](self.letters))
        return found

    def model(self, subject: Subject, say: Say) -> dict[str, Score]:
        own = subject.reads(self.letters, self.sequences)
        found = subject.features("mean").of(own, lambda done, of: say(f"{done:,} of {of:,} sequences read"))
        return {"cosine": replace(self._near(np.stack(found)), note=subject.note(self.letters))}

    def _near(self, vectors_NF: np.ndarray) -> Score:
        return self._scored(lambda: cosines(unit(vectors_NF)))

    def _scored(self, make: Callable[[], Scores]) -> Score:
        began = time.perf_counter()
        scores = make()
        values = {name: np.empty(len(self.queries)) for name in FAMILIES}
        for places in _blocks(len(self.queries), len(self.letters)):
            chosen = self.queries[places]
            rows = rank_figures(scores(chosen), self.family, chosen)
            for name, value_Q in zip(FAMILIES, rows, strict=True):
                values[name][places] = value_Q
        families, unit_Q = np.unique(self.family[self.queries], return_inverse=True)
        drawn_from = resampling.means({self.metric: (values[self.metric], unit_Q)}, len(families))
        drawn = _replicates(drawn_from, self.metric, len(families), self.resamples, self.seed)
        figures = {name: float(value_Q.mean()) for name, value_Q in values.items()}
        return Score(figures, drawn, time.perf_counter() - began)


def rank_figures(
    score_QN: np.ndarray, family_N: np.ndarray, query_Q: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """top1, reciprocal rank and average precision (Q,) of each query, which itself is left out.

    Of equal scores, sequences of other families come first. Each query must have another member of its family.
    """
    found = np.empty((3, len(query_Q)))
    for place, (query, score_N) in enumerate(zip(query_Q.tolist(), score_QN, strict=True)):
        own_N = family_N == family_N[query]
        others = np.sort(score_N[~own_N])
        own_N[query] = False
        members_M = np.sort(score_N[own_N])[::-1]
        before_M = len(others) - np.searchsorted(others, members_M, side="left")
        count_M = np.arange(1, len(members_M) + 1)
        precision_M = count_M / (count_M + before_M)
        found[:, place] = before_M[0] == 0, precision_M[0], precision_M.mean()
    return found[0], found[1], found[2]


def unit(vectors_NF: np.ndarray) -> np.ndarray:
    """Rows of length one, float32; a row of zeros stays one."""
    lengths_N1 = np.linalg.norm(vectors_NF, axis=1, keepdims=True)
    return (vectors_NF / np.where(lengths_N1 > 0, lengths_N1, 1)).astype(np.float32)


def kmers(letters: Sequence[bytes]) -> Any:
    """(N, F) sparse counts of 3-mers, rows of length one."""
    from sklearn.feature_extraction.text import HashingVectorizer

    # Hashed into far more columns than there are 3-mers, so that they hardly meet and no vocabulary has to be kept.
    counter = HashingVectorizer(
        analyzer="char", ngram_range=(3, 3), lowercase=False, encoding="latin-1", alternate_sign=False, norm="l2",
        n_features=1 << 20, dtype=np.float32,
    )  # fmt: skip
    return counter.transform(letters).tocsr()


def cosines(rows: Any) -> Scores:
    """Products of rows (N, F) of length one, dense or sparse."""

    def scores(query_Q: np.ndarray) -> np.ndarray:
        found = rows[query_Q] @ rows.T
        return np.asarray(found if isinstance(found, np.ndarray) else found.toarray())

    return scores


def neighbours(kind: SequenceKind) -> tuple[str, Callable[[Sequence[bytes]], Scores]] | None:
    """The likeness without a model that sequences of a kind are ranked by, and its name; None where there is none."""
    if kind in ("protein", "antibody"):
        return ("alignment", alignments) if installed() else None
    likeness = likeness_of(kind)
    return None if likeness is None else (likeness.measure, lambda letters: similarities(letters, likeness))


def alignments(letters: Sequence[bytes]) -> Scores:
    """Bits of MMseqs2's alignments of all with all; 0 where it has none.

    Raises UserError where MMseqs2 is missing or fails.
    """
    own = unmarked(letters)
    hits = mmseqs.search(own, own, most=min(len(letters), _MOST_HITS))
    return _table(hits.query, hits.target, hits.bits, len(letters))


def similarities(letters: Sequence[bytes], likeness: Likeness) -> Scores:
    """Similarities of all with all; of very many, 0 beyond the nearest of each."""
    N = len(letters)
    hits = likeness.search(letters, letters, most=min(N, max(_MOST_HITS, _MOST_PAIRS // max(1, N))))
    return _table(hits.query, hits.target, hits.similarity, N)


def _table(query: np.ndarray, target: np.ndarray, score: np.ndarray, count: int) -> Scores:
    from scipy.sparse import coo_array

    rows = coo_array((np.maximum(score, 1e-3), (query, target)), shape=(count, count)).tocsr()
    return lambda query_Q: rows[query_Q].toarray()


def read_pairs(
    kind: str, data: Sequence[str], config: PairsConfig, metric: str, *, seed: int = 0, resamples: int = RESAMPLES,
    keep: Path | None = None,
) -> PairsExam:  # fmt: skip
    """The exam of a task of pairs. Raises UserError for input that cannot be read, or that names no sequence."""
    if metric not in PAIRS[:2]:
        raise UserError(f"a {kind} task is compared by {' or '.join(PAIRS[:2])}, not by {metric!r}")
    if len(data) != 2:
        raise UserError("data of a task of pairs are two files: sequences, then pairs")
    options = ReadOptions("auto", config.column, config.id_column, kind=config.sequences)
    reading = Reading(config.sequences, molecules=config.molecules)
    letters = {r.id: s for r, s in clean(expand(data[0], options), options, reading, Account())}
    fields = ReadOptions("auto", config.a, fields=(config.b, config.label), identifiers=True)
    pairs = []
    for source in expand(data[1], fields):
        for record in read_records(source, fields):
            names = record.raw.decode().strip(), str(record.fields[0]).strip()
            for name in names:
                if name not in letters:
                    raise UserError(f"{record.where}: there is no sequence {name!r} in {data[0]}")
            pairs.append((*names, str(record.fields[1])))
    return PairsExam(letters, pairs, config, metric, seed, resamples)


class PairsExam:
    """Are related pairs more alike than unrelated ones? See `protocol.Exam`.

    Figures: auroc and auprc of the scores, and precision_at_k, the share of related ones among the highest. Pairs are
    drawn with all that share their first sequence; those that share the second alone still count as independent.
    """

    def __init__(
        self, letters: dict[str, bytes], pairs: Sequence[tuple[str, str, str]], config: PairsConfig, metric: str,
        seed: int, resamples: int,
    ):  # fmt: skip
        names = list(dict.fromkeys(name for a, b, _ in pairs for name in (a, b)))
        place = {name: number for number, name in enumerate(names)}
        self.test = [letters[name] for name in names]
        self.pair_P2 = np.array([(place[a], place[b]) for a, b, _ in pairs], dtype=np.int64).reshape(-1, 2)
        self.said = np.array([label for _, _, label in pairs], dtype=object)
        self.related_P = ~np.isin(self.said.astype(str), config.unrelated)
        if self.related_P.all() or not self.related_P.any():
            raise UserError(f"all pairs are {'related' if self.related_P.all() else 'unrelated'}: compare `unrelated`")
        self.metric, self.seed, self.resamples, self.sequences = metric, seed, resamples, config.sequences
        self.top = min(config.top, len(pairs))
        self.facts = {
            "pairs": f"{len(pairs):,}, {int(self.related_P.sum()):,} of them related",
            "sequences": f"{len(names):,}",
            "precision_at_k": f"among the {self.top:,} highest scores",
            "resampled": "pairs, with all that share their first sequence",
        }

    def baselines(self) -> dict[str, Score]:
        lengths_N = composition(self.test, self.sequences)[:, -1]
        # Domains of one family are of like length: sets of pairs are easily told apart by that alone.
        apart_P = np.abs(lengths_N[self.pair_P2[:, 0]] - lengths_N[self.pair_P2[:, 1]])
        found = {
            "length": self._scored(-apart_P, time.perf_counter()),
            "composition": self._cosine(unit(composition(self.test, self.sequences)[:, :-1])),
            "k-mers": self._cosine(kmers(self.test)),
        }
        rival = neighbours(self.sequences)
        if rival is not None:
            began = time.perf_counter()
            scores = rival[1](self.test)
            value_P = np.concatenate(
                [scores(block_B2[:, 0])[np.arange(len(block_B2)), block_B2[:, 1]] for block_B2 in self._pieces()]
            )
            found[rival[0]] = self._scored(value_P, began)
        return found

    def model(self, subject: Subject, say: Say) -> dict[str, Score]:
        own = subject.reads(self.test, self.sequences)
        found = subject.features("mean").of(own, lambda done, of: say(f"{done:,} of {of:,} sequences read"))
        return {"cosine": replace(self._cosine(unit(np.stack(found))), note=subject.note(self.test))}

    def _pieces(self) -> Iterator[np.ndarray]:
        for places in _blocks(len(self.pair_P2), len(self.test)):
            yield self.pair_P2[places]

    def _cosine(self, rows: Any) -> Score:
        began = time.perf_counter()
        a_P, b_P = self.pair_P2.T
        product = rows[a_P].multiply(rows[b_P]) if hasattr(rows, "multiply") else rows[a_P] * rows[b_P]
        return self._scored(np.asarray(product.sum(1)).reshape(-1), began)

    def _scored(self, score_P: np.ndarray, began: float) -> Score:
        from sklearn.metrics import average_precision_score, roc_auc_score

        order_P = np.lexsort((self.related_P, -score_P))
        figures = {
            "auroc": float(roc_auc_score(self.related_P, score_P)),
            "auprc": float(average_precision_score(self.related_P, score_P)),
            "precision_at_k": float(self.related_P[order_P[: self.top]].mean()),
        }
        firsts, unit_P = np.unique(self.pair_P2[:, 0], return_inverse=True)
        family = resampling.ranking([(score_P, self.related_P, unit_P)])
        drawn = _replicates(family, self.metric, len(firsts), self.resamples, self.seed)
        details = {}
        for name in sorted({*self.said[self.related_P].tolist()}):
            chosen_P = (self.said == name) | ~self.related_P
            details[f"auroc of {name}"] = float(roc_auc_score(self.related_P[chosen_P], score_P[chosen_P]))
        return Score(figures, drawn, time.perf_counter() - began, details)


def _replicates(family: resampling.Family, metric: str, units: int, resamples: int, seed: int) -> np.ndarray:
    return np.concatenate([family.values(draw_SU)[metric] for draw_SU in resampling.draws(units, resamples, seed)])


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))
