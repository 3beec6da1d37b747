"""Sequence logos of sets of CDR3s: at each place a stack of letters, as high as the set agrees there.

    sequences ─▶ one length | both ends aligned ─▶ counts (L, 20) ─▶ heights in bits ─▶ letters as paths ─▶ <svg>

A stack is as high as the information of its column, R = log2(20) - (H + e(n)), with H the entropy of its residues'
shares in bits and e(n) the correction for the n sequences that have a residue there (Schneider et al. 1986,
doi:10.1016/0022-2836(86)90165-8); a letter is as high as its share of the stack (Schneider & Stephens 1990,
doi:10.1093/nar/18.20.6097). e(n) is exact here: log2(20) less the mean entropy of n residues drawn uniformly. Of many
sequences that is nearly 19 / (2 n ln 2). A column that says less than chance would has no height.

Shapes: N sequences, L columns, A residues of STANDARD.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from biometro.alphabet.immune import CHAIN, split
from biometro.alphabet.protein import STANDARD
from biometro.evaluation import plots
from biometro.evaluation.plots import BLUE, GREEN, INK, PURPLE, VERMILION

Layout = Literal["length", "ends"]
COLOURS = {
    **dict.fromkeys("GSTYC", GREEN), **dict.fromkeys("QN", PURPLE), **dict.fromkeys("KRH", BLUE),
    **dict.fromkeys("DE", VERMILION), **dict.fromkeys("AVLIPWFM", INK),
}  # fmt: skip
CHEMISTRY = {"polar": GREEN, "amide": PURPLE, "basic": BLUE, "acidic": VERMILION, "hydrophobic": INK}
"""What the colours of residues mean."""
NOTE = (
    "A stack is as high as the set agrees at that place, in bits beyond what so few sequences would show by chance; a "
    "letter is as high as its share of it."
)
"""How to read a logo."""
FEWEST = 5
"""Sequences of which a logo is drawn, at least."""
_MOST_BITS = math.log2(len(STANDARD))
_LEAST_HEIGHT = 0.01  # bits; lower letters cannot be seen


@dataclass(frozen=True, eq=False)
class Logo:
    """heights: (L, 20) bits, in the order of STANDARD. used: sequences in it, of how many; note: which."""

    heights: np.ndarray
    used: int
    of: int
    note: str


def cdr3_sets(receptors: Sequence[bytes]) -> dict[str, list[str]]:
    """CDR3s of T-cell receptors by chain: alpha, beta, or chain where it is not said; empty sets are left out."""
    found: dict[str, list[str]] = {}
    for letters in receptors:
        parts = split(letters)
        paired = CHAIN.encode() in letters
        for part, name in (("first", "alpha" if paired else "chain"), ("second", "beta")):
            if part in parts:
                found.setdefault(name, []).append(parts[part].decode())
    return dict(sorted(found.items()))


def logo(sequences: Sequence[str], layout: Layout = "length") -> Logo | None:
    """The heights of a set of sequences; None where there is none.

    Args:
        sequences: residues; what is no standard residue counts nowhere.
        layout: length takes only those of the commonest length (of two, the shorter). ends takes all: as many columns
            as the longest has, and each sequence laid against both ends with the gap in its middle, as IMGT numbers
            CDR3s (Lefranc et al. 2003, doi:10.1016/S0145-305X(02)00039-3).
    """
    if not sequences or not any(sequences):
        return None
    lengths = Counter(map(len, filter(None, sequences)))
    if layout == "length":
        length = min(lengths, key=lambda one: (-lengths[one], one))
        chosen = [sequence for sequence in sequences if len(sequence) == length]
        note = f"{len(chosen):,} of {len(sequences):,} sequences: those of {length} residues, the commonest length."
    else:
        length = max(lengths)
        chosen = [ends_aligned(sequence, length) for sequence in sequences if sequence]
        note = f"{len(chosen):,} sequences aligned at both ends; shorter ones have a gap in the middle."
    return Logo(heights(chosen), len(chosen), len(sequences), note)


def ends_aligned(sequence: str, length: int) -> str:
    """A sequence with `-` in its middle up to that length; of an odd one, the left half is the longer."""
    left = (len(sequence) + 1) // 2
    return sequence[:left] + "-" * (length - len(sequence)) + sequence[left:]


def heights(sequences: Sequence[str]) -> np.ndarray:
    """(L, 20) float64 bits of N sequences of one length."""
    letters_NL = np.array([list(sequence) for sequence in sequences])
    counts_LA = np.stack([(letters_NL == letter).sum(0) for letter in STANDARD], axis=1).astype(np.float64)
    n_L = counts_LA.sum(1)
    shares_LA = counts_LA / np.maximum(n_L, 1)[:, None]
    entropy_L = -(shares_LA * np.log2(np.where(shares_LA > 0, shares_LA, 1))).sum(1)
    bits_L = _MOST_BITS - entropy_L - np.array([correction(int(n)) for n in n_L])
    return shares_LA * np.maximum(bits_L, 0)[:, None]


@lru_cache(maxsize=1024)
def correction(n: int) -> float:
    """e(n) in bits: how much lower than log2(20) the entropy of n residues is on average, drawn uniformly from 20.

    By linearity it is 20 times the mean of -k/n log2(k/n), with k binomial.
    """
    if n < 1:
        return _MOST_BITS
    from scipy.stats import binom

    k_N = np.arange(1, n + 1)
    terms_N = -k_N / n * np.log2(k_N / n)
    return float(_MOST_BITS - len(STANDARD) * (binom.pmf(k_N, n, 1 / len(STANDARD)) * terms_N).sum())


def draw(one: Logo) -> str:
    """A logo as an <svg> element; letters are paths, so that no font is needed."""
    columns = len(one.heights)
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(max(2.4, 0.6 + 0.26 * columns), 1.9), layout="constrained")
        axes: Any = figure.add_subplot(xlabel="position", ylabel="bits")
        for place, heights_A in enumerate(one.heights):
            bottom = 0.0
            for a in np.argsort(heights_A, kind="stable"):
                height = float(heights_A[a])
                if height >= _LEAST_HEIGHT:
                    axes.add_patch(_letter(STANDARD[a], place + 0.54, bottom, 0.92, height))
                bottom += height
        axes.set_xlim(0.4, columns + 0.6)
        axes.set_ylim(0, _MOST_BITS)
        axes.set_xticks([1, *range(5, columns + 1, 5)])
        axes.set_yticks(range(5))
        axes.grid(axis="x", visible=False)
        return plots.to_svg(figure)


@lru_cache(maxsize=len(STANDARD))
def _glyph(letter: str) -> tuple[Any, Any]:
    """Outline of a letter, and its box."""
    path = TextPath((0, 0), letter, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    return path, path.get_extents()


def _letter(letter: str, left: float, bottom: float, width: float, height: float) -> PathPatch:
    """A letter that fills a box, in units of the axes; I stays slim."""
    path, box = _glyph(letter)
    across = width * (0.4 if letter == "I" else 1.0)
    fit = (
        Affine2D()
        .translate(-box.x0, -box.y0)
        .scale(across / box.width, height / box.height)
        .translate(left + (width - across) / 2, bottom)
    )
    return PathPatch(fit.transform_path(path), facecolor=COLOURS[letter], edgecolor="none")
