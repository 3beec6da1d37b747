"""Antibodies and T-cell receptors: parts in, one sequence, the same parts out; marks typed and in order."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biometro.alphabet import PROTEIN, AlphabetError, immune
from biometro.alphabet.immune import ANTIBODY, PARTS, TCR, ImmuneKind, clean, join, split

CHAINS = st.text("ACDEFGHIKLMNPQRSTVWYX", min_size=1, max_size=12) | st.just("")
NAMES = {"antibody": ("first", "second"), "tcr": ("first", "second", "peptide", "mhc")}


@pytest.mark.parametrize("kind", ["antibody", "tcr"])
@given(data=st.data())
def test_parts_that_are_joined_and_cleaned_are_split_into_the_same_parts(kind: ImmuneKind, data: st.DataObject) -> None:
    parts = {name: data.draw(CHAINS) for name in PARTS[kind]}
    text = join(kind, dict(parts))
    found = clean(text.encode(), kind, "as_is")
    assert found.letters.decode() == text and not found.dropped
    assert clean(found.letters, kind, "as_is").letters == found.letters
    expected = {name: part.encode() for name, part in zip(NAMES[kind], parts.values(), strict=True) if part}
    assert split(found.letters) == expected
    alphabet = ANTIBODY if kind == "antibody" else TCR
    assert alphabet.decode(alphabet.encode(found.letters)) == text


@pytest.mark.parametrize("kind", ["antibody", "tcr"])
@given(text=st.text("ACK|:@-*uJ ", max_size=14))
def test_any_text_is_one_shape_or_refused_and_clean_once(kind: ImmuneKind, text: str) -> None:
    raw, marks = text.encode(), "|" if kind == "antibody" else "|:@"
    typed = "".join(mark for mark in text if mark in "|:@")
    good = typed == "".join(mark for mark in marks if mark in typed) and (kind == "tcr" or not set(typed) & set(":@"))
    try:
        letters = clean(raw, kind, "as_is").letters
    except AlphabetError as error:
        assert not good, str(error)
        return
    assert good
    assert clean(letters, kind, "as_is").letters == letters
    residues = [re.sub(r"[- ]", "", part).rstrip("*").upper() for part in re.split(r"[|:@]", text)]
    assert re.sub(r"[|:@]", "", letters.decode()) == re.sub(r"[J*]", "X", "".join(residues))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"EVQL|DIQM", b"EVQL|DIQM"),
        (b"evql|diqm\n", b"EVQL|DIQM"),
        (b"EVQL|", b"EVQL|"),  # a heavy chain, and not a chain of which nothing is said
        (b"|DIQM", b"|DIQM"),
        (b"EVQL", b"EVQL"),
        (b"|", b""),
        (b"-|-", b""),
        (b"CAVF|CASSF:GILGF@YF", b"CAVF|CASSF:GILGF@YF"),
        (b"|:GIL", b":GIL"),  # no chain: nothing to type
        (b":GIL", b":GIL"),
        (b"CAVF|:GIL@", b"CAVF|:GIL"),
        (b"CASSF:@YF", b"CASSF@YF"),
        (b"|:@", b""),
        (b"CAS*|CASS-F* ", b"CAS|CASSF"),
    ],
)
def test_what_is_left_of_marks(raw: bytes, expected: bytes) -> None:
    assert clean(raw, "tcr", "as_is").letters == expected


@pytest.mark.parametrize(
    ("raw", "kind", "position", "words"),
    [
        (b"EVQ|DI1M", "antibody", 7, "'1' at position 7 is not the letter"),
        (b"EVQL:DIQM", "antibody", 5, "antibody is written heavy|light"),
        (b"A|C|D", "antibody", 4, "out of place"),
        (b"CASSF:GIL|CAVF", "tcr", 10, "out of place; a T-cell receptor is written alpha|beta:peptide@MHC"),
        (b"AA@CC:DD", "tcr", 6, "out of place"),
        (b"CAVF|CASSF:GI2L", "tcr", 14, "'2' at position 14"),
        (b"CAVF|CAV5", "tcr", 9, "'5' at position 9"),  # and not in the first chain, which begins as the second does
        (b"CASSF:GIL@HLA-A*02:01", "tcr", 19, "out of place"),
        (b"CASSF:GIL@HLA-A*02", "tcr", 17, "not the name of an allele"),
    ],
)
def test_errors_say_where_in_the_whole_sequence(raw: bytes, kind: ImmuneKind, position: int, words: str) -> None:
    with pytest.raises(AlphabetError, match=re.escape(words)) as error:
        clean(raw, kind, "as_is")
    assert error.value.position == position
    assert error.value.letter == chr(raw[position - 1])


def test_policies_of_residues_hold_in_every_part() -> None:
    assert clean(b"CUVF|CAZF", "tcr", "keep_as_x")[:2] == (b"CXVF|CAXF", 2)
    assert clean(b"CUVF|CAZF", "tcr", "as_is")[:2] == (b"CUVF|CAZF", 2)
    assert clean(b"CAVF|CAZF", "tcr", "drop_sequence").dropped == "non-standard residue"
    with pytest.raises(AlphabetError, match="'Z' at position 8 "):
        clean(b"CAVF|CAZF", "tcr", "fail")


def test_a_mark_is_read_and_never_a_target_and_residues_are_those_of_proteins() -> None:
    for alphabet, marks in ((ANTIBODY, "|"), (TCR, "|:@")):
        assert alphabet.tokens == (*PROTEIN.tokens, *marks)
        assert alphabet.standard_ids == PROTEIN.standard_ids
        assert alphabet.encode("MKTX").tolist() == PROTEIN.encode("MKTX").tolist()
        assert not {alphabet.id(mark) for mark in marks} & set(alphabet.standard_ids)
    with pytest.raises(AlphabetError):
        ANTIBODY.encode("A:C")
    assert immune.ANTIBODY.fingerprint != immune.TCR.fingerprint != PROTEIN.fingerprint
