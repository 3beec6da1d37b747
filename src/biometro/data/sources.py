"""Raw files in, records out: FASTA, CSV, TSV and Parquet, local or by URL, compressed or not, in a stream.

    path, glob or URL ─▶ bytes ─▶ (decompressed) ─▶ Record(id, raw letters, where it stands)

A reader knows formats, not residues: what a letter means is the alphabet's business. Memory is bounded by the
longest record (FASTA, CSV) or one row group's batch (Parquet).
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Literal, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from biometro.data import families
from biometro.errors import UserError

Format = Literal["auto", "fasta", "csv", "tsv", "parquet"]
Kind = Literal["fasta", "csv", "tsv", "parquet", "text", "example"]

SUFFIXES: dict[str, Kind] = {
    ".fasta": "fasta", ".fa": "fasta", ".faa": "fasta", ".fas": "fasta", ".fsa": "fasta", ".pep": "fasta",
    ".seq": "fasta", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
COMPRESSED_SUFFIXES = (".gz", ".bgz", ".zst", ".bz2")
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
EXAMPLES: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    # few and large, so that a small model learns them in a minute
    "example:families": partial(families.records, seed=0, families=8, members=256),
}

_FASTA_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz*-. \t\r\n"
_MAX_FIELD = 1 << 27  # characters in one CSV cell: above the longest known protein by three orders


@dataclass(frozen=True, slots=True)
class Record:
    """One sequence as it stands in its file. `line` is 1-based: the header's line, or the table's row. `split` is the
    side of the split that its table names."""

    id: str
    raw: bytes
    source: str
    line: int
    split: str | None = None

    @property
    def where(self) -> str:
        return f"{self.source}, line {self.line}"


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
        column: the table column that holds the sequence.
        id_column: the table column that holds an identifier; without it, rows are numbered.
        split_column: the table column that names the side of the split.
    """

    format: Format = "auto"
    column: str = "sequence"
    id_column: str | None = None
    split_column: str | None = None

    @property
    def columns(self) -> list[str]:
        """All columns to be read, the sequence's first."""
        return [name for name in (self.column, self.id_column, self.split_column) if name is not None]


def expand(data: str | Sequence[str], options: ReadOptions = ReadOptions()) -> list[Source]:
    """Paths, globs, URLs, `example:` names and plain sequences -> sources, in the given order (globs sorted).

    A name that is no file and consists of capital letters only is a sequence itself.

    Raises UserError for a name that stands for nothing or whose format cannot be told.
    """
    names = [data] if isinstance(data, str) else list(data)
    if not names:
        raise UserError("no input was given; name at least one file, URL or example:families")
    sources = []
    for name in names:
        if name.startswith("example:"):
            if name not in EXAMPLES:
                raise UserError(f"there is no {name}; the embedded data sets are: {', '.join(EXAMPLES)}")
            sources.append(Source(name, "example"))
            continue
        letters_only = name.isascii() and name.isalpha() and name.isupper()
        if letters_only and not os.path.exists(name):  # noqa: PTH110 (Path.exists raises on a long name)
            sources.append(Source(name, "text"))
            continue
        for path in _expand_paths(name):
            sources.append(Source(path, _format_of(path, options.format)))
    return sources


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
        raise UserError(f"{name}: cannot be reached ({_short(error)})") from error
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
    if source.format == "text":
        source.records, source.bytes = 1, len(source.name)
        source.sha256 = hashlib.sha256(source.name.encode()).hexdigest()
        yield Record("", source.name.encode(), "given sequence", 1)
        return
    if source.format == "example":
        digest = hashlib.sha256()
        for number, (id_, letters) in enumerate(EXAMPLES[source.name](), 1):
            digest.update(letters.encode())
            source.records, source.bytes = number, source.bytes + len(letters)
            yield Record(id_, letters.encode(), source.name, number)
        source.sha256 = digest.hexdigest()
        return
    reader: Callable[[Source, IO[bytes], ReadOptions], Iterator[Record]]
    if options.split_column is not None and source.format not in ("csv", "tsv", "parquet"):
        raise UserError(f"{source.name}: only a table has a column {options.split_column!r} to split by")
    reader = {"fasta": _read_fasta, "csv": _read_table, "tsv": _read_table, "parquet": _read_parquet}[source.format]
    try:
        with fsspec.open(source.name, "rb").open() as raw:
            counted = _CountingReader(raw)
            handle = raw if source.format == "parquet" else _decompress(counted)
            for record in reader(source, handle, options):
                source.records += 1
                yield record
            if source.format == "parquet":  # read out of order above, so counted in a pass of its own
                raw.seek(0)
                while counted.read(1 << 20):
                    pass
            source.bytes, source.sha256 = counted.count, counted.digest.hexdigest()
    except (OSError, EOFError, pa.ArrowException) as error:
        raise UserError(f"{source.name}, after {source.records:,} records: {_short(error)}") from error
    if source.records == 0:
        raise UserError(f"{source.name}, line 1: the file holds no sequence")


class _CountingReader(io.RawIOBase):
    """Passes bytes on, and keeps their number and sha256."""

    def __init__(self, raw: IO[bytes]):
        self.raw, self.count, self.digest = raw, 0, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.raw.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        self.digest.update(data)
        return len(data)


def _decompress(raw: io.RawIOBase) -> IO[bytes]:
    """Buffered bytes of a possibly compressed file; its first bytes, not its name, tell.

    Arrow's streams, unlike zstandard's, notice a file that was cut.
    """
    buffered = io.BufferedReader(raw, 1 << 20)
    start = buffered.peek(4)
    codec = next((codec for magic, codec in COMPRESSIONS.items() if start.startswith(magic)), None)
    if codec is None:
        return buffered
    stream = pa.CompressedInputStream(pa.PythonFile(buffered, mode="r"), codec)
    return io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20)


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "runcated compressed stream" in text:
        return "the compressed stream ends too early (is the file truncated?)"
    return text[:300]


# FASTA ---------------------------------------------------------------------------------------------------------


def _read_fasta(source: Source, handle: IO[bytes], options: ReadOptions) -> Iterator[Record]:
    header: bytes | None = None
    header_line = 0
    lines: list[bytes] = []
    number = 0
    try:
        for number, line in enumerate(handle, 1):
            if line.startswith(b">"):
                if header is not None:
                    yield _fasta_record(source, header, header_line, lines)
                header, header_line, lines = line, number, []
            elif header is not None:
                lines.append(line)
            elif line.removeprefix(b"\xef\xbb\xbf").startswith(b">"):  # a byte-order mark before the first header
                header, header_line, lines = line[3:], number, []
            elif line.strip():
                raise UserError(
                    f"{source.name}, line {number}: this is not FASTA: a header starting with '>' was expected, "
                    f"found {line[:40].decode('latin-1').strip()!a}"
                )
    except (OSError, EOFError, pa.ArrowException) as error:
        raise UserError(f"{source.name}, after line {number:,}: {_short(error)}") from error
    if header is not None:
        yield _fasta_record(source, header, header_line, lines)


def _fasta_record(source: Source, header: bytes, header_line: int, lines: list[bytes]) -> Record:
    raw = b"".join(lines)
    if raw.translate(None, _FASTA_LETTERS):
        for number, line in enumerate(lines, header_line + 1):
            bad = line.translate(None, _FASTA_LETTERS)
            if bad:
                what = f"the character {chr(bad[0])!a}" if bad[0] < 128 else f"a non-ASCII byte 0x{bad[0]:02x}"
                raise UserError(f"{source.name}, line {number}: {what} in a sequence")
    if b"\r" in header.rstrip():
        raise UserError(
            f"{source.name}, line {header_line}: lines end in CR alone; convert them to LF (tr '\\r' '\\n')"
        )
    if not raw.strip():
        raise UserError(f"{source.name}, line {header_line}: a header without a sequence")
    try:
        words = header[1:].decode("utf-8").split(None, 1)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source.name}, line {header_line}: the header is neither ASCII nor UTF-8 "
            f"(byte 0x{header[1 + error.start]:02x})"
        ) from error
    return Record(words[0] if words else "", raw, source.name, header_line)


# Tables --------------------------------------------------------------------------------------------------------


def _check_columns(source: Source, options: ReadOptions, found: Sequence[str]) -> None:
    for column in options.columns:
        if column not in found:
            names = ", ".join(found[:20]) or "none"
            raise UserError(f"{source.name}, line 1: no column named {column!r}; its columns are: {names}")
        if list(found).count(column) > 1:
            raise UserError(f"{source.name}, line 1: more than one column is named {column!r}")


def _read_table(source: Source, handle: IO[bytes], options: ReadOptions) -> Iterator[Record]:
    csv.field_size_limit(_MAX_FIELD)
    text = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")
    rows = csv.reader(text, delimiter="\t" if source.format == "tsv" else ",", strict=True)
    try:
        names = next(rows, None)
        if names is None:
            raise UserError(f"{source.name}, line 1: the file is empty")
        _check_columns(source, options, names)
        column = names.index(options.column)
        id_column, split_column = (
            None if name is None else names.index(name) for name in (options.id_column, options.split_column)
        )
        for row in rows:
            if not row:
                continue
            if len(row) != len(names):
                raise UserError(
                    f"{source.name}, line {rows.line_num}: {len(row)} fields where the header has {len(names)}"
                )
            id_ = str(source.records + 1) if id_column is None else row[id_column]
            split = None if split_column is None else row[split_column]
            yield _cell_record(source, id_, row[column], rows.line_num, split)
    except csv.Error as error:
        raise UserError(f"{source.name}, line {rows.line_num}: {_short(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{source.name}, after line {rows.line_num}: not UTF-8 ({_short(error)})") from error
    except (OSError, EOFError, pa.ArrowException) as error:
        raise UserError(f"{source.name}, after line {rows.line_num}: {_short(error)}") from error


def _read_parquet(source: Source, handle: IO[bytes], options: ReadOptions) -> Iterator[Record]:
    file = pq.ParquetFile(handle)
    names = file.schema_arrow.names
    _check_columns(source, options, names)
    row = 0
    for batch in file.iter_batches(batch_size=8192, columns=options.columns):
        cells = batch.column(options.column).to_pylist()
        ids, sides = (
            [None] * len(cells) if name is None else batch.column(name).to_pylist()
            for name in (options.id_column, options.split_column)
        )
        for id_, cell, split in zip(ids, cells, sides, strict=True):
            row += 1
            yield _cell_record(
                source, str(row) if id_ is None else str(id_), cell, row, None if split is None else str(split)
            )


def _cell_record(source: Source, id_: str, cell: Any, line: int, split: str | None) -> Record:
    if not isinstance(cell, str) or not cell.strip():
        what = "an empty cell" if cell is None or cell == "" or isinstance(cell, str) else f"a {type(cell).__name__}"
        raise UserError(f"{source.name}, line {line}: {what} where a sequence was expected")
    try:
        return Record(id_, cell.encode("ascii"), source.name, line, split)
    except UnicodeEncodeError as error:
        raise UserError(
            f"{source.name}, line {line}: a non-ASCII character {cell[error.start]!a} in a sequence"
        ) from error
