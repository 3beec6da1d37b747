"""Molecules as chemists compare them: scaffolds, and fingerprints of circular substructures.

    SMILES ─┬─▶ Bemis-Murcko scaffold ─▶ families
            └─▶ ECFP4, 2,048 bits ─▶ bits in common, block by block ─┬─▶ nearest, best hits
                                                                     └─▶ neighbours ─▶ Butina's clusters

ECFP4 is Morgan's fingerprint of radius 2 (Rogers & Hahn 2010, doi:10.1021/ci100050t), without chirality. Tanimoto
similarity is bits in common / bits in either. All pairs of a block come from one product of matrices, which is exact
(counts are whole numbers) and as fast as the machine multiplies; memory is bounded by the block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from biometro.alphabet.molecule import chem, parse
from biometro.data.components import by_first_appearance
from biometro.data.neighbours import Hits, Nearest, best_hits

RADIUS, BITS = 2, 2048
_QUERIES, _REFERENCES = 1 << 11, 1 << 13  # molecules of a block


def scaffold(smiles: bytes) -> bytes:
    """Canonical SMILES of the Bemis-Murcko scaffold, without chirality (Bemis & Murcko 1996, doi:10.1021/jm9602928);
    of a molecule without rings, empty."""
    from rdkit.Chem.Scaffolds import MurckoScaffold

    mol = parse(smiles.decode("ascii", "replace"))
    if mol is None or not mol.GetRingInfo().NumRings():  # taking a chain apart, atom by atom, can last minutes
        return b""
    text: str = chem().MolToSmiles(MurckoScaffold.GetScaffoldForMol(mol), isomericSmiles=False)
    return text.encode()


def scaffold_families(letters: Sequence[bytes]) -> np.ndarray:
    """(N,) int64: molecules with the same scaffold, numbered by first appearance.

    Molecules without rings are one family, as in MoleculeNet's scaffold splits: they share the empty scaffold.
    """
    places: dict[bytes, int] = {}
    return np.array([places.setdefault(scaffold(row), len(places)) for row in letters], np.int64)


def fingerprints(letters: Sequence[bytes]) -> np.ndarray:
    """(N, 256) uint8: ECFP4, eight bits a byte as `np.packbits` has them; nothing set for what is no molecule."""
    chem()  # its absence is an error that names the extra
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)
    found = np.zeros((len(letters), BITS // 8), np.uint8)
    for row, smiles in zip(found, letters, strict=True):
        mol = parse(smiles.decode("ascii", "replace"))
        if mol is not None:
            row[:] = np.packbits(generator.GetFingerprintAsNumPy(mol))
    return found


def tanimoto(queries: Sequence[bytes], references: Sequence[bytes]) -> np.ndarray:
    """(Q, R) float64: similarity of each query to each reference, all at once; 0 to what is no molecule."""
    found = np.zeros((len(queries), len(references)))
    for rows, columns, similarity_QR in _similarities(fingerprints(queries), fingerprints(references)):
        found[rows, columns] = similarity_QR
    return found


def nearest(queries: Sequence[bytes], references: Sequence[bytes], least: float) -> Nearest:
    """Of each query the most similar reference, of equal ones the first; related: from `least` on."""
    found = Nearest.none(len(queries))
    best = np.zeros(len(queries))
    for rows, columns, similarity_QR in _similarities(fingerprints(queries), fingerprints(references)):
        place = similarity_QR.argmax(1)
        value = similarity_QR[np.arange(len(place)), place]
        nearer = value > best[rows]
        best[rows] = np.where(nearer, value, best[rows])
        found.place[rows] = np.where(nearer, place + columns.start, found.place[rows])
    found.similarity[:] = best
    found.related[:] = (best >= least) & (best > 0)
    return found


def search(queries: Sequence[bytes], targets: Sequence[bytes], *, most: int = 1, alignments: bool = False) -> Hits:
    """The `most` most similar targets of each query. Raises ValueError where alignments are asked for."""
    if alignments:
        raise ValueError("molecules are compared by fingerprints, which align no atoms")
    parts: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    for rows, columns, similarity_QT in _similarities(fingerprints(queries), fingerprints(targets)):
        query, target = best_hits(similarity_QT, most)
        parts.setdefault(rows.start, []).append(
            (query + rows.start, target + columns.start, similarity_QT[query, target])
        )
    kept = [[np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)]]
    for blocks in parts.values():
        query, target, similarity = (np.concatenate(column) for column in zip(*blocks, strict=True))
        order = np.lexsort((target, -similarity, query))
        first = np.searchsorted(query[order], query[order])  # where each query's hits begin
        best = order[np.arange(len(order)) - first < most]
        kept.append([query[best], target[best], similarity[best]])
    query, target, similarity = (np.concatenate(column) for column in zip(*kept, strict=True))
    return Hits(query, target, similarity.astype(np.float32))


def butina(letters: Sequence[bytes], tanimoto: float) -> np.ndarray:
    """(N,) int64, numbered by first appearance: clusters of Butina 1999 (doi:10.1021/ci9803381), as RDKit has them.

    Molecules of at least this similarity are neighbours. The molecule of most neighbours takes all of them for its
    cluster, then the next one those that are left; of equal ones the last in the list comes first, as in RDKit. So no
    member is far from its cluster's centre, but members of two clusters may still be neighbours: the leak counts these.
    """
    from scipy.sparse import coo_array

    bits = fingerprints(letters)
    count = len(bits)
    pairs = [np.empty((2, 0), np.int32)]
    for rows, columns, similarity_QR in _similarities(bits, bits, lower=True):
        row, column = np.nonzero(similarity_QR >= tanimoto)
        pair = np.stack([row + rows.start, column + columns.start])
        pairs.append(pair[:, pair[0] > pair[1]].astype(np.int32))
    one, two = np.concatenate(pairs, axis=1)
    both = np.concatenate([one, two]), np.concatenate([two, one])
    neighbours = coo_array((np.ones(len(both[0]), np.int8), both), shape=(count, count)).tocsr()
    cluster = np.full(count, -1, np.int64)
    for centre in np.lexsort((np.arange(count), np.diff(neighbours.indptr)))[::-1].tolist():
        if cluster[centre] < 0:
            own = neighbours.indices[neighbours.indptr[centre] : neighbours.indptr[centre + 1]]
            cluster[own[cluster[own] < 0]] = centre
            cluster[centre] = centre
    return by_first_appearance(cluster)


def _similarities(
    queries: np.ndarray, references: np.ndarray, lower: bool = False
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Blocks of queries and references, (., 256) uint8 each: which, and their Tanimoto similarity (Q, R) float64.

    lower: leave out blocks in which every reference stands behind every query.
    """
    for start in range(0, len(queries), _QUERIES):
        rows = slice(start, min(start + _QUERIES, len(queries)))
        query_QB = np.unpackbits(queries[rows], axis=1).astype(np.float32)
        sum_Q = query_QB.sum(1)
        for begin in range(0, min(rows.stop, len(references)) if lower else len(references), _REFERENCES):
            columns = slice(begin, min(begin + _REFERENCES, len(references)))
            reference_RB = np.unpackbits(references[columns], axis=1).astype(np.float32)
            common_QR = (query_QB @ reference_RB.T).astype(np.float64)
            either_QR = sum_Q[:, None] + reference_RB.sum(1) - common_QR
            yield rows, columns, np.divide(common_QR, either_QR, out=np.zeros_like(common_QR), where=either_QR > 0)
