"""The page of scored variants: heat map, sensitivity along the sequence, what methods say, the best ones.

One HTML file, no network, no script.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from biometro.data.rows import Rows
from biometro.data.variants import Variant, write
from biometro.evaluation import variant_plots
from biometro.evaluation.label_tables import GRID, grid, shown
from biometro.evaluation.page import card, fact_list, frame, swatch
from biometro.evaluation.plots import LOOKS
from biometro.files import write_file
from biometro.inference.variants import METHODS

_BEST = 20
_MOST_SINGLES = 3000  # residues up to which a heat map is drawn
STYLE = """
figure.whole { grid-column: 1 / -1; display: block; overflow-x: auto; }
figure.whole svg { min-width: 46rem; }
h2 { margin-top: 1rem; }
"""


@dataclass
class Scored:
    """Variants of one wild type, and what one model says of them.

    Fields:
        wildtype: letters.
        letters: residues, the columns of tables.
        first: number of the wild type's first residue.
        variants: N, in input order; their cells belong to `fields`.
        scores: of each method, (N,) float64, higher is fitter.
        tables: of methods whose substitutions add up, (L, 20) of all single mutants, residues as in `letters`.
        agreement: of each approximation, its Spearman correlation with the exact method, and over how many variants.
        measured: of each method, its Spearman correlation with what was measured, and over how many variants.
        measured_N: what was measured; NaN where it was not.
        seconds: that each method took.
        out: the table that was written, if one was.
    """

    name: str
    wildtype: str
    letters: str
    first: int
    variants: list[Variant]
    fields: list[str] = field(default_factory=list)
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    tables: dict[str, np.ndarray] = field(default_factory=dict)
    agreement: dict[str, tuple[float, int]] = field(default_factory=dict)
    measured: dict[str, tuple[float, int]] = field(default_factory=dict)
    measured_N: np.ndarray | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    out: Path | None = None

    def rows(self, start: int = 0, stop: int | None = None) -> Rows:
        """A row for each variant (of this slice): its text, its changes in one notation, the cells that came along, its
        scores."""
        return [
            {"variant": variant.name, "mutations": write(variant.changes, self.wildtype, self.first)}
            | dict(zip(self.fields, variant.fields, strict=True))
            | {method: float(score_N[number]) for method, score_N in self.scores.items()}
            for number, variant in enumerate(self.variants[start:stop], start)
        ]


_ALONG = (
    (
        "All single mutants", variant_plots.heat_map,
        "A column for each position, a row for each residue; blue is fitter than the wild type, red less fit, "
        "grey has no score, and a point marks the wild type's own residue. Colours end at the 98th percentile.",
    ),
    (
        "Sensitivity", variant_plots.sensitivity,
        "Mean score of a position's substitutions, and between which scores eight of ten of them lie. Where "
        "it is low, the model expects that little else than the wild type's residue will do.",
    ),
)  # fmt: skip
"""Pictures along the sequence: title, what draws them, how to read them."""


def write_variant_report(out: Path, scored: Scored, facts: Mapping[str, str]) -> None:
    """Write the page to the file `out`, whole or not at all. Raises UserError for whatever the file system refuses."""
    main = next(iter(scored.scores))
    told = {"variants": f"{len(scored.variants):,}", "numbering": f"the first residue is number {scored.first}"}
    parts = [fact_list({**facts, **told}), _methods(scored)]
    table_LA = _singles(scored, main)
    if table_LA is not None and len(scored.wildtype) <= _MOST_SINGLES:
        args = (scored.wildtype, table_LA, scored.letters)
        for title, draw, note in _ALONG:
            picture = variant_plots.svg(draw, *args, first=scored.first)
            parts.append(card(f"{title} by {main}", picture, note, look="whole"))
    if len(scored.wildtype) > _MOST_SINGLES:
        parts.append(f"<p>No heat map: it is drawn up to {_MOST_SINGLES:,} residues. The table has all scores.</p>")
    parts.append(f"<section>{_pictures(scored, main)}</section>")
    title = f"Variants of {scored.name or 'a sequence'}"
    write_file(out, frame(title, "\n".join(part for part in parts if part), GRID + STYLE))


def _singles(scored: Scored, method: str) -> np.ndarray | None:
    """(L, A) of all single substitutions: the method's own table, or what was scored; None where that is too little."""
    if method in scored.tables:
        return scored.tables[method]
    found = [
        ((v.changes[0].start, v.changes[0].letters), float(s))
        for v, s in zip(scored.variants, scored.scores[method], strict=True) if len(v.changes) == 1 and v.substitutions
    ]  # fmt: skip
    if len({site for site, _ in found}) < len(scored.wildtype):
        return None
    values_N = np.array([value for _, value in found])
    return variant_plots.table_of_singles(len(scored.wildtype), scored.letters, [site for site, _ in found], values_N)


def _methods(scored: Scored) -> str:
    heads = ["", "seconds", "approximation of", "rank agreement"]
    if scored.measured_N is not None:
        heads.append("Spearman with measured")
    rows = []
    for method in scored.scores:
        agreed, measured = scored.agreement.get(method), scored.measured.get(method)
        cells = [
            f"{scored.seconds[method]:.1f}" if method in scored.seconds else "",
            METHODS[method].approximates or "",
            f"{agreed[0]:.3f} ({agreed[1]:,})" if agreed else "",
        ]
        if scored.measured_N is not None:
            cells.append(f"{measured[0]:.3f} ({measured[1]:,})" if measured else "")
        rows.append(
            f"<th scope=row>{escape(f'{method}: {METHODS[method].summary}')}"
            + "".join(f"<td>{escape(cell)}" for cell in cells)
        )
    return f"<h2>Methods</h2>{grid(heads, rows)}"


def _pictures(scored: Scored, main: str) -> str:
    cards = [
        card(
            f"Scores by {main}", variant_plots.svg(variant_plots.distributions, {main: scored.scores[main]}),
            "How the scores of all variants lie; the dashed line is the wild type, 0.",
            legend=f"<ul><li>{swatch(LOOKS[0][0], '-')}{escape(main)}</li></ul>",
        )
    ]  # fmt: skip
    if scored.measured_N is not None and np.isfinite(scored.measured_N).any():
        picture = variant_plots.svg(variant_plots.against, scored.measured_N, scored.scores[main])
        rho = scored.measured.get(main)
        cards.append(
            card(
                f"Measured, and by {main}", picture,
                "A point for each variant, 2,000 at most." + (f" Spearman {rho[0]:.3f}." if rho else ""),
            )
        )  # fmt: skip
    cards.append(card("The best variants", _best(scored, main), f"The {_BEST} with the highest score by {main}."))
    return "".join(cards)


def _best(scored: Scored, main: str) -> str:
    order = np.argsort(-scored.scores[main], kind="stable")[:_BEST]
    rows = []
    for number in order.tolist():
        name = write(scored.variants[number].changes, scored.wildtype, scored.first)
        values = "".join(f"<td>{shown(float(score_N[number]))}" for score_N in scored.scores.values())
        rows.append(f"<th scope=row>{escape(name if len(name) < 60 else name[:57] + '...')}{values}")
    return grid(["", *scored.scores], rows)
