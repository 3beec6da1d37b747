"""Records in, clean sequences out, with an account of what was changed or left out, and why.

Record ─▶ tidy (case, gaps, stops) ─▶ residue policy ─▶ length limits ─▶ (record, letters)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from biometro.alphabet import AlphabetError, ResiduePolicy, protein
from biometro.data.sources import ReadOptions, Record, Source, read
from biometro.errors import UserError

_EXAMPLES_KEPT = 3
_NUCLEOTIDES = b"ACGTUN"


@dataclass
class Account:
    """What became of the records: `dropped` counts by reason, `examples` where the first few of each stood."""

    read: int = 0
    kept: int = 0
    residues: int = 0
    with_nonstandard: int = 0
    nonstandard_residues: int = 0
    nucleotide_like: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, record: Record) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        kept = self.examples.setdefault(reason, [])
        if len(kept) < _EXAMPLES_KEPT:
            kept.append(f"{record.where} ({record.id})" if record.id else record.where)

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
    residues: ResiduePolicy,
    account: Account,
    *,
    min_length: int = 1,
    max_length: int | None = None,
) -> Iterator[tuple[Record, bytes]]:
    """Every record that is kept, with its letters as the alphabet wants them, in input order.

    Args:
        sources: where to read.
        options: how to read.
        residues: what to do with non-standard residues.
        account: is filled in on the way.
        min_length: residues; shorter sequences are left out and counted.
        max_length: residues; longer ones are left out and counted.

    Raises UserError, naming file and line, for what cannot be a protein sequence.
    """
    for source in sources:
        for record in read(source, options):
            account.read += 1
            try:
                letters = protein.tidy(record.raw)
                nucleotide_like = not letters.translate(None, _NUCLEOTIDES)
                unusual = protein.count_nonstandard(letters)
                if unusual:
                    account.with_nonstandard += 1
                    account.nonstandard_residues += unusual
                    kept = protein.apply_policy(letters, residues)
                    if kept is None:
                        account.drop("non-standard residue", record)
                        continue
                    letters = kept
            except AlphabetError as error:
                raise UserError(f"{record.where}: {error}") from error
            if len(letters) < min_length:
                account.drop("shorter than min_length" if letters else "no residue but gaps and stops", record)
            elif max_length is not None and len(letters) > max_length:
                account.drop("longer than max_length", record)
            else:
                account.kept += 1
                account.residues += len(letters)
                account.nucleotide_like += nucleotide_like
                yield record, letters
