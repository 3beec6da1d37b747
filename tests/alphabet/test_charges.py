"""Charges on the wrong atom put right: the repaired form is the sane form, and nothing sane is touched."""

from __future__ import annotations

import pytest

from biometro.alphabet.charges import repaired

Chem = pytest.importorskip("rdkit.Chem")

FORMS = {
    "F/C=C/CC[C-](=O)=O": "F/C=C/CCC(=O)[O-]",
    "[NH3+][C@H](C)[C-](=O)[O]": "[NH3+][C@H](C)C(=O)[O-]",
    "c1(ccccc1)[C+](=[NH2])=[NH2]": "NC(=[NH2+])c1ccccc1",
    "CC[NH]=[C+](=[NH2])=[NH2]": "CCNC(N)=[NH2+]",
    "N/C=C\\N[C+](=N)N": "N/C=C\\NC(N)=[NH2+]",
    "c1(=O)[nH][c+](=[NH2])[nH]c2ccccc12": "O=c1[nH]c(=[NH2+])[nH]c2ccccc12",
    "C[P](=O)(=O)=O": "CP(=O)([O-])[O-]",
    "CO[P@](=O)(=O)CC": "COP(=O)([O-])CC",
    "CC[S](=O)(=O)=O": "CCS(=O)(=O)[O-]",
    "C[C@@H](N)CC[C-](=O)=O.O[S](=O)(=O)=O": "C[C@@H](N)CCC(=O)[O-].OS(=O)(=O)[O-]",
}


@pytest.mark.parametrize("broken", FORMS)
def test_the_repaired_form_is_the_sane_form(broken: str) -> None:
    assert Chem.MolFromSmiles(broken) is None
    assert repaired(broken) == Chem.CanonSmiles(FORMS[broken])


@pytest.mark.parametrize(
    "text",
    ["CC(=O)[O-]", "CCS(=O)(=O)O", "NC(=[NH2+])N", "C[N+](=O)[O-]", "C(C)(C)(C)(C)C", "c1cc", "", "CCCC[B](O)(O)O"],
)
def test_what_is_sane_or_broken_otherwise_is_left_alone(text: str) -> None:
    assert repaired(text) is None


def test_atoms_hydrogens_and_rings_stay() -> None:
    for broken, sane in FORMS.items():
        mol, other = Chem.MolFromSmiles(broken, sanitize=False), Chem.MolFromSmiles(repaired(broken))
        assert [mol.GetNumAtoms(), mol.GetNumBonds()] == [other.GetNumAtoms(), other.GetNumBonds()]
        if "P" not in sane and "S" not in sane:
            assert Chem.GetFormalCharge(mol) == Chem.GetFormalCharge(other)
