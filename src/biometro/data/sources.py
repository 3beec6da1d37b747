"""Raw files in, records out: FASTA, CSV, TSV and Parquet, local or by URL, compressed or not, in a stream.

    path, glob or URL ─▶ bytes ─▶ (decompressed) ─▶ Record(id, raw letters, where it stands)

A reader knows formats, not residues: what a letter means is the alphabet's business. Memory is bounded by the
longest record (FASTA, CSV) or one row group's batch (Parquet), and `bounds.py` says how long these may be.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, Any, Literal, NamedTuple, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from biometro.alphabet import SequenceKind
from biometro.data import catalogue, families, fasta, molecules, receptors, remote
from biometro.data.bounds import LONGEST_RECORD, Lines, check_parquet
from biometro.data.fasta import short
from biometro.data.streams import CountingReader, decompress
from biometro.errors import UserError

Format = Literal["auto", "fasta", "csv", "tsv", "parquet"]
Kind = Literal["fasta", "csv", "tsv", "parquet", "text", "example"]

SUFFIXES: dict[str, Kind] = {
    ".fasta": "fasta", ".fa": "fasta", ".faa": "fasta", ".fas": "fasta", ".fsa": "fasta", ".pep": "fasta",
    ".seq": "fasta", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
COMPRESSED_SUFFIXES = (".gz", ".bgz", ".zst", ".bz2")
EXAMPLES: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    # few and large, so that a small model learns them in a minute
    "example:families": partial(families.records, seed=0, families=8, members=256),
    "example:receptors": receptors.records,
    "example:molecules": molecules.records,
}

_PIECE_ROWS = 1 << 16
_PARQUET_ROWS = 64  # read at once: a dictionary page may repeat one long value in every row


class Record(NamedTuple):
    """One sequence as it stands in its file. `line` is 1-based: the header's line, or the table's row. `split` is the
    side of the split that its table names, `header` all of the FASTA header, `fields` the cells of
    `ReadOptions.fields`."""

    id: str
    raw: bytes
    source: str
    line: int
    split: str | None = None
    header: str = ""
    fields: tuple[Any, ...] = ()

    @property
    def where(self) -> str:
        return f"{self.source}, line {self.line}"


class Piece(NamedTuple):
    """A part of one source that can be read by itself, anywhere.

    FASTA comes as its bytes, `data`, of which `first` is the line. Of a Parquet file, `groups` names the row groups
    and `first` the row before them. With neither it is the whole source.
    """

    source: int  # its number in the list of sources
    first: int = 0
    data: bytes | None = None
    groups: tuple[int, ...] | None = None

    @property
    def whole(self) -> bool:
        return self.data is None and self.groups is None


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
        format: file format; `auto` goes by the file's suffix (.fasta .fa .faa .csv .tsv .parquet, then .gz .zst).
        column: the table column that holds the sequence; or by the name of each part (see `immune.PARTS`), the column
            that holds it.
        id_column: the table column that holds an identifier; without it, rows are numbered.
        split_column: the table column that names the side of the split.
        fields: table columns whose cells come along with each record, as they are.
        identifiers: `column` holds identifiers (text in any letters, or whole numbers) instead of sequences.
        blanks: an identifier may be empty.
        kind: what the sequences are: tables of receptors that are laid out as public sources lay them out are known.
    """

    format: Format = "auto"
    column: str | dict[str, str] = "sequence"
    id_column: str | None = None
    split_column: str | None = None
    fields: tuple[str, ...] = ()
    identifiers: bool = False
    blanks: bool = False
    kind: SequenceKind = "protein"

    @property
    def columns(self) -> list[str]:
        """All columns to be read, the sequence's first."""
        held = [self.column] if isinstance(self.column, str) else list(self.column.values())
        named = (*held, self.id_column, self.split_column, *self.fields)
        return list(dict.fromkeys(name for name in named if name is not None))


def expand(data: str | Sequence[str], options: ReadOptions = ReadOptions()) -> list[Source]:
    """Paths, globs, URLs, plain sequences, names of examples and of the catalogue -> sources, in order (globs sorted).

    A name that is no file and consists of capital letters only is a sequence itself.

    Raises UserError for a name that stands for nothing or whose format cannot be told.
    """
    names = [data] if isinstance(data, str) else list(data)
    if not names or not all(name.strip() for name in names):
        raise UserError("no input was given; name at least one file, URL or example:families")
    sources = []
    for name in names:
        if name.startswith("example:"):
            if name not in EXAMPLES:
                raise UserError(f"there is no {name}; the embedded data sets are: {', '.join(EXAMPLES)}")
            sources.append(Source(name, "example"))
            continue
        if name.startswith(catalogue.PREFIX):
            entry, url = catalogue.resolve(name)
            format_ = entry.format if options.format == "auto" else options.format
            sources += expand(url, replace(options, format=cast(Format, format_)))
            continue
        letters_only = name.isascii() and name.isalpha() and name.isupper()
        if letters_only and not os.path.exists(name):  # noqa: PTH110 (Path.exists raises on a long name)
            sources.append(Source(name, "text"))
            continue
        for path in paths(name):
            sources.append(Source(path, _format_of(path, options.format)))
    return sources


def paths(name: str) -> list[str]:
    """The files that a path, glob or URL stands for (globs sorted). Raises UserError where there is none."""
    return [name] if remote.found(name) else remote.guarded(name, _expand_paths, name)


def _expand_paths(name: str) -> list[str]:
    try:
        fs, path = fsspec.core.url_to_fs(name)
        if any(sign in path for sign in "*?[") and not fs.exists(path):
            found = sorted(str(p) for p in fs.glob(path))
            if not found:
                raise UserError(f"{name}: no file fits this pattern")
            return found if "://" not in name else [fs.unstrip_protocol(p) for p in found]
        if fs.isdir(path):
            raise UserError(f"{name} is a folder; name the files in it, for example {name.rstrip('/')}/*.fasta")
        if not fs.exists(path):
            raise UserError(f"{name}: no such file")
    except UserError:
        raise
    except Exception as error:  # fsspec's file systems are many, and each fails in its own way
        raise UserError(f"{name}: cannot be reached ({short(error)})") from error
    return [name]


def _format_of(path: str, given: Format) -> Kind:
    if given != "auto":
        return given
    stem = path.lower().split("?", 1)[0]
    for suffix in COMPRESSED_SUFFIXES:
        stem = stem.removesuffix(suffix)
    for suffix, found in SUFFIXES.items():
        if stem.endswith(suffix):
            return found
    raise UserError(f"{path}: cannot tell the format from the name; say it with the option `format`")


def read(source: Source, options: ReadOptions = ReadOptions()) -> Iterator[Record]:
    """The records of one source, in order; fills in the source's counts and digest on the way.

    Raises UserError naming file and line for anything that is not what the format promises: an empty or
    truncated file, text without a header, a header without a sequence, a missing column.
    """
    for piece in pieces(0, source, options):
        for record in read_piece(piece, source, options):
            source.records += 1
            yield record


def pieces(number: int, source: Source, options: ReadOptions = ReadOptions(), whole: bool = False) -> Iterator[Piece]:
    """The pieces of one source, in order; fills in its digest and bytes, unless it comes as one whole piece.

    Args:
        number: of the source in the list of all.
        source: what to cut.
        options: how to read.
        whole: do not cut.

    Raises UserError as `read` does, for what shows without reading the records.
    """
    if options.split_column is not None and source.format not in ("csv", "tsv", "parquet"):
        raise UserError(f"{source.name}: only a table has a column {options.split_column!r} to split by")
    if whole or source.format not in ("fasta", "parquet"):
        yield Piece(number)
        return
    with _opened(source) as (raw, counted):
        if source.format == "fasta":
            for line, data in fasta.cut(decompress(counted, source.name), source.name):
                yield Piece(number, line, data)
        else:
            file = _parquet(raw, source)
            _check_columns(source, options, file.schema_arrow.names)
            if file.metadata.num_rows == 0:
                raise UserError(fasta.no_sequence(source.name))
            yield from _row_groups(number, file)
            raw.seek(0)  # read out of order, so counted in a pass of its own


def read_piece(piece: Piece, source: Source, options: ReadOptions = ReadOptions()) -> Iterator[Record]:
    """The records of one piece, in order. Of a whole source, also fills in its digest and bytes.

    Raises UserError as `read` does.
    """
    if piece.data is not None:
        for header, raw, line in fasta.parse(piece.data, piece.first, source.name):
            yield Record(header.split(None, 1)[0] if header else "", raw, source.name, line, None, header)
    elif piece.groups is not None:
        with _opened(source, count=False) as (handle, _):
            yield from _read_parquet(source, _parquet(handle, source), piece, options)
    elif source.format == "text":
        source.bytes, source.sha256 = len(source.name), hashlib.sha256(source.name.encode()).hexdigest()
        yield Record("", source.name.encode(), "given sequence", 1)
    elif source.format == "example":
        digest, total = hashlib.sha256(), 0
        for number, (id_, letters) in enumerate(EXAMPLES[source.name](), 1):
            digest.update(letters.encode())
            total += len(letters)
            yield Record(id_, letters.encode(), source.name, number, None, id_)
        source.bytes, source.sha256 = total, digest.hexdigest()
    elif source.format in ("csv", "tsv"):
        with _opened(source) as (_, counted):
            yield from _read_table(source, decompress(counted, source.name), options)
    else:
        for part in pieces(piece.source, source, options):
            yield from read_piece(part, source, options)


@contextmanager
def opened(source: Source) -> Iterator[io.BufferedReader]:
    """A source's bytes, decompressed, for a reader of other formats. Raises UserError as `read` does."""
    with _opened(source) as (_, counted):
        yield decompress(counted, source.name)


@contextmanager
def _opened(source: Source, count: bool = True) -> Iterator[tuple[IO[bytes], CountingReader]]:
    """A source's bytes, plain and counted; at the end what is left is read, and number and digest are kept."""
    try:
        with remote.open_binary(source.name) as raw:
            counted = CountingReader(raw)
            yield raw, counted
            if count:
                while counted.read(1 << 20):
                    pass
                source.bytes, source.sha256 = counted.count, counted.digest.hexdigest()
    except (OSError, EOFError, ValueError, OverflowError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"{source.name}: {short(error)}") from error


def text_lines(source: Source) -> Iterator[tuple[int, str]]:
    """The lines of a text file and their numbers, from 1. Raises UserError where it cannot be read or is not UTF-8."""
    with _opened(source) as (_, counted):
        found, number = Lines(decompress(counted, source.name), source.name), 0
        try:
            for number, text in enumerate(_text_lines(found), 1):
                found.taken = 0
                yield number, text
        except UnicodeDecodeError as error:
            raise UserError(f"{source.name}, after line {number}: not UTF-8 ({short(error)})") from error


# Tables --------------------------------------------------------------------------------------------------------


def table_columns(source: Source) -> list[str]:
    """The names of a table's columns. Raises UserError where it cannot be read."""
    with _opened(source, count=False) as (raw, counted):
        if source.format == "parquet":
            return list(_parquet(raw, source).schema_arrow.names)
        return next(_csv(Lines(decompress(counted, source.name), source.name), source), [])


def _csv(lines: Lines, source: Source) -> Any:
    csv.field_size_limit(LONGEST_RECORD)
    return csv.reader(_text_lines(lines), delimiter="\t" if source.format == "tsv" else ",", strict=True)


def _check_columns(source: Source, options: ReadOptions, found: Sequence[str]) -> None:
    for column in options.columns:
        if column not in found:
            names = ", ".join(found[:20]) or "none"
            raise UserError(f"{source.name}, line 1: no column named {column!r}; its columns are: {names}")
        if list(found).count(column) > 1:
            raise UserError(f"{source.name}, line 1: more than one column is named {column!r}")


def _read_table(source: Source, handle: IO[bytes], options: ReadOptions) -> Iterator[Record]:
    lines = Lines(handle, source.name)
    rows = _csv(lines, source)
    try:
        names = next(rows, None)
        lines.taken = 0
        if names is None:
            raise UserError(f"{source.name}, line 1: the file is empty")
        _check_columns(source, options, names)
        column = names.index(options.column)
        id_column, split_column = (
            None if name is None else names.index(name) for name in (options.id_column, options.split_column)
        )
        fields = [names.index(name) for name in options.fields]
        number = 0
        for row in rows:
            lines.taken = 0
            if not row:
                continue
            number += 1
            if len(row) != len(names):
                raise UserError(
                    f"{source.name}, line {rows.line_num}: {len(row)} fields where the header has {len(names)}"
                )
            id_ = str(number) if id_column is None else row[id_column]
            split = None if split_column is None else row[split_column]
            more = tuple(row[i] for i in fields)
            yield _cell_record(source, id_, row[column], rows.line_num, split, more, options)
        if number == 0:
            raise UserError(fasta.no_sequence(source.name))
    except csv.Error as error:
        raise UserError(f"{source.name}, line {rows.line_num}: {short(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{source.name}, after line {rows.line_num}: not UTF-8 ({short(error)})") from error
    except (OSError, EOFError, pa.ArrowException) as error:
        raise UserError(f"{source.name}, after line {rows.line_num}: {short(error)}") from error


def _text_lines(lines: Lines) -> Iterator[str]:
    for line in lines:
        if lines.number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if b"\r" in line:  # ends a line even where it stands alone
            yield from (part.decode("utf-8") for part in line.splitlines(keepends=True))
        else:
            yield line.decode("utf-8")


def _parquet(handle: IO[bytes], source: Source) -> pq.ParquetFile:
    size = handle.seek(0, io.SEEK_END)
    handle.seek(0)
    file = pq.ParquetFile(handle, page_checksum_verification=True)
    check_parquet(file.metadata, size, source.name)
    return file


def _row_groups(number: int, file: pq.ParquetFile) -> Iterator[Piece]:
    """Pieces of whole row groups, of about _PIECE_ROWS rows."""
    groups: list[int] = []
    first = rows = 0
    for group in range(file.num_row_groups):
        groups.append(group)
        rows += file.metadata.row_group(group).num_rows
        if rows - first >= _PIECE_ROWS or group == file.num_row_groups - 1:
            yield Piece(number, first, groups=tuple(groups))
            groups, first = [], rows


def _read_parquet(source: Source, file: pq.ParquetFile, piece: Piece, options: ReadOptions) -> Iterator[Record]:
    row = piece.first
    for batch in file.iter_batches(
        batch_size=_PARQUET_ROWS, row_groups=list(piece.groups or ()), columns=options.columns
    ):
        cells = batch.column(options.column).to_pylist()
        ids, sides = (
            [None] * len(cells) if name is None else batch.column(name).to_pylist()
            for name in (options.id_column, options.split_column)
        )
        more = [batch.column(name).to_pylist() for name in options.fields]
        fields = list(zip(*more, strict=True)) or [()] * len(cells)
        for id_, cell, split, extra in zip(ids, cells, sides, fields, strict=True):
            row += 1
            side = None if split is None else str(split)
            name = str(row) if id_ is None else str(id_)
            yield _cell_record(source, name, cell, row, side, extra, options)


def _cell_record(
    source: Source, id_: str, cell: Any, line: int, split: str | None, fields: tuple[Any, ...], options: ReadOptions
) -> Record:
    if options.blanks and (cell is None or cell == ""):
        return Record(id_, b"", source.name, line, split, "", fields)
    if options.identifiers and isinstance(cell, str | int) and str(cell).strip():
        return Record(id_, str(cell).encode(), source.name, line, split, "", fields)
    if not isinstance(cell, str) or not cell.strip():
        wanted = "an identifier" if options.identifiers else "a sequence"
        what = "an empty cell" if cell is None or cell == "" or isinstance(cell, str) else f"a {type(cell).__name__}"
        raise UserError(f"{source.name}, line {line}: {what} where {wanted} was expected")
    try:
        return Record(id_, cell.encode("ascii"), source.name, line, split, "", fields)
    except UnicodeEncodeError as error:
        raise UserError(
            f"{source.name}, line {line}: a non-ASCII character {cell[error.start]!a} in a sequence"
        ) from error
