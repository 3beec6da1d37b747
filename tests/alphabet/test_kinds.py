"""Kinds of sequence: which models read what, how each is cleaned, and that alphabets of old stay what they were."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from biometro.alphabet import PROTEIN, Alphabet, AlphabetError, MoleculeAlphabet, MoleculePolicy, Reading, kind_of
from biometro.alphabet.immune import ANTIBODY, TCR
from biometro.alphabet.kinds import ALPHABETS, read_alphabet
from biometro.errors import UserError

MOLECULE = MoleculeAlphabet.of(["[C]", "[O]"], "selfies")
TEXT: Any = SimpleNamespace(name="text")


def test_fingerprints_are_those_that_models_and_corpora_were_saved_with() -> None:
    assert PROTEIN.fingerprint == "13a4ea4567e41658"  # of 1.0, before there were other kinds
    assert ANTIBODY.fingerprint == "42df435fb699f724"
    assert TCR.fingerprint == "c1cad42699e82019"
    assert MOLECULE.fingerprint == MoleculeAlphabet.from_json(MOLECULE.to_json()).fingerprint
    assert MoleculeAlphabet.of(["[C]", "[O]"], "smiles").fingerprint != MOLECULE.fingerprint


@pytest.mark.parametrize("alphabet", [PROTEIN, ANTIBODY, TCR, MOLECULE])
def test_an_alphabet_is_read_again_as_what_it_was(alphabet: Alphabet) -> None:
    again = read_alphabet(json.loads(json.dumps(alphabet.to_json())))
    assert again == alphabet and type(again) is type(alphabet) and again.fingerprint == alphabet.fingerprint


@pytest.mark.parametrize("data", [[], "protein", None, 5, {}, {"name": "protein"}, {"notation": "selfies"}])
def test_what_is_no_alphabet_is_refused(data: Any) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        read_alphabet(data)


@pytest.mark.parametrize("own", [PROTEIN, ANTIBODY, TCR, MOLECULE, TEXT])
@pytest.mark.parametrize("asked", [None, "protein", "antibody", "tcr", "molecule", "text"])
def test_which_models_read_what(own: Any, asked: Any) -> None:
    """As a table: rows are models, columns what is asked for."""
    table = {
        "protein": {"protein", "antibody", "tcr", "text"},
        "antibody": {"antibody", "protein", "text"},
        "tcr": {"tcr", "protein", "text"},
        "molecule": {"molecule"},
        "text": {"text", "protein", "antibody", "tcr", "molecule"},
    }
    if asked is None or asked in table[own.name]:
        assert kind_of(own, asked, "m") == (asked or own.name)
    else:
        with pytest.raises(UserError, match=r"^m: is a model of .*, and cannot read"):
            kind_of(own, asked, "m")


def test_each_kind_is_cleaned_in_its_way_and_measured_in_its_unit() -> None:
    pytest.importorskip("selfies")
    cases = {
        "protein": (b"mkt-a*", b"MKTA", 4, "residues"),
        "antibody": (b"evq|diq", b"EVQ|DIQ", 7, "residues"),
        "tcr": (b"|cassf:gil", b"|CASSF:GIL", 10, "residues"),
        "molecule": (b"OC(Cl)C name", b"CC(O)Cl", 6, "tokens"),
        "text": (b" any Thing\n", b"any Thing", 9, "characters"),
    }
    for kind, (raw, letters, length, unit) in cases.items():
        reading = Reading(kind)  # type: ignore[arg-type]
        assert reading.cleaner(None)(raw).letters == letters
        assert (reading.length(letters), reading.unit) == (length, unit)
    assert set(ALPHABETS) == {"protein", "antibody", "tcr"}


def test_policies_reach_the_cleaner() -> None:
    pytest.importorskip("selfies")
    molecules = MoleculePolicy(fragments="largest", stereo="drop", invalid="fail")
    cleaner = Reading("molecule", molecules=molecules).cleaner()
    assert cleaner(b"C[C@H](F)O.[Na+]").letters == b"CC(O)F"
    with pytest.raises(AlphabetError, match="no SMILES that RDKit can read"):
        cleaner(b"c1ccc")
    assert Reading("molecule").cleaner(MOLECULE)(b"CCN").dropped == "a token that the vocabulary lacks"
    assert Reading("protein", "keep_as_x").cleaner()(b"MUK").letters == b"MXK"
    with pytest.raises(AlphabetError, match="'U' at position 6"):
        Reading("tcr", "fail").cleaner()(b"CAV|CU")
