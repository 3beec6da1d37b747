"""Variants of a wild type: from text, lists, tables and FASTA files to changes.

    text | lines | tables ─▶ notation (hgvs.py) ──┐
    sequences ─▶ difference (changes.py) ─────────┴─▶ Variant(name, changes, where, fields)

What is of no use is counted by reason, with the first three places; under `bad: fail` that is the error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from biometro.alphabet import AlphabetError, immune, protein
from biometro.alphabet.protein import STANDARD
from biometro.data.changes import (
    DISAGREE,
    LETTER,
    MARK,
    NONSTANDARD,
    RANGE,
    STOP,
    UNREADABLE,
    BadVariantError,
    Change,
    apply,
    difference,
)
from biometro.data.hgvs import Notation, is_plain, numbering, write
from biometro.data.intake import Account
from biometro.data.sources import (
    COMPRESSED_SUFFIXES,
    SUFFIXES,
    ReadOptions,
    Record,
    Source,
    expand,
    paths,
    read,
    table_columns,
    text_lines,
)
from biometro.errors import UserError

__all__ = [
    "Change", "Variant", "VariantOptions", "difference", "is_file", "parse", "read_variants", "singles", "write"
]  # fmt: skip

VariantFormat = Literal["auto", "text", "fasta", "csv", "tsv", "parquet"]

_TABLES = ("csv", "tsv", "parquet")
_TEXT_SUFFIXES = (".txt", ".list")
_SEQUENCE_COLUMN = "mutated_sequence"
_GIVEN = "given variants"
_SHOWN = 60  # characters of a variant's text in an error
_ADVICE = {
    LETTER: "check that this is the wild type, and `first`, the number of its first residue",
    RANGE: "check that this is the wild type, and `first`, the number of its first residue",
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant of a wild type.

    Args:
        name: as the user wrote it.
        changes: ascending, not overlapping; none is the wild type itself.
        where: file and line, where it came from one.
        fields: the cells that were asked for.
    """

    name: str
    changes: tuple[Change, ...]
    where: str = ""
    fields: tuple[Any, ...] = ()

    @property
    def substitutions(self) -> bool:
        """Whether it has nothing but substitutions; the wild type has."""
        return all(change.substitution for change in self.changes)

    def apply(self, wildtype: str) -> str:
        """The variant's letters."""
        return apply(self.changes, wildtype)


@dataclass(frozen=True)
class VariantOptions:
    """Where variants stand in files and what is done with them.

    Args:
        column: of tables, the column with the variant's text; null to take the sequences alone.
        sequence_column: of tables, the column with the variant's sequence. Beside a text it must say the same; where
            the text is empty, it counts alone.
        fields: columns whose cells come along with each variant.
        where: of tables, take only rows in which these columns say this (an assay of many, say).
        first: the number of the wild type's first residue.
        bad: a variant of no use (another letter in the wild type, a stop, a frameshift, unreadable): fail, or drop it,
            counted.
        format: file format; `auto` goes by the file's suffix (.txt .fasta .csv .tsv .parquet, then .gz .zst).
    """

    column: str | None = "mutant"
    sequence_column: str | None = _SEQUENCE_COLUMN
    fields: list[str] = field(default_factory=list)
    where: dict[str, str] | None = None
    first: int = 1
    bad: Literal["fail", "drop"] = "fail"
    format: VariantFormat = "auto"

    def __post_init__(self) -> None:
        if self.column is None and self.sequence_column is None:
            raise UserError("column and sequence_column are both null; one of them says what the variants are")
        for name, value, known in (
            ("bad", self.bad, ("fail", "drop")),
            ("format", self.format, get_args(VariantFormat)),
        ):
            if value not in known:
                raise UserError(f"{name} is {value!r}; it may be {', '.join(known)}")


def parse(text: str, wildtype: str, *, first: int = 1, where: str = "") -> Variant:
    """A variant from its text.

    Args:
        text: such as `A24G`, `A24G:K30R`, `p.(Ala24Gly)`, `NP_000007.1:p.[Ala24Gly;Lys30del]`, `A24_K25insGG`, `WT`.
        wildtype: its letters.
        first: the number of the wild type's first residue.
        where: file and line, for errors.

    Raises UserError where it cannot be read or does not fit the wild type.
    """
    try:
        return Variant(text.strip(), Notation(wildtype, first).changes(text), where)
    except BadVariantError as error:
        parts = [f"{text.strip():.{_SHOWN}}: {error}", _ADVICE.get(error.reason)]
        if error.reason in _ADVICE:
            parts.append(numbering([text], wildtype, first))
        raise UserError((f"{where}: " if where else "") + "; ".join(part for part in parts if part)) from error


def singles(wildtype: str, places: Sequence[int] | None = None, first: int = 1) -> list[Variant]:
    """All variants of one substitution, 19 for each standard residue, in the order of places and of STANDARD.

    Args:
        wildtype: letters; what is no standard residue is passed over.
        places: residues to change, counted from 0; all unless given.
        first: the number of the wild type's first residue.

    Raises UserError for a place outside the wild type, and for one that was asked for and is no standard residue.
    """
    found = []
    for place in range(len(wildtype)) if places is None else places:
        if not 0 <= place < len(wildtype):
            raise UserError(f"there is no residue {place + first}: they have the numbers {first} to "
                            f"{first + len(wildtype) - 1}")  # fmt: skip
        letter = wildtype[place]
        if letter not in STANDARD:
            if places is not None:
                raise UserError(f"residue {place + first} is {letter}, which is no standard residue; leave it out")
            continue
        found += [
            Variant(f"{letter}{place + first}{new}", (Change(place, place + 1, new),))
            for new in STANDARD
            if new != letter
        ]
    return found


class _Given(NamedTuple):
    """What stands in one line, row or record: a text, a sequence, or both. `name` is for a sequence alone."""

    source: str
    line: int
    text: str | None
    sequence: str | None = None
    name: str = ""
    fields: tuple[Any, ...] = ()


def read_variants(
    data: str | Sequence[str],
    wildtype: str,
    options: VariantOptions = VariantOptions(),
    account: Account | None = None,
) -> list[Variant]:
    """All variants of the input, in its order, duplicates and all.

    Args:
        data: variants as text, files (text with one a line, tables, FASTA), patterns, URLs, or `singles` for all
            variants of one substitution; one of these or a list.
        wildtype: its letters, as from `read_wildtype`.
        options: how to read.
        account: is filled in: what was read, kept and dropped, by reason.

    Raises UserError for input that cannot be read, for variants of no use under `bad: fail`, where none is left, and,
    even under `bad: drop`, where nearly all fit another `first`: some would always be kept by chance.
    """
    _check_wildtype(wildtype)
    notation, own = Notation(wildtype, options.first), Account()
    found: list[Variant] = []
    refused: list[str] = []
    names = [data] if isinstance(data, str) else list(data)
    if not names:
        raise UserError(
            "no variant was given; name a file, variants such as A24G, or singles for all of one substitution"
        )
    for number, name in enumerate(names):
        own.source = number
        if name == "singles":
            every = singles(wildtype, first=options.first)
            if not every:
                raise UserError("the wild type has no standard residue, so there is no variant of one substitution")
            own.read, own.kept = own.read + len(every), own.kept + len(every)
            found += every
            continue
        given = _records(name, options) if is_file(name) else iter([_Given(_GIVEN, number + 1, name)])
        for item in given:
            own.read += 1
            try:
                found.append(_variant(item, wildtype, notation))
                own.kept += 1
            except BadVariantError as error:
                text = item.name if item.text is None else item.text
                refused.append(text)
                words = f"{text:.{_SHOWN}}: {error}" if text else str(error)
                if item.source == _GIVEN and error.reason == UNREADABLE:
                    words += "; and there is no such file"
                own.drop(error.reason, Record(words, b"", item.source, item.line))
    if account is not None:
        account.add(own)
    other = None
    if {LETTER, RANGE} & own.dropped.keys():
        other = numbering([*refused, *(variant.name for variant in found)], wildtype, options.first)
    if refused and (options.bad == "fail" or other or not found):
        raise UserError(_why(own, other, options))
    if not found:
        rows = " and ".join(f"{column} = {said}" for column, said in (options.where or {}).items())
        raise UserError(f"{', '.join(names):.200}: no variant" + (f" in a row with {rows}" if rows else ""))
    return found


def _check_wildtype(wildtype: str) -> None:
    letters = "".join(letter for letter in wildtype if letter not in immune.MARKS)
    legal = letters.isascii() and letters.isalpha() and letters.isupper()
    if not legal:
        raise UserError(
            f"the wild type {wildtype[:40]!r} is not capital letters alone; read_wildtype takes letters and FASTA files"
        )


def _why(account: Account, hint: str | None, options: VariantOptions) -> str:
    dropped = account.dropped
    told = "; ".join(
        f"{count:,} x {reason} ({'; '.join(account.examples[reason])})" for reason, count in dropped.items()
    )
    advice = hint or next(filter(None, map(_ADVICE.get, dropped)), None)
    parts = [f"{sum(dropped.values()):,} of {account.read:,} variants cannot be used: {told}", advice]
    if options.bad == "fail" and account.kept and not hint:
        parts.append("bad: drop leaves such variants out")
    return "; ".join(part for part in parts if part)


def _variant(given: _Given, wildtype: str, notation: Notation) -> Variant:
    """Raises BadVariantError."""
    where = f"{given.source}, line {given.line}"
    if given.text is None:
        changes = difference(wildtype, _tidy(given.sequence, wildtype))
        _check_marks(changes, wildtype)
        strange = {*"".join(change.letters for change in changes)} - {*STANDARD}
        if strange:
            raise BadVariantError(
                NONSTANDARD, f"{', '.join(sorted(strange))} comes in, none of the 20 standard residues"
            )
        return Variant(given.name or write(changes, wildtype, notation.first), changes, where, given.fields)
    changes = notation.changes(given.text)
    _check_marks(changes, wildtype)
    if given.sequence is not None and apply(changes, wildtype) != given.sequence:
        _compare(changes, wildtype, _tidy(given.sequence, wildtype), notation.first)
    return Variant(given.text.strip(), changes, where, given.fields)


def _check_marks(changes: Sequence[Change], wildtype: str) -> None:
    """Raises BadVariantError for changes of a mark between chains, without which they would be another's."""
    for change in changes:
        if immune.MARKS & {*wildtype[change.start : change.end], *change.letters}:
            raise BadVariantError(MARK, "the marks between chains stay as they are")


def _tidy(raw: str | None, wildtype: str) -> str:
    """Letters of a variant's sequence, in capitals, without gaps and the last stop, with marks where the wild type has
    some. Raises BadVariantError."""
    try:
        tidy = immune.tidy if immune.MARKS & {*wildtype} else protein.tidy
        letters = tidy((raw or "").encode("ascii")).decode()
    except (AlphabetError, UnicodeEncodeError) as error:
        raise BadVariantError(UNREADABLE, f"its sequence cannot be read ({error})") from error
    if not letters:
        raise BadVariantError(UNREADABLE, "its sequence is empty")
    if "*" in letters:
        raise BadVariantError(STOP, f"a stop at position {letters.index('*') + 1} of its sequence")
    return letters


def _compare(changes: tuple[Change, ...], wildtype: str, sequence: str, first: int) -> None:
    expected = apply(changes, wildtype)
    if expected != sequence:
        if len(expected) != len(sequence):
            how = f"{len(sequence)} residues where {len(expected)} are expected"
        else:
            place = next(i for i, (a, b) in enumerate(zip(expected, sequence, strict=True)) if a != b)
            how = f"{sequence[place]} where {expected[place]} is expected, at letter {place + 1}"
        raise BadVariantError(DISAGREE, f"its sequence has {how}; column: null takes the sequences alone")


# Files ----------------------------------------------------------------------------------------------------------


def is_file(name: str) -> bool:
    """Whether a text names files; what reads as substitutions, or begins as a protein's change does, is a variant."""
    if is_plain(name):
        return False
    if "://" in name or _stem(name).endswith((*SUFFIXES, *_TEXT_SUFFIXES)):
        return True
    if name.startswith("p.") or ":p." in name:
        return False
    try:
        return os.path.exists(name)  # noqa: PTH110 (Path.exists raises on a long name)
    except ValueError:  # a zero byte
        return False


def _stem(name: str) -> str:
    """A file's name, without what compression or a query adds."""
    stem = name.lower().split("?", 1)[0] if "://" in name else name.lower()
    for suffix in COMPRESSED_SUFFIXES:
        stem = stem.removesuffix(suffix)
    return stem


def _records(name: str, options: VariantOptions) -> Iterator[_Given]:
    for source in _sources(name, options):
        if source.format not in _TABLES and (options.where or options.fields):
            asked = ", ".join([*(options.where or {}), *options.fields])
            raise UserError(f"{source.name}: is no table, so that it has no column {asked}")
        if source.format == "text":
            yield from _lines(source)
        elif source.format in _TABLES:
            yield from _rows(source, options)
        else:
            for record in read(source):
                yield _Given(source.name, record.line, None, record.raw.decode("ascii"), record.id)


def _sources(name: str, options: VariantOptions) -> list[Source]:
    stem = _stem(name)
    if options.format == "text" or (options.format == "auto" and stem.endswith(_TEXT_SUFFIXES)):
        return [Source(path, "text") for path in paths(name)]
    return expand(name, ReadOptions(format=options.format))


def _lines(source: Source) -> Iterator[_Given]:
    """One variant a line; what follows a # is a comment."""
    for number, line in text_lines(source):
        text = line.split("#", 1)[0].strip()
        if text:
            yield _Given(source.name, number, text)


def _rows(source: Source, options: VariantOptions) -> Iterator[_Given]:
    names, where = table_columns(source), options.where or {}
    sequences = options.sequence_column
    if sequences == _SEQUENCE_COLUMN and options.column is not None and sequences not in names:
        sequences = None  # it was not asked for
    if options.column is not None and options.column not in names and sequences in names:
        raise UserError(
            f"{source.name}, line 1: no column named {options.column!r}; column: null takes the sequences of "
            f"{sequences!r} alone"
        )
    beside = () if sequences is None or options.column is None else (sequences,)
    fields = (*beside, *options.fields, *where)
    column = options.column or sequences
    assert column is not None
    settings = ReadOptions(column=column, fields=fields, identifiers=True, blanks=True)
    start, stop, wanted = len(beside), len(fields) - len(where), list(where.values())
    for record in read(source, settings):
        if wanted and not all(map(_says, record.fields[stop:], wanted)):
            continue
        cell, kept = record.raw.decode(), record.fields[start:stop]
        if options.column is None:
            yield _Given(source.name, record.line, None, cell, "", kept)
        else:
            other = None if not beside else str(record.fields[0] or "")
            yield _Given(source.name, record.line, cell if cell.strip() or other is None else None, other, "", kept)


def _says(cell: Any, wanted: str) -> bool:
    return cell is not None and str(cell).strip() == wanted
