"""Pairs of tables: values on one scale, labels, duplicates, several data sets, and classes of which pairs are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biometro.alphabet import MoleculePolicy, Reading
from biometro.data.pair_config import PairConfig
from biometro.data.pairs import Pairs, read_pairs
from biometro.data.settle import settle_label, settle_values
from biometro.errors import UserError

pytest.importorskip("rdkit")

HEADER = "protein_sequence,smiles,affinity,kind,unit,fold,gene,bound\n"
ROWS = [
    "MKTAY,CCO,10,Kd,nM,train,G1,1",
    "MKTAY,OCC,100,Kd,nM,train,G1,1",  # the same molecule, one unit apart
    "MKTAY,CCN,>10000,Kd,nM,train,G1,0",
    "MKVLS,CCO,5 uM,Ki,nM,test,G2,",
    "MKVLS,CCN,,Kd,nM,test,G2,0",
    "MKVLS,C1CC,3,Kd,nM,test,G2,1",  # a ring that does not close
    "MKVLS,CCCC,0,Kd,nM,test,G2,1",
    ",CCCC,1,Kd,nM,test,G2,1",
    "MKVLS,CCCl,1,IC50,nM,test,G2,maybe",
    "MKTAY,CC[C-](=O)=O,1,Kd,nM,train,G1,1",
]


def table(folder: Path, rows: list[str] = ROWS, header: str = HEADER, name: str = "pairs.csv") -> str:
    path = folder / name
    path.write_text(header + "\n".join(rows) + "\n")
    return str(path)


def of(**options: Any) -> PairConfig:
    return PairConfig(**{"value": "affinity", "measure": "kind", "unit": "unit", "split": "fold", **options})


def test_values_duplicates_and_what_is_dropped(tmp_path: Path) -> None:
    pairs = read_pairs(table(tmp_path), of())
    assert pairs.a_letters == [b"MKTAY", b"MKVLS"] and pairs.b_letters == [b"CCO", b"CCN", b"CCCl"]
    assert [pairs.a.tolist(), pairs.b.tolist()] == [[0, 0, 1, 1], [0, 1, 0, 2]]
    np.testing.assert_allclose(pairs.value, [7.5, 5, 6 - np.log10(5), 9], rtol=1e-6)
    assert pairs.censored.tolist() == [0, -1, 0, 0]
    assert pairs.unit == "pKd/pKi/pIC50"
    assert pairs.sides == ["train", "train", "test", "test"]
    assert pairs.group.tolist() == pairs.a.tolist() and pairs.group_names == ["MKTAY", "MKVLS"]
    (account,) = pairs.accounts
    assert account.read == 10 and account.kept == 4 == len(pairs)
    assert account.dropped == {
        "a pair that stands there already": 1,
        "no value": 1,
        "no SMILES that RDKit can read": 2,
        "a concentration of zero or below": 1,
        "an empty cell where a sequence was expected": 1,
    }
    assert "line 7" in account.examples["no SMILES that RDKit can read"][0]
    assert pairs.to_json()["bounds"] == 1


def test_policies_of_bounds(tmp_path: Path) -> None:
    path = table(tmp_path)
    assert read_pairs(path, of(censored="bound")).censored.tolist() == [0, 0, 0, 0]
    dropped = read_pairs(path, of(censored="drop"))
    assert len(dropped) == 3 and dropped.accounts[0].dropped["a value that is only a bound (pairs.censored)"] == 1


def test_policies_of_duplicates(tmp_path: Path) -> None:
    path = table(tmp_path)
    first = {how: read_pairs(path, of(duplicates=how)).value[0] for how in ("mean", "median", "best", "keep")}
    np.testing.assert_allclose([first[how] for how in first], [7.5, 7.5, 8, 8], rtol=1e-6)
    assert len(read_pairs(path, of(duplicates="keep"))) == 5
    for options in ({"duplicates": "drop"}, {"spread": 0.5}):
        pairs = read_pairs(path, of(**options))
        assert len(pairs) == 3 and b"CCO" in pairs.b_letters
        assert sum("one pair" in reason and n == 2 for reason, n in pairs.accounts[0].dropped.items()) == 1
    assert read_pairs(path, of(spread=0.5, conflicts="merge")).value[0] == pytest.approx(7.5)
    with pytest.raises(UserError, match=r"2 of 10 records .*line 2.*pairs.conflicts"):
        read_pairs(path, of(spread=0.5, conflicts="fail"))


def test_a_pair_on_two_sides_stays_on_both(tmp_path: Path) -> None:
    rows = ["MKTAY,CCO,10,Kd,nM,train,G1,1", "MKTAY,CCO,10,Kd,nM,test,G1,1"]
    assert len(read_pairs(table(tmp_path, rows), of())) == 2
    assert len(read_pairs(table(tmp_path, rows), of(split=None))) == 1


def test_labels_groups_and_rows_that_are_chosen(tmp_path: Path) -> None:
    path = table(tmp_path)
    pairs = read_pairs(path, of(label="bound", group="gene", measures=["pKd"], where={"gene": ["G1", "G2"]}))
    assert pairs.group_names == ["G1", "G2"] and pairs.unit == "pKd"
    assert pairs.label.tolist() == [1, 0, 0] and np.isnan(pairs.value).tolist() == [False, False, True]
    assert pairs.accounts[0].dropped["another measure than pairs.measures"] == 2
    only = read_pairs(path, of(value=None, measure=None, unit=None, label="bound", where={"gene": "G1"}))
    assert only.label.tolist() == [1, 0] and only.unit == "" and np.isnan(only.value).all()
    plain = read_pairs(path, PairConfig(where_not={"gene": "G2"}))
    assert plain.label.tolist() == [1, 1]
    told = read_pairs(path, of(binds_from=7.0))
    assert told.label.tolist() == [1, 0, 0, 1]


def test_a_bound_that_leaves_open_whether_a_pair_binds(tmp_path: Path) -> None:
    rows = [
        f"MKTAY,{b},{v},Kd,uM,train,G1,1" for b, v in (("C", ">1"), ("CC", ">100"), ("CCC", "<100"), ("CCCC", "<1"))
    ]
    assert read_pairs(table(tmp_path, rows), of(binds_from=5.0)).label.tolist() == [-1, 0, -1, 1]


def test_labels_in_conflict(tmp_path: Path) -> None:
    rows = [
        f"MKTAY,{b},1,Kd,nM,train,G1,{v}" for b, v in (("C", 1), ("C", 0), ("C", 0), ("CC", 1), ("CC", ""), ("N", 0))
    ]
    config = {"value": None, "measure": None, "unit": None, "label": "bound"}
    assert read_pairs(table(tmp_path, rows), of(**config)).label.tolist() == [1, 0]
    assert read_pairs(table(tmp_path, rows), of(**config, conflicts="merge")).label.tolist() == [0, 1, 0]


def test_charges_are_put_right_where_asked(tmp_path: Path) -> None:
    pairs = read_pairs(table(tmp_path), of(repair=True))
    assert b"CCC(=O)[O-]" in pairs.b_letters and pairs.accounts[0].repaired == 1
    assert pairs.accounts[0].to_json()["repaired"] == 1
    strict = Reading("molecule", molecules=MoleculePolicy(invalid="fail"))
    assert len(read_pairs(table(tmp_path, ROWS[-1:]), of(repair=True), reading_b=strict)) == 1
    with pytest.raises(UserError, match="line 2"):
        read_pairs(table(tmp_path, ROWS[-1:]), of(), reading_b=strict)


def test_bad_records_fail_where_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"5 of 10 records are no usable pair: 1 x no value .*pairs\.bad"):
        read_pairs(table(tmp_path), of(bad="fail"))


def test_a_fixed_unit_and_scores(tmp_path: Path) -> None:
    path = table(tmp_path, ["MKT,CC,3", "MKT,CCC,-1"], "protein_sequence,smiles,score\n")
    assert read_pairs(path, PairConfig(value="score", unit="nM", measure="Ki")).value[0] == pytest.approx(8.522879)
    scores = read_pairs(path, PairConfig(value="score", higher_binds=False))
    assert scores.value.tolist() == [-3, 1] and scores.unit == ""
    with pytest.raises(UserError, match=r"pairs.unit 'furlong' is no column"):
        read_pairs(path, PairConfig(value="score", unit="furlong"))
    with pytest.raises(UserError, match="no column named 'smile'"):
        read_pairs(path, PairConfig(b="smile"))


def test_scales_are_not_mixed_unless_asked(tmp_path: Path) -> None:
    path = str(tmp_path / "mixed.parquet")
    columns = {"protein_sequence": ["MK", "ML"], "smiles": ["C", "CC"], "v": [7.0, 11.0], "u": ["pKd", "KIBA"]}
    pq.write_table(pa.table(columns), path)
    with pytest.raises(UserError, match=r"KIBA at .*line 2, p at .*line 1"):
        read_pairs(path, PairConfig(value="v", unit="u"))
    mixed = read_pairs(path, PairConfig(value="v", unit="u", measures=["Kd", "KIBA"]))
    assert mixed.unit == "pKd and KIBA" and mixed.value.tolist() == [7, 11]


def test_pairs_of_one_kind_share_their_sequences(tmp_path: Path) -> None:
    path = table(tmp_path, ["MK,ML,1", "ML,MK,1", "MK,MK,0"], "one,two,y\n")
    pairs = read_pairs(path, PairConfig(a="one", b="two", kind_b="protein", label="y"))
    assert pairs.shared and pairs.a_letters == [b"MK", b"ML"]
    assert [pairs.a.tolist(), pairs.b.tolist(), pairs.label.tolist()] == [[0, 0], [1, 0], [1, 0]]


def test_sequences_with_classes_make_pairs(tmp_path: Path) -> None:
    rows = ["MKA,x", "MKC,x", "MKD,x", "MKE,y", "MKF,y", "MKG,z", "MKH,?"]
    path = table(tmp_path, rows, "s,class\n")
    found = read_pairs(path, PairConfig(a="s", b=None, label="class"))
    assert found.shared and found.classes is not None and found.class_names == ("x", "y")
    assert found.classes.tolist() == [0, 0, 0, 1, 1] and found.a.tolist() == found.b.tolist() == [0, 1, 2, 3, 4]
    assert sum(found.accounts[0].dropped.values()) == 2
    every = found.of_classes(partners=9)
    assert {*zip(every.a.tolist(), every.b.tolist(), strict=True)} == {(0, 1), (0, 2), (1, 2), (3, 4)}
    assert every.label.tolist() == [1] * 4 and every.classes is None
    one = found.of_classes(seed=3)
    assert {*one.a.tolist(), *one.b.tolist()} == {0, 1, 2, 3, 4}
    assert found.take([0, 3, 4]).of_classes().a.tolist() == [3] and np.isnan(one.value).all()
    across = found.of_classes(partners=9, others=9)
    couples = {*zip(across.a.tolist(), across.b.tolist(), across.label.tolist(), across.value.tolist(), strict=True)}
    assert couples == {(i, j, int(same := (i < 3) == (j < 3)), float(same)) for i in range(5) for j in range(i + 1, 5)}
    with pytest.raises(UserError, match="all sequences have one class"):
        found.take([0, 1]).of_classes(others=1)


def test_data_sets_are_joined(tmp_path: Path) -> None:
    first = read_pairs(table(tmp_path), of(group="gene"))
    other = read_pairs(
        table(tmp_path, ["MKVLS,CCCC,8", "MWWWW,CCO,6"], "p,s,v\n", "other.csv"),
        PairConfig(a="p", b="s", value="v", unit="pKd"),
    )
    both = Pairs.join([first, other])
    assert both.a_letters == [b"MKTAY", b"MKVLS", b"MWWWW"] and both.b_letters == [b"CCO", b"CCN", b"CCCl", b"CCCC"]
    assert [both.a[4:].tolist(), both.b[4:].tolist()] == [[1, 2], [3, 0]]
    assert both.source.tolist() == [0] * 4 + [1] * 2 and len(both.accounts) == 2
    assert both.unit == "pKd/pKi/pIC50" and both.group_names[:2] == ["G1", "G2"]
    for number, part in ((0, first), (1, other)):
        back = both.take(np.flatnonzero(both.source == number))
        np.testing.assert_array_equal(back.value, part.value)
        assert [back.a_letters[i] for i in back.a] == [part.a_letters[i] for i in part.a]
        assert [back.b_letters[i] for i in back.b] == [part.b_letters[i] for i in part.b]
        assert [back.group_names[i] for i in back.group] == [part.group_names[i] for i in part.group]
    kiba = read_pairs(
        table(tmp_path, ["MKVLS,CCCC,11"], "p,s,v\n", "kiba.csv"), PairConfig(a="p", b="s", value="v", unit="KIBA")
    )
    with pytest.raises(UserError, match="different scales: pKd, KIBA"):
        Pairs.join([other, kiba])
    assert Pairs.join([other, kiba], mixed=True).unit == "pKd and KIBA"
    proteins = read_pairs(table(tmp_path, ["MK,ML"], "p,q\n", "ppi.csv"), PairConfig(a="p", b="q", kind_b="protein"))
    with pytest.raises(UserError, match="cannot be read by the same models"):
        Pairs.join([first, proteins])


def test_what_is_no_table_and_options_that_make_no_sense(tmp_path: Path) -> None:
    fasta = tmp_path / "x.fasta"
    fasta.write_text(">a\nMK\n")
    with pytest.raises(UserError, match="pairs stand in tables"):
        read_pairs(str(fasta))
    with pytest.raises(UserError, match="'1' at position 2"):
        read_pairs(table(tmp_path, ["M1,CC"], "protein_sequence,smiles\n"))
    with pytest.raises(UserError, match="no usable pair is left of 1"):
        read_pairs(table(tmp_path, ["MK,C1"], "protein_sequence,smiles\n"))
    with pytest.raises(UserError, match="models read molecule and molecule"):
        read_pairs(table(tmp_path), of(), reading_a=Reading("molecule"))
    wrong: list[dict[str, Any]] = [
        {"b": None}, {"b": ""}, {"unit": "nM"}, {"label": "y", "value": "v", "binds_from": 1.0}, {"spread": -1.0},
        {"value": "v", "measures": ["Km"]}, {"repair": True, "kind_b": "protein"},
    ]  # fmt: skip
    for options in wrong:
        with pytest.raises(UserError):
            PairConfig(**options)


@pytest.mark.parametrize(
    ("values", "how", "spread", "expected"),
    [
        ([(5, 0), (6, 0)], "mean", 1, (5.5, 0)),
        ([(5, 0), (6, 0), (6, 0)], "median", 1, (6, 0)),
        ([(5, 0), (6, 0)], "best", 1, (6, 0)),
        ([(5, 0), (6, 0)], "mean", 0.9, None),
        ([(5, -1), (6, -1)], "mean", 0, (5, -1)),
        ([(5, 1), (6, 1)], "mean", 0, (6, 1)),
        ([(5, -1), (4.5, 0)], "mean", 1, (4.5, 0)),
        ([(5, -1), (5.5, 0)], "mean", 1, (5.5, 0)),
        ([(5, -1), (7, 0)], "mean", 1, None),
        ([(8, 1), (6, 0)], "mean", 1, None),
        ([(5, 1), (5.5, -1)], "mean", 1, (5.25, 0)),
        ([(5, 1), (8, -1)], "mean", 1, None),
        ([(5, 0), (5, 0)], "drop", 1, (5, 0)),
        ([(5, 0), (5.1, 0)], "drop", 1, None),
        ([(5, 0), (5, -1)], "drop", 1, None),
    ],
)
def test_values_settled(values: list[tuple[float, int]], how: Any, spread: float, expected: Any) -> None:
    assert settle_values(values, how, spread) == expected


def test_labels_settled() -> None:
    assert [settle_label(labels, False) for labels in ([-1], [-1, 1], [0, 0], [0, 1])] == [-1, 1, 0, None]
    assert [settle_label(labels, True) for labels in ([0, 1], [0, 0, 1])] == [1, 0]


def test_a_value_column_named_as_its_measure_and_filters_that_fit_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("protein_sequence,smiles,Kd,source\nMKTAYIAK,CCO,10,a\nMKTAYIAR,CCN,>10000,a\n")
    found = read_pairs(str(path), PairConfig(value="Kd", measure="Kd", unit="nM"))
    assert found.unit == "pKd" and found.value[0] == pytest.approx(8) and found.censored.tolist() == [0, -1]
    with pytest.raises(UserError, match=r"no row is what pairs\.where asks for"):
        read_pairs(str(path), PairConfig(value="Kd", measure="Kd", unit="nM", where={"source": "b"}))
