"""Sources in, filled spools and one account out; by one process or many, for all of the input or one part of it.

    sources ─▶ pieces ─▶ workers: read, clean ─▶ a spool each
                                              └▶ an account each ─▶ added up

Who reads which piece changes nothing: spools are read as one, and accounts keep the first places of all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from biometro.alphabet import PROTEIN, Alphabet, Reading, molecule
from biometro.alphabet.molecule import Growing
from biometro.data import fingerprints, splits
from biometro.data.intake import Account, clean_records
from biometro.data.sources import Piece, ReadOptions, Record, Source, pieces, read_piece
from biometro.data.spool import Spool
from biometro.processes import Processes

SplitBy = Literal["hash", "column", "group", "scaffold", "homology"]
_MOLECULES = 512  # of a piece: some tenths of a second
_FILES_EACH = 4  # with so many files for every worker, each reads whole ones and none waits for the one that cuts


@dataclass(frozen=True)
class Cleaning:
    """What decides which letters of a record are kept: see `intake.clean`."""

    options: ReadOptions
    reading: Reading = field(default_factory=lambda: Reading(residues="keep_as_x"))
    min_length: int = 1
    max_length: int | None = None
    alphabet: Alphabet | Growing = PROTEIN
    forms: int = 0
    """Other SMILES of each molecule that are added to it, on the same side of the split."""
    by: SplitBy = "hash"
    """What decides the side of a sequence: its digest, a column that names the side, one that names its group (all of a
    group are on one side), or the scaffold of its molecule. Of homology it is `builder.by_homology`, in the end."""
    valid: float = 0.0


class Found(NamedTuple):
    """What a piece held: records of its source, and of a whole source its size and digest."""

    source: int
    records: int
    bytes: int
    sha256: str | None


class Filler:
    """Reads pieces into one spool.

    Args:
        folder: of the spool.
        sources: all of them; pieces name them by number.
        cleaning: what is kept.
    """

    def __init__(self, folder: Path, sources: list[Source], cleaning: Cleaning):
        self.sources, self.cleaning, self.account = sources, cleaning, Account()
        self.spool = Spool(folder, cleaning.alphabet)

    def __call__(self, piece: Piece) -> Found:
        """Read one piece. Raises UserError, naming file and line, for what cannot be a protein sequence."""
        how, account, before = self.cleaning, self.account, self.account.read
        source = replace(self.sources[piece.source])
        account.source = piece.source
        records = read_piece(piece, source, how.options)
        cleaned = clean_records(records, how.reading, account, how.min_length, how.max_length, how.alphabet)
        for record, letters in cleaned:
            held_out = splits.given(record.split) if how.by == "column" else self._side(record, letters)
            if how.by == "column" and held_out is None:
                account.drop("neither train nor valid in the split column", record)
                continue
            self.spool.add(letters, held_out)
            for form in self._forms(letters):
                self.spool.add(form, held_out)
        return Found(piece.source, account.read - before, source.bytes, source.sha256)

    def _side(self, record: Record, letters: bytes) -> bool | None:
        """Whether a record is held out with its group; None where its own digest decides."""
        how = self.cleaning
        if how.by == "group":
            return splits.by_name((record.split or "").encode(), how.valid)
        if how.by == "scaffold":
            return splits.by_name(fingerprints.scaffold(letters), how.valid)
        return splits.by_name(letters, how.valid) if how.forms else None

    def _forms(self, letters: bytes) -> Iterator[bytes]:
        """Other SMILES of a molecule, but for those that need a token which the vocabulary lacks."""
        how = self.cleaning
        for form in map(str.encode, molecule.random_forms(letters.decode(), how.forms) if how.forms else ()):
            unknown = how.alphabet.unknowns(form)
            if not unknown or (how.reading.molecules.unknown == "unk" and unknown != (form.decode(),)):
                yield form

    def finish(self) -> Account:
        """Write the rest to the disk; what became of all records."""
        self.spool.flush()
        return self.account


def fill(
    folder: Path, sources: list[Source], cleaning: Cleaning, workers: int = 1, part: int = 0, parts: int = 1
) -> Account:
    """Read, clean and spool the input into folders `spool-0`, `spool-1`, ... of `folder`; fills in the sources.

    Args:
        folder: where to make the spools.
        sources: the input; `sources[i]` gets the records that were found, and if read to its end, size and digest.
        cleaning: what is kept.
        workers: processes; with 1, it is this one.
        part: 0-based, which of
        parts: equal shares of the input to read: every so manieth file, or piece where there are fewer files.

    Raises UserError, naming file and line, for what cannot be read; the first in the order of input.
    """
    makers = [partial(Filler, folder / f"spool-{i}", [replace(s) for s in sources], cleaning) for i in range(workers)]
    whole = workers > 1 and len(sources) >= _FILES_EACH * workers * parts
    tasks = _share(sources, cleaning.options, whole, part, parts)
    account = Account()
    if workers == 1:
        filler = makers[0]()
        for piece in tasks:
            _note(sources, filler(piece))
        account.add(filler.finish())
        return account
    with Processes(makers) as processes:
        for found in processes.run(tasks):
            _note(sources, found)
        for other in processes.finish():
            account.add(other)
    return account


def _share(sources: list[Source], options: ReadOptions, whole: bool, part: int, parts: int) -> Iterator[Piece]:
    by_file = len(sources) >= parts
    number = itertools.count()
    for index, source in enumerate(sources):
        if by_file and index % parts != part:
            continue
        for piece in _pieces(index, source, options, whole):
            if by_file or next(number) % parts == part:
                yield piece


def _pieces(index: int, source: Source, options: ReadOptions, whole: bool) -> Iterator[Piece]:
    """Pieces of a source; of molecules in a table, records: conversion takes a hundred times longer than reading."""
    if whole or options.kind != "molecule" or source.format not in ("csv", "tsv", "parquet", "example"):
        yield from pieces(index, source, options, whole)
        return
    records = read_piece(Piece(index), source, options)
    while batch := tuple(itertools.islice(records, _MOLECULES)):
        yield Piece(index, batch[0].line, records=batch)


def _note(sources: list[Source], found: Found) -> None:
    source = sources[found.source]
    source.records += found.records
    if found.sha256 is not None:
        source.bytes, source.sha256 = found.bytes, found.sha256
