"""Structures in pages: sound SVG, white, escaped, counted."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from biometro.evaluation import molecule_plots

pytest.importorskip("rdkit")


def test_a_grid_is_sound_and_counts_what_it_cannot_draw() -> None:
    found = molecule_plots.grid(
        [("c1ccccc1O", "phenol <b>"), ("no", "x"), ("", "y"), ("[Na+].[Cl-]", "a & b"), ("C/C=C/[C@H](N)Cl", "")]
    )
    assert (found.drawn, found.failed) == (3, 2) and "2 could not" in found.note
    root = ElementTree.fromstring(found.html)
    svgs = [*root.iter("{http://www.w3.org/2000/svg}svg")]
    assert len(svgs) == 3 and [p.text or "" for p in root.iter("p")] == ["phenol <b>", "a & b", ""]
    assert svgs[2].attrib["aria-label"] == "C/C=C/[C@H](N)Cl"
    for svg in svgs:
        first = next(iter(svg))
        assert first.tag.endswith("rect") and "#FFFFFF" in first.attrib["style"]
        assert next(svg.iter("{http://www.w3.org/2000/svg}path"), None) is not None
    assert not re.search(r"<text|@font|<\?xml|https?://(?!www\.w3\.org/)", found.html)
    assert molecule_plots.grid([]) == molecule_plots.Grid("", 0, 0)


def test_a_picture_shows_its_molecule() -> None:
    """A bond for each bond: phenol has more of them than methanol, and oxygen has its colour."""
    phenol, methanol = molecule_plots.structure("c1ccccc1O"), molecule_plots.structure("CO")
    assert phenol is not None and methanol is not None
    assert phenol.count("<path") > methanol.count("<path") > 0 and "#FF0000" in methanol
    assert molecule_plots.structure("C") is not None
