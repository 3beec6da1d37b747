"""How alike two sequences are, by their kind: one interface for splits, leaks and nearest neighbours.

| kind | measure | families | relatives |
|---|---|---|---|
| protein | identity of the aligned residues (MMseqs2) | connected components | from `identity` over `coverage` on |
| antibody | the same, of both chains in a row | connected components | the same |
| tcr | edit similarity (`edits.py`) | connected components | within `edits` |
| molecule | Tanimoto similarity of ECFP4 (`fingerprints.py`) | Butina's clusters | from `tanimoto` on |

Text has no measure: nothing is known of what its letters mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from biometro.alphabet import SequenceKind, immune
from biometro.data import edits, fingerprints, mmseqs
from biometro.data.neighbours import Hits, Nearest, Thresholds

_MARK = bytes.maketrans(immune.CHAIN.encode(), b"X")


class Likeness(Protocol):
    """How alike sequences of one kind are. Letters are cleaned ones, as `Reading` gives them.

    measure: what a similarity is, in words.
    """

    measure: str

    def relatives(self, config: Thresholds) -> str:
        """From where on two sequences are relatives, in words: "from 40 % identity"."""

    def threshold(self, config: Thresholds) -> float | None:
        """The similarity from which two sequences are relatives; None where it is no similarity that decides."""

    def families(self, letters: Sequence[bytes], config: Thresholds) -> np.ndarray:
        """(N,) int64, numbered by first appearance: clusters in which relatives stand together."""

    def nearest(self, queries: Sequence[bytes], references: Sequence[bytes], config: Thresholds) -> Nearest:
        """Of each query the nearest reference."""

    def search(
        self, queries: Sequence[bytes], targets: Sequence[bytes], *, most: int = 1, alignments: bool = False
    ) -> Hits:
        """The `most` most similar targets of each query, best first; with alignments where the kind has them."""


class Alignments:
    """Proteins and antibodies, by MMseqs2. The mark between an antibody's chains is read as X, an unknown residue.

    So both chains are aligned in a row and every letter keeps its place; a heavy chain alone is covered by the pair
    that has it, and is its relative.
    """

    measure = "identity"

    def relatives(self, config: Thresholds) -> str:
        return f"from {100 * config.identity:.3g} % identity"

    def threshold(self, config: Thresholds) -> float:
        return config.identity

    def families(self, letters: Sequence[bytes], config: Thresholds) -> np.ndarray:
        return mmseqs.relatives(unmarked(letters), config.identity, config.coverage)

    def nearest(self, queries: Sequence[bytes], references: Sequence[bytes], config: Thresholds) -> Nearest:
        """All candidates of MMseqs2's prefilter are aligned; identical sequences are of identity 1, always. Hits of
        less than `coverage` do not count. Raises UserError as `mmseqs.search` does."""
        if not queries or not references:
            return Nearest.none(len(queries))
        asked, number_q = mmseqs.distinct(unmarked(queries), "held-out sequence")
        among, number_r = mmseqs.distinct(unmarked(references), "reference sequence")
        hits = mmseqs.search(asked, among, coverage=config.coverage, most=len(among))
        order = np.argsort(hits.identity, kind="stable")  # the last to be written is the nearest
        best, place = np.zeros(len(asked), np.float32), np.zeros(len(asked), np.int64)
        best[hits.query[order]], place[hits.query[order]] = hits.identity[order], hits.target[order]
        first = np.unique(number_r, return_index=True)[1]
        related = (best >= np.float32(config.identity)) & (best > 0)
        return Nearest(best, first[place], related).take(number_q)

    def search(
        self, queries: Sequence[bytes], targets: Sequence[bytes], *, most: int = 1, alignments: bool = False
    ) -> Hits:
        """The best by bits, of all that MMseqs2 aligns."""
        found = mmseqs.search(unmarked(queries), unmarked(targets), alignments=alignments)
        rank = np.arange(len(found)) - np.searchsorted(found.query, found.query)
        kept = np.flatnonzero(rank < most)
        hits = Hits(found.query[kept], found.target[kept], found.identity[kept])
        if not alignments or found.query_start is None or found.target_start is None or found.cigar is None:
            return hits
        cigar = [found.cigar[i] for i in kept.tolist()]
        return Hits(hits.query, hits.target, hits.similarity, found.query_start[kept], found.target_start[kept], cigar)


class Edits:
    """T-cell receptors, see `edits`."""

    measure = "edit similarity"

    def relatives(self, config: Thresholds) -> str:
        return f"within {config.edits} edit{'s' * (config.edits != 1)} of its chains"

    def threshold(self, config: Thresholds) -> None:
        return None

    def families(self, letters: Sequence[bytes], config: Thresholds) -> np.ndarray:
        return edits.families(letters, config.edits)

    def nearest(self, queries: Sequence[bytes], references: Sequence[bytes], config: Thresholds) -> Nearest:
        return edits.nearest(queries, references, config.edits)

    def search(
        self, queries: Sequence[bytes], targets: Sequence[bytes], *, most: int = 1, alignments: bool = False
    ) -> Hits:
        return edits.search(queries, targets, most=most, alignments=alignments)


class Fingerprints:
    """Molecules, see `fingerprints`."""

    measure = "Tanimoto similarity"

    def relatives(self, config: Thresholds) -> str:
        return f"from {config.tanimoto:.3g} Tanimoto similarity"

    def threshold(self, config: Thresholds) -> float:
        return config.tanimoto

    def families(self, letters: Sequence[bytes], config: Thresholds) -> np.ndarray:
        return fingerprints.butina(letters, config.tanimoto)

    def nearest(self, queries: Sequence[bytes], references: Sequence[bytes], config: Thresholds) -> Nearest:
        return fingerprints.nearest(queries, references, config.tanimoto)

    def search(
        self, queries: Sequence[bytes], targets: Sequence[bytes], *, most: int = 1, alignments: bool = False
    ) -> Hits:
        return fingerprints.search(queries, targets, most=most, alignments=alignments)


_OF: dict[SequenceKind, Likeness] = {
    "protein": Alignments(), "antibody": Alignments(), "tcr": Edits(), "molecule": Fingerprints(),
}  # fmt: skip


def likeness_of(kind: SequenceKind) -> Likeness | None:
    """How sequences of a kind are compared; None for text."""
    return _OF.get(kind)


def unmarked(letters: Sequence[bytes]) -> list[bytes]:
    """Proteins or antibodies as MMseqs2 reads them."""
    return [row.translate(_MARK) for row in letters]
