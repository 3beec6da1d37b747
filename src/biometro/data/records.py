"""What a source is, how it is read, and the record that comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from biometro.alphabet import SequenceKind
from biometro.data.layouts import Region, check_parts

Format = Literal["auto", "fasta", "csv", "tsv", "parquet", "smi", "sdf"]
Kind = Literal["fasta", "csv", "tsv", "parquet", "smi", "sdf", "text", "example"]
TABLES: tuple[Kind, ...] = ("csv", "tsv", "parquet", "sdf")
"""Formats whose records have columns: of an SDF file, these are its properties."""


class Record(NamedTuple):
    """One sequence as it stands in its file. `line` is 1-based: the header's line, or the table's row. `split` is the
    side of the split that its table names, `header` all of the FASTA header (of a SMILES file, what stands behind the
    SMILES), `fields` the cells of `ReadOptions.fields`. `skip` says why a record has no sequence: it is counted and
    left out."""

    id: str
    raw: bytes
    source: str
    line: int
    split: str | None = None
    header: str = ""
    fields: tuple[Any, ...] = ()
    skip: str = ""

    @property
    def where(self) -> str:
        return f"{self.source}, line {self.line}"


class Piece(NamedTuple):
    """A part of one source that can be read by itself, anywhere.

    FASTA, SMILES and SDF files come as their bytes, `data`, of which `first` is the line; `head` is the first line of
    the file, where it is one of a SMILES file. Of a Parquet file, `groups` names the row groups and `first` the row
    before them. `records` are some that were read already, where making letters of them is the longer work. With none
    of these it is the whole source.
    """

    source: int  # its number in the list of sources
    first: int = 0
    data: bytes | None = None
    groups: tuple[int, ...] | None = None
    head: bytes = b""
    records: tuple[Record, ...] | None = None

    @property
    def whole(self) -> bool:
        return self.data is None and self.groups is None and self.records is None


@dataclass
class Source:
    """One input, and after it has been read to its end: how many records and bytes it held, and their digest."""

    name: str
    format: Kind
    records: int = 0
    bytes: int = 0
    sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "format": self.format,
            "records": self.records,
            "bytes": self.bytes,
            "sha256": self.sha256,
        }


@dataclass(frozen=True)
class ReadOptions:
    """How to read inputs.

    Args:
        format: file format; `auto` goes by the file's suffix (.fasta .fa .faa .csv .tsv .parquet .smi .sdf, then .gz
            .zst), that of .txt by its first line.
        column: the table column that holds the sequence; or by the name of each part (see `immune.PARTS`), the column
            that holds it; or of tables with one chain in a row, {cdr3: its column, chain: the column that says which
            chain it is}.
        id_column: the table column that holds an identifier; without it, rows are numbered.
        split_column: the table column that names the side of the split.
        fields: table columns whose cells come along with each record, as they are.
        identifiers: `column` holds identifiers (text in any letters, or whole numbers) instead of sequences.
        blanks: an identifier may be empty.
        kind: what the sequences are: tables of receptors that are laid out as public sources lay them out are known.
        region: what is read of a chain in such a table: the V domain (full), its CDR3 with the residues around it
            where the table has them, or CDR1, CDR2 and CDR3 (cdrs); auto is full for antibodies and cdr3 for T-cell
            receptors, where the table has it.

    Raises UserError for parts that the kind does not have.
    """

    format: Format = "auto"
    column: str | dict[str, str] = "sequence"
    id_column: str | None = None
    split_column: str | None = None
    fields: tuple[str, ...] = ()
    identifiers: bool = False
    blanks: bool = False
    kind: SequenceKind = "protein"
    region: Region = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.column, dict):
            check_parts(self.column, self.kind)

    @property
    def beside(self) -> list[str]:
        """The columns that are read beside the sequence's."""
        return [name for name in (self.id_column, self.split_column, *self.fields) if name is not None]
