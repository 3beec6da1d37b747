"""Tables of receptors as public sources lay them out, each in a small file of its published format."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biometro import cli
from biometro.alphabet import Reading
from biometro.alphabet.immune import join
from biometro.data import layouts
from biometro.data.corpus import Corpus
from biometro.data.intake import Account, clean
from biometro.data.labels import read_labelled
from biometro.data.layouts import side_of
from biometro.data.sources import ReadOptions, Record, expand, read
from biometro.data.task import LabelConfig
from biometro.errors import UserError

HEAVY = ["QVQLVQSGAEVKKPGASVKVSCKAS", "GYTFTSYY", "MHWVRQAPGQGLEWMGI", "INPSGGST", 
         "SYAQKFQGRVTMTRDTSTSTVYMELSSLRSEDTAVYYC", "ARGGYSSGWYFDY", "WGQGTLVTVSS"]  # fmt: skip
LIGHT = ["DIQMTQSPSSLSASVGDRVTITCRAS", "QSISSY", "LNWYQQKPGKAPKLLIY", "AAS", "SLQSGVPSRFSGSGSGTDFTLTISSLQPEDFATYYC",
         "QQSYSTPLT", "FGGGTKVEIK"]  # fmt: skip
META = {
    "Run": "SRR1",
    "Link": 'https://doi.org/10.1/"x"',
    "Species": "human",
    "Age": 35,
    "Isotype": "IGHG",
    "Chain": "Heavy",
}


def records(path: Path | str, kind: str, **options: Any) -> list[Record]:
    settings = ReadOptions(kind=kind, **options)  # type: ignore[arg-type]
    return [record for source in expand(str(path), settings) for record in read(source, settings)]


def texts(path: Path | str, kind: str, **options: Any) -> list[str]:
    """What each record says, or in brackets why it says nothing."""
    return [f"({r.skip})" if r.skip else r.raw.decode() for r in records(path, kind, **options)]


def write(path: Path, header: list[str], rows: list[list[str]], before: str = "", encoding: str = "utf-8") -> Path:
    text = io.StringIO()
    csv.writer(text, delimiter="\t" if ".tsv" in path.name or ".txt" in path.name else ",").writerows([header, *rows])
    data = (before + text.getvalue()).encode(encoding)
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


# Columns by part -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "parquet"])
def test_columns_by_part(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame(
        {
            "n": [1, 2, 3, 4],
            "b": ["CASSF", "", "CASSL", None],
            "a": ["CAVF", "CAVL", None, ""],
            "pep": ["GIL", None, "NLV", None],
        }
    )
    path = tmp_path / f"t.{suffix}"
    frame.to_parquet(path) if suffix == "parquet" else frame.to_csv(
        path, index=False, sep="\t" if suffix == "tsv" else ","
    )
    parts = {"alpha": "a", "beta": "b", "peptide": "pep"}
    assert texts(path, "tcr", column=parts) == ["CAVF|CASSF:GIL", "CAVL|", "|CASSL:NLV", f"({layouts.BLANK})"]
    assert [r.line for r in records(path, "tcr", column=parts)] == (
        [1, 2, 3, 4] if suffix == "parquet" else [2, 3, 4, 5]
    )
    account = Account()
    options = ReadOptions(column=parts, kind="tcr")
    kept = list(clean(expand(str(path)), options, Reading("tcr"), account))
    assert [letters for _, letters in kept] == [b"CAVF|CASSF:GIL", b"CAVL|", b"|CASSL:NLV"]
    assert account.read == 4 and account.dropped == {layouts.BLANK: 1}


def test_one_chain_in_a_row(tmp_path: Path) -> None:
    names = ["TRB", "beta", "B", "TRBV7-2", "TRA", "alpha", "a", "TRAV29/DV5*01", "TRG", "delta", "TRDV1", "", "IGH"]
    path = write(tmp_path / "t.csv", ["x", "c"], [["CASSF", name] for name in names])
    found = texts(path, "tcr", column={"cdr3": "x", "chain": "c"})
    assert (
        found == ["|CASSF"] * 4 + ["CASSF|"] * 4 + ["CASSF|", "|CASSF", "|CASSF"] + [f"({layouts.NO_CHAIN['tcr']})"] * 2
    )
    names = ["IGH", "heavy", "H", "IGHV3-23*01", "IGK", "igl", "Light", "L", "K", "kappa", "IGLV1-40"]
    path = write(tmp_path / "t.csv", ["x", "c"], [["CARW", name] for name in names])
    assert texts(path, "antibody", column={"cdr3": "x", "chain": "c"}) == ["CARW|"] * 4 + ["|CARW"] * 7
    assert [side_of("tcr", name) for name in ("TCRBV07-02", "TRAC", "alphabeta", "CASSF", "IGKV1")] == [
        1,
        0,
        None,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        ("protein", {"alpha": "a"}), ("molecule", {"smiles": "a"}), ("tcr", {"heavy": "a"}),
        ("antibody", {"alpha": "a"}), ("antibody", {"heavy": "a", "peptide": "b"}), ("tcr", {"cdr3": "a"}),
        ("tcr", {"cdr3": "a", "chain": "b", "alpha": "c"}),
        ("tcr", {}),
    ],
)  # fmt: skip
def test_parts_that_a_kind_does_not_have(kind: Any, column: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"^column: ") as error:
        ReadOptions(column=column, kind=kind)
    assert "\n" not in str(error.value)


def test_cells_that_are_wrong_name_their_line(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["a", "b"], [["CAVF", "CASSF"], ["CAVF|CASSF", ""]])
    with pytest.raises(UserError, match=r"t\.csv, line 3: '\|' in the alpha 'CAVF\|CASSF'"):
        texts(path, "tcr", column={"alpha": "a", "beta": "b"})
    with pytest.raises(UserError, match=r"line 1: no column named 'c'"):
        texts(path, "tcr", column={"alpha": "a", "beta": "c"})
    path = write(tmp_path / "t.csv", ["a", "b"], [["CAVF", "CASSF"], ["CC(=O)Oc1ccccc1", ""]])
    options = ReadOptions(column={"alpha": "a", "beta": "b"}, kind="tcr")
    with pytest.raises(UserError, match=r"t\.csv, line 3: .*looks like a SMILES"):
        list(clean(expand(str(path)), options, Reading("tcr"), Account()))


@given(st.permutations(["a", "b", "pep", "more"]), st.integers(0, 2**32))
def test_any_order_of_columns_reads_as_pandas_reads_it(tmp_path_factory: Any, order: list[str], seed: int) -> None:
    chance = random.Random(seed)
    cell = lambda: "".join(chance.choices("ACDEFGHIKLMNPQRSTVWY", k=chance.choice([0, 3, 9])))  # noqa: E731
    rows = [[cell() for _ in order] for _ in range(chance.randint(1, 9))]
    path = tmp_path_factory.mktemp("t") / "t.csv"
    write(path, order, rows)
    frame = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False)
    expected = [
        join("tcr", {"alpha": row["a"], "beta": row["b"], "peptide": row["pep"]}) or f"({layouts.BLANK})"
        for row in frame.to_dict("records")
    ]
    assert texts(path, "tcr", column={"alpha": "a", "beta": "b", "peptide": "pep"}) == expected


# OAS -------------------------------------------------------------------------------------------------------------


def oas_columns(suffix: str = "") -> list[str]:
    names = ["sequence", "locus", "productive", "v_call", "sequence_alignment", "sequence_alignment_aa"]
    for i in (1, 2, 3):
        names += [f"fwr{i}_aa", f"cdr{i}_aa"]
    return [name + suffix for name in (*names, "fwr4_aa", "junction_aa")]


def oas_row(regions: list[str], locus: str, productive: str = "T") -> list[str]:
    full = "".join(regions)
    return ["ACGT" * 9, locus, productive, f"IG{locus}V1-1*01", "ACGTACGT", full, *regions, f"C{regions[5]}W"]


def escaped(meta: dict[str, Any]) -> str:
    return '"' + json.dumps(meta).replace('"', '""') + '"\n'


@pytest.mark.parametrize("before", [escaped(META), json.dumps(META) + "\n", escaped(META).replace(", ", ",\n "), ""])
def test_unpaired_oas(tmp_path: Path, before: str) -> None:
    rows = [oas_row(HEAVY, "H"), oas_row(LIGHT, "K"), oas_row(HEAVY, "H", "F"), oas_row([""] * 7, "L")]
    path = write(tmp_path / "SRR1_Heavy_IGHG.csv.gz", oas_columns(), rows, before)
    reasons = [f"({layouts.UNPRODUCTIVE})", f"({layouts.NO_LETTERS})"]
    assert texts(path, "antibody") == ["".join(HEAVY) + "|", "|" + "".join(LIGHT), *reasons]
    assert texts(path, "antibody", region="cdr3")[:2] == [HEAVY[5] + "|", "|" + LIGHT[5]]
    assert texts(path, "antibody", region="cdrs")[:2] == [
        "".join(HEAVY[1::2][:3]) + "|",
        "|" + "".join(LIGHT[1::2][:3]),
    ]
    assert [r.line for r in records(path, "antibody")] == [n + before.count("\n") for n in (2, 3, 4, 5)]
    if before:
        found = records(path, "antibody", fields=("Species", "Isotype", "Chain", "Age", "locus"))
        assert found[1].fields == ("human", "IGHG", "Heavy", "35", "K")
    else:
        with pytest.raises(UserError, match="no column named 'Species'"):
            records(path, "antibody", fields=("Species",))


def test_paired_oas_and_labels_of_its_metadata(tmp_path: Path) -> None:
    rows = [oas_row(HEAVY, "H") + oas_row(LIGHT, "K"), oas_row(HEAVY, "H") + oas_row(LIGHT, "K", "F")]
    for number, species in enumerate(("human", "mouse")):
        rows[0][5] = rows[0][5][:-number] if number else rows[0][5]
        meta = escaped(META | {"Species": species, "Chain": "Paired"})
        write(tmp_path / f"{number}_Paired.csv.gz", oas_columns("_heavy") + oas_columns("_light"), rows, meta)
    path = tmp_path / "0_Paired.csv.gz"
    assert texts(path, "antibody") == ["".join(HEAVY) + "|" + "".join(LIGHT), f"({layouts.UNPRODUCTIVE})"]
    assert texts(path, "antibody", region="cdr3")[0] == f"{HEAVY[5]}|{LIGHT[5]}"
    options = ReadOptions(kind="antibody")
    labels = LabelConfig(column="Species", min_per_class=1)
    found = read_labelled(str(tmp_path / "*.csv.gz"), labels, options, Reading("antibody"))
    assert found.before == {"human": 1, "mouse": 1} and found.account.dropped == {layouts.UNPRODUCTIVE: 2}


def test_a_file_that_is_cut_and_metadata_that_is_none(tmp_path: Path) -> None:
    chance = random.Random(0)
    rows = [oas_row(["".join(chance.choices("ACDEFGHIKLMNPQRSTVWY", k=30))] * 7, "H") for _ in range(3000)]
    path = write(tmp_path / "x.csv.gz", oas_columns(), rows, escaped(META))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"x\.csv\.gz, after line \d+: the compressed stream ends too early"):
        records(path, "antibody")
    write(tmp_path / "y.csv", oas_columns(), [], '"{""Run"": oops"\n')
    with pytest.raises(UserError, match=r"y\.csv, line 1: begins like the metadata of an OAS file, and is no JSON"):
        records(tmp_path / "y.csv", "antibody")
    write(tmp_path / "z.csv", oas_columns(), [], escaped(META))
    with pytest.raises(UserError, match=r"z\.csv, line 1: the file holds no sequence"):
        records(tmp_path / "z.csv", "antibody")
    write(tmp_path / "w.csv", oas_columns(), [["é"] * len(oas_columns())], encoding="latin-1")
    with pytest.raises(UserError, match=r"w\.csv, after line 1: not UTF-8"):
        records(tmp_path / "w.csv", "antibody")


# AIRR, 10x -------------------------------------------------------------------------------------------------------

AIRR = ["sequence_id", "sequence", "rev_comp", "productive", "v_call", "j_call", "sequence_alignment", "junction",
        "junction_aa", "locus", "cdr3_aa"]  # fmt: skip


def test_airr_rearrangements(tmp_path: Path) -> None:
    def row(productive: str, v: str, junction: str, locus: str) -> list[str]:
        return ["x", "ACGTACGT", "F", productive, v, "J", "ACGT", "TGT", junction, locus, junction[1:-1]]

    rows = [
        row("T", "TRBV7-2*01", "CASSF", "TRB"), row("true", "TRAV1", "CAVF", ""), row("F", "TRBV7-2", "CASSL", "TRB"),
        row("false", "", "", "TRB"), row("T", "TRBV7-2", "", "TRB"), row("T", "", "CASSX", ""),
        row("", "TRBV1", "CASS_F", "TRB"), row("", "TRBV1,TRBV2", "CASSY", ""),
    ]  # fmt: skip
    path = write(tmp_path / "ireceptor.tsv", AIRR, rows)
    account = Account()
    kept = list(clean(expand(str(path)), ReadOptions(kind="tcr"), Reading("tcr"), account))
    assert [letters for _, letters in kept] == [b"|CASSF", b"CAVF|", b"|CASSY"]
    assert account.dropped == {
        layouts.UNPRODUCTIVE: 2,
        layouts.NO_LETTERS: 1,
        layouts.NO_CHAIN["tcr"]: 1,
        layouts.ODD: 1,
    }
    assert account.examples[layouts.UNPRODUCTIVE] == [f"{path}, line 4 (3)", f"{path}, line 5 (4)"]
    with pytest.raises(UserError, match=r"ireceptor\.tsv: has no columns of region: cdrs .*AIRR.* it has cdr3"):
        texts(path, "tcr", region="cdrs")
    with pytest.raises(UserError, match="line 5: an empty cell"):  # a column that is named is taken as it is
        texts(path, "tcr", column="junction_aa")
    with pytest.raises(UserError, match=r"looks like a SMILES"):
        smiles = write(tmp_path / "s.tsv", AIRR, [row("T", "TRBV1", "CC(=O)Oc1ccccc1C(=O)O", "TRB")])
        list(clean(expand(str(smiles)), ReadOptions(kind="tcr"), Reading("tcr"), Account()))


def test_contigs_of_10x(tmp_path: Path) -> None:
    header = (
        "barcode,is_cell,contig_id,high_confidence,length,chain,v_gene,productive,fwr1,cdr1,fwr2,cdr2,fwr3,cdr3,fwr4"
    )
    row = ["AAAC-1", "true", "AAAC-1_contig_1", "true", "500"]
    rows = [[*row, "TRB", "TRBV1", "true", *HEAVY], [*row, "TRA", "TRAV1", "True", *LIGHT],
            [*row, "Multi", "", "None", *HEAVY], [*row, "TRB", "TRBV1", "None", *(["None"] * 7)],
            [*row, "TRB", "TRBV1", "False", *HEAVY]]  # fmt: skip
    path = write(tmp_path / "all_contig_annotations.csv", header.split(","), rows)
    reasons = [f"({r})" for r in (layouts.NO_CHAIN["tcr"], layouts.NO_LETTERS, layouts.UNPRODUCTIVE)]
    assert texts(path, "tcr") == ["|" + HEAVY[5], LIGHT[5] + "|", *reasons]
    assert texts(path, "tcr", region="full")[:2] == ["|" + "".join(HEAVY), "".join(LIGHT) + "|"]


# VDJdb, McPAS, IEDB, TCRdb ---------------------------------------------------------------------------------------

VDJDB = ["complex.id", "Gene", "CDR3", "V", "J", "Species", "MHC A", "MHC B", "MHC class", "Epitope", "Epitope gene",
         "Epitope species", "Reference", "Method", "Meta", "CDR3fix", "Score"]  # fmt: skip


def vdjdb_row(
    complex_: str, gene: str, cdr3: str, epitope: str = "GILGFVFTL", species: str = "HomoSapiens"
) -> list[str]:
    meta = '{"cell.subset": "CD8+", "clone.id": ""}'
    return [complex_, gene, cdr3, gene + "V1", gene + "J1", species, "HLA-A*02:01", "B2M", "MHCI", epitope, "M",
            "InfluenzaA", "PMID:1", "{}", meta, "{}", "1"]  # fmt: skip


PAIRS = [("1", "TRA", "CAVF"), ("1", "TRB", "CASSF"), ("0", "TRB", "CASSL"), ("0", "TRA", "CAVL"),
         ("2", "TRB", "CASSM"), ("2", "TRA", "CAVM"), ("3", "TRB", "CASSN"), ("4", "TRA", ""),
         ("4", "TRB", "CASSP"), ("5", "TRB", "CASSQ"), ("5", "TRB", "CASSR")]  # fmt: skip
PAIRED = ["CAVF|CASSF:GILGFVFTL", "|CASSL:GILGFVFTL", "CAVL|:GILGFVFTL", "CAVM|CASSM:GILGFVFTL", "|CASSN:GILGFVFTL",
          f"({layouts.NO_LETTERS})", "|CASSP:GILGFVFTL", "|CASSQ:GILGFVFTL", "|CASSR:GILGFVFTL"]  # fmt: skip


def test_vdjdb_as_the_web_exports_it(tmp_path: Path) -> None:
    path = write(tmp_path / "SearchTable.tsv", VDJDB, [vdjdb_row(*pair) for pair in PAIRS])
    found = records(path, "tcr", id_column="complex.id", fields=("Species", "Epitope"))
    assert texts(path, "tcr") == PAIRED
    assert [r.line for r in found] == [2, 4, 5, 6, 8, 9, 10, 11, 12]
    assert [r.id for r in found] == ["1", "0", "0", "2", "3", "4", "4", "5", "5"]
    assert found[0].fields == ("HomoSapiens", "GILGFVFTL")


def test_vdjdb_as_it_is_released(tmp_path: Path) -> None:
    """vdjdb.txt, whose format its name does not tell, and the slim table, which keeps no pairs."""
    header = ["complex.id", "gene", "cdr3", "v.segm", "species", "mhc.a", "antigen.epitope"]
    rows = [[c, gene, cdr3, "V", "HomoSapiens", "HLA-A*02", "GILGFVFTL"] for c, gene, cdr3 in PAIRS]
    assert texts(write(tmp_path / "vdjdb.txt", header, rows), "tcr") == PAIRED
    slim = write(tmp_path / "vdjdb.slim.txt", header, [["1,2", *rows[0][1:]], ["1,2", *rows[1][1:]]])
    assert texts(slim, "tcr") == ["CAVF|:GILGFVFTL", "|CASSF:GILGFVFTL"]
    with pytest.raises(UserError, match=r"vdjdb\.txt: cannot tell the format"):
        expand(str(tmp_path / "vdjdb.txt"))
    table = {"cdr3.alpha": ["CAVF", None, ""], "v.alpha": ["x"] * 3, "cdr3.beta": ["CASSF", "CASSL", None],
             "antigen.epitope": ["GIL", "NLV", "X"]}  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "full.parquet")
    assert texts(tmp_path / "full.parquet", "tcr") == ["CAVF|CASSF:GIL", "|CASSL:NLV", f"({layouts.NO_LETTERS})"]
    with pytest.raises(UserError, match="VDJdb; it has cdr3"):
        texts(tmp_path / "full.parquet", "tcr", region="full")


def test_pairs_do_not_break_at_row_groups(tmp_path: Path) -> None:
    frame = pd.DataFrame([vdjdb_row(*pair) for pair in PAIRS], columns=VDJDB)
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "v.parquet", row_group_size=1)
    assert texts(tmp_path / "v.parquet", "tcr") == PAIRED


def test_mcpas(tmp_path: Path) -> None:
    header = [
        "CDR3.alpha.aa",
        "CDR3.beta.aa",
        "Species",
        "Category",
        "Pathology",
        "Antigen.protein",
        "Epitope.peptide",
        "MHC",
    ]
    rows = [
        ["CAVF\xa0", "CASSF", "Human", "Pathogens", "Sj\xf6gren", "M1", "GILGFVFTL", "HLA-A*02:01"],
        ["NA", "CASSL", "Mouse", "", "", "", "NA", "H-2Kb"], ["NA", "NA", "Human", "", "", "", "GIL", ""],
        ["NA", "CASS(T)L#", "Human", "", "", "", "", ""], ["NA", "CASSM", "Human", "", "", "", "GIL / NLV", ""],
    ]  # fmt: skip
    path = write(tmp_path / "McPAS-TCR.csv", header, rows, encoding="latin-1")
    expected = ["CAVF|CASSF:GILGFVFTL", "|CASSL", f"({layouts.NO_LETTERS})", f"({layouts.ODD})", "|CASSM"]
    assert texts(path, "tcr") == expected
    assert records(path, "tcr", fields=("Pathology",))[0].fields == ("Sjögren",)


@pytest.mark.parametrize("header_rows", [1, 2])
def test_iedb(tmp_path: Path, header_rows: int) -> None:
    def chain(kind: str, curated: str, calculated: str, cdrs: str = ",,,") -> list[str]:
        return [kind, "", curated, calculated, *cdrs.split(",")]

    names = ["Receptor - Group IRI", "Receptor - Type", "Epitope - IEDB IRI", "Epitope - Name"]
    for i in (1, 2):
        names += [f"Chain {i} - {name}" for name in ("Type", "Curated V Gene", "CDR3 Curated", "CDR3 Calculated",
                  "CDR1 Curated", "CDR1 Calculated", "CDR2 Curated", "CDR2 Calculated")]  # fmt: skip
    rows = [
        ["1", "alphabeta", "e", "GILGFVFTL", *chain("alpha", "AVF", "X", "A,,,C"), *chain("beta", "", "ASSF", ",D,E,")],
        ["2", "alphabeta", "e", "KLG + OX(M1)", *chain("beta", "", "ASSL"), *chain("alpha", "AVL", "")],
        ["3", "alphabeta", "e", "GIL", *chain("beta", "", ""), *chain("alpha", "", "")],
        ["4", "construct", "e", "GIL", *chain("TscFv", "AAA", ""), *chain("", "", "")],
    ]  # fmt: skip
    path = tmp_path / "tcr_full_v3.csv"
    if header_rows == 2:
        first, second = zip(*(name.split(" - ") for name in names), strict=True)
        write(path, list(first), [list(second), *rows])
    else:
        write(path, names, rows)
    expected = ["AVF|ASSF:GILGFVFTL", "AVL|ASSL", f"({layouts.NO_LETTERS})", f"({layouts.NO_CHAIN['tcr']})"]
    assert texts(path, "tcr") == expected
    assert texts(path, "tcr", region="cdrs")[0] == "ACAVF|DEASSF:GILGFVFTL"
    found = records(path, "tcr", id_column="Receptor - Group IRI")
    assert [r.line for r in found] == [n + header_rows for n in (1, 2, 3, 4)] and found[1].id == "2"


def test_tcrdb(tmp_path: Path) -> None:
    rows = [["SRR1", "CASSF", "TRBV7-2", "TRBJ1", "0.1"], ["SRR1", "CAVF", "TRAV1", "TRAJ1", "0.1"],
            ["SRR1", "CASSL", "Unknown", "TRBJ1", "0.1"], ["SRR1", "CASSM", "Unknown", "Unknown", "0.1"]]  # fmt: skip
    path = write(tmp_path / "PRJNA1.tsv", ["RunId", "AASeq", "Vregion", "Jregion", "cloneFraction"], rows)
    assert texts(path, "tcr") == ["|CASSF", "CAVF|", "|CASSL", f"({layouts.NO_CHAIN['tcr']})"]
    table = {"cdr3": ["CASSF", "CAVF", "X1"], "v": ["TRBV1", "TRAV1", None], "chain": ["B", None, None]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    assert texts(tmp_path / "t.parquet", "tcr") == ["|CASSF", "CAVF|", f"({layouts.ODD})"]


@given(st.permutations(range(len(VDJDB))), st.permutations(range(len(oas_columns()))))
def test_layouts_are_known_in_any_order_of_columns(tmp_path_factory: Any, order: list[int], other: list[int]) -> None:
    folder = tmp_path_factory.mktemp("t")
    rows = [[row[i] for i in order] for row in (vdjdb_row(*pair) for pair in PAIRS)]
    assert texts(write(folder / "v.tsv", [VDJDB[i] for i in order], rows), "tcr") == PAIRED
    row, names = oas_row(HEAVY, "H"), oas_columns()
    path = write(folder / "o.csv", [names[i] for i in other], [[row[i] for i in other]], escaped(META))
    assert texts(path, "antibody") == ["".join(HEAVY) + "|"]


def test_tables_without_a_known_layout_are_read_as_ever(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["sequence", "Species"], [["CAVF|CASSF", "x"]])
    assert texts(path, "tcr") == ["CAVF|CASSF"]
    with pytest.raises(UserError, match=r"t\.csv: region: cdr3 chooses columns of a public layout"):
        texts(path, "tcr", region="cdr3")
    airr = write(tmp_path / "a.tsv", AIRR, [["x", "MKT", "F", "T", "TRBV1", "", "", "", "CASSF", "TRB", "ASS"]])
    assert texts(airr, "protein") == ["MKT"]  # layouts are for receptors


# The command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", ["prepare", "embed", "finetune", "predict"])
def test_columns_on_the_command_line(job: str) -> None:
    more = {
        "prepare": ["--out=y"],
        "embed": ["--model=m", "--out=y.npz"],
        "finetune": ["--model=m", "--run=r"],
        "predict": ["--model=m", "--out=y.csv"],
    }[job]
    for given_, expected in {"seq": "seq", "{alpha: a, beta: b}": {"alpha": "a", "beta": "b"}}.items():
        assert cli.parse([job, "--data=x.csv", *more, "--column", given_])[1]["column"] == expected
    assert cli.parse([job, "--data=x.csv", *more, "--region=cdrs"])[1]["region"] == "cdrs"


def test_prepare_reads_parts_and_layouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "t.csv", ["a", "b"], [["CAVF", "CASSF"], ["", ""], ["CAVL", ""]])
    run = ["prepare", f"--data={tmp_path}/t.csv", f"--out={tmp_path}/c", "--kind=tcr", "--valid=0"]
    assert cli.main([*run, "--column", "{alpha: a, beta: b}"]) == 0
    corpus = Corpus.open(tmp_path / "c")
    split = corpus.split("train")
    assert {corpus.alphabet.decode(split[i]) for i in range(len(split))} == {"CAVF|CASSF", "CAVL|"}
    assert corpus.info["intake"]["dropped"] == {layouts.BLANK: 1}
    assert cli.main([*run, "--overwrite=true", "--column", "{heavy: a}"]) == 1
    assert "column: heavy does not say where the parts of kind tcr stand" in capsys.readouterr().err
    write(tmp_path / "t.csv", VDJDB, [])
    write(tmp_path / "t.tsv", VDJDB, [vdjdb_row(*pair) for pair in PAIRS])
    run[1] = f"--data={tmp_path}/t.tsv"
    assert cli.main([*run, "--overwrite=true", "--workers=2"]) == 0
    assert Corpus.open(tmp_path / "c").info["intake"]["kept"] == len(PAIRED) - 1
