"""Files of molecules: SMILES as PubChem and ZINC write them, and SDF, beside RDKit's own reader."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rdkit")

from rdkit import Chem
from rdkit.Chem import AllChem

from biometro import cli
from biometro.alphabet import MoleculePolicy, Reading
from biometro.data import bounds, fasta, molfiles
from biometro.data.corpus import Corpus
from biometro.data.intake import Account, clean
from biometro.data.labels import read_labelled
from biometro.data.sources import ReadOptions, Record, expand, pieces, read
from biometro.data.task import LabelConfig
from biometro.errors import UserError

SMILES = ["CCO", "CC(=O)Oc1ccccc1C(=O)O", "C[C@H](N)C(=O)O", "[Na+].[Cl-]", "F/C=C/F", "C1CC1", "[2H]OC", "c1ccncc1"]


def records(path: Path | str, **options: Any) -> list[Record]:
    settings_ = ReadOptions(kind="molecule", **options)
    return [record for source in expand(str(path), settings_) for record in read(source, settings_)]


def found(path: Path | str, **options: Any) -> list[tuple[str, str, int]]:
    return [(r.id, r.raw.decode(), r.line) for r in records(path, **options)]


# SMILES ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.smi", "x.ism", "x.smi.gz", "x.txt"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("CCO ethanol\nC1CC1\tcyclopropane\nCN\n", 1),
        ("smiles zinc_id\nCCO ethanol\nC1CC1 cyclopropane\nCN\n", 2),
        ("zinc_id\tlogp\tSMILES\nethanol\t1\tCCO\ncyclopropane\t2\tC1CC1\n\t3\tCN\n", 2),
        ("\ufeffCCO ethanol\nC1CC1 cyclopropane more\nCN", 1),
        ("CCO |$a;b;$| ethanol\nC1CC1 cyclopropane\nCN\n", 1),
    ],
)
def test_smiles_files(tmp_path: Path, name: str, newline: str, text: str, first: int) -> None:
    data = text.replace("\n", newline).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    names = ["ethanol", "cyclopropane", str(first + 2)]
    assert found(tmp_path / name) == list(zip(names, ["CCO", "C1CC1", "CN"], range(first, first + 3), strict=True))


def test_pubchem(tmp_path: Path) -> None:
    """Known by its name, and by what stands in it."""
    text = b"1\tCC(=O)OC(CC(=O)[O-])C[N+](C)(C)C\n22\tCCO\n"
    for name in ("CID-SMILES.gz", "CID-SMILES", "some.smi"):
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        assert found(tmp_path / name) == [("1", "CC(=O)OC(CC(=O)[O-])C[N+](C)(C)C", 1), ("22", "CCO", 2)]


def test_labels_stand_behind_smiles(tmp_path: Path) -> None:
    (tmp_path / "x.smi").write_text("CCO a|1\nCCN b|0\nCCC c|1\nCCF d|0\n")
    options = ReadOptions(kind="molecule")
    labelled = read_labelled(
        str(tmp_path / "x.smi"), LabelConfig(field=1, min_per_class=1), options, Reading("molecule")
    )
    assert labelled.task.names == ("0", "1") and np.asarray(labelled.truth).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "line 1: the file holds no sequence"),
        (b"\n \n", "line 1: the file holds no sequence"),
        (b"smiles zinc_id\n", "line 1: the file holds no sequence"),
        (b"CCO\rCCN\rCCC\r", "line 1: lines end in CR alone"),
        (b"CCO a\nCCN \xff\n", "line 2: not UTF-8"),
        ("CCO a\nCÉN b\n".encode(), "line 2: a non-ASCII character '\\\\xc9' in a SMILES"),
        (b"id\tsmiles\na\tCCO\nb\t\n", "line 3: no SMILES where one was expected"),
    ],
)
def test_wrong_smiles_files_name_file_and_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.smi"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"x\.smi, {message}") as error:
        records(path)
    assert "\n" not in str(error.value)


def test_text_that_is_no_smiles_needs_a_format(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("some words\n")
    with pytest.raises(UserError, match=r"x\.txt: cannot tell the format"):
        records(tmp_path / "x.txt")


def test_files_that_are_cut(tmp_path: Path) -> None:
    chance = random.Random(0)
    text = b"".join(b"C%s n%d\n" % ("".join(chance.choices("CNO", k=20)).encode(), i) for i in range(9000))
    for name in ("x.smi.gz", "x.sdf.gz"):
        (tmp_path / name).write_bytes(gzip.compress(text)[:-4000])
        with pytest.raises(UserError, match=rf"{name}, after line [\d,]+: .*ends too early"):
            records(tmp_path / name)


@settings(max_examples=20)
@given(st.lists(st.sampled_from([*SMILES, "", "7 CCO", "C name of it", "C\tx y"]), max_size=30), st.integers(1, 40))
def test_pieces_of_smiles_are_the_whole(tmp_path_factory: Any, lines: list[str], size: int) -> None:
    path = tmp_path_factory.mktemp("s") / "x.smi"
    path.write_text("smiles id\n" + "\n".join(["C", *lines]))
    with pytest.MonkeyPatch.context() as patch:
        whole = found(path)
        patch.setattr(fasta, "PIECE_BYTES", size)
        patch.setattr(molfiles, "PIECE_BYTES", size)
        cut = found(path)
    assert cut == whole
    plain = [(i, line.split()) for i, line in enumerate(["C", *lines], 2) if line.strip()]
    assert [(raw, line) for _, raw, line in whole] == [(fields[0], i) for i, fields in plain]


# SDF -------------------------------------------------------------------------------------------------------------


def write_sdf(path: Path, smiles: list[str], v3000: bool = False) -> Path:
    writer = Chem.SDWriter(str(path))
    writer.SetForceV3000(v3000)
    for number, text in enumerate(smiles):
        mol = Chem.MolFromSmiles(text)
        AllChem.Compute2DCoords(mol)
        mol.SetProp("_Name", f"m{number}")
        mol.SetProp("CAS", f"50-00-{number}")
        mol.SetProp("active", str(number % 2))
        if number % 3 == 0:
            mol.SetProp("notes", "one line\nand another")
        writer.write(mol)
    writer.close()
    return path


def by_rdkit(path: Path) -> list[str | None]:
    return [None if mol is None else Chem.MolToSmiles(mol) for mol in Chem.SDMolSupplier(str(path))]


@pytest.mark.parametrize("v3000", [False, True])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("size", [100, 1 << 20])
def test_sdf_reads_as_rdkit_reads_it(
    tmp_path: Path, v3000: bool, newline: bytes, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(molfiles, "PIECE_BYTES", size)
    path = write_sdf(tmp_path / "x.sdf", SMILES, v3000)
    expected = by_rdkit(path)
    lines = path.read_text().split("\n")
    starts = [1, *(i + 2 for i, line in enumerate(lines) if line == "$$$$")][:-1]
    path.write_bytes(path.read_bytes().replace(b"\n", newline))
    assert [(r.raw.decode(), r.line) for r in records(path)] == list(zip(expected, starts, strict=True))
    assert [r.id for r in records(path)] == [f"m{i}" for i in range(len(SMILES))]
    fields = records(path, id_column="CAS", fields=("active", "notes"))
    assert [r.id for r in fields] == [f"50-00-{i}" for i in range(len(SMILES))]
    assert [r.fields for r in fields][:2] == [("0", "one line\nand another"), ("1", None)]
    (tmp_path / "x.sdf.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert [r.raw for r in records(tmp_path / "x.sdf.gz")] == [text.encode() for text in expected if text]


def test_blocks_that_rdkit_cannot_read_are_counted(tmp_path: Path) -> None:
    path = write_sdf(tmp_path / "x.sdf", ["CCO", "CCN", "CCC"])
    blocks = path.read_text().split("$$$$\n")
    broken = blocks[1].replace("  3  2  0", "  9  2  0")
    empty = "nothing\n\n\n  0  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n"
    pentavalent = (
        blocks[0].replace(" O ", " F ").replace("  1  2  1  0", "  1  2  3  0").replace("  2  3  1  0", "  2  3  3  0")
    )
    path.write_text(
        "$$$$\n".join([blocks[0], broken, empty, pentavalent, blocks[2].rstrip("\n")])
    )  # no mark at the end
    account = Account()
    kept = list(clean(expand(str(path)), ReadOptions(kind="molecule"), Reading("molecule"), account))
    assert [letters for _, letters in kept] == [b"CCO", b"CCC"] and account.read == 5
    assert account.dropped == {molfiles.UNREADABLE: 2, molfiles.EMPTY: 1}
    line = blocks[0].count("\n") + 2
    assert account.examples[molfiles.UNREADABLE][0] == f"{path}, line {line} (m1)"
    assert [smiles for smiles in by_rdkit(path) if smiles] == ["CCO", "CCC"]
    strict = Reading("molecule", molecules=MoleculePolicy(invalid="fail"))
    with pytest.raises(UserError, match=f"line {line}: {molfiles.UNREADABLE}"):
        list(clean(expand(str(path)), ReadOptions(kind="molecule"), strict, Account()))


def test_an_sdf_file_is_a_table(tmp_path: Path) -> None:
    path = write_sdf(tmp_path / "x.sdf", ["CCO", "CCN", "CCC", "CCF"])
    options = ReadOptions(kind="molecule", id_column="CAS")
    labelled = read_labelled(str(path), LabelConfig(column="active", min_per_class=1), options, Reading("molecule"))
    assert np.asarray(labelled.truth).tolist() == [0, 1, 0, 1] and labelled.ids[3] == "50-00-3"
    chosen = LabelConfig(column="active", where={"CAS": "50-00-1"}, min_per_class=1, task="regression")
    assert len(read_labelled(str(path), chosen, options, Reading("molecule"))) == 1
    with pytest.raises(
        UserError, match=r"x\.sdf, line 1: no property named 'x'; the first records have: CAS, active, notes"
    ):
        records(path, fields=("x",))


def test_memory_is_bounded_by_the_longest_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(molfiles, "LONGEST_RECORD", 5000)
    monkeypatch.setattr(molfiles, "PIECE_BYTES", 1000)
    path = write_sdf(tmp_path / "x.sdf", SMILES * 10)
    sizes = [len(piece.data or b"") for piece in pieces(0, expand(str(path))[0])]
    assert len(sizes) > 10 and max(sizes) < 3000
    path.write_bytes(path.read_bytes().replace(b"$$$$", b"&&&&"))
    with pytest.raises(UserError, match=r"x\.sdf, line 1: a record of more than") as error:
        records(path)
    assert f"{bounds.LONGEST_RECORD:,}" in str(error.value)


def test_prepare_is_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    write_sdf(tmp_path / "a.sdf", SMILES)
    (tmp_path / "b.smi").write_text("".join(f"{text}O\n" for text in ("CC", "CN", "CF", "this", "C1")))
    for workers in (1, 2):
        run = ["prepare", f"--data={tmp_path}/[ab].s*", f"--out={tmp_path}/c{workers}", "--kind=molecule", "--valid=0"]
        assert cli.main([*run, f"--workers={workers}"]) == 0
    one, two = (Corpus.open(tmp_path / f"c{workers}").info for workers in (1, 2))
    assert one["intake"] == two["intake"] and one["intake"]["kept"] == 10
    assert one["intake"]["dropped_examples"]["no SMILES that RDKit can read"][0].startswith(
        f"{tmp_path}/b.smi, line 3 (3)"
    )


def test_a_file_cut_in_a_molfile_ends_the_job_and_an_empty_cell_does_not(tmp_path: Path) -> None:
    path = write_sdf(tmp_path / "x.sdf", ["CCO", "CCN"])
    whole = path.read_text()
    path.write_text(whole[: whole.rindex("M  END") - 5])
    with pytest.raises(UserError, match="ends in the middle of a molfile"):
        records(path)
    (tmp_path / "x.csv").write_text('smiles\nCCO\n""\nCCN\n')
    account = Account()
    options = ReadOptions(kind="molecule", column="smiles")
    kept = list(clean(expand(str(tmp_path / "x.csv")), options, Reading("molecule"), account))
    assert [letters for _, letters in kept] == [b"CCO", b"CCN"] and account.dropped == {molfiles.NOTHING: 1}
