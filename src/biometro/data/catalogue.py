"""Public sources by name: `catalogue:uniref50`, `catalogue:chembl@36`.

    catalogue.yaml ─▶ Entry, checked ─▶ URL, format, column and kind, where nobody says otherwise

Nothing is fetched here. An entry says which of its facts were never looked up.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from biometro.alphabet import SequenceKind
from biometro.data import strict
from biometro.errors import UserError
from biometro.untrusted import read_yaml

PREFIX = "catalogue:"
PATH = Path(__file__).with_name("catalogue.yaml")
_PART = re.compile(r"\{part(?::(\d+))?\}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*(?:/[A-Za-z0-9][A-Za-z0-9_.\-]*)*")


@dataclass(frozen=True)
class Entry:
    """One public source.

    Args:
        title: a line for people.
        kind: of its sequences.
        page: where people find it.
        format: of its files, as `prepare` has it.
        licence: of the data; in words where there is none by name.
        citation: what to cite.
        url: of its file; `{part}` stands for what is written behind `@`, `{part:2}` for its first two letters. Empty
            where there is no lasting one.
        part: what `{part}` is.
        default: the part, where none is written.
        parts: the parts that there are, and what stands for each in the URL; empty where any will do.
        how: what to do where no URL can be read as it is.
        column: of its tables, the one that holds the sequence; empty where the layout is known by its header.
        bytes: of the file as it lies there, about.
        records: about.
        memory: the keys above that were filled in from memory, and not looked up.
    """

    title: str
    kind: SequenceKind
    page: str
    format: str
    licence: str
    citation: str
    url: str = ""
    part: str = ""
    default: str | None = None
    parts: dict[str, str] = field(default_factory=dict)
    how: str = ""
    column: str = ""
    bytes: int | None = None
    records: int | None = None
    memory: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key in ("title", "page", "format", "licence", "citation"):
            if not getattr(self, key).strip():
                raise UserError(f"{key} is empty")
        if not self.url and not self.how:
            raise UserError("without url, how must say how to come by the data")
        if bool(_PART.search(self.url)) != bool(self.part):
            raise UserError("part: and {part} in the URL go together")
        if (self.default or self.parts) and not self.part:
            raise UserError("default and parts are for a URL with {part}")
        names = {each.name for each in dataclasses.fields(self)}
        if unknown := [key for key in self.memory if key not in names or not getattr(self, key)]:
            raise UserError(f"memory names {unknown[0]!r}, which is no key that is filled in")
        if any(number is not None and number < 1 for number in (self.bytes, self.records)):
            raise UserError("bytes and records must be above 0")

    def locate(self, name: str, part: str | None) -> str:
        """The URL of a part. Raises UserError, with `name`, where there is none."""
        part = part or self.default
        if not self.url or (part is None and self.how):
            raise UserError(f"{PREFIX}{name} cannot be read as it is: {self.how} ({self.page})")
        if not self.part and part:
            raise UserError(f"{PREFIX}{name} is one file; leave @{part} out")
        if self.part and not part:
            raise UserError(f"{PREFIX}{name}: say which {self.part}: {PREFIX}{name}@{next(iter(self.parts), '...')}")
        if part and self.parts and part not in self.parts:
            raise UserError(f"{PREFIX}{name}: there is no {self.part} {part!r}{strict.nearest(part, list(self.parts))}")
        if part and not _NAME.fullmatch(part):
            raise UserError(f"{PREFIX}{name}: {part!r} is no {self.part.partition(',')[0]}")
        found = self.parts.get(part, part) if part else ""
        return _PART.sub(lambda match: found[: int(match[1])] if match[1] else found, self.url)


@lru_cache(maxsize=1)
def entries() -> dict[str, Entry]:
    """All sources by name."""
    return read(PATH)


def read(path: Path) -> dict[str, Entry]:
    """The entries of a file. Raises UserError, naming file and key, for what it may not say."""
    found = read_yaml(path)
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: a catalogue maps names to sources")
    return {str(name): strict.build(Entry, entry, f"{path}, {name}") for name, entry in found.items()}


def resolve(name: str) -> tuple[Entry, str]:
    """`catalogue:NAME` or `catalogue:NAME@PART` -> its entry and URL. Raises UserError where it stands for nothing."""
    key, _, part = name.removeprefix(PREFIX).partition("@")
    if key not in entries():
        raise UserError(f"the catalogue has no {key!r}{strict.nearest(key, list(entries()))} (biometro prepare --list)")
    return entries()[key], entries()[key].locate(key, part or None)


def settings(
    data: str | list[str], kind: SequenceKind, column: str | dict[str, str]
) -> tuple[SequenceKind, str | dict[str, str]]:
    """Kind and column of sequences, those of the catalogue where the input is from there and `kind` and `column` are
    what they are unless asked for. Raises UserError where sources of several kinds meet.
    """
    names = [data] if isinstance(data, str) else data
    found = [resolve(name)[0] for name in names if name.startswith(PREFIX)]
    if kind == "protein" and found:
        kinds = {entry.kind for entry in found} | ({kind} if len(found) < len(names) else set())
        if len(kinds) > 1:
            raise UserError(f"data are of several kinds ({', '.join(sorted(kinds))}); a corpus holds one")
        kind = found[0].kind
    columns = {entry.column for entry in found}
    if column == "sequence" and len(columns) == 1 and len(found) == len(names):
        column = columns.pop() or column
    return kind, column
