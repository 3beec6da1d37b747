"""What generated molecules are like, beside what chance and the known ones give.

    candidates of one method ─┐
    controls, drawn alike ────┼▶ figures: validity, uniqueness, novelty, diversity, weight, logP, QED, model's score
    known molecules ──────────┘

Validity is a property of the notation as much as of the model: every row of SELFIES symbols is a molecule. A model that
is asked for its own opinion of its own molecules always likes them; what it was not asked for is whether they look like
the known ones.

Shapes: N candidates, M molecules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from biometro.alphabet.molecule import MoleculeAlphabet, chem, parse
from biometro.data import fingerprints
from biometro.data.corpus import Corpus
from biometro.evaluation import overlap
from biometro.evaluation.generation import CONTROL_STREAM, FEWEST
from biometro.inference import molecules
from biometro.inference.molecules import Molecules, Start

RANDOM, SUBSTITUTED, KNOWN = "random symbols", "random substitutions", "known molecules"
DESCRIPTORS = {"weight": "molecular weight (Da)", "logp": "logP (Crippen)", "qed": "QED"}
"""What is told of each molecule, by RDKit."""
MOST_COMPARED = 500
"""Molecules of a group whose pairs are compared, and of known ones that are described."""


@dataclass(frozen=True, eq=False)
class Group:
    """Molecules of one method. smiles: of every candidate, canonical, empty where there is none. scores: (N,) nats of
    `molecules.scores`, NaN where not asked for."""

    name: str
    smiles: Sequence[str]
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @cached_property
    def distinct(self) -> list[str]:
        """The molecules, each once, in the order in which they were drawn."""
        return [text for text in dict.fromkeys(self.smiles) if text]

    @cached_property
    def descriptors(self) -> dict[str, np.ndarray]:
        """(M,) float64 of each name in DESCRIPTORS, of the distinct molecules."""
        return describe(self.distinct)


def describe(smiles: Sequence[str]) -> dict[str, np.ndarray]:
    """(M,) float64 of each name in DESCRIPTORS; NaN where RDKit cannot say it."""
    chem()
    from rdkit.Chem import QED, Crippen, Descriptors

    makers: dict[str, Any] = {"weight": Descriptors.MolWt, "logp": Crippen.MolLogP, "qed": QED.qed}  # type: ignore[attr-defined]
    mols = [parse(text) for text in smiles]
    return {name: np.array([_said(make, mol) for mol in mols]) for name, make in makers.items()}


def _said(make: Any, mol: Any) -> float:
    try:
        return math.nan if mol is None else float(make(mol))
    except (ValueError, RuntimeError):  # an atom in a state that it has no parameter for
        return math.nan


def control(
    made: Molecules, alphabet: MoleculeAlphabet, start: Start | None, seed: int, counts: Sequence[float] | None = None
) -> tuple[str, Molecules]:
    """Name and molecules of the control: as many symbols at random, at least 200 molecules.

    Args:
        made: the generated ones, whose lengths, or numbers of replaced symbols, it has.
        alphabet: of the model.
        start: of analogues.
        seed: of the generated ones.
        counts: of each token in a corpus; without them symbols are drawn uniformly. Not of analogues, whose symbols are
            replaced uniformly.
    """
    size = max(FEWEST, len(made.tokens))
    some = [made.tokens[n % len(made.tokens)] for n in range(size)]
    if start is not None:
        own_L = start.read(start.codes)
        replaced = [int((tokens_L != own_L).sum()) for tokens_L in some]
        return SUBSTITUTED, molecules.random_analogues(start, replaced, seed + CONTROL_STREAM)
    shares_A = np.ones(len(alphabet.standard))
    if counts is not None and np.sum(counts):
        shares_A = np.asarray(counts, np.float64)[molecules.symbols(alphabet)]
    return RANDOM, molecules.random_molecules(alphabet, map(len, some), shares_A, seed + CONTROL_STREAM)


def figures(
    one: Group, known: Sequence[str] = (), corpus: Corpus | None = None, start: str = "", drawn: bool = True
) -> dict[str, float]:
    """Figures of one group by name; NaN where undefined.

    candidates; valid: share of these that RDKit reads; unique: share of distinct ones among the valid; novel: share of
    the distinct ones that are neither known, nor the start, nor in the corpus' training side; diversity: 1 - the mean
    Tanimoto similarity of pairs; similarity: mean to the start; weight, logp, qed: means over the distinct ones; score:
    mean.

    Args:
        one: the group.
        known: canonical SMILES that are not new.
        corpus: that the model was trained on, where it is at hand.
        start: canonical SMILES; empty without one.
        drawn: whether the group was drawn: known molecules have no validity, uniqueness and novelty.
    """
    distinct, found = one.distinct, {"candidates": float(len(one.smiles))}
    if drawn:
        valid = sum(bool(text) for text in one.smiles)
        found["valid"] = valid / len(one.smiles) if one.smiles else math.nan
        found["unique"] = len(distinct) / valid if valid else math.nan
        found["novel"] = novelty(distinct, known, corpus, start)
    found["diversity"] = diversity(distinct)
    if start:
        near = similarities(start, distinct[:MOST_COMPARED])
        found["similarity"] = float(near.mean()) if len(near) else math.nan
    for name, values_M in one.descriptors.items():
        known_M = values_M[np.isfinite(values_M)]
        found[name] = float(known_M.mean()) if len(known_M) else math.nan
    if np.isfinite(one.scores).any():
        found["score"] = float(np.nanmean(one.scores))
    return found


def novelty(distinct: Sequence[str], known: Sequence[str], corpus: Corpus | None, start: str = "") -> float:
    """Share of distinct molecules that are not known; NaN of none."""
    members = {*known, start}
    new = [text.encode() for text in distinct if text not in members]
    if corpus is not None:
        new = [*{*new} - overlap.standing(new, corpus)]
    return len(new) / len(distinct) if distinct else math.nan


def similarities(start: str, smiles: Sequence[str]) -> np.ndarray:
    """(M,) float64 Tanimoto similarities of ECFP4 to the start."""
    return fingerprints.tanimoto([start.encode()], [text.encode() for text in smiles])[0]


def diversity(smiles: Sequence[str]) -> float:
    """1 - the mean Tanimoto similarity of ECFP4 over all pairs of the first 500 molecules; NaN for fewer than two.

    The internal diversity of Benhenda 2017 (arXiv 1708.08227), without pairs of a molecule and itself.
    """
    letters = [text.encode() for text in smiles[:MOST_COMPARED]]
    if len(letters) < 2:
        return math.nan
    return 1 - float(fingerprints.tanimoto(letters, letters)[np.tril_indices(len(letters), -1)].mean())
