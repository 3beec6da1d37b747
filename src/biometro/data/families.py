"""`example:families`: simulated protein families whose trees, rates, motifs and contacts are known.

A model of real families can only be judged by other models; here the answer is part of the data. Each family
evolves along its own tree, site by site, and the truth stays beside the sequences:

    seed -> tree, rates, pairs -> root drawn at equilibrium -> residues of every node -> members (the leaves)

Single sites follow a reversible substitution model derived from BLOSUM62, each at its own rate (gamma with
invariant sites). A few pairs of sites evolve jointly, so that their residues suit each other in charge,
hydrophobicity and volume. Each site of a pair keeps the equilibrium frequencies of every other site, so that
composition does not give it away; `coupling=0` is the matched control, with the same trees, rates and pairs.

Arrays carry their axes as suffixes: S states of a chain (20 residues or 400 residue pairs), V nodes of a tree
(root first, parents before children), L sites, P pairs, U units that evolve (sites or pairs), N draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from biometro.alphabet.amino_acids import BACKGROUND, CHARGE, HYDROPATHY, VOLUME, blosum62
from biometro.alphabet.amino_acids import ORDER as RESIDUES  # the order of every matrix and vector below

# Yang 1994, J Mol Evol 39:306: means of eight equally probable classes of a gamma of shape 0.6 and mean 1.
# Written out because numpy has no incomplete gamma function; the test derives them again.
GAMMA_RATES = np.array([0.016353, 0.089863, 0.217743, 0.406802, 0.678771, 1.083867, 1.762943, 3.743658])
LENGTHS = (60, 160)  # residues, both included
INVARIANT = 0.12  # fraction of sites that never change
COUPLED = 0.06  # pairs per site, so that about one site in eight is coupled
SEPARATION = 6  # least distance in sequence of two coupled sites, as contacts are usually counted
COUPLING = 0.8  # strength J of the pair energy, in units of kT
HEIGHTS = (0.6, 2.0)  # range of a root's height above its leaves: expected substitutions per site at rate 1
YOUNGEST = 0.25  # height of the last split: without it sisters would be near copies of each other

Uniform = Callable[..., Any]  # Generator.random, the only draw used: numpy may change the others' streams


@dataclass(frozen=True, eq=False)  # eq would ask arrays for one truth value
class Family:
    """The leaves of one tree, aligned as they stand (no insertions or deletions), and their truth."""

    name: str  # "family-007"
    members: tuple[str, ...]  # one sequence per leaf, all L residues long
    rates: np.ndarray  # (L,) float64: relative substitution rates; 0 = invariant; a pair shares one
    pairs: np.ndarray  # (P, 2) int64: coupled sites i < j, 0-based, each site in at most one pair
    tree: str  # Newick; leaves bear the record names, lengths are expected substitutions per site at rate 1

    @property
    def conserved(self) -> np.ndarray:
        """(L,) bool: the sites that never change."""
        return self.rates == 0


@dataclass(frozen=True, eq=False)
class Process:
    """A reversible continuous-time Markov chain, decomposed once: P(t) = left exp(t eigenvalues) right."""

    frequencies: np.ndarray  # (S,) stationary distribution
    rates: np.ndarray  # (S, S) generator: rows sum to 0, frequencies[x] rates[x, y] is symmetric
    eigenvalues: np.ndarray  # (S,) ascending; the last is 0 up to rounding
    left: np.ndarray  # (S, S)
    right: np.ndarray  # (S, S)

    def transition(self, time: float) -> np.ndarray:
        """(S, S) probabilities of being in the column's state `time` after being in the row's."""
        return (self.left * np.exp(self.eigenvalues * time)) @ self.right

    def evolve(self, states: np.ndarray, times: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """States `times` after `states`: arrays of one shape, int64, float64, and float64 in [0, 1)."""
        # Only the row of P(t) that the state asks for: a 400 x 400 matrix per branch and pair is too dear.
        decay_NS = np.exp(np.multiply.outer(times.ravel(), self.eigenvalues))
        rows_NS = (self.left[states.ravel()] * decay_NS) @ self.right
        # At time 0 a row is a unit vector only up to rounding, and an invariant site must never change.
        return np.where(times > 0, _choose(rows_NS, uniforms.ravel()).reshape(states.shape), states)


@lru_cache
def substitution_process() -> Process:
    """The chain of one site: rate(a, b) = f(b) exp(s(a, b) ln2 / 2), a general time-reversible model.

    A score is the log-odds of aligned over chance pairs, so its exponential is an exchange rate over chance.
    """
    exchange = np.sqrt(np.outer(BACKGROUND, BACKGROUND)) * np.exp(np.log(2) / 2 * blosum62())
    return _process(exchange, BACKGROUND, sites=1)


def rate_matrix() -> tuple[np.ndarray, np.ndarray]:
    """(20, 20) substitution rates, one expected per unit of time, and their (20,) equilibrium frequencies."""
    process = substitution_process()
    return process.rates.copy(), process.frequencies.copy()


def coupling_score() -> np.ndarray:
    """(20, 20) float64, symmetric: how well two residues in contact suit each other.

    Opposite charges attract and like ones repel, hydrophobic goes with hydrophobic, large goes beside small.
    """
    hydropathy, volume = (
        (scale - BACKGROUND @ scale) / np.sqrt(BACKGROUND @ (scale - BACKGROUND @ scale) ** 2)
        for scale in (HYDROPATHY, VOLUME)
    )
    return np.outer(hydropathy, hydropathy) - np.outer(volume, volume) - 2 * np.outer(CHARGE, CHARGE)


def coupled_frequencies(coupling: float = COUPLING) -> np.ndarray:
    """(20, 20) float64 stationary joint distribution of a pair: h(a) h(b) exp(J c(a, b)), a Potts model.

    Its fields h are fitted so that either site alone has the equilibrium frequencies.
    """
    weights = np.exp(coupling * coupling_score())
    fields = BACKGROUND
    for _ in range(200):  # Sinkhorn iteration; the root keeps it from cycling
        fields = np.sqrt(fields * BACKGROUND / (weights @ fields))
    return fields[:, None] * weights * fields


@lru_cache
def coupled_process(coupling: float = COUPLING) -> Process:
    """The chain of a coupled pair on 400 states, numbered 20 a + b, in which one residue changes at a time.

    a becomes a' beside b at rate q(a, a') sqrt(g(a', b) / g(a, b)), with g the joint over the independent
    frequencies: what suits is entered more often than left, and detailed balance holds.
    """
    root = np.sqrt(BACKGROUND)
    single = substitution_process().rates * root[:, None] / root
    # Times sqrt(f[x] / f[y]) of the pair states, that rate is the uncoupled site's own: a Kronecker sum.
    exchange = np.kron(single, np.eye(20)) + np.kron(np.eye(20), single)
    return _process(exchange, coupled_frequencies(coupling).ravel(), sites=2)


def coupling_information(coupling: float = COUPLING) -> float:
    """Mutual information in nats of the two sites of a pair at equilibrium.

    It is what perfect knowledge of the coupling saves, on average, in predicting one site from the other.
    """
    joint = coupled_frequencies(coupling)
    return float((joint * np.log(joint / np.outer(BACKGROUND, BACKGROUND))).sum())


def simulate(seed: int = 0, families: int = 48, members: int = 64, *, coupling: float = COUPLING) -> list[Family]:
    """Evolve `families` families of `members` sequences each; LENGTHS and the other constants shape them.

    A family depends on the seed and its own number only: more families leave the first ones as they are.
    """
    if families < 1 or members < 2:
        raise ValueError(f"families must be at least 1 and members at least 2, not {families} and {members}")
    return [_family(seed, number, members, coupling) for number in range(families)]


def records(seed: int = 0, families: int = 48, members: int = 64) -> Iterator[tuple[str, str]]:
    """("family-007/012", sequence) for every member, family by family."""
    for family in simulate(seed, families, members):
        for number, sequence in enumerate(family.members):
            yield f"{family.name}/{number:03d}", sequence


def _family(seed: int, number: int, members: int, coupling: float) -> Family:
    uniform = np.random.Generator(np.random.PCG64([seed, number])).random
    name = f"family-{number:03d}"
    length = LENGTHS[0] + int(uniform() * (LENGTHS[1] - LENGTHS[0] + 1))
    parents_V, branches_V = _tree(uniform, members)
    rates_L, pairs = _sites(uniform, length)

    single = np.setdiff1d(np.arange(length), pairs)
    states_VL = np.empty((len(parents_V), length), dtype=np.int64)
    states_VL[:, single] = _descend(substitution_process(), rates_L[single], parents_V, branches_V, uniform)
    codes_VP = _descend(coupled_process(coupling), rates_L[pairs[:, 0]], parents_V, branches_V, uniform)
    states_VL[:, pairs[:, 0]], states_VL[:, pairs[:, 1]] = np.divmod(codes_VP, 20)

    leaves = np.setdiff1d(np.arange(len(parents_V)), parents_V)
    letters = np.frombuffer(RESIDUES.encode(), dtype=np.uint8)[states_VL[leaves]]
    sequences = tuple(row.tobytes().decode() for row in letters)
    return Family(name, sequences, rates_L, pairs, _newick(name, parents_V, branches_V))


def _tree(uniform: Uniform, members: int) -> tuple[np.ndarray, np.ndarray]:
    """(V,) int64 parents (the root's is -1) and (V,) float64 lengths of the branches above the nodes.

    A Yule tree (every lineage is equally likely to split next), split from a drawn height down to YOUNGEST.
    """
    parents, alive, now = [-1], [0], 0.0
    split_V = np.zeros(2 * members - 1)
    for count in range(1, members):
        node = alive.pop(int(uniform() * count))
        split_V[node] = now
        alive += [len(parents), len(parents) + 1]
        parents += [node, node]
        now -= np.log1p(-uniform()) / (count + 1)  # exponential waiting time of count + 1 lineages
    height = HEIGHTS[0] + (HEIGHTS[1] - HEIGHTS[0]) * uniform()
    ages_V = YOUNGEST + (height - YOUNGEST) * (1 - split_V / now)
    ages_V[alive] = 0
    parents_V = np.array(parents)
    branches_V = (ages_V[parents_V] - ages_V) * (0.7 + 0.6 * uniform(len(parents)))  # no common clock
    return parents_V, np.round(branches_V, 6)  # as Newick prints them: the tree that is told is the tree used


def _sites(uniform: Uniform, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(L,) float64 rates and (P, 2) int64 coupled sites.

    Invariant sites gather about two motifs. Coupled sites come from the faster half of the gamma classes,
    since a pair that never changes shows nothing.
    """
    distance = np.arange(length)[:, None] - uniform(2) * length
    density_L = 0.05 + np.exp(-0.5 * (distance / 4) ** 2).sum(1)
    arrival_L = -np.log1p(-uniform(length)) / density_L  # the first arrivals: weighted, without replacement
    rates_L = GAMMA_RATES[(uniform(length) * len(GAMMA_RATES)).astype(np.int64)]
    rates_L[np.argsort(arrival_L)[: round(INVARIANT * length)]] = 0

    order = np.argsort(uniform(length))
    fast = order[rates_L[order] >= GAMMA_RATES[len(GAMMA_RATES) // 2]]
    pairs = np.sort(fast[: len(fast) // 2 * 2].reshape(-1, 2), axis=1)
    pairs = pairs[pairs[:, 1] - pairs[:, 0] >= SEPARATION][: round(COUPLED * length)]
    rates_L[pairs] = rates_L[pairs].mean(1, keepdims=True)  # a joint chain has one clock
    return rates_L, pairs[np.argsort(pairs[:, 0])]


def _descend(
    process: Process, rates_U: np.ndarray, parents_V: np.ndarray, branches_V: np.ndarray, uniform: Uniform
) -> np.ndarray:
    """(V, U) int64 states of every node from a root at equilibrium, one level of the tree at a time."""
    depths_V = np.zeros(len(parents_V), dtype=np.int64)
    for node in range(1, len(parents_V)):
        depths_V[node] = depths_V[parents_V[node]] + 1
    states_VU = np.empty((len(parents_V), len(rates_U)), dtype=np.int64)
    states_VU[0] = _choose(np.tile(process.frequencies, (len(rates_U), 1)), uniform(len(rates_U)))
    for depth in range(1, depths_V.max() + 1):
        nodes = np.flatnonzero(depths_V == depth)
        times = np.multiply.outer(branches_V[nodes], rates_U)
        states_VU[nodes] = process.evolve(states_VU[parents_V[nodes]], times, uniform(times.shape))
    return states_VU


def _newick(name: str, parents_V: np.ndarray, branches_V: np.ndarray) -> str:
    below: list[list[str]] = [[] for _ in parents_V]
    leaf = (len(parents_V) + 1) // 2
    for node in range(len(parents_V) - 1, 0, -1):  # children before parents, so the last leaf comes first
        if below[node]:
            label = f"({','.join(below[node])})"
        else:
            leaf -= 1
            label = f"{name}/{leaf:03d}"
        below[parents_V[node]].append(f"{label}:{branches_V[node]:.6f}")
    return f"({','.join(below[0])});"


def _process(exchange: np.ndarray, frequencies: np.ndarray, sites: int) -> Process:
    """The chain with rate[x, y] sqrt(f[x] / f[y]) proportional to the symmetric exchange[x, y].

    Its time unit is one expected substitution per site at equilibrium. The diagonal of `exchange` is ignored.
    """
    root = np.sqrt(frequencies)
    rates = exchange * root / root[:, None]
    np.fill_diagonal(rates, 0)
    np.fill_diagonal(rates, -rates.sum(1))
    rates *= sites / -(frequencies @ np.diag(rates))
    # The symmetric form of the generator has orthogonal eigenvectors, whatever the frequencies.
    eigenvalues, vectors = np.linalg.eigh(rates * root[:, None] / root)
    return Process(frequencies, rates, eigenvalues, vectors / root[:, None], vectors.T * root)


def _choose(weights_NS: np.ndarray, uniforms_N: np.ndarray) -> np.ndarray:
    """(N,) int64: one state from each row of weights, by inversion of its cumulative distribution."""
    cumulative_NS = np.cumsum(weights_NS, axis=1)
    below_NS = cumulative_NS <= uniforms_N[:, None] * cumulative_NS[:, -1:]
    return np.minimum(below_NS.sum(1), weights_NS.shape[1] - 1)
