"""`example:receptors`: simulated T-cell receptors whose motifs, and the epitopes they stand for, are known.

    seed -> epitope -> its motifs -> ends of a V and a J segment around them, filled in at random -> alpha|beta

No receptor here was ever seen in nature. The peptides are written by us, too; each has one motif in the middle of the
alpha chain's CDR3 and one in the beta chain's, in which one residue in MUTATED is replaced. A share NOISE of receptors
has no motif at all, so that no method can be right every time. Which peptide a receptor is for stands in its id and
not in its sequence, so that reading it off is a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from biometro.alphabet.amino_acids import BACKGROUND
from biometro.alphabet.amino_acids import ORDER as RESIDUES

EPITOPES = {  # peptide: the motif of alpha chains, that of beta chains
    "KLMDTVFAL": ("GNSG", "RQGW"),
    "SYLPEHTRF": ("DTDK", "LGTE"),
    "AVWNQGKIV": ("SNYQ", "PDRG"),
    "RTFEIKHSY": ("RGGA", "VAEN"),
}
STARTS = {"alpha": ("CAV", "CAA", "CAMR", "CALS"), "beta": ("CASS", "CSAR", "CAWS", "CSVE")}  # as V segments end
ENDS = {"alpha": ("KLIF", "NFYF", "KLTF", "RLMF"), "beta": ("EQYF", "EAFF", "TQYF", "LHF")}  # as J segments begin
FILLED = (0, 3)  # residues between an end and the motif, both included
MUTATED = 0.1
NOISE = 0.05

Uniform = Callable[..., Any]  # Generator.random, the only draw used: numpy may change the others' streams


@dataclass(frozen=True)
class Receptor:
    """A receptor and its truth. `bound`: it has its peptide's motifs; `starts` where they begin in alpha and beta,
    0-based (of a receptor without motifs, where they would)."""

    name: str  # "receptor-0012"
    alpha: str
    beta: str
    peptide: str
    bound: bool
    starts: tuple[int, int]

    @property
    def letters(self) -> str:
        return f"{self.alpha}|{self.beta}"


def simulate(seed: int = 0, each: int = 256) -> list[Receptor]:
    """`each` receptors of every epitope. One depends on the seed and its own number only."""
    peptides = list(EPITOPES)
    return [_receptor(seed, number, peptides[number % len(peptides)]) for number in range(each * len(peptides))]


def records(seed: int = 0, each: int = 256) -> Iterator[tuple[str, str]]:
    """("receptor-0012|PEPTIDE", "ALPHA|BETA") for every receptor."""
    for found in simulate(seed, each):
        yield f"{found.name}|{found.peptide}", found.letters


def _receptor(seed: int, number: int, peptide: str) -> Receptor:
    uniform = np.random.Generator(np.random.PCG64([seed, number])).random
    bound = uniform() >= NOISE
    chains, starts = [], []
    for chain, motif in zip(("alpha", "beta"), EPITOPES[peptide], strict=True):
        middle = "".join(_any(uniform) if uniform() < MUTATED else letter for letter in motif)
        if not bound:
            middle = "".join(_any(uniform) for _ in motif)
        before = _one_of(STARTS[chain], uniform) + _filled(uniform)
        starts.append(len(before))
        chains.append(before + middle + _filled(uniform) + _one_of(ENDS[chain], uniform))
    return Receptor(f"receptor-{number:04d}", chains[0], chains[1], peptide, bound, (starts[0], starts[1]))


def _filled(uniform: Uniform) -> str:
    return "".join(_any(uniform) for _ in range(FILLED[0] + int(uniform() * (FILLED[1] - FILLED[0] + 1))))


def _one_of(names: tuple[str, ...], uniform: Uniform) -> str:
    return names[int(uniform() * len(names))]


def _any(uniform: Uniform) -> str:
    """A residue, as often as it is in proteins."""
    return RESIDUES[min(int(np.searchsorted(np.cumsum(BACKGROUND), uniform(), side="right")), len(RESIDUES) - 1)]
