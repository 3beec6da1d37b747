"""The page that `screen` leaves beside its table: the hits of the first queries, drawn where they are molecules.

facts, queries with their hits ─▶ structures or a table ─▶ one HTML file, no network, no script
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from biometro.evaluation import molecule_plots
from biometro.evaluation.label_tables import GRID, grid
from biometro.evaluation.page import fact_list, frame, warning_box
from biometro.files import write_file
from biometro.inference.screening import Hit

QUERIES = 12
"""Queries on the page; the table has all."""
SHOWN = 24
"""Hits of each."""
_LONGEST = 60  # letters of a sequence that are printed


@dataclass(frozen=True)
class Asked:
    """A query as the page shows it: identifier, letters, its hits, best first, and how many known binders it has."""

    id: str
    letters: str
    hits: Sequence[Hit]
    known: int = 0


def write_page(
    out: Path, *, title: str, facts: Mapping[str, str], asked: Sequence[Asked], molecules: bool, unit: str = "",
    measure: str = "", note: str = "",
) -> None:  # fmt: skip
    """Writes the page to the file `out`, whole or not at all.

    Args:
        out: file.
        title: of the page.
        facts: names and values at its head.
        asked: queries; the first are shown.
        molecules: whether hits are molecules, which are drawn.
        unit: of affinities.
        measure: of the similarity to known binders.
        note: what must be said first; may be empty.
    """
    parts = [fact_list(facts), warning_box(note), f"<p>{escape(READING)}</p>"]
    for query in asked[:QUERIES]:
        shown = query.hits[:SHOWN]
        parts.append(f"<h2>{escape(query.id or 'the query')}</h2>")
        binders = f"; {query.known:,} known binders" if query.known else ""
        parts.append(f"<p><small>{escape(_short(query.letters))}</small>{escape(binders)}</p>")
        if molecules:
            drawn = molecule_plots.grid([(hit.letters, _legend(hit, unit, measure)) for hit in shown])
            parts += [drawn.html, f"<p>{escape(drawn.note)}</p>" if drawn.note else ""]
        else:
            parts.append(_table(shown, unit, measure))
    if len(asked) > QUERIES:
        parts.append(f"<p>{len(asked) - QUERIES:,} more queries stand in the table.</p>")
    style = "h2 { margin-top: 1.6rem; }" + GRID + molecule_plots.STYLE
    write_file(out, frame(title, "\n".join(part for part in parts if part), style))


def _legend(hit: Hit, unit: str, measure: str) -> str:
    lines = [f"{hit.rank}. {hit.id}", ", ".join(f"{name} {value}" for name, value in _told(hit, unit).items())]
    if hit.known is not None:
        lines.append(
            f"nearest known binder: {measure} {hit.similarity:.2f}" if hit.known else "no known binder is alike"
        )
    return "\n".join(lines)


def _told(hit: Hit, unit: str) -> dict[str, str]:
    told = {"score": f"{hit.score:.3f}"}
    if hit.affinity is not None:
        told[unit] = f"{hit.affinity:.2f}"
    if hit.probability is not None:
        told["probability"] = f"{hit.probability:.2f}"
    return told


def _table(hits: Sequence[Hit], unit: str, measure: str) -> str:
    if not hits:
        return ""
    known = any(hit.known is not None for hit in hits)
    header = ["", *_told(hits[0], unit), *([f"{measure} to the nearest known binder"] if known else [])]
    rows = []
    for hit in hits:
        near = "-" if hit.similarity is None else f"{hit.similarity:.2f}"
        cells = [*_told(hit, unit).values(), *([near] if known else [])]
        name = f"{escape(f'{hit.rank}. {hit.id}')} <small>{escape(_short(hit.letters))}</small>"
        rows.append(f"<th scope=row>{name}" + "".join(f"<td>{escape(cell)}" for cell in cells))
    return grid(header, rows)


def _short(letters: str) -> str:
    return letters if len(letters) <= _LONGEST else f"{letters[:_LONGEST]}... ({len(letters):,})"


READING = (
    "Hits are ranked by score, the cosine of query and library in the model's space; it orders the hits of one query "
    "and is no measure of binding. Affinity and probability stand here where the model learnt them, from pairs like "
    "those it was trained on. A hit that is much like a known binder is a safe guess and little news; one that is like "
    "none is the reverse."
)
