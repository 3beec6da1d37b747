"""The page that `generate` leaves: figures beside their controls, scores, places, residues, the best variants.

    groups (generated, then controls) ─▶ table of figures, panels ─▶ one HTML file, no network, no script

Shapes: L places, N variants, A residues of STANDARD.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from biometro.alphabet.protein import STANDARD
from biometro.evaluation import plots, variant_plots
from biometro.evaluation.generation import Group, composition, rates
from biometro.evaluation.label_tables import GRID, grid, shown
from biometro.evaluation.page import card, fact_list, frame, swatch, warning_box
from biometro.evaluation.plots import BLUE, LOOKS, VERMILION
from biometro.files import write_file
from biometro.inference.space import Space, encode

COLOURS = [colour for colour, _ in LOOKS[:4]]
"""Of the generated variants, then of controls in their order."""
FIGURES = {
    "variants": "variants", "distinct": "distinct variants", "mutations": "mutations, mean",
    "identity": "identity to the wild type, mean",
    "diversity": "diversity: mean share of places in which two variants differ",
    "novel": "novel: share not among known sequences", "nearest": "identity to the nearest known sequence, mean",
    "score": "model's score, mean (nats)", "better": "share with a score above the wild type's",
    "detector": "detector: mean logit of “replaced” at mutated places",
    "conservation": "mutation rate against variability: Spearman's rho",
    "seen": "share of mutations to a residue seen in that column",
    "family_log": "log f(mutant) in its column, mean (nats)",
    "family_gain": "log f(mutant) - log f(wild type), mean (nats)",
}  # fmt: skip
"""What figures are called in print."""
_COUNTS = ("variants", "distinct")
_TOP = 25


def write_page(
    out: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    space: Space,
    groups: Sequence[Group],
    found: Mapping[str, Mapping[str, float]],
    note: str = "",
    conservation: np.ndarray | None = None,
) -> None:
    """Writes the page to the file `out`, whole or not at all.

    Args:
        out: file.
        title: of the page.
        facts: names and values at its head.
        space: what was asked for.
        groups: the generated variants, then controls.
        found: figures of each group, by its name.
        note: what must be said first; may be empty.
        conservation: (L,) of an alignment's columns.
    """
    looks = dict(zip((one.name for one in groups), COLOURS, strict=False))
    legend = _legend(looks)
    scores = variant_plots.svg(
        variant_plots.distributions, {one.name: one.scores for one in groups}, "score (nats); the wild type has 0"
    )
    cards = [
        card("Model's score", scores, SCORE_NOTE, legend),
        card("Residues put in", draw_composition([composition(one, space) for one in groups]), RESIDUE_NOTE, legend),
        card(
            "Places mutated",
            draw_places(rates(groups[0], space), conservation, space.first),
            PLACES_NOTE + (CONSERVATION_NOTE if conservation is not None else ""),
        ),
    ]
    parts = [
        fact_list(facts),
        warning_box(note),
        f"<p>{escape(READING)}</p>",
        figures_table(found, looks),
        f"<section>{''.join(cards)}</section>",
        f"<h2>The {min(_TOP, len(groups[0].variants))} variants of highest score</h2>",
        top_table(groups[0], space),
    ]
    write_file(out, frame(title, "\n".join(part for part in parts if part), STYLE))


def _legend(looks: Mapping[str, str]) -> str:
    items = (f"<li>{swatch(colour, '-')}{escape(name)}" for name, colour in looks.items())
    return f"<ul>{''.join(items)}</ul>"


def figures_table(found: Mapping[str, Mapping[str, float]], looks: Mapping[str, str]) -> str:
    """Figures x groups; a figure that no group has is left out."""
    rows = []
    for figure, name in FIGURES.items():
        values = [one.get(figure, math.nan) for one in found.values()]
        if all(math.isnan(value) for value in values):
            continue
        cells = (f"<td>{f'{value:,.0f}' if figure in _COUNTS else shown(value)}" for value in values)
        rows.append(f"<th scope=row>{escape(name)}" + "".join(cells))
    return grid(["", *looks], rows)


def top_table(one: Group, space: Space) -> str:
    """The variants of highest score, best first; equal scores in their order."""
    rows = []
    for n in np.argsort(-one.scores, kind="stable")[:_TOP].tolist():
        variant = one.variants[n]
        identity = float((encode(variant) == space.codes).mean())
        cells = [space.names(variant).replace(":", ": "), f"{identity:.3f}", shown(float(one.scores[n]))]
        if one.logits is not None:
            cells.append(shown(float(one.logits[n])))
        rows.append(f"<th scope=row>{n + 1}" + "".join(f"<td>{escape(cell)}" for cell in cells))
    head = ["variant", "mutations", "identity", "score", *(["detector"] if one.logits is not None else [])]
    return grid(head, rows)


def draw_composition(shares: Sequence[np.ndarray]) -> str:
    """Bars of each group side by side, (A,) shares each."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(4.6, 2.6), layout="constrained")
        axes = figure.add_subplot(xlabel="residue", ylabel="share of mutations")
        width = 0.84 / len(shares)
        for k, (shares_A, colour) in enumerate(zip(shares, COLOURS, strict=False)):
            offset = (k - (len(shares) - 1) / 2) * width
            axes.bar(np.arange(20) + offset, shares_A, width, color=colour)
        axes.set_xticks(range(20), list(STANDARD))
        axes.grid(axis="x", visible=False)
        return plots.to_svg(figure)


def draw_places(rates_L: np.ndarray, conservation_L: np.ndarray | None, first: int) -> str:
    """Share of variants mutated along the sequence, and below it the variability of the alignment's columns."""
    position_L = np.arange(len(rates_L)) + first
    rows = 1 if conservation_L is None else 2
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(4.6, 1.1 + 1.5 * rows), layout="constrained")
        panels: Any = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
        panels[0].vlines(position_L, 0, rates_L, color=BLUE, linewidth=max(0.6, min(4.0, 250 / len(rates_L))))
        panels[0].set_ylabel("share mutated")
        if conservation_L is not None:
            panels[1].plot(position_L, 1 - conservation_L, color=VERMILION, linewidth=1.0)
            panels[1].set_ylabel("1 - conservation")
        panels[-1].set_xlabel("position")
        return plots.to_svg(figure)


READING = (
    "Controls have as many mutations as the generated variants, at free places chosen uniformly. The score is the very "
    "model's that generated: it shows that sampling works, not that variants do. Agreement with an alignment, and an "
    "experiment, are independent of it."
)
SCORE_NOTE = (
    "Masked marginals: the sum over mutations of log p(mutant) - log p(wild type), all mutated places of the wild type "
    "masked. Dashed: the wild type."
)
RESIDUE_NOTE = "What mutations put in. Random mutants show what the wild type and the exclusions leave."
PLACES_NOTE = "The share of generated variants that are mutated at each position."
CONSERVATION_NOTE = " Below: how little the alignment's columns are conserved."
STYLE = "h2 { margin-top: 1.6rem; }" + GRID
