"""Tables in, records out: CSV, TSV and Parquet, row by row.

    header ─▶ Columns (which cells are read; the layout, where receptors come in parts) ─▶ rows ─▶ Record

Memory is bounded by the longest row (CSV, TSV) or a batch of rows (Parquet).
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from biometro.alphabet import immune
from biometro.alphabet.immune import ImmuneKind
from biometro.data import layouts, molfiles
from biometro.data.bounds import LONGEST_RECORD, Lines, check_parquet
from biometro.data.fasta import no_sequence, short
from biometro.data.records import Piece, ReadOptions, Record, Source
from biometro.errors import UserError

_PIECE_ROWS = 1 << 16
_PARQUET_ROWS = 64  # read at once: a dictionary page may repeat one long value in every row

_Row = tuple[int, int, Sequence[Any]]  # number, line, cells of `Columns.names`


class Columns:
    """What is read of a table, found once by its header.

    names: the columns that are read. Raises UserError for a column that is not there or that is there twice.
    """

    def __init__(self, source: Source, options: ReadOptions, found: Sequence[str]):
        self._source, self._options = source, options
        self.layout = layouts.find(found, options.column, options.kind, options.region, source.name)
        if self.layout is None:
            assert isinstance(options.column, str)
            text: tuple[str, ...] = (options.column,)
        else:
            text = self.layout.columns
        key = None if self.layout is None else self.layout.key
        self.names = list(dict.fromkeys((*text, *options.beside, *(() if key is None else (key,)))))
        for name in self.names:
            _check_column(source, name, found)
        place = self.names.index
        self._text = [place(name) for name in text]
        self._id, self._split, self._key = (
            None if name is None else place(name) for name in (options.id_column, options.split_column, key)
        )
        self._fields = [place(name) for name in options.fields]

    @property
    def paired(self) -> bool:
        """Whether rows that follow one another may be one record."""
        return self._key is not None

    def records(self, rows: Iterable[_Row]) -> Iterator[Record]:
        """The records of rows. Raises UserError, naming the line, for cells that are no sequence."""
        if self.layout is None:
            for number, line, cells in rows:
                yield self._one(number, line, cells)
            return
        kind: ImmuneKind = self._options.kind  # type: ignore[assignment]
        held: tuple[Record, layouts.Parts, str] | None = None  # the first row of a receptor, and what identifies it
        for number, line, cells in rows:
            record, parts, key = self._parts(number, line, cells)
            if self._key is None:
                yield _joined(record, kind, parts)
                continue
            if held is not None and key and key == held[2] and not record.skip and not _overlap(kind, held[1], parts):
                held = held[0], held[1] | parts, key
                continue
            if held is not None:
                yield _joined(held[0], kind, held[1])
            held = record, parts, "" if record.skip else key
        if held is not None:
            yield _joined(held[0], kind, held[1])

    def _parts(self, number: int, line: int, cells: Sequence[Any]) -> tuple[Record, layouts.Parts, str]:
        assert self.layout is not None
        id_, split, fields = self._beside(number, cells)
        try:
            parts = self.layout.parts([cells[i] for i in self._text])
        except ValueError as error:
            raise UserError(f"{self._source.name}, line {line}: {error}") from error
        skip = parts if isinstance(parts, str) else ""
        record = Record(id_, b"", self._source.name, line, split, "", fields, skip)
        key = "" if self._key is None else layouts.text_of(cells[self._key])
        return record, {} if isinstance(parts, str) else parts, "" if key == "0" or "," in key else key

    def _beside(self, number: int, cells: Sequence[Any]) -> tuple[str, str | None, tuple[Any, ...]]:
        """Identifier, side of the split, fields."""
        id_ = None if self._id is None else cells[self._id]
        side = None if self._split is None else cells[self._split]
        return (
            str(number) if id_ is None else str(id_),
            None if side is None else str(side),
            tuple([cells[i] for i in self._fields]),
        )

    def _one(self, number: int, line: int, cells: Sequence[Any]) -> Record:
        id_, split, fields = self._beside(number, cells)
        cell, name, options = cells[self._text[0]], self._source.name, self._options
        if options.blanks and (cell is None or cell == ""):
            return Record(id_, b"", name, line, split, "", fields)
        if options.identifiers and isinstance(cell, str | int) and str(cell).strip():
            return Record(id_, str(cell).encode(), name, line, split, "", fields)
        if options.kind == "molecule" and (cell is None or cell == "") and not options.identifiers:
            return Record(id_, b"", name, line, split, "", fields, molfiles.NOTHING)
        if not isinstance(cell, str) or not cell.strip():
            wanted = "an identifier" if options.identifiers else "a sequence"
            what = "an empty cell" if cell is None or isinstance(cell, str) else f"a {type(cell).__name__}"
            raise UserError(f"{name}, line {line}: {what} where {wanted} was expected")
        return Record(id_, _ascii(cell, name, line), name, line, split, "", fields)


def _check_column(source: Source, name: str, found: Sequence[str]) -> None:
    if name not in found:
        names = ", ".join(found[:20]) or "none"
        raise UserError(f"{source.name}, line 1: no column named {name!r}; its columns are: {names}")
    if list(found).count(name) > 1:
        raise UserError(f"{source.name}, line 1: more than one column is named {name!r}")


def _ascii(text: str, name: str, line: int) -> bytes:
    try:
        return text.encode("ascii")
    except UnicodeEncodeError as error:
        raise UserError(f"{name}, line {line}: a non-ASCII character {text[error.start]!a} in a sequence") from error


def _joined(record: Record, kind: ImmuneKind, parts: layouts.Parts) -> Record:
    if record.skip:
        return record
    return record._replace(raw=_ascii(immune.join(kind, dict(parts)), record.source, record.line))


def _overlap(kind: ImmuneKind, a: layouts.Parts, b: layouts.Parts) -> bool:
    """Whether two rows hold the same chain, or anything else that is not the same, so that they are no one receptor."""
    chains = immune.PARTS[kind][:2]
    return any(name in b and (name in chains or b[name] != a[name]) for name in a)


# CSV, TSV --------------------------------------------------------------------------------------------------------


class _Rows:
    """Rows of a CSV or TSV file behind its header; what is written before it serves all rows.

    names: of the columns. line: of the last row read.
    """

    def __init__(self, lines: Lines, source: Source):
        self._lines, self._source = lines, source
        self._before = 0  # lines of metadata
        csv.field_size_limit(LONGEST_RECORD)
        text = text_lines(lines)
        first = next(text, "")
        self._more: dict[str, str] = {}
        self._rows: Any = iter(())
        if layouts.begins_with_metadata(first):
            self._read_metadata(first, text)
            first = next(text, "")
        self._rows = csv.reader(
            itertools.chain([first] if first else [], text),
            delimiter="\t" if source.format == "tsv" else ",",
            strict=True,
        )

    def _read_metadata(self, first: str, text: Iterator[str]) -> None:
        def more() -> str:
            self._before += 1
            return first if self._before == 1 else next(text, "")

        try:
            self._more = layouts.metadata(more)
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise UserError(f"{self._source.name}, line 1: {error}") from error

    @property
    def line(self) -> int:
        return self._before + getattr(self._rows, "line_num", 0)

    def header(self) -> list[str] | None:
        """The names of the columns, and those of the metadata; None of an empty file."""
        names = next(self._rows, None)
        if names is None:
            return None
        if layouts.joined_header(names) is not None:
            names = layouts.joined_header(names, next(self._rows, [])) or names
        self._lines.taken = 0
        self._width = len(names)
        self._more = {name: value for name, value in self._more.items() if name not in names}
        return [*names, *self._more]

    def __iter__(self) -> Iterator[list[str]]:
        more = list(self._more.values())
        for row in self._rows:
            self._lines.taken = 0
            if not row:
                continue
            if len(row) != self._width:
                raise UserError(
                    f"{self._source.name}, line {self.line}: {len(row)} fields where the header has {self._width}"
                )
            yield row + more if more else row


def header(handle: IO[bytes], source: Source) -> list[str]:
    """The columns of a CSV or TSV file, and those of its metadata. Raises csv.Error, UnicodeDecodeError."""
    return _Rows(Lines(handle, source.name), source).header() or []


def read_text(source: Source, handle: IO[bytes], options: ReadOptions) -> Iterator[Record]:
    """The records of a CSV or TSV file. Raises UserError, naming file and line, for what is not as its header says."""
    lines = Lines(handle, source.name)
    rows = None
    try:
        rows = _Rows(lines, source)
        names = rows.header()
        if names is None:
            raise UserError(f"{source.name}, line 1: the file is empty")
        columns = Columns(source, options, names)
        lines.latin = columns.layout is not None and columns.layout.latin
        number = 0
        for number, record in enumerate(columns.records(_numbered(rows, columns, names)), 1):  # noqa: B007
            yield record
        if number == 0:
            raise UserError(no_sequence(source.name))
    except csv.Error as error:
        raise UserError(f"{source.name}, line {_line(rows)}: {short(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{source.name}, after line {_line(rows)}: not UTF-8 ({short(error)})") from error
    except (OSError, EOFError, pa.ArrowException) as error:
        raise UserError(f"{source.name}, after line {_line(rows)}: {short(error)}") from error


def _line(rows: _Rows | None) -> int:
    return 0 if rows is None else rows.line


def _numbered(rows: _Rows, columns: Columns, names: Sequence[str]) -> Iterator[_Row]:
    places = [names.index(name) for name in columns.names]
    for number, row in enumerate(rows, 1):
        yield number, rows.line, [row[place] for place in places]


def text_lines(lines: Lines) -> Iterator[str]:
    """Lines of a stream as text. Raises UnicodeDecodeError for what is not UTF-8, unless they are Latin-1 then."""
    for line in lines:
        if lines.number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if b"\r" in line:  # ends a line even where it stands alone
            yield from (_decoded(part, lines.latin) for part in line.splitlines(keepends=True))
        else:
            yield _decoded(line, lines.latin)


def _decoded(line: bytes, latin: bool) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        if not latin:
            raise
        return line.decode("latin-1")


# Parquet ---------------------------------------------------------------------------------------------------------


def parquet(handle: IO[bytes], source: Source) -> pq.ParquetFile:
    """An open Parquet file. Raises UserError, or what Arrow raises, where it is none."""
    size = handle.seek(0, io.SEEK_END)
    handle.seek(0)
    file = pq.ParquetFile(handle, page_checksum_verification=True)
    check_parquet(file.metadata, size, source.name)
    return file


def row_groups(number: int, source: Source, file: pq.ParquetFile, options: ReadOptions) -> Iterator[Piece]:
    """Pieces of whole row groups, of about _PIECE_ROWS rows; one piece where rows may belong together.

    Raises UserError for a column that is not there, and a file without rows.
    """
    paired = Columns(source, options, file.schema_arrow.names).paired
    if file.metadata.num_rows == 0:
        raise UserError(no_sequence(source.name))
    groups: list[int] = []
    first = rows = 0
    for group in range(file.num_row_groups):
        groups.append(group)
        rows += file.metadata.row_group(group).num_rows
        if (rows - first >= _PIECE_ROWS and not paired) or group == file.num_row_groups - 1:
            yield Piece(number, first, groups=tuple(groups))
            groups, first = [], rows


def read_parquet(source: Source, file: pq.ParquetFile, piece: Piece, options: ReadOptions) -> Iterator[Record]:
    """The records of row groups."""
    columns = Columns(source, options, file.schema_arrow.names)
    yield from columns.records(_batches(file, piece, columns.names))


def _batches(file: pq.ParquetFile, piece: Piece, names: Sequence[str]) -> Iterator[_Row]:
    row = piece.first
    for batch in file.iter_batches(batch_size=_PARQUET_ROWS, row_groups=list(piece.groups or ()), columns=list(names)):
        for cells in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
            row += 1
            yield row, row, cells
