"""Test sequences that a fine-tuning report draws: molecules with their answers, CDR3s of each class.

    truth, answers, letters ─▶ few of each class, or the extremes of a number ─▶ results.json ─▶ HTML

All is plain, ready for JSON. Other kinds of sequence have no picture, and residues that have labels of their own none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from biometro.alphabet import SequenceKind
from biometro.alphabet.molecule import chem
from biometro.data.task import Task, Truth
from biometro.errors import UserError
from biometro.evaluation import logos, molecule_plots
from biometro.evaluation.held_out import logo_cards
from biometro.evaluation.label_tables import finite, shown

CLASSES = 6
"""Classes, or columns, of which sequences are drawn."""
EACH = 4
"""Molecules of each."""
_CDR3S = 200  # of each class, in a logo


def structures(
    kind: SequenceKind, task: Task, truth: Truth, predicted: Any, letters: Sequence[bytes]
) -> list[dict[str, Any]]:
    """Of each class (multilabel: of each column those that have it), its first test molecules and how likely the model
    holds it; of a number that is predicted the lowest and the highest. Entries have `name`, and `items` of SMILES,
    truth (None of classes) and answer. Empty for what is no molecule."""
    if kind != "molecule" or not isinstance(truth, np.ndarray):
        return []
    answers_NK = np.asarray(predicted)
    found = []
    for k, name in enumerate(task.names[:CLASSES] if task.discrete else task.names[:1]):
        if not task.discrete:
            order = np.argsort(truth[:, k], kind="stable")
            order = order[np.isfinite(truth[order, k])]
            parts = {f"{name}: lowest": order[:EACH], f"{name}: highest": order[EACH:][-EACH:][::-1]}
        else:
            parts = {name: np.flatnonzero(truth == k if truth.ndim == 1 else truth[:, k] == 1)[:EACH]}
        for title, rows in parts.items():
            items = [
                [letters[n].decode(), None if task.discrete else float(truth[n, k]), float(answers_NK[n, k])]
                for n in rows.tolist()
            ]
            if items:
                found.append({"name": title, "items": items})
    return found


def cdr3s(kind: SequenceKind, task: Task, truth: Truth, letters: Sequence[bytes]) -> dict[str, dict[str, list[str]]]:
    """Of each class the CDR3s of test receptors by chain. Empty for what is no receptor, or has no classes."""
    if kind != "tcr" or task.kind != "classification" or not isinstance(truth, np.ndarray):
        return {}
    found = {}
    for k, name in enumerate(task.names[:CLASSES]):
        some = [letters[n] for n in np.flatnonzero(truth == k)[:_CDR3S].tolist()]
        if sets := logos.cdr3_sets(some):
            found[name] = sets
    return found


def structure_cards(groups: Sequence[Mapping[str, Any]], method: str) -> str:
    """What `structures` chose, as HTML; empty where there is none, or RDKit is missing."""
    try:
        grids = [(str(one["name"]), molecule_plots.grid([_legend(item) for item in one["items"]])) for one in groups]
        chem()
    except UserError:
        return ""
    parts = (f"<h4>{escape(name)}</h4>{drawn.html}" for name, drawn in grids if drawn.drawn)
    body = "".join(parts)
    return f"<h3>Test molecules: {escape(method)}</h3><p class=note>{escape(NOTE)}</p>{body}" if body else ""


def _legend(item: Sequence[Any]) -> tuple[str, str]:
    smiles, truth, answer = item
    said = shown(finite(answer)) or "undefined"
    return str(smiles), f"probability {said}" if truth is None else f"measured {shown(finite(truth))}, predicted {said}"


def cdr3_cards(found: Mapping[str, Mapping[str, list[str]]]) -> Iterator[str]:
    """Logos of what `cdr3s` chose."""
    for name, sets in found.items():
        yield from logo_cards(dict(sets), f"CDR3s of {name}", heading="h3")


NOTE = (
    "The first of each class, with the probability that the model gives it; of numbers the extremes that were measured."
)
