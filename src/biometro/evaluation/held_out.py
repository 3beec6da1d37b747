"""Held-out sequences in a pretraining report: what the map of embeddings is coloured by, and what is drawn of them.

alphabet, sequences ─▶ colours of the map
                    └▶ structures of molecules | logos of receptors' CDR3s | nothing
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from biometro.alphabet import Alphabet, MoleculeAlphabet
from biometro.alphabet.kinds import UNITS
from biometro.alphabet.molecule import chem, parse
from biometro.errors import UserError
from biometro.evaluation import logos, molecule_plots
from biometro.evaluation.page import card, swatch

STRUCTURES = 12
_HYDROPHOBIC = "AILMFVWC"


def colours(alphabet: Alphabet, sequences: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Of each name, a number for each sequence (token numbers).

    The length, and of residues the share of hydrophobic ones (marks between chains count neither way); of molecules
    logP and the number of rings, where RDKit is there.
    """
    unit = UNITS.get(alphabet.name, "residues")
    found = {f"length in {unit}": np.array([len(tokens_L) for tokens_L in sequences])}
    if isinstance(alphabet, MoleculeAlphabet):
        return found | _of_molecules([parse_tokens(alphabet, tokens_L) for tokens_L in sequences])
    some = [alphabet.id(letter) for letter in _HYDROPHOBIC]
    residues = [tokens_L[np.isin(tokens_L, alphabet.standard_ids)] for tokens_L in sequences]
    shares = [np.isin(tokens_R, some).mean() if len(tokens_R) else np.nan for tokens_R in residues]
    return found | {f"share of hydrophobic residues ({_HYDROPHOBIC})": np.array(shares)}


def parse_tokens(alphabet: MoleculeAlphabet, tokens_L: np.ndarray) -> Any:
    """RDKit's molecule of tokens; None where it is none, or RDKit is missing."""
    try:
        chem()
    except UserError:
        return None
    return parse(alphabet.smiles(tokens_L))


def _of_molecules(mols: Sequence[Any]) -> dict[str, np.ndarray]:
    if not any(mol is not None for mol in mols):
        return {}
    from rdkit.Chem import Crippen, rdMolDescriptors

    makers: dict[str, Any] = {"logP (Crippen)": Crippen.MolLogP, "number of rings": rdMolDescriptors.CalcNumRings}  # type: ignore[attr-defined]
    return {
        name: np.array([np.nan if mol is None else float(make(mol)) for mol in mols]) for name, make in makers.items()
    }


def gallery(alphabet: Alphabet, sequences: Sequence[np.ndarray]) -> str:
    """Pictures of the sequences as HTML; empty where the kind has none."""
    if isinstance(alphabet, MoleculeAlphabet):
        return structures(alphabet, sequences)
    if alphabet.name == "tcr":
        receptors = [alphabet.decode(tokens_L).encode() for tokens_L in sequences]
        cards = logo_cards(logos.cdr3_sets(receptors), "Held-out CDR3s")
        return f"<section>{''.join(cards)}</section>" if cards else ""
    return ""


def structures(alphabet: MoleculeAlphabet, sequences: Sequence[np.ndarray]) -> str:
    """A grid of the first molecules; empty where RDKit is missing."""
    try:
        chem()
    except UserError:
        return ""
    size = min(STRUCTURES, len(sequences))
    chosen: Sequence[int] = np.linspace(0, len(sequences) - 1, size).astype(int).tolist() if size else []
    drawn = molecule_plots.grid([(alphabet.smiles(sequences[n]), f"{len(sequences[n]):,} tokens") for n in chosen])
    if not drawn.drawn:
        return ""
    note = f"{drawn.drawn:,} of {len(sequences):,} held-out molecules.{drawn.note}"
    return f"<h2>Held-out molecules</h2><p>{note}</p>{drawn.html}"


def logo_cards(sets: dict[str, list[str]], title: str, heading: str = "h2") -> list[str]:
    """A card for each chain's CDR3s of which there are enough."""
    items = (f"<li>{swatch(colour, 'o')}{name}" for name, colour in logos.CHEMISTRY.items())
    legend = f"<ul>{''.join(items)}</ul>"
    cards = []
    for chain, sequences in sets.items():
        found = logos.logo(sequences)
        if found is not None and found.used >= logos.FEWEST:
            name = title if chain == "chain" else f"{title}: {chain} chains"
            cards.append(card(name, logos.draw(found), f"{found.note} {logos.NOTE}", legend, heading=heading))
    return cards
