"""`example:molecules`: molecules put together by a rule, whose scaffolds, substituents and label are known.

    scaffold with two places × substituent × substituent ─▶ SMILES, and whether it is an acid

Every combination is there once, in a shuffled order; nothing was measured, and whether any of them was ever made is
beside the point. The label is a rule that can be read off the structure: `acid` where either substituent is a
carboxylic or a sulfonic acid or a tetrazole, `other` elsewhere. Each molecule's scaffold stands in its id, for splits
and retrieval. SMILES are written by hand so that they are valid with the substituents in their places; no toolkit is
asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SCAFFOLDS = {  # {a} and {b}: a substituent, in brackets where the chain goes on
    "benzene": "c1({a})ccc({b})cc1",
    "pyridine": "c1({a})ccc({b})nc1",
    "naphthalene": "c1({a})ccc2cc({b})ccc2c1",
    "thiophene": "c1({a})ccc({b})s1",
    "indole": "c1({a})ccc2[nH]cc({b})c2c1",
    "biphenyl": "c1({a})ccc(cc1)c1ccc({b})cc1",
    "cyclohexane": "C1({a})CCC({b})CC1",
    "piperidine": "C1({a})CCN({b})CC1",
    "quinoline": "c1({a})ccc2ncc({b})cc2c1",
    "benzamide": "c1({a})ccc(cc1)C(=O)Nc1ccc({b})cc1",
}
OTHERS = (
    "C", "C(C)C", "CCO", "CCN", "CC#N", "C(F)(F)F", "C(=O)OC", "C(=O)N", "C(=O)C", "S(=O)(=O)N", "C1CC1", "Cc1ccccc1",
)  # fmt: skip
ACIDS = ("C(=O)O", "CC(=O)O", "S(=O)(=O)O", "c1nnn[nH]1")


@dataclass(frozen=True)
class Molecule:
    """A molecule and its truth."""

    name: str  # "molecule-0012"
    smiles: str
    scaffold: str
    substituents: tuple[str, str]

    @property
    def label(self) -> str:
        return "acid" if set(self.substituents) & set(ACIDS) else "other"


def simulate(seed: int = 0) -> list[Molecule]:
    """All combinations, in an order that the seed says. Two that are one molecule (a benzene with its substituents
    exchanged) stay two SMILES, as they do in public files."""
    groups = (*OTHERS, *ACIDS)
    every = [(name, a, b) for name in SCAFFOLDS for a in groups for b in groups]
    order = np.argsort(np.random.Generator(np.random.PCG64(seed)).random(len(every)), kind="stable")
    return [_molecule(number, *every[place]) for number, place in enumerate(order)]


def records(seed: int = 0) -> Iterator[tuple[str, str]]:
    """("molecule-0012|acid|pyridine", SMILES) for every molecule."""
    for found in simulate(seed):
        yield f"{found.name}|{found.label}|{found.scaffold}", found.smiles


def _molecule(number: int, scaffold: str, a: str, b: str) -> Molecule:
    return Molecule(
        f"molecule-{number:04d}", SCAFFOLDS[scaffold].format(a=_renumbered(a), b=_renumbered(b)), scaffold, (a, b)
    )


def _renumbered(group: str) -> str:
    """A ring of a substituent is closed inside the ring bonds 1 and 2 of a scaffold, so it bears the number 3."""
    return group.replace("1", "3")
