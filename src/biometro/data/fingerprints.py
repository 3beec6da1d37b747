"""Molecules as chemists compare them: scaffolds."""

from __future__ import annotations

from biometro.alphabet.molecule import chem, parse


def scaffold(smiles: bytes) -> bytes:
    """Canonical SMILES of the Bemis-Murcko scaffold, without chirality (Bemis & Murcko 1996, doi:10.1021/jm9602928);
    of a molecule without rings, empty."""
    from rdkit.Chem.Scaffolds import MurckoScaffold

    mol = parse(smiles.decode("ascii", "replace"))
    if mol is None or not mol.GetRingInfo().NumRings():  # taking a chain apart, atom by atom, can last minutes
        return b""
    text: str = chem().MolToSmiles(MurckoScaffold.GetScaffoldForMol(mol), isomericSmiles=False)
    return text.encode()
