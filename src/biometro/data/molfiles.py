"""Files of molecules in pieces, each then read anywhere: SMILES files (.smi, PubChem, ZINC) and SDF.

    bytes ─▶ cut between records ─▶ (line of the first, bytes of about a MiB) ─▶ records

A line of a SMILES file is a SMILES and a name, between them a tab or white space; or, as PubChem has it, a number and a
SMILES. A header may say which column is which (ZINC). A record of an SDF file is a title, a molfile, and properties;
RDKit makes a SMILES of the molfile. Memory is bounded by a piece, or the longest record.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, NamedTuple

import pyarrow as pa

from biometro.alphabet import molecule
from biometro.data.bounds import LONGEST_RECORD, too_long
from biometro.data.fasta import PIECE_BYTES, cr_alone, no_sequence, short
from biometro.errors import UserError

UNREADABLE = "a molfile that RDKit cannot read"
EMPTY = "a molfile without atoms"
NOTHING = "an empty cell where a SMILES was expected"

_END = re.compile(rb"^\$\$\$\$[^\n]*(?:\n|\Z)", re.MULTILINE)
_LINE = re.compile(rb"\n")
_SMILES_NAMES = {"smiles", "smile", "smi", "canonical_smiles", "isomeric_smiles", "isosmiles", "openeye_smiles"}
_PROPERTY = re.compile(r"^>[^\n<]*<([^\n]*)>[^\n>]*$")
_MARK = b"\xef\xbb\xbf"


def cut(handle: IO[bytes], name: str, sdf: bool, size: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Pieces that end where a line, or a record of an SDF file, does, and the line (1-based) each begins at.

    Args:
        handle: buffered bytes.
        name: of the file, for messages.
        sdf: whether it is an SDF file.
        size: bytes to a piece, PIECE_BYTES unless given; a longer record makes a longer piece.

    Raises UserError where the file is empty, cannot be read, has CR for line ends, or a record without end.
    """
    size = PIECE_BYTES if size is None else size
    line, held, blank = 1, b"", True
    try:
        while block := handle.read(size):
            held += block if line > 1 or held else block.removeprefix(_MARK)
            blank = blank and not block.strip()
            end = _last_end(held, sdf)
            if end:
                yield line, held[:end]
                line += held.count(b"\n", 0, end)
                held = held[end:]
            elif b"\n" not in held and b"\r" in held.rstrip():  # or all of the file would be one record
                raise UserError(cr_alone(name, line))
            if len(held) > LONGEST_RECORD + size:
                raise too_long(name, line)
    except (OSError, EOFError, pa.ArrowException) as error:
        whole_lines = line - 1 + held.count(b"\n")
        raise UserError(f"{name}, after line {whole_lines:,}: {short(error)}") from error
    if blank:
        raise UserError(no_sequence(name))
    if held.strip():
        yield line, held


def _last_end(held: bytes, sdf: bool) -> int:
    """Where the last record that is whole ends; 0 where none is. A line of $$$$ may go on in the next block."""
    if not sdf:
        return held.rfind(b"\n") + 1
    place = len(held)
    while (place := held.rfind(b"$$$$", 0, place)) >= 0:
        if (place == 0 or held[place - 1] == ord("\n")) and (end := held.find(b"\n", place)) >= 0:
            return end + 1
    return 0


# SMILES ----------------------------------------------------------------------------------------------------------


class Order(NamedTuple):
    """Where the SMILES and the name stand among the fields of a line; None: in the usual order."""

    smiles: int | None = None
    name: int | None = None
    header: bool = False


def order_of(head: bytes) -> Order:
    """By the first line of a file."""
    names = [field.lower() for field in _fields(head.decode("latin-1").strip("\r\n"))]
    smiles = next((place for place, field in enumerate(names) if field in _SMILES_NAMES), None)
    if smiles is None:
        return Order()
    others = [place for place in range(len(names)) if place != smiles]
    said = [place for place in others if names[place].endswith(("id", "name", "title"))]
    return Order(smiles, next(iter(said or others), None), header=True)


def looks_like_smiles(head: bytes) -> bool:
    """Whether the first line of a text file is one of a SMILES file: a header that says so, or a SMILES that stands
    first, or behind a number."""
    if order_of(head).header:
        return True
    smiles, _, _ = _split(head.decode("latin-1"), Order())
    return bool(smiles) and re.search(r"[^A-Za-z0-9@+\-\[\]()=#$:/\\~.%*]", smiles) is None and _parses(smiles)


def _parses(smiles: str) -> bool:
    return molecule.parse(smiles) is not None


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.split("\t")] if "\t" in line else line.split()


def _split(line: str, order: Order) -> tuple[str, str, str]:
    """SMILES, name, and all that stands behind the SMILES."""
    if order.smiles is not None:
        fields = _fields(line)
        smiles = fields[order.smiles] if order.smiles < len(fields) else ""
        name = fields[order.name] if order.name is not None and order.name < len(fields) else ""
        return smiles, name, " ".join(field for place, field in enumerate(fields) if place != order.smiles)
    first, _, rest = line.strip().replace("\t", " ", 1).partition(" ")
    rest = rest.strip()
    if first.isdigit() and rest:  # PubChem: no SMILES is a number
        return rest.split(None, 1)[0], first, first
    if rest.startswith("|"):  # the extensions of CXSMILES
        rest = rest[1:].partition("|")[2].strip()
    fields = _fields(rest)
    return first, fields[0] if fields else "", rest


def read_smiles(piece: bytes, line: int, name: str, head: bytes) -> Iterator[tuple[str, bytes, int, str]]:
    """The records of a piece: identifier (the line's number where there is none), SMILES, line, what stands behind it.

    Args:
        piece: whole lines.
        line: of the first.
        name: of the file, for messages.
        head: the first line of the file.

    Raises UserError for a line without a SMILES, one that is not UTF-8 or too long, and CR for line ends.
    """
    order = order_of(head)
    for number, raw in enumerate(piece.split(b"\n"), line):
        if not raw.strip() or (order.header and number == 1):
            continue
        if len(raw) > LONGEST_RECORD:
            raise too_long(name, number)
        if b"\r" in raw.rstrip():
            raise UserError(cr_alone(name, number))
        try:
            smiles, id_, rest = _split(raw.decode("utf-8"), order)
        except UnicodeDecodeError as error:
            raise UserError(f"{name}, line {number}: not UTF-8 ({short(error)})") from error
        if not smiles:
            raise UserError(f"{name}, line {number}: no SMILES where one was expected")
        if not smiles.isascii():
            bad = next(c for c in smiles if not c.isascii())
            raise UserError(f"{name}, line {number}: a non-ASCII character {bad!a} in a SMILES")
        yield id_ or str(number), smiles.encode(), number, rest


# SDF -------------------------------------------------------------------------------------------------------------


class Molfile(NamedTuple):
    """A record of an SDF file: its title, the molfile, the properties by name, and the line of its title."""

    title: str
    block: str
    properties: dict[str, str]
    line: int


def read_sdf(piece: bytes, line: int, name: str) -> Iterator[Molfile]:
    """The records of a piece. Raises UserError where one is too long, and for CR for line ends."""
    start = 0
    while start < len(piece):
        found = _END.search(piece, start)
        stop, after = (len(piece), len(piece)) if found is None else found.span()
        raw = piece[start:stop]
        if found is not None or raw.strip():
            if len(raw) > LONGEST_RECORD:
                raise too_long(name, line)
            if b"\n" not in raw and b"\r" in raw.rstrip():
                raise UserError(cr_alone(name, line))
            if found is None and b"M  END" not in raw:
                raise UserError(f"{name}, line {line}: the file ends in the middle of a molfile")
            yield _molfile(raw, line, name)
        line += piece.count(b"\n", start, after)
        start = after


def _molfile(raw: bytes, line: int, name: str) -> Molfile:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")  # as older programs write properties; a molfile is ASCII
    lines = [part.rstrip("\r") for part in text.split("\n")]
    end = next((i for i, part in enumerate(lines) if part.startswith("M  END")), len(lines) - 1)
    properties: dict[str, str] = {}
    key, values = None, list[str]()
    for part in [*lines[end + 1 :], ""]:
        if key is None:
            found = _PROPERTY.match(part)
            key, values = (found[1], []) if found else (None, [])
        elif part.strip():
            values.append(part)
        else:
            properties[key] = "\n".join(values)
            key = None
    return Molfile(lines[0].strip(), "\n".join(lines[: end + 1]) + "\n", properties, line)


def smiles_of(block: str) -> tuple[bytes, str]:
    """The SMILES of a molfile, or why there is none."""
    Chem = molecule.chem()
    try:
        mol = Chem.MolFromMolBlock(block)
    except (RuntimeError, ValueError):  # what RDKit raises for some that are damaged
        mol = None
    if mol is None:
        return b"", UNREADABLE
    if not mol.GetNumAtoms():
        return b"", EMPTY
    try:
        return Chem.MolToSmiles(mol).encode(), ""
    except (RuntimeError, ValueError):
        return b"", UNREADABLE
