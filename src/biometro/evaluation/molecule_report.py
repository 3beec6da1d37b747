"""The page that `generate` leaves for molecules: figures beside their controls, distributions, structures.

groups (generated, control, known) ─▶ table of figures, panels, a grid ─▶ one HTML file, no network, no script
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from biometro.evaluation import molecule_plots, variant_plots
from biometro.evaluation.generation_report import COLOURS
from biometro.evaluation.label_tables import GRID, grid, shown
from biometro.evaluation.molecule_generation import DESCRIPTORS, Group
from biometro.evaluation.page import card, fact_list, frame, swatch, warning_box
from biometro.files import write_file

FIGURES = {
    "candidates": "candidates", "valid": "valid: share that RDKit reads",
    "unique": "unique: share of distinct molecules among the valid",
    "novel": "novel: share of distinct molecules that are not known",
    "diversity": "internal diversity: 1 - mean Tanimoto similarity of pairs (ECFP4)",
    "similarity": "Tanimoto similarity to the start, mean", "weight": "molecular weight, mean (Da)",
    "logp": "logP (Crippen), mean", "qed": "QED, mean",
    "score": "model's score, mean (nats per token)",
}  # fmt: skip
"""What figures are called in print."""
SHOWN = 23
"""Generated molecules that are drawn, beside the start."""


def write_page(
    out: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    groups: Sequence[Group],
    found: Mapping[str, Mapping[str, float]],
    rows: Sequence[Mapping[str, Any]],
    start: str = "",
    note: str = "",
) -> None:
    """Writes the page to the file `out`, whole or not at all.

    Args:
        out: file.
        title: of the page.
        facts: names and values at its head.
        groups: the generated molecules, a control, and known ones where there are any.
        found: figures of each group, by its name.
        rows: of the table that was written.
        start: canonical SMILES; empty without one.
        note: what must be said first; may be empty.
    """
    looks = dict(zip((one.name for one in groups), COLOURS, strict=False))
    items = (f"<li>{swatch(colour, '-')}{escape(name)}" for name, colour in looks.items())
    legend = f"<ul>{''.join(items)}</ul>"
    cards = [
        card(name[0].upper() + name[1:], _distributions(groups, key, name), NOTES[key], legend)
        for key, name in DESCRIPTORS.items()
    ]
    first = [(start, "the start")] if start else []
    drawn = molecule_plots.grid([*first, *((str(row["smiles"]), _legend(row)) for row in rows[:SHOWN])])
    parts = [
        fact_list(facts),
        warning_box(note),
        f"<p>{escape(READING)}</p>",
        figures_table(found, looks),
        f"<section>{''.join(cards)}</section>",
        f"<h2>The first {min(SHOWN, len(rows))} molecules</h2>",
        f"<p>{escape(STRUCTURES + drawn.note)}</p>",
        drawn.html,
    ]
    style = "h2 { margin-top: 1.6rem; }" + GRID + molecule_plots.STYLE
    write_file(out, frame(title, "\n".join(part for part in parts if part), style))


def figures_table(found: Mapping[str, Mapping[str, float]], looks: Mapping[str, str]) -> str:
    """Figures x groups; a figure that no group has is left out, one that a group has not is an empty cell."""
    rows = []
    for figure, name in FIGURES.items():
        values = [one.get(figure, math.nan) for one in found.values()]
        if all(math.isnan(value) for value in values):
            continue
        texts = (f"{value:,.0f}" if figure == "candidates" else shown(value) for value in values)
        rows.append(f"<th scope=row>{escape(name)}" + "".join(f"<td>{text}" for text in texts))
    return grid(["", *looks], rows)


def _distributions(groups: Sequence[Group], key: str, name: str) -> str:
    values = {one.name: one.descriptors[key] for one in groups if one.distinct}
    return variant_plots.svg(variant_plots.distributions, values, name, unit="molecules", dashed=None)


def _legend(row: Mapping[str, Any]) -> str:
    near = f", similarity {row['similarity']:.2f}" if "similarity" in row else ""
    return f"{row['id']}: score {row['score']:.2f}{near}"


READING = (
    "The control has as many symbols at random, of the same lengths or at as many places. Validity and uniqueness are "
    "of all candidates drawn; what is written are the distinct molecules. Of SELFIES every row of symbols is a "
    "molecule, so that its validity says nothing of the model: look at the distributions. The score is the very "
    "model's that generated."
)
STRUCTURES = (
    "In the order in which they were drawn. Score: the mean log-probability of a token given the others, in nats; "
    "similarity: Tanimoto, ECFP4, to the start."
)
NOTES = {
    "weight": "A model that learnt the corpus' sizes and atoms stands where the known molecules stand.",
    "logp": "Octanol-water partition as Crippen estimates it from atoms.",
    "qed": "Quantitative estimate of drug-likeness (Bickerton et al. 2012), 0 to 1; it knows nothing of synthesis.",
}
