"""Contact prediction as a task: does a model rank pairs of residues that touch above those that do not?

    structures | table | example:families ─▶ Protein ─▶ ContactsExam ─┬─▶ baselines: random, separation, MI + APC
                                                                      └─▶ model: attention, categorical Jacobian

Precision at k is the share of contacts among the k pairs of highest score, k = L, L/2, L/5 (as CASP and Rao et al.
2021 count), or C, the number of contacts there are. It is computed for each protein and range of separation, and
averaged over proteins. Rules:

- Only pairs of known residues count; L is their number. k is 1 at least, and all pairs at most.
- Pairs of equal score are taken in random order: the figure is the expected one.
- A protein without a contact in a range has no figure there, for nothing could be found.

Resamples draw whole proteins. Shapes: L residues, M pairs, N rows of an alignment or proteins, S resamples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from biometro.alphabet import SequenceKind
from biometro.data.contacts import PairColumns, Protein, read_table, simulated
from biometro.data.structures import find_structures, read_chains, read_structure
from biometro.errors import UserError
from biometro.evaluation.protocol import RESAMPLES, Score, Subject
from biometro.evaluation.resampling import draws, means
from biometro.inference.contacts import LONGEST, ContactReader, corrected, fit_regression

RANGES: dict[str, tuple[int, int | None]] = {"short": (6, 11), "medium": (12, 23), "long": (24, None), "all": (6, None)}
CUTS = {"L": 1, "L2": 2, "L5": 5}
FIGURES = tuple(f"precision_{name}_{cut}" for name in RANGES for cut in (*CUTS, "C"))
METHODS = ("attention", "jacobian")
_TRAIN = 20  # proteins that Rao et al. 2021 fit on


@dataclass(frozen=True)
class ContactsConfig:
    """What a task file says of contacts.

    Args:
        metric: one of FIGURES, precision_<short|medium|long|all>_<L|L2|L5|C>.
        methods: how models are read: attention, jacobian.
        longest: residues; longer proteins are left out, for all methods.
        train: proteins that a regression of attention is fitted on, drawn under the seed and not examined; default 20,
            or a quarter of all where that is less. Not for data with a split column, whose side `train` is all taken.
        test: most proteins that are examined, drawn under the seed; default all.
        chain: of structures with chains of different sequences: refuse them, or take the longest.
        distance: angstrom between C-beta atoms below which residues of a structure touch.
        column, pairs_column, id_column, split_column, first: of tables; see `PairColumns`. Sides are train and test.
        families, members: of example:families; the defaults are those that `prepare` makes a corpus of.
    """

    metric: str = "precision_long_L"
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    longest: int = LONGEST
    train: int | None = None
    test: int | None = None
    chain: Literal["refuse", "longest"] = "refuse"
    distance: float = 8.0
    column: str = "sequence"
    pairs_column: str = "pairs"
    id_column: str | None = None
    split_column: str | None = None
    first: int = 1
    families: int = 8
    members: int = 256

    def __post_init__(self) -> None:
        if self.metric not in FIGURES:
            raise UserError(f"contacts: metric is {self.metric!r}; it must be one of: {', '.join(FIGURES)}")
        if isinstance(self.methods, str) or not self.methods or not set(self.methods) <= set(METHODS):
            raise UserError(f"contacts: methods is {self.methods!r}; it must be a list of: {', '.join(METHODS)}")
        if self.chain not in ("refuse", "longest"):
            raise UserError(f"contacts: chain is {self.chain!r}; it must be refuse or longest")
        least = {"longest": 2, "train": 0, "test": 1, "families": 1, "members": 2, "first": -(10**6)}
        for name, low in least.items():
            value = getattr(self, name)
            if value is None and name in ("train", "test"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise UserError(f"contacts: {name} is {value!r}; it must be a whole number from {low}")
        wide = self.distance
        if isinstance(wide, bool) or not (isinstance(wide, int | float) and 0 < wide <= 50):
            raise UserError(f"contacts: distance is {wide!r}; it must be above 0 and at most 50 angstrom")


class ContactsExam:
    """Proteins of known contacts, ready to be given to models (`protocol.Exam`).

    Args:
        proteins: to be examined; those longer than config.longest are left out, of equal sequences all but the first.
        train: to fit a regression of attention on; may be empty. Those with a sequence that is examined are left out.
        config: see there; what it says of reading is not used here.
        seed: of all that is drawn.
        resamples: S.

    Raises UserError where no protein is left that has a contact in the metric's range.
    """

    sequences: SequenceKind = "protein"

    def __init__(
        self,
        proteins: Sequence[Protein],
        train: Sequence[Protein] = (),
        *,
        config: ContactsConfig = ContactsConfig(),
        seed: int = 0,
        resamples: int = RESAMPLES,
    ):
        self.config, self.seed, self.resamples = config, seed, resamples
        short = [protein for protein in proteins if len(protein) <= config.longest]
        once: dict[bytes, Protein] = {}
        for protein in short:
            once.setdefault(protein.letters, protein)
        self.proteins = list(once.values())
        self.test = [protein.letters for protein in self.proteins]
        seen = set(self.test)
        self.train = [p for p in train if len(p) <= config.longest and p.letters not in seen]
        perfect = self._figures([protein.matrix() for protein in self.proteins])[config.metric]
        if not np.isfinite(perfect).any():
            raise UserError(
                f"contacts: none of {len(proteins)} proteins has a contact that {config.metric} counts and up to "
                f"{config.longest} residues"
            )
        self.facts: Mapping[str, str] = {
            "proteins": f"{len(self.proteins)}, {sum(map(len, self.test)):,} residues",
            "contacts": f"{sum(_far(protein) for protein in self.proteins):,} of residues 6 or more apart",
            "regression fitted on": f"{len(self.train)} other proteins",
            "left out": f"{len(proteins) - len(short)} longer than {config.longest} residues, "
            f"{len(short) - len(self.proteins)} repeated",
            f"{config.metric} of a perfect ranking": f"{np.nanmean(perfect):.3f}",
            f"proteins with {config.metric}": f"{int(np.isfinite(perfect).sum())}",
        }

    def baselines(self) -> dict[str, Score]:
        """`random` order, nearest in `separation` first; where all proteins are aligned, their mutual information."""
        makers: dict[str, Callable[[Protein], np.ndarray]] = {
            "random": lambda protein: np.zeros((len(protein), len(protein))),
            "separation": lambda protein: -np.abs(np.subtract.outer(np.arange(len(protein)), np.arange(len(protein)))),
        }
        if all(protein.rows is not None for protein in self.proteins):
            makers["mutual information"] = _informed
        found = {}
        for name, maker in makers.items():
            start = time.perf_counter()
            found[name] = self._score([maker(protein) for protein in self.proteins], start)
        return found

    def model(self, subject: Subject, say: Callable[[str], None]) -> dict[str, Score]:
        """`attention head` (the model's own), `attention regression` (fitted here), `categorical Jacobian`.

        Raises UserError where the model can be read in none of the ways asked for; where in some, the scores' notes say
        why not in the others.
        """
        subject.reads(self.test, self.sequences)
        reader = ContactReader(
            subject.bundle, device=subject.device, precision=subject.precision, batch_tokens=subject.batch_tokens,
            longest=self.config.longest,
        )  # fmt: skip
        found: dict[str, Score] = {}
        reasons: list[str] = []
        for method in METHODS:
            if method in self.config.methods:
                try:
                    run = self._attention if method == "attention" else self._jacobian
                    found |= run(reader, subject.name, say)
                except UserError as error:
                    reasons.append(f"{method}: {error}")
        if not found:
            raise UserError("; ".join(reasons))
        return {name: replace(score, note="; ".join(reasons)) for name, score in found.items()}

    def _attention(self, reader: ContactReader, name: str, say: Callable[[str], None]) -> dict[str, Score]:
        ways = {} if reader.own is None else {"attention head": reader.own}
        start = time.perf_counter()
        if self.train:
            say(f"{name}: a regression of attention on {len(self.train)} proteins")
            ways["attention regression"] = fit_regression(reader, self.train, self.seed)
        if not ways:
            raise UserError("this model has no contact head, and there are no other proteins to fit a regression on")
        found = {}
        for way, regression in ways.items():
            say(f"{name}: {way}")
            found[way] = self._score([reader.attention_contacts(s, regression) for s in self.test], start)
            start = time.perf_counter()
        return found

    def _jacobian(self, reader: ContactReader, name: str, say: Callable[[str], None]) -> dict[str, Score]:
        start = time.perf_counter()
        flops = sum(reader.jacobian_flops(len(letters)) for letters in self.test)
        maps = []
        for number, letters in enumerate(self.test):
            say(f"{name}: categorical Jacobian, protein {number + 1} of {len(self.test)}, {flops:.1e} FLOPs in all")
            maps.append(reader.jacobian_contacts(letters))
        return {"categorical Jacobian": self._score(maps, start, {"flops": flops})}

    def _score(self, maps: Sequence[np.ndarray], start: float, details: Mapping[str, Any] | None = None) -> Score:
        """The score of a map (L, L) for each protein, computed since `start`."""
        figures = self._figures(maps)
        value_N = figures[self.config.metric]
        defined = np.flatnonzero(np.isfinite(value_N))
        mean = means({"metric": (value_N[defined], defined)}, len(value_N))
        blocks = draws(len(value_N), self.resamples, self.seed)
        return Score(
            {name: float(np.nanmean(v_N)) if np.isfinite(v_N).any() else math.nan for name, v_N in figures.items()},
            np.concatenate([mean.values(weights_SG)["metric"] for weights_SG in blocks]),
            time.perf_counter() - start,
            {
                "proteins": {
                    protein.name: None if math.isnan(value) else float(value)
                    for protein, value in zip(self.proteins, value_N, strict=True)
                },
                **(details or {}),
            },
        )

    def _figures(self, maps: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """(N,) of each figure, NaN where it is undefined."""
        rows = [precisions(scores_LL, protein) for scores_LL, protein in zip(maps, self.proteins, strict=True)]
        return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in FIGURES}


def precisions(scores_LL: np.ndarray, protein: Protein) -> dict[str, float]:
    """All FIGURES of one protein's scores (L, L), of which those above the diagonal are read; NaN where undefined."""
    known = np.flatnonzero(protein.known)
    i_M, j_M = (known[side] for side in np.triu_indices(len(known), 1))
    score_M, true_M, apart_M = scores_LL[i_M, j_M], protein.matrix()[i_M, j_M], j_M - i_M
    found = {}
    for name, (low, high) in RANGES.items():
        inside = (apart_M >= low) & (apart_M <= (len(protein) if high is None else high))
        touching = int(true_M[inside].sum())
        ranks = {cut: max(1, len(known) // part) for cut, part in CUTS.items()} | {"C": touching}
        for cut, k in ranks.items():
            found[f"precision_{name}_{cut}"] = precision(score_M[inside], true_M[inside], k) if touching else math.nan
    return found


def precision(score_M: np.ndarray, true_M: np.ndarray, k: int) -> float:
    """The expected share of true ones among the k of highest score, level ones in random order; NaN with a NaN."""
    k = min(k, len(score_M))
    if not np.isfinite(score_M).all():
        return math.nan
    last = np.partition(score_M, len(score_M) - k)[len(score_M) - k]
    above_M, level_M = score_M > last, score_M == last
    return float((true_M[above_M].sum() + (k - above_M.sum()) * true_M[level_M].mean()) / k)


def mutual_information(rows_NL: np.ndarray) -> np.ndarray:
    """(L, L) float64 mutual information of columns in nats, APC corrected (Dunn et al. 2008, Bioinformatics 24, 333).

    Args:
        rows_NL: uint8 codes, 0..19 residues; of a pair of columns, rows with anything else in either are left out.
    """
    N, L = rows_NL.shape
    one_NLA = (rows_NL[:, :, None] == np.arange(20)).astype(np.float64)
    information_LL = np.zeros((L, L))
    for i in range(L):
        joint_ALA = (one_NLA[:, i].T @ one_NLA.reshape(N, -1)).reshape(20, L, 20)
        joint_LAA = joint_ALA.transpose(1, 0, 2)
        joint_LAA = joint_LAA / np.maximum(joint_LAA.sum((1, 2), keepdims=True), 1e-300)
        chance_LAA = joint_LAA.sum(2, keepdims=True) * joint_LAA.sum(1, keepdims=True)
        ratio = np.divide(joint_LAA, chance_LAA, out=np.ones_like(joint_LAA), where=joint_LAA > 0)
        information_LL[i] = (joint_LAA * np.log(ratio)).sum((1, 2))
    np.fill_diagonal(information_LL, 0)
    return corrected(torch.from_numpy(information_LL)[None])[0].numpy()


def _informed(protein: Protein) -> np.ndarray:
    assert protein.rows is not None
    return mutual_information(protein.rows)


def _far(protein: Protein) -> int:
    return int((protein.pairs[:, 1] - protein.pairs[:, 0] >= RANGES["all"][0]).sum())


def _of_structure(path: str, config: ContactsConfig) -> Protein:
    if config.chain == "longest":
        return max(read_chains(path, config.distance).values(), key=len)
    return read_structure(path, distance=config.distance)


def read(
    kind: str, data: Sequence[str], config: ContactsConfig, metric: str, *, seed: int = 0, resamples: int = RESAMPLES,
    keep: Path | None = None,
) -> ContactsExam:  # fmt: skip
    """The exam of a task file; arguments as for `probes.read`."""
    return read_exam(list(data), replace(config, metric=metric), seed=seed, resamples=resamples)


def read_exam(
    data: str | list[str], config: ContactsConfig = ContactsConfig(), *, seed: int = 0, resamples: int = RESAMPLES
) -> ContactsExam:
    """The exam that a task file describes.

    Args:
        data: example:families, a table of sequences and pairs, or structures (files, globs, folders).
        config: how to read it.
        seed: of what is drawn.
        resamples: S.

    Raises UserError for what cannot be read, and where nothing is left to examine.
    """
    names = [data] if isinstance(data, str) else list(data)
    if names == ["example:families"]:
        proteins = simulated(0, config.families, config.members)
    elif paths := find_structures(names):
        proteins = [_of_structure(path, config) for path in paths]
    else:
        columns = PairColumns(config.column, config.pairs_column, config.id_column, config.split_column, config.first)
        proteins = read_table(names, columns)
    if any(protein.side is not None for protein in proteins):
        test, train = ([p for p in proteins if p.side == side] for side in ("test", "train"))
        if not test:
            raise UserError(f"contacts: no row has the side test in column {config.split_column!r}")
    else:
        test, train = _drawn(proteins, config, seed)
    if config.test is not None and config.test < len(test):
        chosen = np.random.default_rng(seed).permutation(len(test))[: config.test]
        test = [test[i] for i in sorted(chosen)]
    return ContactsExam(test, train, config=config, seed=seed, resamples=resamples)


def _drawn(proteins: list[Protein], config: ContactsConfig, seed: int) -> tuple[list[Protein], list[Protein]]:
    """Proteins to examine and to fit on, in their order."""
    count = min(_TRAIN, len(proteins) // 4) if config.train is None else config.train
    if count >= len(proteins):
        raise UserError(f"contacts: train is {count}, but there are {len(proteins)} proteins in all")
    order = np.random.default_rng(seed).permutation(len(proteins))
    return [proteins[i] for i in sorted(order[count:])], [proteins[i] for i in sorted(order[:count])]
