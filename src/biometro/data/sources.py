"""Raw files in, records out: FASTA, tables, SMILES and SDF, local or by URL, compressed or not, in a stream.

    path, glob or URL ─▶ bytes ─▶ (decompressed) ─▶ Record(id, raw letters, where it stands)

A reader knows formats, not residues: what a letter means is the alphabet's business. Memory is bounded by the
longest record, or one row group's batch (Parquet), and `bounds.py` says how long these may be.

`records.py` has the nouns, `tables.py`, `fasta.py` and `molfiles.py` the formats, `layouts.py` the tables of receptors.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import IO, cast

import fsspec
import pyarrow as pa

from biometro.alphabet import SequenceKind, molecule
from biometro.data import (
    catalogue,
    example_molecules,
    example_receptors,
    families,
    fasta,
    layouts,
    molfiles,
    remote,
    tables,
)  # fmt: skip
from biometro.data.bounds import Lines
from biometro.data.fasta import short
from biometro.data.records import TABLES, Format, Kind, Piece, ReadOptions, Record, Source
from biometro.data.streams import CountingReader, decompress
from biometro.errors import UserError

__all__ = [
    "COMPRESSED_SUFFIXES", "EXAMPLES", "SUFFIXES", "TABLES", "Format", "Kind", "Piece", "ReadOptions", "Record",
    "Source", "expand", "opened", "paths", "pieces", "read", "read_piece", "table_columns", "text_lines",
]  # fmt: skip

SUFFIXES: dict[str, Kind] = {
    ".fasta": "fasta", ".fa": "fasta", ".faa": "fasta", ".fas": "fasta", ".fsa": "fasta", ".pep": "fasta",
    ".seq": "fasta", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".parquet": "parquet", ".pq": "parquet",
    ".smi": "smi", ".smiles": "smi", ".ism": "smi", ".sdf": "sdf", ".sd": "sdf",
}  # fmt: skip
COMPRESSED_SUFFIXES = (".gz", ".bgz", ".zst", ".bz2")
EXAMPLES: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    # few and large, so that a small model learns them in a minute
    "example:families": partial(families.records, seed=0, families=8, members=256),
    "example:receptors": example_receptors.records,
    "example:molecules": example_molecules.records,
}

_HEAD_BYTES = 1 << 16  # of a .txt file are looked at


def expand(data: str | Sequence[str], options: ReadOptions = ReadOptions()) -> list[Source]:
    """Paths, globs, URLs, plain sequences, names of examples and of the catalogue -> sources, in order (globs sorted).

    A name that is no file is a sequence itself if it consists of capital letters only, or is written as a sequence of
    `options.kind` is: chains with marks between them, a SMILES.

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
        if not os.path.exists(name) and _is_sequence(name, options.kind):  # noqa: PTH110 (Path.exists raises on a long name)
            sources.append(Source(name, "text"))
            continue
        for path in paths(name):
            sources.append(Source(path, _format_of(path, options)))
    return sources


def _is_sequence(name: str, kind: SequenceKind) -> bool:
    if name.isascii() and name.isalpha() and name.isupper():
        return True
    if kind in ("antibody", "tcr"):
        return re.fullmatch(r"[A-Z|:@]*[A-Z][A-Z|:@]*", name) is not None
    return kind == "molecule" and not re.search(r"\s", name) and molecule.parse(name) is not None


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


def _format_of(path: str, options: ReadOptions) -> Kind:
    if options.format != "auto":
        return options.format
    stem = path.lower().split("?", 1)[0]
    for suffix in COMPRESSED_SUFFIXES:
        stem = stem.removesuffix(suffix)
    for suffix, found in SUFFIXES.items():
        if stem.endswith(suffix):
            return found
    if stem.replace("\\", "/").rpartition("/")[2].startswith("cid-smiles"):  # PubChem's
        return "smi"
    told = _told_by_content(path, options) if stem.endswith(".txt") else None
    if told is None:
        raise UserError(f"{path}: cannot tell the format from the name; say it with the option `format`")
    return told


def _told_by_content(path: str, options: ReadOptions) -> Kind | None:
    """Of a .txt file: a table of receptors between tabs, or SMILES where these are asked for."""
    with _opened(Source(path, "text"), count=False) as (_, counted):
        head = decompress(counted, path).read(_HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0]
    if options.kind == "molecule":
        return "smi" if molfiles.looks_like_smiles(head) else None
    names = head.decode("latin-1").strip().split("\t")
    if options.kind in ("antibody", "tcr") and isinstance(options.column, str) and len(names) > 1:
        return "tsv" if layouts.find(names, layouts.DEFAULT_COLUMN, options.kind, "auto", path) else None
    return None


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
    if options.split_column is not None and source.format not in TABLES:
        raise UserError(f"{source.name}: only a table has a column {options.split_column!r} to split by")
    if whole or source.format not in ("fasta", "parquet", "smi", "sdf"):
        yield Piece(number)
        return
    with _opened(source) as (raw, counted):
        if source.format == "fasta":
            for line, data in fasta.cut(decompress(counted, source.name), source.name):
                yield Piece(number, line, data)
        elif source.format == "parquet":
            yield from tables.row_groups(number, source, tables.parquet(raw, source), options)
            raw.seek(0)  # read out of order, so counted in a pass of its own
        else:
            yield from _cut_molecules(number, source, decompress(counted, source.name), options)


def _cut_molecules(number: int, source: Source, handle: IO[bytes], options: ReadOptions) -> Iterator[Piece]:
    head, empty = b"", False
    for line, data in molfiles.cut(handle, source.name, source.format == "sdf"):
        if line == 1 and source.format == "sdf":
            _check_properties(source, options, data)
        elif line == 1:
            head = data.split(b"\n", 1)[0]
            empty = molfiles.order_of(head).header and not data[len(head) :].strip()
        else:
            empty = empty and not data.strip()
        yield Piece(number, line, data, head=head)
    if empty:
        raise UserError(fasta.no_sequence(source.name))


def _check_properties(source: Source, options: ReadOptions, data: bytes) -> None:
    """Raises UserError where no record of the first piece of an SDF file has a property that is asked for."""
    if not options.beside:
        return
    found = list(dict.fromkeys(name for each in molfiles.read_sdf(data, 1, source.name) for name in each.properties))
    for name in options.beside:
        if name not in found:
            names = ", ".join(found[:20]) or "none"
            raise UserError(f"{source.name}, line 1: no property named {name!r}; the first records have: {names}")


def read_piece(piece: Piece, source: Source, options: ReadOptions = ReadOptions()) -> Iterator[Record]:
    """The records of one piece, in order. Of a whole source, also fills in its digest and bytes.

    Raises UserError as `read` does.
    """
    if piece.records is not None:
        yield from piece.records
    elif piece.data is not None and source.format == "smi":
        for name, raw, line, rest in molfiles.read_smiles(piece.data, piece.first, source.name, piece.head):
            yield Record(name, raw, source.name, line, None, rest)
    elif piece.data is not None and source.format == "sdf":
        for found in molfiles.read_sdf(piece.data, piece.first, source.name):
            yield _of_molfile(found, source, options)
    elif piece.data is not None:
        for header, raw, line in fasta.parse(piece.data, piece.first, source.name):
            yield Record(header.split(None, 1)[0] if header else "", raw, source.name, line, None, header)
    elif piece.groups is not None:
        with _opened(source, count=False) as (handle, _):
            yield from tables.read_parquet(source, tables.parquet(handle, source), piece, options)
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
            yield from tables.read_text(source, decompress(counted, source.name), options)
    else:
        for part in pieces(piece.source, source, options):
            yield from read_piece(part, source, options)


def _of_molfile(found: molfiles.Molfile, source: Source, options: ReadOptions) -> Record:
    raw, skip = molfiles.smiles_of(found.block)
    has = found.properties
    id_ = found.title if options.id_column is None else has.get(options.id_column, "").strip()
    split = None if options.split_column is None else has.get(options.split_column, "").strip()
    fields = tuple(has.get(name) for name in options.fields)
    return Record(id_ or str(found.line), raw, source.name, found.line, split, "", fields, skip)


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
            for number, text in enumerate(tables.text_lines(found), 1):
                found.taken = 0
                yield number, text
        except UnicodeDecodeError as error:
            raise UserError(f"{source.name}, after line {number}: not UTF-8 ({short(error)})") from error


def table_columns(source: Source) -> list[str]:
    """The names of a table's columns. Raises UserError where it cannot be read."""
    with _opened(source, count=False) as (raw, counted):
        if source.format == "parquet":
            return list(tables.parquet(raw, source).schema_arrow.names)
        return tables.header(decompress(counted, source.name), source)
