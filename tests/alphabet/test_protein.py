from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biometro.alphabet import PROTEIN, Alphabet, AlphabetError, protein


def test_tokens_and_order_are_those_of_esm2() -> None:
    esm = pytest.importorskip("esm")
    assert list(PROTEIN.tokens) == esm.data.Alphabet.from_architecture("ESM-1b").all_toks


@given(st.text(alphabet=protein.STANDARD + "XBUZO", max_size=50))
def test_decode_undoes_encode(letters: str) -> None:
    tokens = PROTEIN.encode(letters)
    assert tokens.dtype == np.uint8
    assert PROTEIN.decode(tokens) == letters
    assert [PROTEIN.tokens[t] for t in tokens] == list(letters)


def test_a_letter_without_token_is_named_with_its_place() -> None:
    with pytest.raises(AlphabetError, match=r"'J' at position 3"):
        PROTEIN.encode("MKJ")


def test_json_round_trip_and_fingerprint() -> None:
    again = Alphabet.from_json(PROTEIN.to_json())
    assert again == PROTEIN
    other = dataclasses.replace(PROTEIN, standard=PROTEIN.standard[1:])
    assert other.fingerprint != PROTEIN.fingerprint
    with pytest.raises(ValueError, match="fingerprint"):
        Alphabet.from_json({**PROTEIN.to_json(), "standard": "AC"})


def test_tidy_removes_gaps_case_and_terminal_stop() -> None:
    assert protein.tidy(b"mk-t.A \r\nyi*\n") == b"MKTAYI"
    assert protein.tidy(b"MK*TA**") == b"MK*TA"
    with pytest.raises(AlphabetError, match="'1' at position 3"):
        protein.tidy(b"MK1TA")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("as_is", b"MUOBZXXX"), ("keep_as_x", b"MXXXXXXX"), ("drop_sequence", None)],
)
def test_policies(policy: protein.ResiduePolicy, expected: bytes | None) -> None:
    letters = b"MUOBZJX*"
    assert protein.count_nonstandard(letters) == 7
    assert protein.apply_policy(letters, policy) == expected


def test_policy_fail_names_the_residue() -> None:
    with pytest.raises(AlphabetError, match="'U' at position 2"):
        protein.apply_policy(b"MUK", "fail")
