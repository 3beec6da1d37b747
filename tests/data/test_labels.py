"""Labels from headers and tables, what each kind of task makes of them, and what becomes of those of no use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biometro.alphabet import Reading
from biometro.data.labels import read_labelled
from biometro.data.sources import ReadOptions
from biometro.data.task import LabelConfig, Task
from biometro.data.truth import _order
from biometro.errors import UserError


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("header", "config"),
    [
        ("{id}|beta|x", {"field": 1}),
        ("{id}|x|beta", {"field": -1}),
        ("{id} some words class=beta more=1", {"key": "class"}),
        ("{id}|class=beta|more", {"key": "class"}),
        ("{id} [beta] tail", {"pattern": r"\[(\w+)\]"}),
        ("{id};beta", {"field": 1, "separator": ";"}),
    ],
)
def test_labels_of_headers(tmp_path: Path, header: str, config: dict[str, Any]) -> None:
    lines = [
        f">{header.format(id=f's{i}').replace('beta', name)}\n{'MKTAYI' + 'ACDEFGHIK'[i]}\n"
        for i, name in enumerate(["beta", "alpha", "beta", "alpha", "beta", "alpha"])
    ]
    found = read_labelled(write(tmp_path / "x.fasta", "".join(lines)), LabelConfig(**config))
    assert found.task == Task("classification", ("alpha", "beta"))
    assert np.asarray(found.truth).tolist() == [1, 0, 1, 0, 1, 0]
    assert found.letters[0] == b"MKTAYIA" and found.before == {"alpha": 3, "beta": 3}


def test_labels_of_a_second_file(tmp_path: Path) -> None:
    data = write(tmp_path / "x.fasta", ">a first\nMKT\n>b\nMKA\n>c\nMKC\n")
    table = write(tmp_path / "y.csv", "name,value\nb,2.5\na,1\nzz,9\nc,3\n")
    found = read_labelled(data, LabelConfig(task="regression", file=table, file_id="name", column="value"))
    assert np.asarray(found.truth)[:, 0].tolist() == [1.0, 2.5, 3.0] and found.ids == ["a", "b", "c"]
    write(tmp_path / "y.csv", "name,value\nb,2.5\na,1\nb,3\nc,1\n")
    with pytest.raises(UserError, match=r"y.csv, line 4: a second label for 'b'"):
        read_labelled(data, LabelConfig(task="regression", file=table, file_id="name", column="value"))
    write(tmp_path / "y.csv", "name,value\nb,2.5\n")
    with pytest.raises(UserError, match=r"2 of 3 records .* no row in y.csv \(.*line 1 \(a\), .*line 5 \(c\)\)"):
        read_labelled(data, LabelConfig(task="regression", file=table, file_id="name", column="value"))


def table(path: Path, columns: dict[str, list[Any]]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


LETTERS = ["MKTAC", "MKTAD", "MKTAE", "MKTAF"]


def test_several_labels_in_a_cell_and_in_columns(tmp_path: Path) -> None:
    data = table(tmp_path / "x.parquet", {"sequence": LETTERS, "label": ["b;a", "c", "a", "b"]})
    found = read_labelled(data, LabelConfig(task="multilabel"))
    assert found.task.names == ("a", "b", "c") and found.before == {"a": 2, "b": 2, "c": 1}
    np.testing.assert_array_equal(found.truth, [[1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]])
    data = table(tmp_path / "y.parquet", {"sequence": LETTERS, "p": [1, 0, None, 1], "q": [0, 1, 1, None]})
    found = read_labelled(data, LabelConfig(task="multilabel", column=["p", "q"]))
    np.testing.assert_array_equal(found.truth, [[1, 0], [0, 1], [np.nan, 1], [1, np.nan]])


def test_numbers_and_what_stands_for_none(tmp_path: Path) -> None:
    data = write(tmp_path / "x.csv", "sequence,label,other\nMKTAC,1.5,NA\nMKTAD,NA,\nMKTAE,-2e1,7\nMKTAF,999,nan\n")
    config = LabelConfig(task="regression", column=["label", "other"], unknown=["", "NA", "nan", "999"], bad="drop")
    found = read_labelled(data, config)
    np.testing.assert_array_equal(found.truth, np.float32([[1.5, np.nan], [-20, 7]]))
    assert found.account.dropped == {"label: unknown": 2}
    with pytest.raises(UserError, match=r"2 of 4 records .* 2 x label: unknown .*labels.bad: drop"):
        read_labelled(data, LabelConfig(task="regression", column=["label", "other"], unknown=["", "NA", "nan", "999"]))
    with pytest.raises(UserError, match=r"label: high is no number \(.*line 2 \(1\)\)"):
        read_labelled(write(tmp_path / "y.csv", "sequence,label\nMKT,high\nMKA,1\n"), LabelConfig(task="regression"))


@pytest.mark.parametrize("cells", [["HHE?C", "CCCCC"], [list("HHE?C"), list("CCCCC")], ["H,H,E,?,C", "C C C C C"]])
def test_letters_for_residues(tmp_path: Path, cells: list[Any]) -> None:
    data = table(tmp_path / "x.parquet", {"sequence": LETTERS[:2], "label": cells, "seen": ["11110", "11111"]})
    found = read_labelled(data, LabelConfig(task="residue_classification", mask="seen"))
    assert found.task.names == ("C", "E", "H") and found.before == {"C": 5, "E": 1, "H": 2}
    assert [t.tolist() for t in found.truth] == [[2, 2, 1, -1, -1], [0, 0, 0, 0, 0]]


def test_numbers_for_residues(tmp_path: Path) -> None:
    data = table(tmp_path / "x.parquet", {"sequence": LETTERS[:2], "label": [[1.0, 2, 999, 4, 5], [1.0] * 5]})
    found = read_labelled(data, LabelConfig(task="residue_regression", unknown=["999"]))
    np.testing.assert_array_equal(found.truth[0], np.float32([1, 2, np.nan, 4, 5]))
    with pytest.raises(UserError, match=r"1 x label: of another length than its sequence \(.*line 2 \(2\)\)"):
        read_labelled(
            table(tmp_path / "y.parquet", {"sequence": ["MKT", "MKTA"], "label": [[1.0, 2, 3], [1.0, 2, 3]]}),
            LabelConfig(task="residue_regression"),
        )


def conflicting(tmp_path: Path, labels: list[Any]) -> str:
    return table(tmp_path / "x.parquet", {"sequence": ["MKTAC", "MKTAC", "mktac*", "MKTAD"], "label": labels})


def test_identical_sequences(tmp_path: Path) -> None:
    data = conflicting(tmp_path, [1.0, 2.0, 6.0, 5.0])
    kept = {
        policy: np.asarray(
            read_labelled(data, LabelConfig(task="regression", conflicts=policy)).truth  # type: ignore[arg-type]
        )[:, 0].tolist()
        for policy in ("drop", "first", "merge")
    }
    assert kept == {"drop": [5.0], "first": [1.0, 5.0], "merge": [3.0, 5.0]}
    with pytest.raises(UserError, match=r"3 of 4 records .* identical sequences with different labels"):
        read_labelled(data, LabelConfig(task="regression", conflicts="fail"))
    same = read_labelled(conflicting(tmp_path, [1.0, 1.0, 1.0, 5.0]), LabelConfig(task="regression"))
    assert len(same) == 2 and same.account.dropped == {"identical sequence, counted once": 2}
    with pytest.raises(UserError, match="cannot be merged"):
        read_labelled(conflicting(tmp_path, ["a", "b", "a", "b"]), LabelConfig(conflicts="merge"))


def test_identical_sequences_on_two_sides_stay_for_the_leak_to_show(tmp_path: Path) -> None:
    data = table(
        tmp_path / "x.parquet", {"sequence": ["MKTAC", "MKTAC"], "label": [1.0, 2.0], "side": ["train", "test"]}
    )
    found = read_labelled(data, LabelConfig(task="regression"), ReadOptions(split_column="side"))
    assert found.sides == ["train", "test"] and len(found) == 2


def test_classes_too_small_or_too_large(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    letters = ["".join(random.choice(list("ACDEFGHIK"), 30)) for _ in range(31)]
    data = table(tmp_path / "x.parquet", {"sequence": letters, "label": ["a"] * 20 + ["b"] * 10 + ["c"]})
    found = read_labelled(data, LabelConfig(max_per_class=8))
    assert found.before == {"a": 20, "b": 10, "c": 1} and found.after == {"a": 8, "b": 8}
    assert found.account.dropped == {"above max_per_class": 14, "class of fewer than 3 sequences": 1}
    shuffled = random.permutation(31)
    columns = {
        "sequence": [letters[i] for i in shuffled],
        "label": [(["a"] * 20 + ["b"] * 10 + ["c"])[i] for i in shuffled],
    }
    again = read_labelled(table(tmp_path / "y.parquet", columns), LabelConfig(max_per_class=8))
    assert {*again.letters} == {*found.letters}  # chosen by content, not by place
    with pytest.raises(UserError, match="1 of 3 classes has at least 15 sequences"):
        read_labelled(data, LabelConfig(min_per_class=15))


def test_a_trained_task_knows_its_classes_only(tmp_path: Path) -> None:
    data = table(tmp_path / "x.parquet", {"sequence": LETTERS, "label": ["a", "b", "new", "a"]})
    task = Task("classification", ("a", "b"))
    with pytest.raises(UserError, match=r"1 x label: 'new' is none of the classes \(.*line 3"):
        read_labelled(data, LabelConfig(), task=task)
    found = read_labelled(data, LabelConfig(bad="drop"), task=task)
    assert np.asarray(found.truth).tolist() == [0, 1, 0] and found.task == task


def test_mistakes_are_one_clear_line(tmp_path: Path) -> None:
    fasta = write(tmp_path / "x.fasta", ">a|1\nMKT\n>b\nMKA\n")
    cases: list[tuple[LabelConfig, str]] = [
        (LabelConfig(), "where are the labels"),
        (LabelConfig(field=1), r"1 of 2 records have no usable label: 1 x label: missing \(.*x.fasta, line 3 \(b\)\)"),
        (LabelConfig(field=1, bad="drop"), "0 of 1 classes has at least 3 sequences"),
        (LabelConfig(file=fasta), "must be a CSV, TSV or Parquet table"),
    ]
    for config, message in cases:
        with pytest.raises(UserError, match=message):
            read_labelled(fasta, config)
    for options, message in [
        ({"field": 1, "key": "x"}, "exclude one another"),
        ({"pattern": "("}, "no regular expression"),
        ({"pattern": "abc"}, "has no group"),
        ({"column": ["a", "b"]}, "takes one"),
        ({"max_per_class": 2}, "not below it"),
        ({"task": "regression", "max_per_class": 5}, "has none"),
        ({"column": []}, "names no column"),
    ]:
        with pytest.raises(UserError, match=message):
            LabelConfig(**options)  # type: ignore[arg-type]
    numbers = {"sequence": [f"MK{'A' * i}" for i in range(1200)], "label": [i + 0.5 for i in range(1200)]}
    with pytest.raises(UserError, match="are these numbers"):
        read_labelled(table(tmp_path / "n.parquet", numbers), LabelConfig())


@given(st.lists(st.tuples(st.text("ACDEFGHIKLMNPQRSTVWY", min_size=1, max_size=9), st.integers(0, 3)), min_size=8))
def test_nothing_is_lost_or_made_up(tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, int]]) -> None:
    path = tmp_path_factory.mktemp("p") / "x.parquet"
    data = table(path, {"sequence": [s for s, _ in records], "label": [f"c{n}" for _, n in records]})
    try:
        found = read_labelled(data, LabelConfig(min_per_class=1))
    except UserError as error:
        assert "classes" in str(error) or "no sequence" in str(error)
        return
    assert len(found) + sum(found.account.dropped.values()) == len(records)
    said = {s: {n for t, n in records if t == s} for s, _ in records}
    for letters, number in zip(found.letters, np.asarray(found.truth), strict=True):
        assert {f"c{n}" for n in said[letters.decode()]} == {found.task.names[number]}


def test_rows_of_one_assay_and_no_more_than_asked_for(tmp_path: Path) -> None:
    data = table(
        tmp_path / "x.parquet",
        {"sequence": LETTERS, "label": [1.0, 2.0, 3.0, 4.0], "assay": ["a", "b", "a", "a"], "side": ["p"] * 4},
    )
    found = read_labelled(data, LabelConfig(task="regression", where={"assay": "a", "side": "p"}))
    assert np.asarray(found.truth)[:, 0].tolist() == [1.0, 3.0, 4.0]
    some = read_labelled(data, LabelConfig(task="regression", where={"assay": "a"}, at_most=2))
    assert len(some) == 2 and some.account.dropped == {"above at_most": 1}
    fasta = write(tmp_path / "x.fasta", ">a|1\nMKT\n")
    with pytest.raises(UserError, match=r"labels.where chooses rows of a table"):
        read_labelled(fasta, LabelConfig(task="regression", field=1, where={"assay": "a"}))


def test_lists_of_labels_are_several_labels(tmp_path: Path) -> None:
    """An empty list says that there is none; None, that it is not known."""
    data = table(tmp_path / "x.parquet", {"sequence": LETTERS, "label": [["b", "a"], [], ["b"], None]})
    found = read_labelled(data, LabelConfig(task="multilabel", bad="drop"))
    assert found.task.names == ("a", "b") and found.account.dropped == {"label: unknown": 1}
    np.testing.assert_array_equal(found.truth, [[1, 1], [0, 0], [0, 1]])
    with pytest.raises(UserError, match="a list where one class was expected"):
        read_labelled(data, LabelConfig())


def test_residue_labels_that_do_not_fit_a_tidied_sequence_say_so(tmp_path: Path) -> None:
    data = table(tmp_path / "x.parquet", {"sequence": ["MK-TA", "MKTAC"], "label": ["HH-HH", "CCCCC"]})
    with pytest.raises(UserError, match="of another length than its sequence, of which gaps and stops were taken out"):
        read_labelled(data, LabelConfig(task="residue_classification"))


def test_residue_labels_as_python_prints_them(tmp_path: Path) -> None:
    data = table(tmp_path / "x.parquet", {"sequence": LETTERS[:2], "label": ["['H', 'H', 'E', '?', 'C']", "CCCCC"]})
    found = read_labelled(data, LabelConfig(task="residue_classification"))
    assert found.task.names == ("C", "E", "H")
    with pytest.raises(UserError, match="all residues have one class, 'C'; classification takes two"):
        read_labelled(
            table(tmp_path / "y.parquet", {"sequence": LETTERS[:1], "label": ["CCCCC"]}),
            LabelConfig(task="residue_classification"),
        )


def test_masks(tmp_path: Path) -> None:
    config = LabelConfig(task="residue_classification", mask="seen")
    cells = {"sequence": LETTERS[:2], "label": ["HHEEC", "CCCCC"]}
    for marks in (["0 1 1 1 1"] * 2, ["false true true true true"] * 2, [[False, True, True, True, True]] * 2):
        found = read_labelled(table(tmp_path / "x.parquet", {**cells, "seen": marks}), config)
        assert [t.tolist() for t in found.truth] == [[-1, 2, 1, 1, 0], [-1, 0, 0, 0, 0]]
    with pytest.raises(UserError, match="a mask is 0 or 1 for each residue"):
        read_labelled(table(tmp_path / "x.parquet", {**cells, "seen": ["nnyyy", "yyyyy"]}), config)


def test_a_class_that_is_called_nan_has_its_place() -> None:
    names = ["2", "NAN", "1", "b", "10", "a"]
    for turn in range(len(names)):
        assert sorted(names[turn:] + names[:turn], key=_order) == ["1", "2", "10", "NAN", "a", "b"]


def test_identifiers_of_a_second_file_are_no_sequences(tmp_path: Path) -> None:
    data = write(tmp_path / "x.fasta", ">1 first\nMKT\n>2\nMKA\n")
    config: Any = {"task": "regression", "file_id": "id", "column": "y"}
    numbers = table(tmp_path / "y.parquet", {"id": [1, 2], "y": [0.5, 1.5]})
    assert np.asarray(read_labelled(data, LabelConfig(file=numbers, **config)).truth)[:, 0].tolist() == [0.5, 1.5]
    foreign = write(tmp_path / "z.csv", "id,y\n1,0.5\n2,1.5\né-3,4\n")
    assert len(read_labelled(data, LabelConfig(file=foreign, **config))) == 2
    with pytest.raises(UserError, match="an empty cell where an identifier was expected"):
        read_labelled(data, LabelConfig(file=write(tmp_path / "z.csv", "id,y\n ,0.5\n"), **config))
    with pytest.raises(UserError, match="only a table has a column 'side' to split by"):
        read_labelled(data, LabelConfig(file=numbers, **config), ReadOptions(split_column="side"))


def test_records_of_text_are_counted_before_any_is_left_out(tmp_path: Path) -> None:
    data = write(tmp_path / "x.csv", "sequence,label\nCCO,1\nCCN,\nc1ccccc1,3\n")
    found = read_labelled(data, LabelConfig(task="regression", bad="drop"), reading=Reading("text"))
    assert (len(found), found.account.read) == (2, 3)


def test_a_blank_is_coil_as_dssp_writes_it(tmp_path: Path) -> None:
    data = table(tmp_path / "x.parquet", {"sequence": LETTERS[:2], "label": [" HHE ", "H    "]})
    found = read_labelled(data, LabelConfig(task="residue_classification"))
    assert found.task.names == ("-", "E", "H") and [t.tolist() for t in found.truth] == [
        [0, 2, 2, 1, 0],
        [2, 0, 0, 0, 0],
    ]


def test_a_table_of_labels_needs_identifiers_on_the_other_side(tmp_path: Path) -> None:
    data = write(tmp_path / "x.csv", "name,sequence\na,MKT\n")
    labels = write(tmp_path / "y.csv", "id,label\na,1\n")
    with pytest.raises(UserError, match="say with id_column where this table has them"):
        read_labelled(data, LabelConfig(task="regression", file=labels))
    found = read_labelled(data, LabelConfig(task="regression", file=labels), ReadOptions(id_column="name"))
    assert np.asarray(found.truth).tolist() == [[1.0]]


def test_groups_come_with_their_labels(tmp_path: Path) -> None:
    rows = ["s,y,e,side", "MKT,a,flu,u", "MKT,b,cmv,u", "MKT,a,flu,u", "MKA,a,NA,u", "MKC,b, cmv ,u", "MKD,b,,v"]
    data = write(tmp_path / "x.csv", "\n".join(rows) + "\n")
    config = LabelConfig(column="y", group="e", min_per_class=1, where={"side": "u"})
    found = read_labelled(data, config, ReadOptions(column="s"))
    assert found.letters == [b"MKT", b"MKT", b"MKA", b"MKC"]  # in two groups, and so no conflict
    assert found.groups == ["flu", "cmv", None, "cmv"]
    assert found.group_numbers is not None and found.group_numbers.tolist() == [1, 0, -1, 0]
    assert found.take([3, 0]).groups == ["cmv", "flu"]
    plain = read_labelled(data, LabelConfig(column="y", min_per_class=1), ReadOptions(column="s"))
    assert plain.group_numbers is None and plain.take([0]).groups == [] and len(plain) == 3
    for settings, said in (({"field": 1}, "headers have none"), ({"task": "regression"}, "no figures per group")):
        with pytest.raises(UserError, match=said):
            LabelConfig(group="e", **settings)  # type: ignore[arg-type]


def test_a_label_that_is_a_part_of_what_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vdjdb.tsv"
    rows = [
        "cdr3.alpha\tcdr3.beta\tspecies\tantigen.epitope",
        "CAVF\tCASSF\tHomoSapiens\tGILGFVFTL",
        "CAAF\tCASRF\tHomoSapiens\tNLVPMVATV",
    ]
    path.write_text("\n".join(rows) + "\n")
    config = LabelConfig(column="antigen.epitope", min_per_class=1)
    with pytest.raises(UserError, match=r"'antigen\.epitope' is read as a part of the sequences"):
        read_labelled(str(path), config, ReadOptions(kind="tcr"), Reading("tcr"))
    parts = {"alpha": "cdr3.alpha", "beta": "cdr3.beta"}
    found = read_labelled(str(path), config, ReadOptions(kind="tcr", column=parts), Reading("tcr"))
    assert found.letters == [b"CAVF|CASSF", b"CAAF|CASRF"]
