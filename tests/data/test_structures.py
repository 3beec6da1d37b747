"""Structures against Biopython's parser and a plain double loop, and files that are strange."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from biometro.data.contacts import Protein
from biometro.data.structures import find_structures, read_chains, read_structure
from biometro.errors import UserError

gemmi = pytest.importorskip("gemmi")
NAMES = ("ALA", "GLY", "MSE", "TRP", "LYS", "CYS", "UNK")
LETTERS = "AGMWKCX"


def chain_of(name: str, length: int, missing: tuple[int, ...] = (), offset: int = 0, seed: int = 0) -> gemmi.Chain:
    """A random walk with N, CA, C and CB; residue i is NAMES[i % 7], numbered from 1 + offset."""
    random = np.random.default_rng(seed)
    chain, at = gemmi.Chain(name), np.zeros(3)
    for i in range(length):
        step = random.normal(size=3)
        at = at + 3.8 * step / np.linalg.norm(step)
        residue = gemmi.Residue()
        residue.name, residue.seqid = NAMES[i % 7], gemmi.SeqId(str(i + 1 + offset))
        for atom_name, shift in {"N": -1.2, "CA": 0.0, "C": 1.2, "CB": 0.7}.items():
            if not (atom_name == "CB" and residue.name == "GLY"):
                atom = gemmi.Atom()
                atom.name, atom.element, atom.occ = atom_name, gemmi.Element(atom_name[0]), 1.0
                atom.pos = gemmi.Position(*(at + shift * np.array([0.6, 0.5, 0.62]) + (atom_name == "CB") * 0.9))
                residue.add_atom(atom)
        if i not in missing:
            chain.add_residue(residue)
    return chain


def written(
    folder: Path, *chains: gemmi.Chain, sequences: bool = False, models: int = 1, missing: tuple[int, ...] = ()
) -> tuple[Path, Path]:
    """The same structure as x.pdb and x.cif."""
    structure = gemmi.Structure()
    for number in range(models):
        model = gemmi.Model(number + 1)
        for chain in chains:  # a second model has the same residues elsewhere
            model.add_chain(chain if number == 0 else chain_of(chain.name, 40, missing, seed=9))
        structure.add_model(model)
    structure.setup_entities()
    if sequences:
        for entity in structure.entities:
            entity.full_sequence = [NAMES[i % 7] for i in range(40)]
        structure.assign_label_seq_id(True)
    structure.write_pdb(str(folder / "x.pdb"))
    structure.make_mmcif_document().write_file(str(folder / "x.cif"))
    return folder / "x.pdb", folder / "x.cif"


def by_biopython(path: Path, chain: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Author's numbers of residues with a C-beta, and pairs of them closer than 8 angstrom."""
    from Bio.PDB import MMCIFParser, PDBParser

    parser = (MMCIFParser if path.suffix == ".cif" else PDBParser)(QUIET=True)
    atoms = {}
    for residue in parser.get_structure("x", str(path))[0][chain]:
        name = "CA" if residue.resname == "GLY" else "CB"
        if name in residue:
            atoms[residue.id[1]] = residue[name]
    pairs = [(i, j) for i in atoms for j in atoms if i < j and atoms[i] - atoms[j] < 8]
    return list(atoms), pairs


@pytest.mark.parametrize("sequences", [False, True])
def test_contacts_are_those_of_biopython_and_a_double_loop(tmp_path: Path, sequences: bool) -> None:
    missing = (0, 4, 5, 20, 39)
    for path in written(tmp_path, chain_of("A", 40, missing), sequences=sequences, models=2, missing=missing):
        protein = read_structure(str(path))
        first = 1 if sequences else 2  # a residue before the first observed one is known from SEQRES alone
        numbers, pairs = by_biopython(path, "A")
        assert (np.flatnonzero(protein.known) + first).tolist() == numbers
        assert [tuple(pair) for pair in (protein.pairs + first).tolist()] == sorted(pairs) and len(pairs) > 40
        whole = (LETTERS * 6)[:40]
        if sequences:
            assert protein.letters.decode() == whole
        else:
            assert protein.letters.decode() == "".join("X" if i in missing else whole[i] for i in range(1, 39))
        assert protein.name == "x_A"


def test_gzip_is_read_by_content(tmp_path: Path) -> None:
    for path in written(tmp_path, chain_of("A", 20)):
        packed = tmp_path / f"{path.name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        assert read_structure(str(packed)).letters == read_structure(str(path)).letters
        packed.write_bytes(gzip.compress(path.read_bytes())[:-20])
        with pytest.raises(UserError, match=packed.name):
            read_structure(str(packed))


def test_a_chain_is_chosen(tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    for path in written(copies, chain_of("A", 40), chain_of("B", 40, seed=1)):
        assert read_structure(str(path)).name == "x_A"  # all have one sequence
        assert read_structure(str(path), "B").name == "x_B"
    for path in written(tmp_path, chain_of("A", 20), chain_of("B", 30)):
        assert {name: len(protein) for name, protein in read_chains(str(path)).items()} == {"A": 20, "B": 30}
        with pytest.raises(UserError, match=r"different sequences \(A, B\)"):
            read_structure(str(path))
        with pytest.raises(UserError, match=r"no protein chain 'C'.*A, B"):
            read_structure(str(path), "C")


def atoms(*lines: tuple[str, str, str, int, float, float, str]) -> str:
    """PDB records of (atom, altloc, residue, number, x, occupancy, insertion code)."""
    return "".join(
        f"ATOM  {i:5d}  {atom:<3s}{alt:1s}{residue} A{number:4d}{code:1s}   {x:8.3f}{0:8.3f}{0:8.3f}{occ:6.2f}  0.00"
        f"           {atom[0]}\n"
        for i, (atom, alt, residue, number, x, occ, code) in enumerate(lines, 1)
    )


def read(folder: Path, text: str) -> Protein:
    (folder / "x.pdb").write_text(text)
    return read_structure(str(folder / "x.pdb"))


def test_atoms_in_several_places_and_residues_without_a_beta(tmp_path: Path) -> None:
    protein = read(tmp_path, atoms(
        ("CA", "", "ALA", 1, 0.0, 1, ""), ("CB", "A", "ALA", 1, -2.0, 0.3, ""), ("CB", "B", "ALA", 1, 2.5, 0.7, ""),
        ("CA", "", "TRP", 2, 3.8, 1, ""),
        ("CA", "", "GLY", 3, 7.6, 1, ""), ("CB", "", "LYS", 3, 10.5, 1, "A"), ("CA", "", "LYS", 3, 10.6, 1, "A"),
    ))  # fmt: skip
    assert protein.letters == b"AWGK" and protein.known.tolist() == [True, False, True, True]
    # From x = 2.5, GLY at 7.6 is a contact, which it is not from -2, and LYS at 10.5 is none: 8 is not below 8.
    assert protein.pairs.tolist() == [[0, 2], [2, 3]]


def test_a_break_is_filled_by_numbers_and_a_bond_is_none(tmp_path: Path) -> None:
    near = atoms(("CA", "", "ALA", 1, 0, 1, ""), ("CA", "", "ALA", 100, 3.8, 1, ""), ("CA", "", "ALA", 5, 7, 1, ""))
    assert read(tmp_path, near).letters == b"AAA"  # numbers may jump where the chain goes on
    far = atoms(("CA", "", "ALA", 1, 0, 1, ""), ("CA", "", "ALA", 4, 12, 1, ""))
    assert read(tmp_path, far).letters == b"AXXA"
    back = atoms(("CA", "", "ALA", 4, 0, 1, ""), ("CA", "", "ALA", 1, 12, 1, ""))
    with pytest.raises(UserError, match=r"broken between 4 and 1.*SEQRES"):
        read(tmp_path, back)
    with pytest.raises(UserError, match="no place in the sequence"):
        read(tmp_path, "SEQRES   1 A    3  GLY GLY GLY\n" + far)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.pdb", "", "no atoms|no protein"),
        ("x.pdb", "this is no structure\n", "no atoms|no protein"),
        ("x.pdb", "HETATM    1  O   HOH A   1       0.000   0.000   0.000  1.00  0.00           O\n", "no protein"),
        ("x.pdb", atoms(("P", "", " DA", 1, 0, 1, ""), ("P", "", " DG", 2, 6, 1, "")), "no protein"),
        ("x.pdb", atoms(*[("CB", "", "ALA", n, 0.0, 1, "") for n in range(1, 300)]), "upon one another"),
        ("x.cif", "loop_ nonsense", "cannot be read"),
        ("x.cif", "data_x\n_cell.length_a 1\n", "no atoms"),
        ("x.cif.gz", "not compressed at all", "cannot be read"),
        ("x.txt", "", "not a structure by its name"),
    ],
)
def test_strange_files_are_one_line(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_structure(str(tmp_path / name))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_files_are_found(tmp_path: Path) -> None:
    for name in ("b.pdb", "a.cif.gz", "notes.txt"):
        (tmp_path / name).touch()
    a, b = str(tmp_path / "a.cif.gz"), str(tmp_path / "b.pdb")
    assert find_structures([str(tmp_path)]) == [a, b]
    assert find_structures([f"{tmp_path}/*.pdb", a]) == [b, a]
    assert find_structures([a, "table.csv"]) == [] == find_structures([])
    with pytest.raises(UserError, match="no structures"):
        find_structures([f"{tmp_path}/c*.pdb"])
    with pytest.raises(UserError, match=r"missing\.pdb"):
        read_structure(str(tmp_path / "missing.pdb"))


@pytest.mark.parametrize("wrong", ["  xx.104", "        ", "   1.x04", "   1,104"])
def test_a_coordinate_that_is_no_number_is_not_taken_for_zero(tmp_path: Path, wrong: str) -> None:
    lines = [
        f"ATOM      {i}  CB  ALA A   {i}    {3.8 * i:8.3f}   0.000   0.000  1.00  0.00           C" for i in (1, 2)
    ]
    path = tmp_path / "a.pdb"
    path.write_text("\n".join(lines) + "\n")
    assert len(read_structure(str(path)).letters) == 2
    path.write_text("\n".join([lines[0], lines[1][:30] + wrong + lines[1][38:]]) + "\n")
    with pytest.raises(UserError, match=r"a\.pdb, line 2: .* in columns 31 to 38 is no coordinate"):
        read_structure(str(path))
