"""Variants: what people write, what the nomenclature says it means, and what is said of those of no use."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biometro.alphabet.protein import STANDARD
from biometro.data.changes import BadVariantError, distance
from biometro.data.hgvs import NAMES
from biometro.data.intake import Account
from biometro.data.variants import (
    Change,
    VariantOptions,
    difference,
    parse,
    read_variants,
    singles,
    write,
)
from biometro.data.wildtype import read_wildtype
from biometro.errors import UserError

WILD = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV"
NAME_OF = {letter: name for name, letter in NAMES.items()}


def chain(text: str, length: int = 600) -> str:
    """A chain of alanine with the residues that a variant of the nomenclature names: `W24 K31`."""
    letters = ["A"] * length
    for word in text.split():
        letters[int(word[1:]) - 1] = word[0]
    return "".join(letters)


# What the recommendations of the HGVS for proteins show as examples, and what they say it means.
HGVS = [
    ("NP_003997.1:p.Trp24Cys", "W24", [(23, 24, "C")]),
    ("NP_003997.1:p.(Trp24Cys)", "W24", [(23, 24, "C")]),
    ("LRG_199p1:p.Trp24Cys", "W24", [(23, 24, "C")]),
    ("NP_003997.1:p.W24C", "W24", [(23, 24, "C")]),
    ("NP_003997.1:p.Cys188=", "C188", []),
    ("p.=", "", []),
    ("p.(=)", "", []),
    ("NP_003997.2:p.Val7del", "V7", [(6, 7, "")]),
    ("NP_003997.2:p.(Val7del)", "V7", [(6, 7, "")]),
    ("NP_003997.2:p.Lys23_Val25del", "K23 V25", [(22, 25, "")]),
    ("p.Gly2_Met46del", "G2 M46", [(1, 46, "")]),
    ("NP_003997.2:p.Val7dup", "V7", [(7, 7, "V")]),
    ("NP_003997.2:p.Lys23_Val25dup", "K23 V25", [(25, 25, "KAV")]),
    ("p.His4_Gln5insAla", "H4 Q5", [(4, 4, "A")]),
    ("p.Lys2_Gly3insGlnSerLys", "K2 G3", [(2, 2, "QSK")]),
    ("p.Cys28delinsTrpVal", "C28", [(27, 28, "WV")]),
    ("p.Cys28_Lys29delinsTrp", "C28 K29", [(27, 29, "W")]),
    ("p.Glu125_Ala132delinsGlyLeuHisArgPheIleValLeu", "E125", [(i, i + 1, c) for i, c in enumerate("GLHRFIVL", 124)]),
    ("p.Arg76_Cys77delinsSerTrp", "R76 C77", [(75, 76, "S"), (76, 77, "W")]),
    ("NP_003997.1:p.[Ser68Arg;Asn594del]", "S68 N594", [(67, 68, "R"), (593, 594, "")]),
    ("NP_003997.1:p.[(Ser68Arg);(Asn594del)]", "S68 N594", [(67, 68, "R"), (593, 594, "")]),
    ("p.([Ser68Arg;Asn594del])", "S68 N594", [(67, 68, "R"), (593, 594, "")]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "residues", "expected"), HGVS, ids=[case[0] for case in HGVS])
def test_the_nomenclature(text: str, residues: str, expected: list[tuple[int, int, str]]) -> None:
    wildtype = chain(residues)
    found = parse(text, wildtype)
    assert found.changes == tuple(Change(*change) for change in expected) and found.name == text
    assert found.substitutions == all(end - start == 1 == len(letters) for start, end, letters in expected)
    assert parse(write(found.changes, wildtype), wildtype).changes == found.changes


@pytest.mark.parametrize(
    ("text", "residues", "said"),
    [
        ("NP_003997.1:p.Trp24Ter", "W24", "stop"),
        ("p.Trp24*", "W24", "stop"),
        ("p.(Tyr4*)", "Y4", "stop"),
        ("W24*", "W24", "stop"),
        ("p.(Met3_His4insGlyTer)", "M3 H4", "stop"),
        ("NP_004371.2:p.(Asn47delinsSerSerTer)", "N47", "stop"),
        ("p.(Pro578_Lys579delinsLeuTer)", "P578 K579", "stop"),
        ("p.W24X", "W24", r"X \(or a stop, in old notation\) is none of the 20"),
        ("p.Trp24Sec", "W24", "U is none of the 20"),
        ("p.Trp24Foo", "W24", "Foo is no amino acid"),
        ("p.Arg97ProfsTer23", "R97", "frameshift"),
        ("NP_0123456.1:p.Arg97fs", "R97", "frameshift"),
        ("R97Pfs*23", "R97", "frameshift"),
        ("p.Met1ext-5", "M1", "extensions"),
        ("p.Ter110GlnextTer17", "A110", "extensions"),
        ("p.Lys2_Leu3insTer12", "K2 L3", "lengths of insertions"),
        ("p.Lys2_Leu3insX[34]", "K2 L3", "no change of a residue"),
        ("p.Ala2[10]", "A2", "no change of a residue"),
        ("p.Arg78_Gly79ins23", "R78 G79", "no change of a residue"),
        ("p.Arg78_Gly80insLys", "R78 G80", "two neighbours"),
        ("p.Arg78insLys", "R78", "two neighbours"),
        ("p.Gly56Ala^Ser^Cys", "G56", "not known whether"),
        ("p.[Ser68Arg];[Asn594del]", "S68 N594", "two alleles"),
        ("p.(Ser73Arg)(;)(Asn103del)", "S73 N103", "two alleles"),
        ("p.[Lys31Asn,Val25_Lys31del]", "K31 V25", "two proteins of one allele"),
        ("p.Trp24=/Cys", "W24", "'Cys' is no change"),
        ("p.0", "", "no protein"),
        ("p.?", "", "no protein"),
        ("NP_1.1:p.Trp24Cys;NP_2.1:p.Trp25Cys", "W24 W25", "several proteins: NP_1.1:?, NP_2.1"),
        ("E2G:p.Trp24Cys", "E3 W24", "residue 2 is A, not E"),  # a change, and no accession to be passed over
        ("24C", "W24", "which residue of the wild type"),
        ("Trp24_25del", "W24", "which residue of the wild type"),
        ("Trp24_Ala20del", "W24", "does not go up"),
        ("Trp24_Ala25Gly", "W24", "is it a delins"),
        ("W24CC", "W24", "is it a delins"),
        ("w24c", "W24", "capital letters"),
        ("W24C:", "W24", "'' is no change"),
        ("WT:W24C", "W24", "'WT' is no change"),
        (" ", "", "wild type itself is written WT"),
        (WILD, "", "looks like a whole sequence"),
        ("W999C", "", "there is no residue 999; they have the numbers 1 to 600"),
        ("W0C", "", "there is no residue 0"),
        ("W24C:W24C", "W24", "position 24 is named twice"),
        ("W24C:W24F", "W24", "position 24 is named twice"),
        ("W24W:W24F", "W24", "position 24 is named twice"),
        ("A23_W24insG:A23_W24insK", "W24", "position 24 is named twice"),
        ("A20_W24del:A22C", "W24", "two changes meet at position 22"),
        ("A20_W24del:A21_A22insG", "W24", "two changes meet at position 22"),
    ],
)
def test_what_is_refused(text: str, residues: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        parse(text, chain(residues), where="x.txt, line 7")
    assert str(error.value).startswith(f"x.txt, line 7: {text.strip()[:30]}") and "\n" not in str(error.value)


@pytest.mark.parametrize("between", [":", ",", ";", "/", ": ", " ; "])
def test_several_changes(between: str) -> None:
    expected = (Change(3, 4, "G"), Change(9, 10, "K"), Change(11, 12, ""))
    for parts in (
        ["A4G", "R10K", "I12del"],
        ["I12del", "p.Arg10Lys", "A4G"],
        ["NP_1:p.A4G", "NP_1:p.R10K", "NP_1:p.I12del"],
    ):
        assert parse(between.join(parts), WILD).changes == expected


def test_the_wild_type_and_what_changes_nothing() -> None:
    for text in ("=", "wt", "WT", "_wt", "A4A", "p.Ala4=", "p.Ala4Ala", "NP_000007.1:p.="):
        found = parse(text, WILD)
        assert found.changes == () and found.substitutions and found.apply(WILD) == WILD
    with pytest.raises(UserError, match="residue 4 is A, not G"):
        parse("G4G", WILD)


def test_numbers_go_from_the_first_residue() -> None:
    assert parse("A27G", WILD, first=24).changes == (Change(3, 4, "G"),)
    assert parse("M-5G:K-4R:A-2del", WILD, first=-5).apply(WILD) == "GRT" + WILD[4:]
    assert write(parse("A27G", WILD, first=24).changes, WILD, first=24) == "A27G"
    assert singles(WILD, [0], first=24)[0].name == "M24A"
    assert parse("0_M1insGG", WILD).apply(WILD) == "GG" + WILD
    assert parse("V70_71insGG", WILD).apply(WILD) == WILD + "GG"
    with pytest.raises(UserError, match="no residue 71"):
        parse("V70_A71insGG", WILD)


# Text and sequences, there and back -----------------------------------------------------------------------------

LETTERS = st.text(st.sampled_from(STANDARD), min_size=1, max_size=4)


@st.composite
def chains_with_changes(draw: st.DrawFn) -> tuple[str, tuple[Change, ...]]:
    wildtype = draw(st.text(st.sampled_from(STANDARD), min_size=1, max_size=30))
    changes: list[Change] = []
    place = draw(st.integers(0, 3))
    while place <= len(wildtype):
        size = draw(st.integers(0, min(3, len(wildtype) - place)))
        letters = draw(LETTERS) if size == 0 else draw(st.one_of(st.just(""), LETTERS))
        if size == len(letters) == 1 and letters != wildtype[place]:
            changes.append(Change(place, place + 1, letters))
        elif size != len(letters):
            changes.append(Change(place, place + size, letters))
        place += size + draw(st.integers(0 if size else 1, 5))
    return wildtype, tuple(changes)


@given(chains_with_changes(), st.integers(-40, 40), st.randoms())
def test_what_is_written_is_read_as_the_same(case: tuple[str, tuple[Change, ...]], first: int, random: Any) -> None:
    wildtype, changes = case
    text = write(changes, wildtype, first)
    assert parse(text, wildtype, first=first).changes == changes
    parts = text.split(":")
    random.shuffle(parts)
    assert parse("/".join(parts), wildtype, first=first).changes == changes

    def named(part: str) -> str:
        """The same in names of residues."""
        head, what, letters = part.partition("ins") if "ins" in part else (part, "", "")
        head, deleted, _ = head.partition("del")
        spelt = "".join(NAME_OF.get(c, c) for c in head)
        return spelt + deleted + what + "".join(NAME_OF[c] for c in letters)

    if changes:
        assert parse(f"XP_1.1:p.[{';'.join(map(named, parts))}]", wildtype, first=first).changes == changes
    expected, shift = list(wildtype), 0
    for change in changes:
        expected[change.start + shift : change.end + shift] = change.letters
        shift += len(change.letters) - (change.end - change.start)
    assert parse(text, wildtype, first=first).apply(wildtype) == "".join(expected)


def levenshtein(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


FEW = st.text(st.sampled_from("ACD"), max_size=14)


@given(FEW, FEW, st.integers(0, 12))
def test_the_distance_is_levenshteins(a: str, b: str, most: int) -> None:
    expected = levenshtein(a, b)
    assert distance(a, b, most) == (expected if expected <= most else None)


def edits(changes: tuple[Change, ...]) -> int:
    return sum(max(change.end - change.start, len(change.letters)) for change in changes)


@given(
    st.one_of(
        st.tuples(FEW, FEW), st.text(st.sampled_from("ACD"), min_size=6, max_size=14).map(lambda a: (a, a[2:] + "DC"))
    )
)
def test_the_difference_leads_from_one_to_the_other_with_the_fewest_edits(pair: tuple[str, str]) -> None:
    a, b = pair
    changes = difference(a, b)
    assert parse(write(changes, a), a).changes == changes if a else True
    out, done = "", 0
    for change in changes:
        assert change.start >= done and change.letters != a[change.start : change.end]
        out, done = out + a[done : change.start] + change.letters, change.end
    assert out + a[done:] == b
    fewest = levenshtein(a, b)
    other = sum(x != y for x, y in zip(a, b, strict=False))
    by_residue = len(a) == len(b) and 2 * fewest >= other
    assert edits(changes) == (other if by_residue else fewest)
    assert all(change.substitution for change in changes) or not by_residue


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (WILD, WILD, "WT"),
        (WILD, "A" + WILD[1:], "M1A"),
        ("MKAAAG", "MKAAG", "A5del"),  # the last that could be meant
        ("MKAAG", "MKAAAG", "A4_G5insA"),
        ("MGSGSK", "MGSK", "G4_S5del"),
        ("MKTA", "GGMKTA", "0_M1insGG"),
        ("MKTA", "MKTAGG", "A4_5insGG"),
        (WILD, WILD[1:] + "G", "M1del:V70_71insG"),  # 64 substitutions say less
        (WILD, WILD[:10] + "GG" + WILD[10:50] + "W" + WILD[51:], "R10_Q11insGG:A51W"),
        (WILD, "C" + WILD[1:20] + WILD[25:60] + "C" + WILD[61:], "M1C:Q22_R26del:A61C"),
        ("KAAAAAAW", "WAAAAAAAAK", "K1W:W8delinsAAK"),
        ("MKTAYI", "MKGGGI", "T3G:A4G:Y5G"),
        ("ACDEFG", "GFEDCA", "A1G:C2F:D3E:E4D:F5C:G6A"),
    ],
)  # fmt: skip
def test_differences(a: str, b: str, expected: str) -> None:
    assert write(difference(a, b), a) == expected


def test_what_is_another_protein_is_no_variant() -> None:
    with pytest.raises(BadVariantError, match="more than 1,000 residues differ"):
        difference("A" + "CD" * 1200, "C" + "EF" * 700)
    changes = difference("AC" * 3000, "AC" * 3000 + "D" * 2000)  # a long end alone takes no alignment
    assert changes == (Change(6000, 6000, "D" * 2000),)


def test_all_single_variants() -> None:
    found = singles("MXK")
    assert len(found) == 38 and len({v.apply("MXK") for v in found}) == 38
    assert [v.name for v in found[:2]] == ["M1A", "M1C"] and found[-1].changes == (Change(2, 3, "Y"),)
    assert all(parse(v.name, "MXK").changes == v.changes for v in found)
    assert read_variants("singles", "MXK") == found and len(singles(WILD, [3, 5])) == 38
    with pytest.raises(UserError, match="residue 2 is X"):
        singles("MXK", [1])
    with pytest.raises(UserError, match="no residue 4: they have the numbers 1 to 3"):
        singles("MXK", [3])


# Files ----------------------------------------------------------------------------------------------------------


def write_file(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def names(found: list[Any]) -> list[str]:
    return [variant.name for variant in found]


def test_lists_and_lines(tmp_path: Path) -> None:
    found = read_variants(["A4G", "p.Arg10Lys", "A4G", "WT"], WILD)
    assert names(found) == ["A4G", "p.Arg10Lys", "A4G", "WT"] and found[1].where == "given variants, line 2"
    text = "# a list\nA4G\n\n  R10K:Q11del  # mine\r\nWT\n"
    path = write_file(tmp_path / "x.txt", text)
    found = read_variants(path, WILD)
    assert names(found) == ["A4G", "R10K:Q11del", "WT"] and found[1].where == f"{path}, line 4"
    (tmp_path / "x.list.gz").write_bytes(gzip.compress(text.encode()))
    write_file(tmp_path / "plain", text)
    both = read_variants([str(tmp_path / "*.list.gz"), str(tmp_path / "plain")], WILD, VariantOptions(format="text"))
    assert names(both) == names(found) * 2
    write_file(tmp_path / "p.txt", "K2R")
    assert names(read_variants(str(tmp_path / "p.txt"), WILD)) == ["K2R"]
    assert names(read_variants([path, "Q11del"], WILD)) == [*names(found), "Q11del"]


def test_tables(tmp_path: Path) -> None:
    wanted = {"mutant": ["A4G", "A4G:R10K", ""], "score": [1.5, -2.0, 0.0], "assay": ["x", "y", "x"]}
    apart = [parse(text or "WT", WILD).apply(WILD) for text in wanted["mutant"]]
    sequences = {"mutated_sequence": apart}
    pq.write_table(pa.table({**wanted, **sequences}), tmp_path / "x.parquet")
    options = VariantOptions(fields=["score", "assay"])
    found = read_variants(str(tmp_path / "x.parquet"), WILD, options)
    assert names(found) == ["A4G", "A4G:R10K", "WT"] and [v.fields for v in found] == [
        (1.5, "x"),
        (-2.0, "y"),
        (0.0, "x"),
    ]
    assert [v.apply(WILD) for v in found] == apart
    only = VariantOptions(fields=["score"], where={"assay": "y"})
    assert [(v.name, v.fields) for v in read_variants(str(tmp_path / "x.parquet"), WILD, only)] == [
        ("A4G:R10K", (-2.0,))
    ]
    rows = [f"{m},{s},{q}" for m, s, q in zip(wanted["mutant"], wanted["score"], apart, strict=True)]
    path = write_file(tmp_path / "x.csv", "\n".join(["mutant,score,mutated_sequence", *rows]))
    found = read_variants(path, WILD, VariantOptions(fields=["score"]))
    assert found[1].fields == ("-2.0",) and found[1].where == f"{path}, line 3"
    alone = read_variants(path, WILD, VariantOptions(column=None))
    assert [v.changes for v in alone] == [v.changes for v in found] and names(alone) == ["A4G", "A4G:R10K", "WT"]
    path = write_file(tmp_path / "y.tsv", "variant\tmutated_sequence\nA4G\tMKT\n")
    assert names(read_variants(path, WILD, VariantOptions(column="variant", sequence_column=None))) == ["A4G"]
    with pytest.raises(UserError, match=r"y.tsv, line 1: no column named 'mutant'; column: null takes the sequences"):
        read_variants(path, WILD)
    with pytest.raises(UserError, match=r"no column named 'seq'"):
        read_variants(path, WILD, VariantOptions(column="variant", sequence_column="seq"))
    with pytest.raises(UserError, match=r"x.parquet: no variant in a row with assay = z"):
        read_variants(str(tmp_path / "x.parquet"), WILD, VariantOptions(where={"assay": "z"}))


def test_text_and_sequence_must_agree(tmp_path: Path) -> None:
    other = WILD[:3] + "C" + WILD[4:]
    path = write_file(
        tmp_path / "x.csv", f"mutant,mutated_sequence\nA4C,{other}\nA4G,{other.lower()}\nA4C,{other[:9]}\n"
    )
    said = r"2 of 3 .*x.csv, line 3 \(A4G: its sequence has C where G is expected, at letter 4; .*9 residues where 70"
    with pytest.raises(UserError, match=said):
        read_variants(path, WILD)
    account = Account()
    assert names(read_variants(path, WILD, VariantOptions(bad="drop"), account)) == ["A4C"]
    assert account.dropped == {"mutant and sequence disagree": 2} and (account.read, account.kept) == (3, 1)


def test_sequences_of_a_fasta_file(tmp_path: Path) -> None:
    lines = [
        f">one first\n{WILD[:3].lower()}G{WILD[4:]}*\n",
        f">two\n{WILD[:30]}\n{WILD[35:]}\n",
        f">\n{WILD[:5]}W{WILD[6:]}\n",
    ]
    path = write_file(tmp_path / "x.fasta", "".join(lines))
    found = read_variants(path, WILD)
    assert names(found) == ["one", "two", "I6W"] and found[1].where == f"{path}, line 3"
    assert write(found[0].changes, WILD) == "A4G" and not found[1].substitutions
    assert found[1].apply(WILD) == WILD[:30] + WILD[35:]
    path = write_file(tmp_path / "y.fasta", f">x\n{WILD[:3]}*{WILD[4:]}\n>y\n{WILD[:3]}X{WILD[4:]}\n>z\n{WILD}\n")
    account = Account()
    assert names(read_variants(path, WILD, VariantOptions(bad="drop"), account)) == ["z"]
    assert account.dropped == {"a stop": 1, "a letter that is no standard residue": 1}
    assert account.examples["a stop"] == [f"{path}, line 1 (x: a stop at position 4 of its sequence)"]
    assert names(read_variants(path.replace("y.", "?."), WILD, VariantOptions(bad="drop"))) == [
        "one",
        "two",
        "I6W",
        "z",
    ]
    strange = "MX" + WILD  # what the wild type has may stay, and not come in elsewhere
    path = write_file(tmp_path / "z.fasta", f">a\nMXA{WILD[1:]}\n>b\nMXX{WILD[1:]}\n")
    assert names(read_variants(path, strange, VariantOptions(bad="drop"))) == ["a"]
    with pytest.raises(UserError, match="is no table, so that it has no column a"):
        read_variants(path, WILD, VariantOptions(where={"a": "b"}))


def test_bad_variants_are_counted_and_told(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.txt", "A4G\nA5G\nY5*\nA4G:A4K\nhello\nI6fs\nM1_T3del:K2R\nK2R\nW99A\nI6J\n")
    with pytest.raises(UserError) as error:
        read_variants(path, WILD)
    text = str(error.value)
    assert text.startswith("8 of 10 variants cannot be used: 1 x another letter in the wild type ")
    assert f"({path}, line 2 (A5G: residue 5 is Y, not A))" in text and text.endswith("drop leaves such variants out")
    account = Account()
    assert names(read_variants([path, "A4G"], WILD, VariantOptions(bad="drop"), account)) == ["A4G", "K2R", "A4G"]
    assert account.dropped == dict.fromkeys(
        ("another letter in the wild type", "a stop", "the same position twice", "cannot be read as a variant",
         "a frameshift", "changes that overlap", "position outside the wild type",
         "a letter that is no standard residue"), 1,
    )  # fmt: skip
    assert (account.read, account.kept) == (11, 3)
    with pytest.raises(UserError, match=r"1 of 1 variants cannot be used: .*'nofile.dat' is no change.*no such file"):
        read_variants("nofile.dat", WILD, VariantOptions(bad="drop"))
    with pytest.raises(UserError, match=r"nofile.csv: no such file"):
        read_variants("nofile.csv", WILD)
    with pytest.raises(UserError, match=r"x.txt: no variant"):
        read_variants(write_file(tmp_path / "x.txt", "# none\n"), WILD)
    with pytest.raises(UserError, match=r"x.txt, after line 1: not UTF-8"):
        (tmp_path / "x.txt").write_bytes(b"A4G\n\xff\n")
        read_variants(path, WILD)
    with pytest.raises(UserError, match="no variant was given"):
        read_variants([], WILD)
    with pytest.raises(UserError, match="not capital letters alone"):
        read_variants("A4G", "mkta")
    with pytest.raises(UserError, match="both null"):
        VariantOptions(column=None, sequence_column=None)


def test_another_numbering_is_found_out(tmp_path: Path) -> None:
    texts = [f"{WILD[place]}{place + 24}G" for place in (0, 1, 4, 8, 20, 21, 33, 40, 51, 60, 61, 62)]
    hint = r"12 of 12 match if the first residue is number 24 \(first: 24\)"
    for bad in ("fail", "drop"):
        with pytest.raises(UserError, match=hint):
            read_variants(texts, WILD[:63], VariantOptions(bad=bad))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=hint):
        parse("p.[" + ";".join(texts) + "]", WILD[:63])
    assert len(read_variants(texts, WILD, VariantOptions(first=24))) == 12
    with pytest.raises(UserError, match=r"the number of its first residue; bad: drop"):  # nothing better than as it is
        read_variants([*singles_of(WILD), "A5G"], WILD)
    with pytest.raises(UserError, match=r"the number of its first residue$"):
        read_variants(texts, WILD[::-1])
    for text, wildtype in [(texts[1], WILD), ("M90G:K91G:T92G:Y94G", "MKTAYI" * 5)]:  # these fit in many places
        with pytest.raises(UserError) as error:
            parse(text, wildtype)
        assert "match" not in str(error.value)


def singles_of(wildtype: str) -> list[str]:
    return [variant.name for variant in singles(wildtype)[::19]]


def test_the_wild_type_as_letters_and_as_a_file(tmp_path: Path) -> None:
    assert read_wildtype(WILD) == ("", WILD)
    path = write_file(tmp_path / "x.fasta", f">sp|P1 some protein\n{WILD[:9].lower()}\n{WILD[9:]}*\n")
    assert read_wildtype(path) == ("sp|P1", WILD)
    for text, said in [(">a\nMKT\n>b\nMKT\n", "more than one sequence"), (">a\nM*T\n", "line 1: a stop at position 2"),
                       (">a\n*\n", "line 1: no residue")]:  # fmt: skip
        with pytest.raises(UserError, match=said):
            read_wildtype(write_file(tmp_path / "y.fasta", text))
    with pytest.raises(UserError, match="a FASTA file of one record, or plain letters"):
        read_wildtype(write_file(tmp_path / "y.csv", "sequence\nMKT\n"))
