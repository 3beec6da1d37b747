"""New variants of a wild type, sampled from a model at a set number of mutations.

    Space, Sampling, seed ─▶ candidates 0, 1, 2, ... in blocks ─▶ masked | gibbs | proposals ─▶ distinct variants

masked: choose D places, mask them, and let the model fill them, in one round (each letter independent of the others
    that are put in) or several. In round r all places not yet filled are masked, and a share of them is filled from

        q(a) ∝ p(a | the sequence with those places masked)^(1 / temperature),  a ≠ the wild type's residue, a allowed,

    so with as many rounds as mutations, letters are drawn one after the other, each given those before (ancestral
    sampling in random order). A nucleus of `top_p` (Holtzman et al. 2020, arXiv 1904.09751) may cut the tail of q.
gibbs: a chain that starts D mutations from the wild type, where `masked` leaves it, and stays on the shell of sequences
    with exactly D mutations. A step takes one mutated place i and one unmutated free place j, both uniformly, puts the
    wild type's residue back at i, and draws from the two places' joint choices that have one mutation between them:

        weight(k, a) = (p(a | z without k) / p(wildtype_k | z without k))^(1 / temperature),  k in {i, j}, z: the rest

    This is a Gibbs step on the pair (i, j). Where the model's conditionals are those of a joint distribution P, the
    chain's stationary distribution is P(x)^(1 / temperature) restricted to the shell. A masked language model's
    conditionals need not be consistent; the chain then has the stationary distribution of a dependency network
    (Heckerman et al. 2000, JMLR 1:49; of masked language models Goyal et al. 2022, arXiv 2106.02736).
proposals: of a METRO model, the auxiliary proposes as `masked` does, x ~ Q, and the main model judges. An
    independence Metropolis-Hastings chain (Tierney 1994, doi:10.1214/aos/1176325750) goes from x to x' with probability
    min(1, W(x') / W(x)), so that its stationary distribution is Q(x) W(x), with, over the mutated places i,

        log W(x) = Σ_i  -s_i(x)  +  log c_i(x_i | x) - log c_i(wildtype_i | x)

    s_i is the detector's logit of "x_i was replaced". A detector trained on the auxiliary's samples is a
    noise-contrastive estimator: at its optimum exp(-s_i) is proportional to p(x_i | rest) / q(x_i | rest) (Electric,
    Clark et al. 2020, arXiv 2012.08561), which turns Q's share of a residue into the data's. c_i is the restoring (CLM)
    head's distribution: its odds of the residue put in against the wild type's. `judge` chooses either or both. After
    few `tries` the chain still lies between Q and that distribution; a small share accepted says so.

All draws of candidate n come from one generator keyed by (seed, n), and candidates advance in blocks of fixed size, so
that the first variants do not depend on how many are wanted.

Shape letters: P places asked for, F free places, L places, D mutations, B candidates of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from biometro.errors import UserError
from biometro.inference.likelihood import Sequences
from biometro.inference.space import Space, decode, encode

Method = Literal["auto", "masked", "gibbs", "proposals"]
BLOCK = 32
"""Candidates that advance together."""
EFFORT = 20
"""Candidates that are drawn for each variant wanted before the search for distinct ones ends."""
_STREAM = 5  # random stream; loaders have 1 to 4
Draws = Callable[[int], np.ndarray]
"""So many uniform numbers in [0, 1)."""


class Model(Protocol):
    """What generation asks of a model; `Likelihood` says what the answers are."""

    @property
    def has_auxiliary(self) -> bool: ...

    @property
    def has_detector(self) -> bool: ...

    @property
    def has_restorer(self) -> bool: ...

    def seen(self, sequences: Sequences, places: Sequence[Sequence[int]]) -> list[np.ndarray]: ...

    def masked(
        self, sequences: Sequences, places: Sequence[Sequence[int]], together: bool = False
    ) -> list[np.ndarray]: ...

    def detected(self, sequences: Sequences, places: Sequence[Sequence[int]]) -> list[np.ndarray]: ...


@dataclass(frozen=True, eq=False)  # eq would ask arrays for one truth value
class Table:
    """A model that knows places but no context: the controls, and an alignment's columns.

    logs: (L, A) float64 log-probabilities in the order of STANDARD, or of an alphabet's symbols.
    """

    logs: np.ndarray
    has_auxiliary: bool = False
    has_detector: bool = False
    has_restorer: bool = False

    def masked(self, sequences: Sequences, places: Sequence[Sequence[int]], together: bool = False) -> list[np.ndarray]:
        return [self.logs[list(some)] for some in places]

    def seen(self, sequences: Sequences, places: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return self.masked(sequences, places)

    def detected(self, sequences: Sequences, places: Sequence[Sequence[int]]) -> list[np.ndarray]:
        raise UserError("a table of residues by position has no detector")


@dataclass(frozen=True)
class Sampling:
    """How variants are drawn; `inference/generate.py` has the formulas.

    Args:
        method: masked (the model fills places that are masked), gibbs (a chain that resamples places of a variant
            given the rest), or proposals (the auxiliary of a METRO model proposes, the main model accepts or rejects);
            auto is masked with a start, and gibbs without one (molecules, `inference/molecules.py`).
        temperature: of every draw of a residue; below 1 likelier residues are favoured, above 1 variety.
        top_p: draw among the likeliest residues that together have this share; 1 draws among all. Not with gibbs,
            which would lose its stationary distribution.
        positions: places are chosen uniformly, or by entropy: in proportion to that of the model's distribution where
            the wild type's residue is masked. Where gibbs begins; its steps are uniform.
        rounds: in which places are filled; 1 fills all at once, as many as mutations one after the other.
        sweeps: of gibbs; a sweep has as many steps as there are free places, each costs two passes. Default 1; without
            a start 5, a pass for each step.
        tries: proposals that a variant is the survivor of.
        judge: of proposals: the main model's detector, its restorer (CLM head), or both.
    """

    method: Method = "auto"
    temperature: float = 1.0
    top_p: float = 1.0
    positions: Literal["uniform", "entropy"] = "uniform"
    rounds: int = 1
    sweeps: int | None = None
    tries: int = 16
    judge: Literal["both", "detector", "restorer"] = "both"

    def __post_init__(self) -> None:
        if not 0 < self.temperature < np.inf:
            raise UserError(f"sampling.temperature is {self.temperature}; it must be above 0")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampling.top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.method == "gibbs" and self.top_p < 1:
            raise UserError("sampling.top_p cuts what gibbs has to reach; leave it at 1, or lower the temperature")
        for name in ("rounds", "sweeps", "tries"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"sampling.{name} is {getattr(self, name)}; it must be at least 1")

    def told(self, start: bool = True) -> dict[str, str]:
        """What was done, for reports: the settings that its method reads, with the defaults that were taken."""
        method = self.method if self.method != "auto" else "masked" if start else "gibbs"
        found: dict[str, object] = {"method": method, "temperature": self.temperature}
        if method != "gibbs":
            found["top p"] = self.top_p
        if method == "masked":
            found["rounds"] = self.rounds
        if method == "gibbs":
            found["sweeps"] = self.sweeps or (1 if start else 5)
        if method == "proposals":
            found |= {"tries": self.tries, "judge": self.judge}
        if start and method != "gibbs":
            found["positions"] = self.positions
        return {name: str(value) for name, value in found.items()}


@dataclass(frozen=True)
class Generated:
    """Distinct variants in the order in which they were found, and how many candidates were drawn for them.

    accepted: of proposals, the share that the main model accepted; NaN otherwise. note: why there are fewer than
    wanted; empty where there are not.
    """

    sequences: tuple[bytes, ...]
    drawn: int
    accepted: float = float("nan")
    note: str = ""


def generate(
    model: Model,
    space: Space,
    count: int,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    say: Callable[[int, int], None] = lambda found, of: None,
) -> Generated:
    """Up to `count` distinct variants; with the same seed, a smaller count gives the first of a larger one.

    Args:
        model: with columns in the order of STANDARD.
        space: what is allowed.
        count: distinct variants wanted.
        sampling: how.
        seed: of all draws.
        say: hears how many of how many are found.

    Raises UserError as `check` does.
    """
    check(model, count, sampling, seed)
    sampler = Sampler(model, space, sampling)
    existing = space.size()
    wanted, most = min(count, existing), EFFORT * max(count, BLOCK)
    found: dict[bytes, None] = {}
    drawn = 0
    while len(found) < wanted and drawn < most:
        for codes_L in sampler.block(seed, range(drawn, drawn + BLOCK)):
            drawn += 1
            found.setdefault(decode(codes_L, space.wildtype), None)
            if len(found) == wanted:
                break
        say(len(found), wanted)
    note = ""
    if wanted < count and len(found) == wanted:
        note = f"only {existing:,} variants fit the options; all are here"
    elif len(found) < count:
        note = (
            f"{len(found):,} distinct variants of {count:,} wanted were found among {drawn:,} candidates; allow more "
            "mutations or positions, or raise sampling.temperature"
        )
    return Generated(tuple(found), drawn, sampler.accepted, note)


def draw_like(table: Table, space: Space, counts: Sequence[int], seed: int) -> list[np.ndarray]:
    """(L,) codes of one variant for each number of mutations, at uniform places, by a table: not distinct. For
    controls."""
    sampler = Sampler(table, space, Sampling())
    draws = [generator(seed, number) for number in range(len(counts))]
    return sampler.masked(draws, counts)


def masked_marginals(model: Model, space: Space, variants: Sequence[bytes]) -> np.ndarray:
    """(N,) float64 nats: Σ log p(mutant) - log p(wild type) where all mutated places of the wild type are masked.

    Meier et al. 2021 (doi:10.1101/2021.07.09.450648), "masked marginals": one pass for each variant.
    """
    codes = [encode(variant) for variant in variants]
    places = [np.flatnonzero(codes_L != space.codes).tolist() for codes_L in codes]
    tables = model.masked([space.wildtype] * len(variants), places, together=True)
    scores = []
    for codes_L, some, table_P20 in zip(codes, places, tables, strict=True):
        rows_P = np.arange(len(some))
        odds_P = table_P20[rows_P, codes_L[some]].astype(np.float64) - table_P20[rows_P, space.codes[some]]
        scores.append(odds_P.sum())
    return np.array(scores, dtype=np.float64)


def detections(model: Model, space: Space, variants: Sequence[bytes]) -> np.ndarray:
    """(N,) float64: the mean, over mutated places, of the detector's logit of "this residue was replaced"."""
    places = [np.flatnonzero(encode(variant) != space.codes).tolist() for variant in variants]
    logits = model.detected(variants, places)
    return np.array([logit_P.mean(dtype=np.float64) if len(logit_P) else np.nan for logit_P in logits])


class Sampler:
    """A method at work on one space. Sequences are (L,) int64 codes, a block's generators stand beside them."""

    def __init__(self, model: Model, space: Space, sampling: Sampling):
        self.model, self.space, self.sampling = model, space, sampling
        self._judged = self._accepted = 0
        self._weights_F = np.ones(len(space.free))
        if sampling.positions == "entropy":
            table_F20 = self.model.masked([space.read(space.codes)], [space.free.tolist()])[0].astype(np.float64)
            p_F20 = np.exp(table_F20 - np.logaddexp.reduce(table_F20, axis=1, keepdims=True))
            self._weights_F = np.maximum(-(p_F20 * np.log(np.maximum(p_F20, 1e-300))).sum(1), 1e-9)

    @property
    def accepted(self) -> float:
        return self._accepted / self._judged if self._judged else float("nan")

    def block(self, seed: int, numbers: range) -> list[np.ndarray]:
        """The candidates of these numbers, (L,) codes each."""
        draws = [generator(seed, number) for number in numbers]
        space = self.space
        counts = [space.least + int(draw(1)[0] * (space.most - space.least + 1)) for draw in draws]
        method = {"gibbs": self._gibbs, "proposals": self._proposals}.get(self.sampling.method, self.masked)
        return method(draws, counts)

    def masked(self, draws: list[Draws], counts: Sequence[int]) -> list[np.ndarray]:
        space, sampling = self.space, self.sampling
        states = [space.codes.copy() for _ in draws]
        chosen = [self._choose(draw, count) for draw, count in zip(draws, counts, strict=True)]
        for r in range(min(sampling.rounds, max(counts))):
            # a variant with fewer mutations than rounds is done earlier
            starts = [cut(count, sampling.rounds, r) for count in counts]
            ends = [cut(count, sampling.rounds, r + 1) for count in counts]
            sequences = [space.read(codes_L) for codes_L in states]
            left = [order_D[start:].tolist() for order_D, start in zip(chosen, starts, strict=True)]
            tables = self.model.masked(sequences, left, together=True)
            for b, draw in enumerate(draws):
                fill_P = chosen[b][starts[b] : ends[b]]
                logs_P20 = np.where(space.allowed[fill_P], tables[b][: len(fill_P)], -np.inf)
                states[b][fill_P] = draw_letters(logs_P20, sampling.temperature, sampling.top_p, draw(len(fill_P)))
        return states

    def _choose(self, draw: Draws, count: int) -> np.ndarray:
        """(D,) places in random order, one after the other in proportion to their weights: a race of exponential
        arrivals (Efraimidis & Spirakis 2006, doi:10.1016/j.ipl.2005.11.003)."""
        arrivals_F = -np.log1p(-draw(len(self.space.free))) / self._weights_F
        order_D: np.ndarray = self.space.free[np.argsort(arrivals_F, kind="stable")[:count]]
        return order_D

    def _gibbs(self, draws: list[Draws], counts: Sequence[int]) -> list[np.ndarray]:
        space, temperature = self.space, self.sampling.temperature
        states = self.masked(draws, counts)
        for _ in range((self.sampling.sweeps or 1) * len(space.free)):
            pairs = []
            for codes_L, draw in zip(states, draws, strict=True):
                pair = _pair(codes_L, space, draw)
                codes_L[pair[0]] = space.codes[pair[0]]
                pairs.append(pair)
            tables = self.model.masked([space.read(codes_L) for codes_L in states], pairs)
            for codes_L, pair, table_P20, draw in zip(states, pairs, tables, draws, strict=True):
                odds_P20 = table_P20.astype(np.float64) - table_P20[np.arange(len(pair)), space.codes[pair], None]
                odds = np.where(space.allowed[pair], odds_P20, -np.inf).reshape(1, -1)
                place, letter = divmod(int(draw_letters(odds, temperature, 1.0, draw(1))[0]), table_P20.shape[1])
                codes_L[pair[place]] = letter
        return states

    def _proposals(self, draws: list[Draws], counts: Sequence[int]) -> list[np.ndarray]:
        states = self.masked(draws, counts)
        weights_B = self._judge(states)
        for _ in range(self.sampling.tries - 1):
            offered = self.masked(draws, counts)
            found_B = self._judge(offered)
            for b, draw in enumerate(draws):
                self._judged += 1
                if np.log1p(-draw(1)[0]) < found_B[b] - weights_B[b]:
                    self._accepted += 1
                    states[b], weights_B[b] = offered[b], found_B[b]
        return states

    def _judge(self, states: list[np.ndarray]) -> np.ndarray:
        """(B,) float64 log W of the module's docstring."""
        sequences = [self.space.read(codes_L) for codes_L in states]
        places = [np.flatnonzero(codes_L != self.space.codes).tolist() for codes_L in states]
        weights_B = np.zeros(len(states))
        if self.sampling.judge != "restorer":
            weights_B -= [logit_P.sum(dtype=np.float64) for logit_P in self.model.detected(sequences, places)]
        if self.sampling.judge != "detector":
            for b, table_P20 in enumerate(self.model.seen(sequences, places)):
                rows_P = np.arange(len(places[b]))
                odds_P = table_P20[rows_P, states[b][places[b]]] - table_P20[rows_P, self.space.codes[places[b]]]
                weights_B[b] += odds_P.sum(dtype=np.float64)
        return weights_B


def draw_letters(logs_PA: np.ndarray, temperature: float, top_p: float, uniforms_P: np.ndarray) -> np.ndarray:
    """(P,) int64: of each row one column, in proportion to exp(log / temperature), by inversion.

    Args:
        logs_PA: logarithms up to a constant, -inf for what may not be drawn.
        temperature: as above.
        top_p: keeps the fewest of the likeliest columns (ties: the first) that have this share together.
        uniforms_P: in [0, 1).
    """
    logs_PA = logs_PA.astype(np.float64)
    with np.errstate(over="ignore"):  # to -inf; the likeliest is 1, however cold it is
        p_PA = np.exp((logs_PA - logs_PA.max(1, keepdims=True)) / temperature)
    if top_p < 1:
        order_PA = np.argsort(-p_PA, axis=1, kind="stable")
        sorted_PA = np.take_along_axis(p_PA, order_PA, 1)
        before_PA = np.cumsum(sorted_PA, axis=1) - sorted_PA
        kept_PA = np.where(before_PA < top_p * p_PA.sum(1, keepdims=True), sorted_PA, 0.0)
        np.put_along_axis(p_PA, order_PA, kept_PA, 1)
    cumulative_PA = np.cumsum(p_PA, axis=1)
    below_PA = cumulative_PA <= uniforms_P[:, None] * cumulative_PA[:, -1:]
    # rounding may pass the end: the last column that may be drawn is the one before it
    last_P = p_PA.shape[1] - 1 - (p_PA[:, ::-1] > 0).argmax(1)
    return np.minimum(below_PA.sum(1), last_P)


def _pair(codes_L: np.ndarray, space: Space, draw: Draws) -> list[int]:
    """A mutated place, then an unmutated free one if there is any, each uniformly."""
    mutated_F = codes_L[space.free] != space.codes[space.free]
    u, v = draw(2)
    inside, outside = space.free[mutated_F], space.free[~mutated_F]
    pair = [int(inside[int(u * len(inside))])]
    return [*pair, int(outside[int(v * len(outside))])] if len(outside) else pair


def cut(count: int, rounds: int, r: int) -> int:
    """Where round r begins among `count` places: rounds as even as they can be, none empty before the end."""
    rounds = min(rounds, count)
    return count * min(r, rounds) // rounds


def generator(seed: int, number: int) -> Draws:
    """Uniform numbers keyed by (seed, number) and nothing else; their stream is the only one numpy keeps for good."""
    random = np.random.Generator(np.random.Philox(key=[seed, _STREAM], counter=[0, 0, 0, number])).random
    return lambda size: np.asarray(random(size))


def check(model: Model, count: int, sampling: Sampling, seed: int) -> None:
    """Raises UserError for a count or a seed that makes no sense, and for a model that cannot sample so."""
    if count < 1:
        raise UserError(f"count is {count}; it must be at least 1")
    if not 0 <= seed < 1 << 32:
        raise UserError(f"seed is {seed}; it must be at least 0 and below 2^32")
    if sampling.method != "proposals":
        return
    if not (model.has_auxiliary and model.has_detector):
        raise UserError(
            "sampling.method proposals needs an auxiliary that proposes and a detector that judges, as a model "
            "pretrained with METRO has; this model has not both, choose masked or gibbs"
        )
    if sampling.judge != "detector" and not model.has_restorer:
        raise UserError(
            f"sampling.judge {sampling.judge} needs a head that restores, and this model has none (metro.clm_weight "
            "was 0); choose sampling.judge detector"
        )
