"""Probes: what a linear head reads out of a model's frozen vectors, beside what it reads out of the letters alone.

    labelled sequences ─▶ split ─▶ train, valid, test ─┬─▶ vectors of the model ─▶ linear head ─▶ figures, replicates
                                                       ├─▶ composition ─▶ the same head ─▶ ...
                                                       └─▶ k-mers or windows; the nearest by alignment ─▶ ...

A model's vector of a sequence is the mean over its residues; where residues have labels, each one's own. The head is
that of `heads`: its penalty is chosen on valid by the task's metric, it is fitted to train alone, and all are judged on
test, by the same resamples. To keep a task within minutes, heads of residues see a sample of the training residues.

Shapes: N sequences, L residues of one, M rows (sequences or residues), F features, K classes, labels or columns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from biometro.alphabet import MoleculePolicy, Reading, SequenceKind, protein
from biometro.data import sides
from biometro.data.labels import Labelled, read_labelled, take
from biometro.data.mmseqs import installed
from biometro.data.sides import Division, SplitConfig
from biometro.data.sources import ReadOptions
from biometro.data.task import LabelConfig, Truth
from biometro.errors import UserError
from biometro.evaluation import heads, metrics
from biometro.evaluation.baselines import Baseline, beside
from biometro.evaluation.protocol import RESAMPLES, NotAtHandError, Score, Subject

RESIDUES = {"train": 50_000, "valid": 20_000}
"""Known residues that a head is fitted to, and its penalty is chosen on, at most."""
SEQUENCES = {"train": 2_000, "valid": 500}
"""Sequences that these residues are drawn from, at most: all of their residues have to be read by the model."""
_CHUNK = 512  # sequences whose residues' vectors are in memory at once
_MOST_ONE_HOT = 1 << 26  # numbers

Say = Callable[[str], None]
Vectors = Callable[[Sequence[bytes]], list[np.ndarray]]


@dataclass(frozen=True)
class ProbeConfig:
    """What the file of such a task says beside what all files say.

    Args:
        labels: where labels stand; its task is the kind of the file.
        split: which sequences are held out; one way.
        sequences: what the data hold.
        molecules: what is done with them before any model reads them.
        column: of tables, the one that holds the sequence; of receptors, columns by part (`ReadOptions.column`).
        id_column: of tables, the one that holds the identifier.
    """

    labels: LabelConfig = field(default_factory=LabelConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    sequences: SequenceKind = "protein"
    molecules: MoleculePolicy = field(default_factory=MoleculePolicy)
    column: str | dict[str, str] = "sequence"
    id_column: str | None = None

    def __post_init__(self) -> None:
        if len(self.split.methods) != 1:
            raise UserError("split.by names several ways; a task has one")


def read(
    kind: str, data: Sequence[str], config: ProbeConfig, metric: str, *, seed: int = 0, resamples: int = RESAMPLES,
    keep: Path | None = None,
) -> ProbeExam:  # fmt: skip
    """The exam of one task file.

    Args:
        kind: as in `metrics`.
        data: files of labelled sequences.
        config: the task's.
        metric: the figure that is compared.
        seed: of the split, of what is drawn, and of the resamples.
        resamples: of the test set.
        keep: a file that holds the split, or will.

    Raises UserError for input that cannot be read, and a split that cannot be made.
    """
    split = config.split
    if not installed():
        if "homology" in split.methods:
            raise NotAtHandError("its split needs MMseqs2: pip install 'biometro[homology]', or put `mmseqs` on PATH")
        split = replace(split, identity=0.0)  # only the leak would need it, and the facts say that it is not known
    options = ReadOptions("auto", config.column, config.id_column, split.column, kind=config.sequences)
    reading = Reading(config.sequences, molecules=config.molecules)
    labelled = read_labelled(list(data), replace(config.labels, task=kind), options, reading)  # type: ignore[arg-type]
    metrics.check_metric(kind, metric, labelled.task.names, bool(labelled.groups))
    by = split.methods[0]
    made = sides.divide(labelled, by, split, seed) if keep is None else sides.kept(keep, labelled, by, split, seed)
    return ProbeExam(labelled, made, metric, seed, resamples)


class ProbeExam:
    """One task of labelled sequences, divided; see `protocol.Exam`."""

    def __init__(self, labelled: Labelled, division: Division, metric: str, seed: int, resamples: int):
        self.task, self.kind, self.metric = labelled.task, labelled.task.kind, metric
        self.sequences = labelled.kind
        self.seed, self.resamples = seed, resamples
        parts = {name: getattr(division, name) for name in sides.SIDES}
        self.facts = _facts(labelled, division)
        if self.task.per_residue:
            random = np.random.default_rng(seed)
            for name, most in SEQUENCES.items():
                if len(parts[name]) > most:
                    self.facts[name] = f"{most:,} of {len(parts[name]):,} sequences, drawn"
                    parts[name] = np.sort(random.choice(parts[name], most, replace=False))
        self.letters = {name: [labelled.letters[i] for i in part] for name, part in parts.items()}
        self.truth: dict[str, Truth] = {name: take(labelled.truth, part) for name, part in parts.items()}
        self.families = None if division.families is None else division.families[division.test]
        numbers = labelled.group_numbers
        self.groups = {name: None if numbers is None else numbers[part] for name, part in parts.items()}
        self.test = self.letters["test"]
        if self.task.per_residue:
            self.rows = {name: self._drawn(self.truth[name], most) for name, most in RESIDUES.items()}
            counts = " and ".join(f"{sum(map(len, rows)):,} of {name}" for name, rows in self.rows.items())
            self.facts["residues"] = f"{counts}, drawn from those that are known; all of test"

    def baselines(self) -> dict[str, Score]:
        """What letters alone, and the nearest training sequence, give on the same split."""
        names, found = self.task.names, {}
        if not self.task.per_residue:
            found["composition"] = self._probe(lambda letters: list(composition(letters, self.sequences)))
            aligned = one_hot(self.letters["train"], [*self.letters["valid"], *self.test])
            if aligned is not None:
                found["one-hot"] = self._probe(aligned)
        called = {"nearest neighbour": "alignment"} | ({"k-mers": "windows"} if self.task.per_residue else {})
        made = beside(self.sequences, self.kind, names, self.seed)
        for name, make in sorted(made.items(), key=lambda item: "neighbour" in item[0]):  # letters, then neighbours
            found[called.get(name, name)] = self._judged(make)
        return found

    def model(self, subject: Subject, say: Say) -> dict[str, Score]:
        """A probe of the model's vectors.

        Raises UserError where the model reads another kind of sequence, or residues have labels and are not its tokens.
        """
        everything = [sequence for side in sides.SIDES for sequence in self.letters[side]]
        subject.reads(everything, self.sequences)
        store = subject.features("residues" if self.task.per_residue else "mean")

        def read(letters: Sequence[bytes]) -> list[np.ndarray]:
            own = subject.reads(letters, self.sequences)
            return store.of(own, lambda done, of: say(f"{done:,} of {of:,} sequences read"))

        return {"probe": replace(self._probe(read), note=subject.note(everything))}

    def _probe(self, vectors: Vectors) -> Score:
        rows = self._residues if self.task.per_residue else self._sequences
        train_NF, truth = rows("train", vectors)
        valid_MF, valid = rows("valid", vectors)
        began = time.perf_counter()
        sign = 1 if metrics.larger_is_better(self.metric) else -1

        def score(predicted: np.ndarray) -> float:
            rows, groups = _as_rows(self.kind, valid, predicted), self.groups["valid"]
            return sign * metrics.measure(*rows, self.task.names, groups)[self._chosen_by]

        fitted = heads.fit(self.kind, self.task.outputs, train_NF, truth, valid_MF, score)
        predicted: Any
        if self.task.per_residue:
            predicted = self._predict_residues(fitted, vectors)
        else:
            predicted = fitted.predict(np.stack(vectors(self.test)))
        return self._score(predicted, began, {"penalty": fitted.penalty})

    @property
    def _chosen_by(self) -> str:
        """The figure that penalties are chosen by: residues of validation are drawn one by one, without sequences."""
        return "spearman" if self.metric == "spearman_per_sequence" else self.metric

    def _judged(self, make: Callable[[], Baseline]) -> Score:
        began = time.perf_counter()
        baseline = make().fit(self.letters["train"], self.truth["train"])
        return self._score(baseline.predict(self.test), began, {})

    def _score(self, predicted: Any, began: float, details: dict[str, Any]) -> Score:
        truth, names = self.truth["test"], self.task.names
        figures = metrics.measure(self.kind, truth, predicted, names, self.groups["test"])
        drawn = metrics.replicates(
            self.kind, truth, predicted, names, [self.metric], self.resamples, self.seed, self.families,
            self.groups["test"],
        )  # fmt: skip
        return Score(figures, drawn[self.metric], time.perf_counter() - began, details)

    def _sequences(self, side: str, vectors: Vectors) -> tuple[np.ndarray, np.ndarray]:
        return np.stack(vectors(self.letters[side])), np.asarray(self.truth[side])

    def _residues(self, side: str, vectors: Vectors) -> tuple[np.ndarray, np.ndarray]:
        """(M, F) vectors and (M,) truth of the residues that were drawn, sequence by sequence."""
        features: list[np.ndarray] = [np.empty(0)] * len(self.letters[side])
        for place, found in _in_chunks(self.letters[side], vectors):
            features[place] = found[self.rows[side][place]]  # a copy, so that the whole can go
        truth = [value[rows] for value, rows in zip(self.truth[side], self.rows[side], strict=True)]
        return np.concatenate(features), np.concatenate(truth)

    def _predict_residues(self, fitted: heads.Fitted, vectors: Vectors) -> list[np.ndarray]:
        predicted: list[np.ndarray] = [np.empty(0)] * len(self.test)
        for place, found in _in_chunks(self.test, vectors):
            predicted[place] = fitted.predict(found)
        return predicted

    def _drawn(self, truth: Truth, most: int) -> list[np.ndarray]:
        """Of each sequence, which of its known residues are used."""
        known = [np.flatnonzero(value >= 0 if value.dtype.kind == "i" else np.isfinite(value)) for value in truth]
        ends = np.cumsum([len(rows) for rows in known])
        total = int(ends[-1]) if len(ends) else 0
        if total <= most:
            return known
        chosen = np.sort(np.random.default_rng(self.seed).choice(total, most, replace=False))
        return [rows[own] for rows, own in zip(known, _split(chosen, ends), strict=True)]


def composition(letters: Sequence[bytes], kind: SequenceKind = "protein") -> np.ndarray:
    """(N, 21) float64: shares of the twenty standard residues, and the logarithm of the length; of molecules (N, 94)
    those of the characters of SMILES, which are atoms, bonds, rings and branches."""
    codes = np.arange(33, 126) if kind == "molecule" else np.frombuffer(protein.STANDARD.encode(), np.uint8)
    found = np.empty((len(letters), len(codes) + 1))
    for row, sequence in zip(found, letters, strict=True):
        counts = np.bincount(np.frombuffer(sequence, np.uint8), minlength=256)[codes]
        row[:-1], row[-1] = counts / max(1, len(sequence)), np.log(max(1, len(sequence)))
    return found


def one_hot(train: Sequence[bytes], others: Sequence[bytes] = ()) -> Vectors | None:
    """What tells each residue in its place, (F,) float32 of 0 and 1: for variants of one protein, where a place is
    the same in all. A column for each residue that training sequences have in a place where they differ.

    None where sequences differ in length, or the columns of all would be more than memory is meant for.
    """
    if len({len(letters) for letters in (*train, *others)}) != 1:
        return None
    rows_NL = np.frombuffer(b"".join(train), np.uint8).reshape(len(train), -1)
    columns = [(place, letter) for place in range(rows_NL.shape[1]) for letter in np.unique(rows_NL[:, place])]
    varied = {place for place in range(rows_NL.shape[1]) if np.ptp(rows_NL[:, place])}
    columns = [column for column in columns if column[0] in varied]
    if not columns or len(columns) * (len(train) + len(others)) > _MOST_ONE_HOT:
        return None
    place_F, letter_F = (np.array(part) for part in zip(*columns, strict=True))

    def vectors(letters: Sequence[bytes]) -> list[np.ndarray]:
        return [(np.frombuffer(row, np.uint8)[place_F] == letter_F).astype(np.float32) for row in letters]

    return vectors


def _split(chosen: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """Ascending places in the whole, as places in each of the parts that end there."""
    starts = np.concatenate([[0], ends[:-1]])
    cuts = np.searchsorted(chosen, ends[:-1])
    return [part - start for part, start in zip(np.split(chosen, cuts), starts.tolist(), strict=True)]


def _in_chunks(letters: Sequence[bytes], vectors: Vectors) -> Iterator[tuple[int, np.ndarray]]:
    """Each sequence's place and vectors, those of like length together, as the store of vectors keeps them."""
    order = sorted(range(len(letters)), key=lambda place: len(letters[place]))
    for start in range(0, len(order), _CHUNK):
        places = order[start : start + _CHUNK]
        yield from zip(places, vectors([letters[place] for place in places]), strict=True)


def _as_rows(kind: str, truth: np.ndarray, predicted: np.ndarray) -> tuple[str, Any, Any]:
    """Truth and predictions of rows in the form that `metrics` has for them: residues as one sequence each."""
    if kind == "residue_regression":
        return kind, [truth], [predicted.reshape(-1)]
    return (kind, [truth], [predicted]) if kind == "residue_classification" else (kind, truth, predicted)


def _facts(labelled: Labelled, division: Division) -> dict[str, str]:
    """What the report says of the data."""
    task, by = labelled.task, division.by
    facts = {
        "sequences": f"{len(labelled):,} of {labelled.account.read or len(labelled):,} records",
        "split": f"by {'the published sides' if by == 'column' else by}: "
        + ", ".join(f"{count:,} {side}" for side, count in division.sizes().items()),
    }
    if task.discrete:
        facts["classes"] = f"{task.outputs}: {', '.join(task.names[:12])}{' ...' * (task.outputs > 12)}"
    found = division.leaks.get("test")
    facts["relatives in train"] = (
        "not measured"
        if found is None
        else f"{found.count:,} of {found.of:,} test sequences ({100 * found.share:.1f} %), {found.relatives}"
    )
    for reason, count in labelled.account.dropped.items():
        facts[f"left out ({reason})"] = f"{count:,}"
    if not installed():
        facts["alignment"] = "not run: MMseqs2 is not installed"
    facts["resampled"] = "families" if division.families is not None else "sequences"
    return facts
