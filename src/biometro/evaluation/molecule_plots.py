"""Structures of molecules for pages: RDKit draws each one, the page lays them out and sets their legends as text.

    (SMILES, legend) ─▶ RDKit ─▶ one <svg> each, black on white ─▶ a grid that wraps ─▶ HTML

Pictures are paths alone: no font, no network. Their paper is white on a dark page too, since bonds and atoms have
colours of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from biometro.alphabet.molecule import chem, parse

SIZE = (220, 160)
"""Width and height of one structure, in pixels of its own."""
_DECLARED = re.compile(
    r"<\?xml[^>]*\?>\s*|<!--.*?-->\s*| class='[^']*'| xmlns:\w+='[^']*'| xml:space='[^']*'", re.DOTALL
)
_LONG = re.compile(r"(\d+\.\d)\d+")  # a tenth of a pixel is enough


@dataclass(frozen=True)
class Grid:
    """Structures as HTML (empty where there are none), how many were drawn, and how many could not be."""

    html: str
    drawn: int
    failed: int

    @property
    def note(self) -> str:
        """What a caption says of those that are missing; empty where none is."""
        return f" {self.failed:,} could not be drawn." if self.failed else ""


def structure(smiles: str, size: tuple[int, int] = SIZE) -> str | None:
    """One molecule as an <svg> element on white; None for what RDKit cannot read or draw."""
    chem()
    from rdkit.Chem.Draw import rdMolDraw2D

    drawing: Any = rdMolDraw2D
    mol = parse(smiles)
    if mol is None:
        return None
    canvas = drawing.MolDraw2DSVG(*size)
    options = canvas.drawOptions()
    options.setBackgroundColour((1.0, 1.0, 1.0))
    options.clearBackground = True
    options.fixedBondLength = 24  # small molecules are not blown up
    options.padding = 0.04
    try:
        drawing.PrepareAndDrawMolecule(canvas, mol)
    except (ValueError, RuntimeError):
        return None
    canvas.FinishDrawing()
    text = _DECLARED.sub("", canvas.GetDrawingText())
    return _LONG.sub(r"\1", text).replace("<svg version='1.1'", "<svg", 1).strip()


def grid(molecules: Sequence[tuple[str, str]], size: tuple[int, int] = SIZE) -> Grid:
    """Structures side by side, in order.

    Args:
        molecules: SMILES and legend of each; a legend is text, and may be empty.
        size: of one structure.
    """
    cells = []
    for smiles, legend in molecules:
        svg = structure(smiles, size)
        if svg is not None:
            name = escape(smiles, quote=True)
            svg = svg.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
            cells.append(f"<div>{svg}<p>{escape(legend)}</p></div>")
    html = f'<div class="molecules">{"".join(cells)}</div>' if cells else ""
    return Grid(html, len(cells), len(molecules) - len(cells))


STYLE = """
.molecules { display: grid; gap: .6rem; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); }
.molecules > div { border: 1px solid var(--line); break-inside: avoid; min-width: 0; }
.molecules svg { display: block; width: 100%; height: auto; background: #fff; }
.molecules p { margin: 0; padding: .2rem .4rem; font-size: .82rem; overflow-wrap: anywhere; white-space: pre-line; }
"""
"""What a page with a grid adds to its style."""
