"""New molecules from a model of molecules: analogues of a start, or without one.

    start, mutations ─▶ Start (a Space of symbols) ─▶ samplers of generate.py ─┐
    lengths of a corpus ─▶ FromMasks ─▶ all masks ─▶ filled ─▶ sweeps of Gibbs ┴─▶ symbols ─▶ SMILES ─▶ distinct ones

Only symbols of the vocabulary are drawn, never a special token or `<unk>`. Of SELFIES every row of symbols is a
molecule; a row of SMILES symbols may be none, which is counted.

Analogues have exactly as many symbols of the start replaced by others as asked for, by the methods of `generate.py`.
Without a start a candidate's length is drawn from a table of lengths, and it begins as a row of mask tokens. One sweep
fills the places in random order, each drawn from p(a | what is there)^(1 / temperature), the rest still masked; this is
where mask-predict generation begins (Wang & Cho 2019, arXiv 1902.04094). In each sweep after it, every place is masked
and drawn again given all others, in a new random order: a pseudo-Gibbs chain, whose stationary distribution is that of
a dependency network, since a masked model's conditionals need not be those of one joint distribution (Goyal et al.
2021, arXiv 2106.02736).

In a METRO model the auxiliary reads what is masked. With `proposals` its draw is a proposal that the main model
judges, place by place, from the second sweep on: of x with a in place i, and x' with a', a' is taken with probability
min(1, exp(w(x') - w(x))), w = -s_i + log c_i, with s_i the detector's logit of "replaced" at i and c_i the restoring
head's probability of what stands there (`judge` chooses). As exp(-s_i) estimates p / q (see `generate.py`), the
detector alone turns the auxiliary's share q of a symbol into the data's p.

All draws of candidate n come from one generator keyed by (seed, n), and candidates advance in blocks of fixed size.

Shape letters: L places of a molecule, A symbols, B candidates of a block, K lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from biometro.alphabet.molecule import MoleculeAlphabet, canonical, parse
from biometro.errors import UserError
from biometro.inference.generate import (
    BLOCK,
    EFFORT,
    Draws,
    Model,
    Sampler,
    Sampling,
    Table,
    check,
    cut,
    draw_letters,
    draw_like,
    generator,
)  # fmt: skip
from biometro.inference.space import Space, wanted

_SWEEPS = 5  # after the one that fills
_SCORED = 64  # molecules whose likelihoods are asked for at once


@dataclass(frozen=True, eq=False, kw_only=True)
class Start(Space):
    """The molecules with `least` to `most` symbols of a start replaced. `wildtype` holds its token numbers as bytes;
    a token that is no symbol of the vocabulary stays."""

    alphabet: MoleculeAlphabet

    @cached_property
    def codes(self) -> np.ndarray:
        """(L,) int64 symbols of the start, in the order of the alphabet's; -1 for `<unk>`."""
        codes_L: np.ndarray = _codes(self.alphabet)[np.frombuffer(self.wildtype, np.uint8)]
        return codes_L

    def read(self, codes_L: np.ndarray) -> np.ndarray:
        """Token numbers (L,) uint8."""
        own_L = np.frombuffer(self.wildtype, np.uint8)
        return np.where(codes_L < 0, own_L, symbols(self.alphabet)[codes_L]).astype(np.uint8)


def symbols(alphabet: MoleculeAlphabet) -> np.ndarray:
    """(A,) uint8 token numbers of the vocabulary's symbols, in the order of `standard`: the columns of tables."""
    return np.array([alphabet.id(symbol) for symbol in alphabet.standard], np.uint8)


def _codes(alphabet: MoleculeAlphabet) -> np.ndarray:
    """(256,) int64: of each token number its symbol, -1 where it is none."""
    codes = np.full(256, -1, np.int64)
    codes[symbols(alphabet)] = np.arange(len(alphabet.standard))
    return codes


def start_of(
    alphabet: MoleculeAlphabet, letters: bytes, mutations: int | str | None = None, identity: float | None = None
) -> Start:
    """The molecules around a start.

    Args:
        alphabet: of the model.
        letters: canonical SMILES.
        mutations: symbols that are replaced: a number, or a range as in `3-8`.
        identity: share of symbols that stay, instead.

    Raises UserError for options that cannot be read, and a start that has too few symbols.
    """
    tokens = alphabet.encode_bytes(letters)
    least, most = wanted(mutations, identity, len(tokens), "tokens")
    codes_L = _codes(alphabet)[np.frombuffer(tokens, np.uint8)]
    allowed_LA = np.ones((len(tokens), len(alphabet.standard)), bool)
    known_L = codes_L >= 0
    allowed_LA[known_L, codes_L[known_L]] = False
    allowed_LA[~known_L] = False
    start = Start(tokens, allowed_LA, least, most, alphabet=alphabet)
    if most > len(start.free):
        raise UserError(
            f"{most} mutations are asked for, but the start has {len(start.free)} tokens of the vocabulary; ask for "
            "fewer"
        )
    return start


class Drawing(Protocol):
    """What draws candidates: their token numbers, (L,) uint8 each. accepted: as in `Generated`."""

    @property
    def accepted(self) -> float: ...

    def block(self, seed: int, numbers: range) -> list[np.ndarray]: ...


class Analogues:
    """Candidates around a start, by a method of `generate.py`."""

    def __init__(self, model: Model, start: Start, sampling: Sampling):
        self._sampler, self._start = Sampler(model, start, sampling), start

    @property
    def accepted(self) -> float:
        return self._sampler.accepted

    def block(self, seed: int, numbers: range) -> list[np.ndarray]:
        return [self._start.read(codes_L) for codes_L in self._sampler.block(seed, numbers)]


class FromMasks:
    """Candidates without a start, see the module's docstring.

    Args:
        model: with columns in the order of the alphabet's symbols.
        alphabet: of the model.
        lengths: (K, 2) int64: a length in tokens, and how many molecules have it.
        sampling: method masked fills in `rounds` rounds and has no sweep after it.
    """

    def __init__(self, model: Model, alphabet: MoleculeAlphabet, lengths: np.ndarray, sampling: Sampling):
        self.model, self.sampling = model, sampling
        self._symbols_A, self._mask = symbols(alphabet), alphabet.id(alphabet.mask)
        self._codes = _codes(alphabet)
        self._lengths = lengths[lengths[:, 0] > 0]
        self._judged = self._accepted = 0
        if not self._lengths[:, 1].sum():
            raise UserError("no length is known that a molecule could have")

    @property
    def accepted(self) -> float:
        return self._accepted / self._judged if self._judged else float("nan")

    def block(self, seed: int, numbers: range) -> list[np.ndarray]:
        draws = [generator(seed, number) for number in numbers]
        lengths = [draw_length(self._lengths, float(draw(1)[0])) for draw in draws]
        states = [np.full(length, self._mask, np.uint8) for length in lengths]
        masked = self.sampling.method == "masked"
        self._fill(states, draws, self.sampling.rounds if masked else max(lengths))
        for _ in range(0 if masked else self.sampling.sweeps or _SWEEPS):
            orders = [_order(draw, len(state_L)) for draw, state_L in zip(draws, states, strict=True)]
            for step in range(max(lengths)):
                active = [b for b, length in enumerate(lengths) if step < length]
                self._step(states, draws, {b: int(orders[b][step]) for b in active})
        return states

    def _fill(self, states: list[np.ndarray], draws: list[Draws], rounds: int) -> None:
        orders = [_order(draw, len(state_L)) for draw, state_L in zip(draws, states, strict=True)]
        for r in range(rounds):
            some = {b: order_L[cut(len(order_L), rounds, r) : cut(len(order_L), rounds, r + 1)]
                    for b, order_L in enumerate(orders)}  # fmt: skip
            some = {b: places for b, places in some.items() if len(places)}
            tables = self.model.masked(
                [states[b] for b in some], [places.tolist() for places in some.values()], together=True
            )
            for (b, places), table_PA in zip(some.items(), tables, strict=True):
                states[b][places] = self._drawn(table_PA, draws[b](len(places)))

    def _drawn(self, table_PA: np.ndarray, uniforms_P: np.ndarray) -> np.ndarray:
        """(P,) uint8 token numbers."""
        return self._symbols_A[draw_letters(table_PA, self.sampling.temperature, self.sampling.top_p, uniforms_P)]

    def _step(self, states: list[np.ndarray], draws: list[Draws], places: dict[int, int]) -> None:
        """One place of each of these candidates is drawn again."""
        at = [[place] for place in places.values()]
        before = [states[b].copy() for b in places]
        after = [states[b].copy() for b in places]
        tables = self.model.masked(before, at)
        for b, offered_L, (place,), table_1A in zip(places, after, at, tables, strict=True):
            offered_L[place] = self._drawn(table_1A, draws[b](1))[0]
        if self.sampling.method == "proposals":
            gains = self._judge(after, at) - self._judge(before, at)
            for n, b in enumerate(places):
                self._judged += 1
                if np.log1p(-draws[b](1)[0]) < gains[n]:
                    self._accepted += 1
                else:
                    after[n] = before[n]
        for b, state_L in zip(places, after, strict=True):
            states[b] = state_L

    def _judge(self, states: list[np.ndarray], at: list[list[int]]) -> np.ndarray:
        """(B,) float64 w of the module's docstring."""
        w_B = np.zeros(len(states))
        if self.sampling.judge != "restorer":
            w_B -= [float(logit_1[0]) for logit_1 in self.model.detected(states, at)]
        if self.sampling.judge != "detector":
            for b, table_1A in enumerate(self.model.seen(states, at)):
                w_B[b] += table_1A[0, self._codes[states[b][at[b][0]]]]
        return w_B


def draw_length(lengths_K2: np.ndarray, uniform: float) -> int:
    """One length, in proportion to how many have it."""
    ends_K = np.cumsum(lengths_K2[:, 1])
    return int(lengths_K2[np.searchsorted(ends_K, uniform * ends_K[-1], side="right"), 0])


def _order(draw: Draws, length: int) -> np.ndarray:
    """(L,) places in random order."""
    return np.argsort(draw(length), kind="stable")


@dataclass(frozen=True, eq=False)
class Molecules:
    """All candidates that were drawn, in order, and which of them are given.

    tokens: (L,) uint8 each. smiles: canonical, empty where RDKit reads none. kept: numbers of the candidates that are
    the first of their molecule, and not the start. accepted, note: as in `Generated`.
    """

    tokens: Sequence[np.ndarray]
    smiles: Sequence[str]
    kept: Sequence[int] = ()
    accepted: float = float("nan")
    note: str = ""


def collect(
    drawing: Drawing,
    alphabet: MoleculeAlphabet,
    count: int,
    seed: int,
    start: str = "",
    say: Callable[[int, int], None] = lambda found, of: None,
) -> Molecules:
    """Draw until `count` distinct molecules are found, or 20 times as many candidates were drawn.

    Args:
        drawing: of candidates.
        alphabet: of the model.
        count: wanted.
        seed: of all draws.
        start: canonical SMILES of the start, which is not given; empty without one.
        say: hears how many of how many are found.
    """
    tokens: list[np.ndarray] = []
    smiles: list[str] = []
    kept: list[int] = []
    seen = {"", start}
    while len(kept) < count and len(tokens) < EFFORT * max(count, BLOCK):
        for tokens_L in drawing.block(seed, range(len(tokens), len(tokens) + BLOCK)):
            text = read(alphabet, tokens_L)
            if text not in seen:
                kept.append(len(tokens))
                seen.add(text)
            tokens.append(tokens_L)
            smiles.append(text)
            if len(kept) == count:
                break
        say(len(kept), count)
    note = ""
    if len(kept) < count:
        note = (
            f"{len(kept):,} distinct molecules of {count:,} wanted were found among {len(tokens):,} candidates; raise "
            "sampling.temperature" + (", or allow more mutations" if start else "")
        )
    return Molecules(tokens, smiles, kept, drawing.accepted, note)


def read(alphabet: MoleculeAlphabet, tokens_L: np.ndarray) -> str:
    """Canonical SMILES of tokens; empty where RDKit reads none."""
    text = alphabet.smiles(tokens_L)
    mol = parse(text) if text else None
    return "" if mol is None else canonical(mol)


def random_molecules(
    alphabet: MoleculeAlphabet, lengths: Iterable[int], frequencies_A: np.ndarray, seed: int
) -> Molecules:
    """Rows of independent symbols of these lengths: what the vocabulary alone gives. For a control."""
    logs_A = np.log(np.maximum(frequencies_A, 1e-300))
    made = [
        symbols(alphabet)[draw_letters(np.tile(logs_A, (length, 1)), 1.0, 1.0, generator(seed, n)(length))]
        for n, length in enumerate(lengths)
    ]
    return Molecules(made, [read(alphabet, tokens_L) for tokens_L in made])


def random_analogues(start: Start, counts: Sequence[int], seed: int) -> Molecules:
    """The start with so many symbols replaced by others, all uniformly. For a control."""
    made = [start.read(codes_L) for codes_L in draw_like(Table(np.zeros(start.allowed.shape)), start, counts, seed)]
    return Molecules(made, [read(start.alphabet, tokens_L) for tokens_L in made])


def scores(model: Model, alphabet: MoleculeAlphabet, smiles: Sequence[str]) -> np.ndarray:
    """(N,) float64 nats: the pseudo-log-likelihood of each molecule, divided by its tokens.

    The mean over places of log p(token | the others), one masked at a time (Salazar et al. 2020, arXiv 1910.14659), of
    the molecule as a model reads it and not as it was drawn: SELFIES that were drawn may hold symbols that stand for
    nothing. NaN where there is no molecule, or no token of the vocabulary.
    """
    found = np.full(len(smiles), np.nan)
    codes = _codes(alphabet)
    rows = [n for n, text in enumerate(smiles) if text]
    for begin in range(0, len(rows), _SCORED):
        some = rows[begin : begin + _SCORED]
        tokens = [alphabet.encode(smiles[n]) for n in some]
        places = [np.flatnonzero(codes[tokens_L] >= 0).tolist() for tokens_L in tokens]
        for n, tokens_L, at, table_PA in zip(some, tokens, places, model.masked(tokens, places), strict=True):
            if at:
                found[n] = table_PA[np.arange(len(at)), codes[tokens_L[at]]].mean(dtype=np.float64)
    return found


def check_sampling(model: Model, count: int, sampling: Sampling, seed: int, start: bool) -> None:
    """Raises UserError as `generate.check` does, and, without a start, for options that only one has."""
    check(model, count, sampling, seed)
    if not start and sampling.positions != "uniform":
        raise UserError("sampling.positions entropy chooses places of a start; give wildtype, or leave it uniform")
