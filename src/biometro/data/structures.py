"""Structures in, sequences and contacts out: PDB and mmCIF files (.pdb .ent .cif .mmcif, plain or .gz), read by gemmi.

    file ─▶ first model ─▶ protein chains ─┬─▶ residues of SEQRES or the entity, else those observed, gaps as X
                                           └─▶ C-beta (glycine: C-alpha) of each ─▶ pairs closer than 8 angstrom

Contacts are those within one chain of the first model. Of an atom in several places the one of highest occupancy
counts, of a residue that is one of several the first. A modified residue has the letter of its parent (MSE is M), an
unknown one X.

Shapes: L residues, P pairs, K residues whose C-beta is known.
"""

from __future__ import annotations

import glob
import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from biometro.alphabet.protein import STANDARD
from biometro.data import remote
from biometro.data.bounds import GRACE, RATIO, check_ratio
from biometro.data.contacts import Protein
from biometro.data.fasta import short
from biometro.errors import UserError

_ASCII = bytes(range(128)) + b"?" * 128
DISTANCE = 8.0  # angstrom between C-beta atoms, as CASP counts contacts
SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif")
_LETTERS = STANDARD + "UOBZX"  # those that have a token
LONGEST = 10_000  # residues of one chain; beyond, it is something else
_MOST_BYTES = 1 << 28
_FARTHEST = 1e5  # angstrom; PDB files have room for a tenth of it
_MOST_NEIGHBOURS = 200  # within 8 angstrom there is room for some 30
_BOND, _STEP = 2.0, 4.5  # angstrom: where the chain goes on, C to the next N, and C-alpha to C-alpha, are nearer


def is_structure(name: str) -> bool:
    """Whether a file's name says that it is a structure."""
    return name.lower().removesuffix(".gz").endswith(SUFFIXES)


def find_structures(names: Sequence[str]) -> list[str]:
    """The structure files that files, URLs, globs and folders stand for, in order; none where one is something else.

    Raises UserError for a glob or a folder without a structure where the others are structures.
    """
    paths: list[str] = []
    for name in names:
        folder = not remote.is_url(name) and Path(name).is_dir()
        if not folder and not is_structure(name):
            return []
        if folder or (any(sign in name for sign in "*?[") and not remote.is_url(name) and not Path(name).exists()):
            found = sorted(str(path) for path in Path(name).iterdir()) if folder else sorted(glob.glob(name))  # noqa: PTH207
            found = [path for path in found if is_structure(path)]
            if not found:
                raise UserError(f"{name}: no structures here ({', '.join(SUFFIXES)}, plain or .gz)")
            paths += found
        else:
            paths.append(name)
    return paths


def read_structure(path: str, chain: str | None = None, distance: float = DISTANCE) -> Protein:
    """One chain of a structure. Without a name it is the only one, or the first where all have the same sequence.

    Raises UserError as `read_chains` does, where there is no such chain, and where several differ and none is named.
    """
    chains = read_chains(path, distance)
    if chain is not None:
        if chain not in chains:
            raise UserError(f"{path}: no protein chain {chain[:20]!r}; its chains are: {', '.join(chains)}")
        return chains[chain]
    if len({protein.letters for protein in chains.values()}) > 1:
        raise UserError(f"{path}: holds chains of different sequences ({', '.join(chains)}); choose one by its name")
    return next(iter(chains.values()))


def read_chains(path: str, distance: float = DISTANCE) -> dict[str, Protein]:
    """All protein chains of the first model, by the author's name of the chain (`A`), in the order of the file.

    A residue without its C-beta (glycine: C-alpha) is not `known`. Where there is no SEQRES, residues that the numbers
    say are missing where the chain is broken stand as X.

    Raises UserError where the file cannot be read, holds no protein, or contradicts itself.
    """
    structure = _parse(path)
    if len(structure) == 0:
        raise UserError(f"{path}: holds no atoms")
    chains: dict[str, Protein] = {}
    _label(structure, path)
    for chain in structure[0]:
        polymer = chain.get_polymer()
        if not len(polymer) or not _is_protein(structure, polymer) or chain.name in chains:
            continue
        chains[chain.name] = _protein(structure, chain.name, polymer, path, distance)
    if not chains:
        raise UserError(f"{path}: holds no protein chain")
    return chains


def _parse(path: str) -> Any:
    """The structure as gemmi reads it."""
    try:
        import gemmi
    except ImportError as error:
        raise UserError("structures are read by gemmi; install it with: pip install 'biometro[structures]'") from error
    if not is_structure(path):
        raise UserError(f"{path}: not a structure by its name, which must end in one of {', '.join(SUFFIXES)} (or .gz)")
    data = _read(path).translate(_ASCII)  # a name cut from the middle of a letter could not be shown
    try:
        if path.lower().removesuffix(".gz").endswith((".pdb", ".ent")):
            structure = gemmi.read_pdb_string(data)
            _check_coordinates(data, path)
            return structure
        document = gemmi.cif.read_string(data)
        block = next((block for block in document if block.find_values("_atom_site.id")), None)
        if block is None:
            raise UserError(f"{path}: holds no atoms (no _atom_site)")
        return gemmi.make_structure_from_block(block)
    except (ValueError, RuntimeError, IndexError, OverflowError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a structure ({short(error)})") from error


def _check_coordinates(data: bytes, path: str) -> None:
    """Raises UserError where an atom of a PDB file has a coordinate that is no number: gemmi takes it for 0."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if line[:6].upper() in (b"ATOM  ", b"HETATM"):
            for start in (30, 38, 46):
                try:
                    float(line[start : start + 8])
                except ValueError as error:
                    said = line[start : start + 8].decode("ascii", "replace").strip()
                    raise UserError(
                        f"{path}, line {number}: {said!r} in columns {start + 1} to {start + 8} is no coordinate"
                    ) from error


def _read(path: str) -> bytes:
    try:
        with remote.open_binary(path) as handle:
            data = handle.read(_MOST_BYTES + 1)
        if data.startswith(b"\x1f\x8b"):
            most = min(_MOST_BYTES, GRACE + RATIO * len(data))
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as unfolding:
                unfolded = unfolding.read(most + 1)
            check_ratio(len(unfolded), len(data), path)
            data = unfolded
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: {short(error)}") from error
    if len(data) > _MOST_BYTES:
        raise UserError(f"{path}: more than {_MOST_BYTES:,} bytes, the most that is read of a structure")
    return data


def _label(structure: Any, path: str) -> None:
    """Lets every residue of the first model know its place in SEQRES or the entity."""
    while len(structure) > 1:
        del structure[-1]
    structure.setup_entities()
    for chain in structure[0]:  # bounds first: gemmi aligns the two
        polymer = chain.get_polymer()
        entity = structure.get_entity_of(polymer)
        longest = max(len(polymer), 0 if entity is None else len(entity.full_sequence))
        if longest > LONGEST:
            raise UserError(f"{path}, chain {chain.name}: {longest:,} residues; at most {LONGEST:,} are read")
    structure.assign_label_seq_id()


def _is_protein(structure: Any, polymer: Any) -> bool:
    import gemmi

    entity = structure.get_entity_of(polymer)
    kind = polymer.check_polymer_type() if entity is None else entity.polymer_type
    if kind == gemmi.PolymerType.Unknown:
        kind = polymer.check_polymer_type()
    return kind in (gemmi.PolymerType.PeptideL, gemmi.PolymerType.PeptideD)


def _protein(structure: Any, name: str, polymer: Any, path: str, distance: float) -> Protein:
    residues = list(polymer.first_conformer())
    entity = structure.get_entity_of(polymer)
    if entity is not None and entity.full_sequence:
        letters, places = _given(list(entity.full_sequence), residues, f"{path}, chain {name}")
    else:
        letters, places = _observed(residues, f"{path}, chain {name}")
    if len(letters) > LONGEST:
        raise UserError(f"{path}, chain {name}: {len(letters):,} residues; at most {LONGEST:,} are read")
    coordinates_K3, known_K = [], []
    for residue, place in zip(residues, places, strict=True):
        atom = _atom(residue, "CA" if letters[place] == "G" else "CB")
        if atom is not None:
            coordinates_K3.append(atom)
            known_K.append(place)
    known_L = np.zeros(len(letters), dtype=bool)
    known_L[known_K] = True
    close_P2 = _close(np.array(coordinates_K3).reshape(-1, 3), distance, f"{path}, chain {name}")
    pairs = np.sort(np.array(known_K, dtype=np.int64)[close_P2], axis=1)
    stem = PurePosixPath(path).name.split(".")[0]
    return Protein(f"{stem}_{name}", letters.encode(), pairs[np.lexsort(pairs.T[::-1])], known_L)


def _given(sequence: list[str], residues: Sequence[Any], where: str) -> tuple[str, list[int]]:
    """Letters of the whole sequence, and the place of each observed residue in it."""
    letters = "".join(_letter(item.split(",")[0]) for item in sequence)
    places: list[int] = []
    for residue in residues:
        number = residue.label_seq
        if number is None or not 1 <= number <= len(sequence) or residue.name not in sequence[number - 1].split(","):
            raise UserError(f"{where}: residue {residue.name} {residue.seqid} has no place in the sequence (SEQRES)")
        places.append(number - 1)
    if len(set(places)) != len(places):
        raise UserError(f"{where}: two residues have one place in the sequence (SEQRES)")
    return letters, places


def _observed(residues: Sequence[Any], where: str) -> tuple[str, list[int]]:
    """Letters of observed residues with X for those missing between them, and the place of each observed one."""
    letters: list[str] = []
    places: list[int] = []
    for before, residue in zip([None, *residues], residues, strict=False):
        missing = 0
        if before is not None and not _bonded(before, residue):
            here, there = before.seqid.num, residue.seqid.num  # None where the file has no number
            missing = 0 if here is None or there is None else max(there - here - 1, 0)
            if here is None or there is None or there < here or len(letters) + missing > LONGEST:
                raise UserError(
                    f"{where}: the chain is broken between {before.seqid} and {residue.seqid}, numbers that do not say "
                    "how many residues are missing; add SEQRES records, or use the mmCIF file"
                )
        letters += ["X"] * missing
        places.append(len(letters))
        letters.append(_letter(residue.name))
    return "".join(letters), places


def _bonded(before: Any, after: Any) -> bool:
    """Whether one residue follows the other in the chain, by the distance of their atoms."""
    for first, second, most in (("C", "N", _BOND), ("CA", "CA", _STEP)):
        here, there = _atom(before, first), _atom(after, second)
        if here is not None and there is not None:
            return bool(np.linalg.norm(np.subtract(here, there)) < most)
    return False


def _letter(name: str) -> str:
    import gemmi

    found: str = gemmi.find_tabulated_residue(name).one_letter_code.upper()  # modified ones are lower-case there
    return found if found in _LETTERS else "X"


def _atom(residue: Any, name: str) -> list[float] | None:
    """Where an atom is, in angstrom; None where that is not known."""
    atoms = [atom for atom in residue if atom.name == name and np.isfinite(atom.pos.tolist()).all()]
    return max(atoms, key=lambda atom: atom.occ).pos.tolist() if atoms else None


def _close(coordinates_K3: np.ndarray, distance: float, where: str) -> np.ndarray:
    """(P, 2) numbers of points that are closer than `distance`."""
    from scipy.spatial import cKDTree

    if len(coordinates_K3) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    if np.abs(coordinates_K3).max() > _FARTHEST:
        raise UserError(f"{where}: an atom at {np.abs(coordinates_K3).max():.3g} angstrom; this is no structure")
    tree = cKDTree(coordinates_K3)
    most = _MOST_NEIGHBOURS * max(1.0, (distance / DISTANCE) ** 3)
    if tree.count_neighbors(tree, distance) > most * len(coordinates_K3):
        raise UserError(f"{where}: residues lie upon one another; this is no structure")
    pairs_P2 = tree.query_pairs(distance, output_type="ndarray").astype(np.int64).reshape(-1, 2)
    apart_P = np.linalg.norm(coordinates_K3[pairs_P2[:, 0]] - coordinates_K3[pairs_P2[:, 1]], axis=1)
    return pairs_P2[apart_P < distance]
