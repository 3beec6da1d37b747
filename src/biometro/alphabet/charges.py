"""SMILES whose charges stand on the wrong atom, put right: what some converters make of delocalised groups.

    [C-](=O)=O ─▶ C(=O)[O-]     [C+](=[NH2])=[NH2] ─▶ C(N)=[NH2+]     P(=O)(=O)=O ─▶ P(=O)([O-])[O-]

A mol2 file marks both bonds of a carboxylate, and all of an amidinium, guanidinium, phosphate or sulfonate, as
delocalised. A converter that writes each as a double bond gives atoms with more bonds than they can have, which RDKit
refuses: so it does 41 % of the ligands of PDBbind 2016 as DeepDTAF (Wang et al. 2021, doi:10.1093/bib/bbab072) passes
them on. No atom, hydrogen or ring is added or taken away. Carboxylates and amidiniums keep their charge, which moves to
the oxygen or nitrogen; oxygens of phosphorus and sulfur that were given a bond too many take the charge that the text
has left out.
"""

from __future__ import annotations

from typing import Any

from biometro.alphabet.molecule import LONGEST_SMILES, chem

_OXO = {"P": 1, "S": 2}
"""Double bonds to oxygen that an atom with others keeps; S with three single bonds' worth beside is left alone."""


def repaired(smiles: str) -> str | None:
    """Canonical SMILES of a text that RDKit refuses, its charges put right; None where that does not make it readable.

    A text that RDKit can read is not for this function: it changes none of those.
    """
    Chem = chem()
    if len(smiles) > LONGEST_SMILES or Chem.MolFromSmiles(smiles) is not None:
        return None
    mol = Chem.MolFromSmiles(smiles, sanitize=False)
    if mol is None:
        return None
    changed = [_carboxylate(atom, Chem) or _amidinium(atom, Chem) or _oxo(atom, Chem) for atom in mol.GetAtoms()]
    if not any(changed):
        return None
    try:
        Chem.SanitizeMol(mol)
    except (Chem.MolSanitizeException, ValueError, RuntimeError):
        return None
    Chem.SetBondStereoFromDirections(mol)
    Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    text = Chem.MolToSmiles(mol)
    again = Chem.MolFromSmiles(text)
    return None if again is None else str(Chem.MolToSmiles(again))


def _is_double(bond: Any) -> bool:
    return bool(bond.GetBondTypeAsDouble() == 2)


def _ends(atom: Any) -> list[Any]:
    """The bonds of an atom to oxygens that have nothing else: no charge, no hydrogen, no other neighbour."""
    return [
        bond for bond, other in ((bond, bond.GetOtherAtom(atom)) for bond in atom.GetBonds())
        if other.GetSymbol() == "O" and not other.GetFormalCharge() and other.GetDegree() == 1
        and not other.GetNumExplicitHs() and (_is_double(bond) or other.GetNoImplicit())
    ]  # fmt: skip


def _charge(bond: Any, atom: Any, Chem: Any) -> None:
    """The bond of `atom` becomes single, and the oxygen behind it takes a negative charge."""
    bond.SetBondType(Chem.BondType.SINGLE)
    bond.GetOtherAtom(atom).SetFormalCharge(-1)


def _carboxylate(atom: Any, Chem: Any) -> bool:
    """[C-](=O)=O, or [C-](=O)[O]."""
    ends = _ends(atom)
    if (atom.GetSymbol(), atom.GetFormalCharge(), len(ends)) != ("C", -1, 2) or not any(map(_is_double, ends)):
        return False
    atom.SetFormalCharge(0)
    ends.sort(key=_is_double, reverse=True)
    _charge(ends[1], atom, Chem)
    return True


def _amidinium(atom: Any, Chem: Any) -> bool:
    """[C+] with a nitrogen or several behind double bonds: one with most hydrogens keeps its bond, for the charge."""
    if atom.GetSymbol() != "C" or atom.GetFormalCharge() != 1:
        return False
    nitrogens = [
        (bond, other) for bond, other in ((bond, bond.GetOtherAtom(atom)) for bond in atom.GetBonds())
        if _is_double(bond) and other.GetSymbol() == "N" and not other.GetFormalCharge()
    ]  # fmt: skip
    if not nitrogens:
        return False
    nitrogens.sort(key=lambda found: -found[1].GetNumExplicitHs())
    atom.SetFormalCharge(0)
    nitrogens[0][1].SetFormalCharge(1)
    for bond, _ in nitrogens[1:]:
        bond.SetBondType(Chem.BondType.SINGLE)
        bond.SetBondDir(Chem.BondDir.NONE)
    return True


def _oxo(atom: Any, Chem: Any) -> bool:
    """P with two oxygens or more behind double bonds, S with three."""
    ends = [bond for bond in _ends(atom) if _is_double(bond)]
    keeps = _OXO.get(atom.GetSymbol())
    if keeps is None or atom.GetFormalCharge() or len(ends) <= keeps:
        return False
    for bond in ends[keeps:]:
        _charge(bond, atom, Chem)
    atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)  # which oxygen has the charge is no fact
    return True
