"""`biometro prepare --list`: the catalogue of public sources as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from biometro.data import catalogue
from biometro.data.catalogue import Entry

_WIDE = 160  # columns, where no terminal says how many there are
_MEMORY = " (from memory)"


def show_catalogue() -> None:
    """Print all sources: where they are, under which licence, how large, how they are read, and what to cite."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)
    table = Table(title="public sources", title_style="bold", show_lines=True, expand=True)
    table.add_column("--data", no_wrap=True)
    table.add_column("what, where, what to cite", overflow="fold", ratio=1)
    table.add_column("licence", width=28)
    table.add_column("size, about", width=22)
    table.add_column("read as", no_wrap=True)
    for name, entry in catalogue.entries().items():
        cells = _name(name, entry), _what(entry), _said(entry, "licence"), _size(entry), _options(entry)
        table.add_row(*map(Text, cells))
    console.print(table)
    console.print(
        "Licences bind you, whatever this table says: read the source's own page. (from memory): nobody looked it up.",
        markup=False, highlight=False,
    )  # fmt: skip


def _name(name: str, entry: Entry) -> str:
    part = "@PART" if entry.part else ""
    return catalogue.PREFIX + name + part if entry.url else name


def _said(entry: Entry, key: str, text: str | None = None) -> str:
    return (getattr(entry, key) if text is None else text) + (_MEMORY if key in entry.memory else "")


def _what(entry: Entry) -> str:
    lines = [entry.title, _said(entry, "url") if entry.url else _said(entry, "page")]
    if entry.part:
        known = f": {', '.join(entry.parts)}" if entry.parts else ""
        lines.append(f"PART is the {entry.part}{known}" + (f"; left out, {entry.default}" if entry.default else ""))
    if entry.how:
        lines.append(entry.how + (f" ({entry.page})" if entry.url else ""))
    return "\n".join([*lines, _said(entry, "citation")])


def _size(entry: Entry) -> str:
    lines = []
    if entry.bytes is not None:
        scale, unit = (1e9, "GB") if entry.bytes >= 1e9 else (1e6, "MB")
        lines.append(_said(entry, "bytes", f"{entry.bytes / scale:.3g} {unit}"))
    if entry.records is not None:
        scale, unit = next((s, u) for s, u in ((1e9, " billion"), (1e6, " million"), (1, "")) if entry.records >= s)
        lines.append(_said(entry, "records", f"{entry.records / scale:,.6g}{unit} records"))
    return "\n".join(lines) or "unknown"


def _options(entry: Entry) -> str:
    return "\n".join(
        [f"kind {entry.kind}", f"format {entry.format}", *([f"column {entry.column}"] * bool(entry.column))]
    )
