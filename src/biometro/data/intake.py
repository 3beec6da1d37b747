"""Records in, clean sequences out, with an account of what was changed or left out, and why.

Record ─▶ cleaner of its kind (case, gaps, stops; canonical SMILES) ─▶ policies ─▶ length limits ─▶ (record, letters)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from biometro.alphabet import AlphabetError, Reading, SequenceKind
from biometro.alphabet.kinds import AnyAlphabet
from biometro.alphabet.molecule import Growing
from biometro.data.sources import ReadOptions, Record, Source, read
from biometro.errors import UserError

_EXAMPLES_KEPT = 3
_SMILES = re.compile(rb"[=#()\[\]\\/@]|c1|C1")
_MARKS = re.compile(rb"[|:@]")


@dataclass
class Account:
    """What became of the records: `dropped` counts by reason, `places` where the first few of each stood.

    Accounts of pieces, read in any order by anyone, add up to the account of one reader. `source` is the number of the
    source that is being read.
    """

    read: int = 0
    kept: int = 0
    residues: int = 0
    with_nonstandard: int = 0
    nonstandard_residues: int = 0
    nucleotide_like: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[tuple[int, int, str]]] = field(default_factory=dict)  # source, line, words
    source: int = 0

    def drop(self, reason: str, record: Record, detail: str = "") -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        kept = self.places.setdefault(reason, [])
        if len(kept) < _EXAMPLES_KEPT:
            words = f"{record.where} ({record.id})" if record.id else record.where
            words += f": {detail}" if detail else ""
            kept.append((self.source, record.line, words))

    def add(self, other: Account) -> None:
        """Take another account's counts in; the first places of both together are kept, reasons in their order."""
        for name in ("read", "kept", "residues", "with_nonstandard", "nonstandard_residues", "nucleotide_like"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        places = {
            reason: sorted(self.places.get(reason, []) + other.places.get(reason, []))[:_EXAMPLES_KEPT]
            for reason in {**self.places, **other.places}
        }
        self.places = dict(sorted(places.items(), key=lambda item: item[1]))
        self.dropped = {r: self.dropped.get(r, 0) + other.dropped.get(r, 0) for r in self.places}

    @property
    def examples(self) -> dict[str, list[str]]:
        """By reason, where the first few records that were dropped stood."""
        return {reason: [words for _, _, words in places] for reason, places in self.places.items()}

    @property
    def warning(self) -> str | None:
        """A sentence where the whole input looks like DNA or RNA."""
        if self.kept and self.nucleotide_like > 0.9 * self.kept:
            return "nearly all sequences consist of A C G T U N only: are these nucleotides? Translate them first"
        return None

    def to_json(self) -> dict[str, Any]:
        return {
            "read": self.read,
            "kept": self.kept,
            "residues": self.residues,
            "sequences_with_nonstandard_residues": self.with_nonstandard,
            "nonstandard_residues": self.nonstandard_residues,
            "dropped": self.dropped,
            "dropped_examples": self.examples,
        }


def clean(
    sources: list[Source],
    options: ReadOptions,
    reading: Reading,
    account: Account,
    *,
    alphabet: AnyAlphabet | Growing | None = None,
    min_length: int = 1,
    max_length: int | None = None,
) -> Iterator[tuple[Record, bytes]]:
    """Every record that is kept, with its letters as the alphabet wants them, in input order.

    Args:
        sources: where to read.
        options: how to read.
        reading: what the records hold, and what to do with what is unusual.
        account: is filled in on the way.
        alphabet: of the model that reads them, see `Reading.cleaner`.
        min_length: of `reading.unit`; shorter sequences are left out and counted.
        max_length: of the same; longer ones are left out and counted.

    Raises UserError, naming file and line, for what cannot be a sequence of the kind, and where nothing is left because
    everything looks like another kind.
    """
    for number, source in enumerate(sources):
        account.source = number
        records = read(source, options)
        yield from clean_records(records, reading, account, min_length, max_length, alphabet)


def clean_records(
    records: Iterable[Record], reading: Reading, account: Account, min_length: int = 1, max_length: int | None = None,
    alphabet: AnyAlphabet | Growing | None = None,
) -> Iterator[tuple[Record, bytes]]:  # fmt: skip
    """As `clean`, of records that were read already."""
    cleaner, plain = reading.cleaner(alphabet), reading.kind != "molecule"
    for record in records:
        account.read += 1
        if record.skip:
            if not plain and reading.molecules.invalid == "fail":
                raise UserError(f"{record.where}: {record.skip}")
            account.drop(record.skip, record)
            continue
        try:
            letters, unusual, dropped, detail, nucleotide_like = cleaner(record.raw)
        except AlphabetError as error:
            raise UserError(f"{record.where}: {error}{_hint(record.raw, reading.kind)}") from error
        if unusual:
            account.with_nonstandard += 1
            account.nonstandard_residues += unusual
        if dropped:
            account.drop(dropped, record, detail)
            continue
        length = len(letters) if plain else reading.length(letters)
        if length < min_length:
            account.drop("shorter than min_length" if letters else "no residue but gaps and stops", record)
        elif max_length is not None and length > max_length:
            account.drop("longer than max_length", record)
        else:
            account.kept += 1
            account.residues += length
            account.nucleotide_like += nucleotide_like
            yield record, letters


def _hint(raw: bytes, kind: SequenceKind) -> str:
    """What else the text of a record that is refused may be."""
    text = raw.strip()
    if kind in ("protein", "antibody", "tcr") and _SMILES.search(text):
        return (
            "; this looks like a SMILES: molecules are read by a model of molecules, and prepared with kind: molecule"
        )
    if kind == "protein" and _MARKS.search(text):
        return "; chains with marks between them are read with kind: antibody or tcr"
    return ""
