"""Sampling of variants: against distributions that are known exactly, and rules that every variant has to keep."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from biometro.alphabet import PROTEIN
from biometro.alphabet.protein import STANDARD
from biometro.errors import UserError
from biometro.inference import generate as generation
from biometro.inference.generate import Sampling, Table, detections, draw_letters, generate, masked_marginals
from biometro.inference.likelihood import Likelihood
from biometro.inference.space import Space, decode, encode, space_of
from biometro.model.bundle import Bundle
from biometro.model.encoder import EncoderConfig
from biometro.objectives.metro import Metro, MetroConfig
from biometro.objectives.mlm import MLM, MLMConfig

WILDTYPE = b"KLM"
REST = "FGHIKLMNPQRSTVWY"  # leaves A, C, D and E


@dataclass
class Toy:
    """A model whose joint distribution over three residues is given, (20, 20, 20), so that its answers are exact."""

    joint: np.ndarray
    detector: np.ndarray = field(default_factory=lambda: np.zeros((3, 20)))
    has_auxiliary: bool = True
    has_detector: bool = True
    has_restorer: bool = True
    kept: dict[Any, np.ndarray] = field(default_factory=dict)

    def conditional(self, letters: bytes, hidden: tuple[int, ...], place: int) -> np.ndarray:
        """(20,) log p(letter at `place` | the letters that are not hidden)."""
        key = (letters, hidden, place)
        if key not in self.kept:
            codes = encode(letters)
            seen: tuple[Any, ...] = tuple(slice(None) if i in hidden else int(codes[i]) for i in range(3))
            part = self.joint[seen]
            others = tuple(k for k, i in enumerate(sorted(hidden)) if i != place)
            marginal = part.sum(axis=others)
            self.kept[key] = np.log(marginal / marginal.sum())
        return self.kept[key]

    def masked(
        self, sequences: Sequence[bytes], places: Sequence[Sequence[int]], together: bool = False
    ) -> list[np.ndarray]:
        return [
            np.array([self.conditional(s, tuple(sorted(some)) if together else (p,), p) for p in some]).reshape(-1, 20)
            for s, some in zip(sequences, places, strict=True)
        ]

    def seen(self, sequences: Sequence[bytes], places: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return self.masked(sequences, places)

    def detected(self, sequences: Sequence[bytes], places: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return [self.detector[list(some), encode(s)[list(some)]] for s, some in zip(sequences, places, strict=True)]


@pytest.fixture(scope="module")
def toy() -> Toy:
    random = np.random.default_rng(3)
    energy = random.normal(0, 0.7, (20, 20, 20)) + random.normal(0, 0.5, (20, 20, 1))
    return Toy(np.exp(energy) / np.exp(energy).sum(), random.normal(0, 0.8, (3, 20)))


def space3(mutations: int | str = 2) -> Space:
    return space_of(WILDTYPE, mutations, exclude=REST)


def shell() -> list[bytes]:
    """Every sequence with two mutations to A, C, D or E."""
    found = []
    for places in itertools.combinations(range(3), 2):
        for letters in itertools.product(b"ACDE", repeat=2):
            changed = bytearray(WILDTYPE)
            for place, letter in zip(places, letters, strict=True):
                changed[place] = letter
            found.append(bytes(changed))
    return found


def drawn(toy: Any, space: Space, sampling: Sampling, blocks: int) -> list[bytes]:
    sampler = generation.Sampler(toy, space, sampling)
    size = generation.BLOCK
    blocks_of = (sampler.block(11, range(b * size, (b + 1) * size)) for b in range(blocks))
    return [decode(codes_L, space.wildtype) for block in blocks_of for codes_L in block]


def fits(found: list[bytes], weights: dict[bytes, float], least: float = 1e-3) -> bool:
    """Whether counts agree with a distribution given up to a factor."""
    assert set(found) <= set(weights)
    counts, total = Counter(found), sum(weights.values())
    observed = np.array([counts[s] for s in weights])
    return bool(chisquare(observed, np.array(list(weights.values())) * len(found) / total).pvalue > least)


def differing(letters: bytes) -> list[int]:
    return [i for i in range(3) if letters[i] != WILDTYPE[i]]


def once(toy: Toy, letters: bytes, temperature: float) -> float:
    """Share of a variant where both places are masked and filled at once: places uniform, letters independent."""
    share = 1.0
    places = differing(letters)
    for place in places:
        p = np.exp(toy.conditional(WILDTYPE, tuple(places), place)[:4] / temperature)  # A, C, D, E come first
        share *= p[STANDARD.index(chr(letters[place]))] / p.sum()
    return share


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_masked_draws_from_the_model(toy: Toy, temperature: float) -> None:
    found = drawn(toy, space3(), Sampling(temperature=temperature), 200)
    weights = {s: once(toy, s, temperature) for s in shell()}
    assert fits(found, weights)
    assert not fits(found, {s: once(toy, s, 1.5 - temperature) for s in shell()})  # the other one's


def test_rounds_see_the_letters_put_in_before(toy: Toy) -> None:
    def share(letters: bytes) -> float:
        total = 0.0
        for order in itertools.permutations(differing(letters)):
            state, part = bytearray(WILDTYPE), 1.0
            for n, place in enumerate(order):
                p = np.exp(toy.conditional(bytes(state), tuple(sorted(order[n:])), place)[:4])
                part *= p[STANDARD.index(chr(letters[place]))] / p.sum()
                state[place] = letters[place]
            total += part
        return total

    found = drawn(toy, space3(), Sampling(rounds=5), 200)
    assert fits(found, {s: share(s) for s in shell()})
    assert not fits(found, {s: once(toy, s, 1.0) for s in shell()})


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gibbs_reaches_the_joint_distribution_on_its_shell(toy: Toy, temperature: float) -> None:
    found = drawn(toy, space3(), Sampling("gibbs", temperature, sweeps=8), 150)
    joint = {s: float(toy.joint[tuple(encode(s))]) ** (1 / temperature) for s in shell()}
    assert fits(found, joint)
    assert not fits(found, {s: once(toy, s, temperature) for s in shell()})  # where it began


def test_gibbs_where_every_place_is_mutated(toy: Toy) -> None:
    found = drawn(toy, space3(3), Sampling("gibbs", sweeps=8), 100)
    states = [bytes(letters) for letters in itertools.product(b"ACDE", repeat=3)]
    assert fits(found, {s: float(toy.joint[tuple(encode(s))]) for s in states})


@pytest.mark.parametrize("judge", ["both", "detector", "restorer"])
def test_proposals_reach_what_the_main_model_weighs(toy: Toy, judge: Any) -> None:
    def weight(letters: bytes) -> float:
        log = 0.0
        for place in differing(letters):
            mine, own = (STANDARD.index(chr(s[place])) for s in (letters, WILDTYPE))
            table = toy.conditional(letters, (place,), place)
            log += (judge != "restorer") * -toy.detector[place, mine]
            log += (judge != "detector") * (table[mine] - table[own])
        return float(np.exp(log))

    states = shell()
    q = np.array([once(toy, s, 1.0) / 3 for s in states])  # three pairs of places
    w = np.array([weight(s) for s in states])
    # one step from a row's state: propose from q, accept with min(1, W' / W), else stay
    moves = q * np.minimum(1, w / w[:, None])
    np.fill_diagonal(moves, 0)
    np.fill_diagonal(moves, 1 - moves.sum(1))
    assert (q * w) @ moves == pytest.approx(q * w)  # the stationary distribution that the docstring names
    for tries in (2, 40):
        found = drawn(toy, space3(), Sampling("proposals", tries=tries, judge=judge), 3200 // (32 + tries))
        expected = q @ np.linalg.matrix_power(moves, tries - 1)
        assert fits(found, dict(zip(states, expected, strict=True)))
    assert np.abs(expected - q * w / (q @ w)).sum() < 0.15  # and by now it is near
    assert not fits(found, dict(zip(states, q, strict=True)))
    assert 0 < generate(toy, space3(), 5, Sampling("proposals", judge=judge)).accepted < 1


def test_places_by_entropy() -> None:
    logs = np.array([[8.0], [2.0], [0.0]]) * (np.arange(20) == 0)
    p = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    entropy = -(p * np.log(p)).sum(1)
    found = drawn(Table(logs), space3(1), Sampling(positions="entropy"), 200)
    counts = Counter(differing(s)[0] for s in found)
    expected = entropy / entropy.sum() * len(found)
    assert chisquare([counts[i] for i in range(3)], expected).pvalue > 1e-3
    assert np.ptp(expected) > 1000  # far from uniform


def test_a_range_of_mutations_is_drawn_uniformly(toy: Toy) -> None:
    counts = Counter(len(differing(s)) for s in drawn(toy, space3("1-3"), Sampling(), 100))
    assert chisquare([counts[1], counts[2], counts[3]]).pvalue > 1e-3


@given(
    st.lists(st.floats(-20, 3), min_size=2, max_size=6), st.floats(0.2, 3), st.floats(0.05, 1), st.floats(0, 1 - 1e-9)
)
def test_the_nucleus_is_the_fewest_likeliest(logs: list[float], temperature: float, top_p: float, u: float) -> None:
    p = np.exp(np.array(logs) / temperature)
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda k: -p[k])
    size = next(n for n in range(1, len(p) + 1) if p[order[:n]].sum() >= top_p - 1e-9)
    letter = int(draw_letters(np.array([logs]), temperature, top_p, np.array([u]))[0])
    assert p[letter] >= p[order[size - 1]] - 1e-9


def test_what_may_not_be_drawn_never_is() -> None:
    logs = np.array([[-np.inf, 0.0, -np.inf, -700.0, -np.inf]])
    for u in (0.0, 0.5, 1 - 2**-53):
        assert int(draw_letters(logs, 1.0, 1.0, np.array([u]))[0]) == 1
    cold = np.array([[-np.inf, -2.0, -1.0, -np.inf]])
    assert int(draw_letters(cold, 1e-310, 1.0, np.array([0.5]))[0]) == 2
    assert int(draw_letters(np.array([[-np.inf, 0.0, 0.0, -np.inf]]), 1.0, 1.0, np.array([1 - 2**-53]))[0]) == 2


# Rules that every variant keeps ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hashed(Table):
    """Tables that depend on the place alone, and a detector that depends on nothing: fast, for any length."""

    has_auxiliary: bool = True
    has_detector: bool = True
    has_restorer: bool = True

    def detected(self, sequences: Sequence[bytes], places: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return [np.zeros(len(some)) for some in places]


@given(st.data(), st.text(STANDARD + "X", min_size=1, max_size=14), st.sampled_from(["masked", "gibbs", "proposals"]))
def test_every_variant_keeps_the_rules(data: Any, wildtype: str, method: Any) -> None:
    first = data.draw(st.integers(-5, 30))
    positions = range(first, first + len(wildtype))
    fixed = data.draw(st.sets(st.sampled_from(positions), max_size=4))
    exclude = "".join(data.draw(st.sets(st.sampled_from(STANDARD), max_size=17)))
    barred = data.draw(st.dictionaries(st.sampled_from(positions), st.sampled_from(STANDARD), max_size=3))
    least, more = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 2))
    options: dict[str, Any] = {
        "mutations": f"{least}-{least + more}",
        "fixed": ",".join(map(str, fixed)),
        "exclude": exclude,
        "exclude_at": ",".join(f"{place}:{letter}" for place, letter in barred.items()),
        "first": first,
    }
    try:
        space = space_of(wildtype.encode(), **options)
    except UserError:
        return
    model = Hashed(np.random.default_rng(0).normal(size=(len(wildtype), 20)))
    rounds = data.draw(st.integers(1, 4))
    sampling = Sampling(method, rounds=rounds, tries=2, positions=data.draw(st.sampled_from(["uniform", "entropy"])))
    made = generate(model, space, 10, sampling, data.draw(st.integers(0, 3)))
    assert len(set(made.sequences)) == len(made.sequences)
    assert len(made.sequences) == min(10, space.size()) or made.note
    for variant in made.sequences:
        changed = [i for i in range(len(wildtype)) if variant.decode()[i] != wildtype[i]]
        assert len(variant) == len(wildtype) and least <= len(changed) <= least + more
        for i in changed:
            new = variant.decode()[i]
            assert i + first not in fixed and wildtype[i] in STANDARD
            assert new in STANDARD and new not in exclude and barred.get(i + first) != new
        names = ":".join(f"{wildtype[i]}{i + first}{variant.decode()[i]}" for i in changed)
        assert space.names(variant) == names


def test_the_space_is_counted() -> None:
    space = space_of(b"ACDXK", "1-3", fixed="2", exclude=REST)
    states = itertools.product(*("ACDE" + old for old in "ACDXK"))
    found = set()
    for state in states:
        changed = [i for i in range(5) if state[i] != "ACDXK"[i]]
        if 1 <= len(changed) <= 3 and not {1, 3} & {*changed}:
            found.add("".join(state))
    assert space.size() == len(found)
    assert space_of(b"A" * 300, 100).size() == 10**15
    few = space_of(b"A" * 30, "2-4")
    assert few.size() == sum(math.comb(30, m) * 19**m for m in (2, 3, 4))
    assert space_of(b"A" * 35_000, 8_000).size() == 10**15  # at once


def test_fewer_variants_than_wanted_are_said(toy: Toy) -> None:
    made = generate(toy, space3(), 100, Sampling(rounds=2))
    assert {*made.sequences} == {*shell()} and "only 48 variants fit" in made.note
    certain = Table(np.where(np.arange(20) < 1, 0.0, -900.0) * np.ones((3, 1)))
    made = generate(certain, space3(), 10)
    assert len(made.sequences) == 3 and "3 distinct variants of 10 wanted" in made.note
    assert made.drawn == generation.EFFORT * generation.BLOCK


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mutations": 4}, "only 3 may change"),
        ({"mutations": 2, "fixed": "1-2"}, r"only 1 may change \(2 are fixed"),
        ({"mutations": 1, "exclude": STANDARD}, "leaves no residue"),
        ({"identity": 1.0}, "1 is the wild type itself"),
        ({"identity": 0.99}, "leaves no mutation"),
        ({}, "either mutations"),
        ({"mutations": 1, "identity": 0.5}, "either mutations"),
        ({"mutations": 0}, "at least 1"),
        ({"mutations": "3-2"}, "a range ascends"),
        ({"mutations": "many"}, "give a number"),
        ({"mutations": 1, "fixed": "4"}, "positions 1 to 3"),
        ({"mutations": 1, "fixed": "2-1"}, "within positions"),
        ({"mutations": 1, "fixed": "a"}, "neither a position nor a range"),
        ({"mutations": 1, "exclude": "B"}, "'B' is none of"),
        ({"mutations": 1, "exclude_at": "2"}, "POSITIONS:RESIDUES"),
        ({"mutations": 1, "exclude_at": "9:C"}, "exclude_at: 9 does not lie"),
        ({"mutations": 1, "fixed": "1-3"}, "only 0 may change"),
    ],
)
def test_impossible_requests(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        space_of(WILDTYPE, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"method": "gibbs", "top_p": 0.9}, "gibbs"),
        ({"rounds": 0}, "rounds"),
        ({"sweeps": 0}, "sweeps"),
        ({"tries": 0}, "tries"),
    ],
)
def test_sampling_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**options)


def test_identity_stands_for_mutations() -> None:
    space = space_of(b"A" * 50, identity=0.9)
    assert (space.least, space.most) == (5, 5)


# Real models -----------------------------------------------------------------------------------------------------

LONG = b"MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"


def bundle_of(objective: Any) -> Bundle:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.normal_(std=0.2)
    return Bundle(PROTEIN, objective.eval().bundle_modules())


@pytest.fixture(scope="module")
def metro() -> Likelihood:
    return Likelihood(bundle_of(Metro(EncoderConfig(width=32, depth=3, head_size=8), PROTEIN)))


@pytest.mark.parametrize("method", ["masked", "gibbs", "proposals"])
def test_the_first_variants_do_not_depend_on_how_many_are_wanted(metro: Likelihood, method: Any) -> None:
    space = space_of(LONG, "2-4", fixed="1,10-20")
    sampling = Sampling(method, 0.7, rounds=2, tries=3, positions="entropy")
    few, many = (generate(metro, space, count, sampling, seed=7).sequences for count in (3, 40))
    assert few == many[:3] and len(many) == 40
    assert many == generate(metro, space, 40, sampling, seed=7).sequences
    assert many[:3] != generate(metro, space, 3, sampling, seed=8).sequences


def test_scores_against_one_pass_each(metro: Likelihood) -> None:
    space = space_of(LONG, 3)
    variants = generate(metro, space, 6, seed=1).sequences
    scores, logits = masked_marginals(metro, space, variants), detections(metro, space, variants)
    for variant, score, logit in zip(variants, scores, logits, strict=True):
        places = [i for i in range(len(LONG)) if variant[i] != LONG[i]]
        table = metro.masked([LONG], [places], together=True)[0]
        odds = [
            row[STANDARD.index(chr(variant[i]))] - row[STANDARD.index(chr(LONG[i]))]
            for i, row in zip(places, table, strict=True)
        ]
        assert score == pytest.approx(sum(odds), abs=1e-4)
        assert logit == pytest.approx(metro.detected([variant])[0][places].mean(), abs=1e-4)


def test_proposals_refuse_models_that_cannot_judge() -> None:
    space = space_of(LONG, 3)
    plain = Likelihood(bundle_of(MLM(EncoderConfig(width=16, depth=1, head_size=8), PROTEIN, MLMConfig())))
    with pytest.raises(UserError, match="pretrained with METRO"):
        generate(plain, space, 3, Sampling("proposals"))
    bare = Likelihood(
        bundle_of(Metro(EncoderConfig(width=16, depth=1, head_size=8), PROTEIN, MetroConfig(clm_weight=0)))
    )
    with pytest.raises(UserError, match="judge detector"):
        generate(bare, space, 3, Sampling("proposals"))
    assert len(generate(bare, space, 3, Sampling("proposals", judge="detector", tries=2)).sequences) == 3
