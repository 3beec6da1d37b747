"""A task's truth and predictions laid flat, and what is counted row by row.

sequences or lists of residues ─▶ `lay_flat` ─▶ Flat: known rows, each with the unit it is drawn with ─▶ figures

Shapes: N sequences, L residues of one, M rows (sequences, or known residues of all), K classes, labels or columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

# States of DSSP (Kabsch & Sander 1983, Biopolymers 22, 2577) and the usual reduction of eight to three. Coil is written
# C, L, - or as a space.
_COIL = "CL- "
_THREE_STATES = {**dict.fromkeys("HGI", 0), **dict.fromkeys("EB", 1), **dict.fromkeys("TS" + _COIL, 2)}
_FEWEST_RESIDUES = 3  # of a sequence that counts in spearman_per_sequence
Column = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Flat:
    """Truth (M,) int64 or (M, K) float64, predictions (M, K) float64, and the unit of each row (M,) int64.

    A unit is what is drawn as a whole: a sequence, or a family; there are `units` of them. groups: (M,) int64, the
    group of each row, -1 for none.
    """

    kind: str
    truth: np.ndarray
    predicted: np.ndarray
    unit_M: np.ndarray
    units: int
    sequence_M: np.ndarray
    names: tuple[str, ...]
    groups: np.ndarray | None = None

    @property
    def classes(self) -> bool:
        return self.kind in ("classification", "residue_classification")

    def finite(self) -> bool:
        """Whether there is a prediction to score, and all of them are numbers (classes and labels)."""
        known = self.predicted if self.classes else self.predicted[np.isfinite(self.truth)]
        return bool(known.size) and bool(np.isfinite(known).all())

    def by_group(self) -> Iterator[Flat]:
        """The rows of each group, which are drawn as those of the whole."""
        groups = np.empty(0) if self.groups is None else self.groups
        for number in np.unique(groups[groups >= 0]).tolist():
            row_M = np.flatnonzero(groups == number)
            yield replace(
                self, truth=self.truth[row_M], predicted=self.predicted[row_M], unit_M=self.unit_M[row_M],
                sequence_M=self.sequence_M[row_M], groups=None,
            )  # fmt: skip


def lay_flat(
    kind: str, truth: Any, predicted: Any, names: Sequence[str], families: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> Flat:  # fmt: skip
    """The task as `metrics` tables it, without residues of unknown truth.

    Args:
        kind, truth, predicted, names: as there.
        families: (N,) of sequences, whole ones of which are drawn.
        groups: (N,) of sequences, -1 for none, within which figures per group are measured.

    Raises:
        ValueError: where truth, predictions, names, families and groups do not fit one another.
    """
    if len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} truths but {len(predicted)} predictions")
    unit_N, units = np.arange(len(truth)), len(truth)
    for numbers in (families, groups):
        if numbers is not None and len(numbers) != len(truth):
            raise ValueError(f"{len(truth)} sequences but {len(numbers)} groups")
    if families is not None:
        found, unit_N = np.unique(families, return_inverse=True)
        units = len(found)
    names = tuple(names) if kind != "residue_regression" else ("",)
    if kind.startswith("residue_"):
        rows, rows_predicted, sequence_M = known_residues(truth, predicted)
    else:
        rows, rows_predicted, sequence_M = np.asarray(truth), np.asarray(predicted), np.arange(len(truth))
    rows_predicted = rows_predicted.astype(np.float64).reshape(len(rows), len(names))
    if kind in ("classification", "residue_classification"):
        rows = rows.astype(np.int64).reshape(len(rows_predicted))
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(names):
            raise ValueError(f"truth has classes {rows.min()} to {rows.max()}, but there are {len(names)} names")
    else:
        rows = rows.astype(np.float64).reshape(rows_predicted.shape)
    own = None if groups is None else np.asarray(groups)[sequence_M]
    return Flat(kind, rows, rows_predicted, unit_N[sequence_M], units, sequence_M, names, own)


def known_residues(truth: Sequence[Any], predicted: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The known residues of all sequences, one after another.

    Args:
        truth: N arrays (L,) of class numbers with -1, or of values with NaN, for unknown.
        predicted: N arrays (L, K), or (L,).

    Returns:
        Truth (M,), predictions (M, K) or (M,), and the number of the sequence of each (M,) int64.

    Raises:
        ValueError: where the lengths differ.
    """
    lengths = [len(labels_L) for labels_L in truth]
    if lengths != [len(predicted_L) for predicted_L in predicted]:
        raise ValueError("truth and predictions differ in their number of sequences, or in the residues of one")
    sequence_M = np.repeat(np.arange(len(lengths)), lengths)
    if not lengths:
        return np.empty(0), np.empty(0), sequence_M
    truth_M = np.concatenate([np.asarray(labels_L) for labels_L in truth])
    predicted_M = np.concatenate([np.asarray(predicted_L) for predicted_L in predicted])
    known_M = truth_M >= 0 if truth_M.dtype.kind in "iu" else np.isfinite(truth_M)
    return truth_M[known_M], predicted_M[known_M], sequence_M[known_M]


def each_label(truth: np.ndarray, probabilities: np.ndarray) -> Iterator[Column]:
    """For each class against the rest, or label, its scores (M,), outcomes (M,) bool, and where they stand (M,)."""
    for k in range(probabilities.shape[1]):
        if truth.ndim == 2:
            known_M = np.flatnonzero(np.isfinite(truth[:, k]))
            yield probabilities[known_M, k], truth[known_M, k] > 0.5, known_M
        else:
            yield probabilities[:, k], truth == k, np.arange(len(truth))


def ranked_labels(flat: Flat) -> list[Column]:
    """Those of `each_label` whose AUROC is averaged: of two classes the second, of more all, and all labels."""
    labels = list(each_label(flat.truth, flat.predicted))
    return labels[1:] if flat.classes and len(labels) == 2 else labels


def columns(flat: Flat) -> Iterator[Column]:
    """For each column its known truth (M,), their predictions (M,), and where they stand (M,)."""
    for truth_M, predicted_M in zip(flat.truth.T, flat.predicted.T, strict=True):
        known_M = np.flatnonzero(np.isfinite(truth_M))
        yield truth_M[known_M], predicted_M[known_M], known_M


def class_scores(flat: Flat) -> dict[str, np.ndarray]:
    """What is a mean over rows, row by row (M,): log_loss, brier, and where they apply q8 and q3."""
    truth_M = flat.truth
    p_MK = flat.predicted / flat.predicted.sum(1, keepdims=True)  # of float32, sums are one to seven digits
    hot_MK = np.eye(len(flat.names))[truth_M]
    squares_M = ((p_MK - hot_MK) ** 2).sum(1)
    of_truth_M = np.maximum(p_MK[np.arange(len(truth_M)), truth_M], np.finfo(np.float64).eps)
    scores = {"log_loss": -np.log(of_truth_M), "brier": squares_M / 2 if len(flat.names) == 2 else squares_M}
    if flat.kind == "residue_classification":
        answer_M = flat.predicted.argmax(1)
        for name in structure_figures(flat.names):
            state_K = np.array([_THREE_STATES[letter] if name == "q3" else k for k, letter in enumerate(flat.names)])
            scores[name] = state_K[answer_M] == state_K[truth_M]
    return scores


def structure_figures(names: Sequence[str]) -> tuple[str, ...]:
    """q8 and q3 where the classes are states of secondary structure (H, E and a coil among them), q3 of three."""
    states = set(names)
    if not (states <= set(_THREE_STATES) and {"H", "E"} <= states and states & set(_COIL)):
        return ()
    return ("q8", "q3") if len(states) > 3 else ("q3",)


def label_losses(flat: Flat) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy in nats of each known label, and the row of each."""
    row_M, label_M = np.nonzero(np.isfinite(flat.truth))
    p_M = flat.predicted[row_M, label_M]
    of_truth_M = np.where(flat.truth[row_M, label_M] > 0.5, p_M, 1 - p_M)
    return -np.log(np.maximum(of_truth_M, np.finfo(np.float64).eps)), row_M


def exact_matches(flat: Flat) -> tuple[np.ndarray, np.ndarray]:
    """Whether all known labels of a row are right, and the row, of rows with a known label."""
    known_MK = np.isfinite(flat.truth)
    row_M = np.flatnonzero(known_MK.any(1))
    right_MK = ((flat.truth > 0.5) == (flat.predicted >= 0.5)) | ~known_MK
    return right_MK[row_M].all(1), row_M


def rho_per_sequence(flat: Flat) -> tuple[np.ndarray, np.ndarray]:
    """Spearman's correlation within each sequence of enough known residues whose truth varies, and its unit."""
    from scipy.stats import rankdata

    rho, unit = [], []
    starts = np.flatnonzero(np.diff(flat.sequence_M, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(flat.sequence_M)], strict=False):
        x_L, y_L = flat.truth[start:end, 0], flat.predicted[start:end, 0]
        if end - start < _FEWEST_RESIDUES or np.ptp(x_L) == 0:
            continue
        if not np.isfinite(y_L).all():
            rho.append(np.nan)
        else:
            rho.append(np.corrcoef(rankdata(x_L), rankdata(y_L))[0, 1] if np.ptp(y_L) else 0.0)
        unit.append(flat.unit_M[start])
    return np.array(rho), np.array(unit, np.int64)
