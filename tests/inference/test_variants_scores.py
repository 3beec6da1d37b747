"""Scores of variants: each method against its formula, written out over plain transformers or the bare modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr

import biometro
from biometro.alphabet import PROTEIN
from biometro.alphabet.protein import STANDARD
from biometro.data.variants import parse, singles
from biometro.errors import UserError
from biometro.inference.likelihood import Likelihood
from biometro.inference.variants import METHODS, Scorer, average, methods_of, rank_correlation
from conftest import esm2_folder, metro_bundle, packed_of

WILD = "MKTAYIAKQRQISFVKSH"
VARIANTS = [parse(text, WILD) for text in ("A4G", "M1W:H18A", "WT", "K8R:Q9E:R10K", "A4C")]
INDELS = [parse(text, WILD) for text in ("A4del", "K8_Q9insGG", "A4G", "I6_A7delinsW")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return esm2_folder(tmp_path_factory.mktemp("esm2") / "model")


@pytest.fixture(scope="module")
def logp(folder: Path) -> Any:
    """(letters, masked place or None) -> (L, 20) of one pass of transformers' model."""
    from transformers import EsmForMaskedLM

    model = EsmForMaskedLM.from_pretrained(folder).eval()

    def told(letters: str, masked: int | None = None) -> np.ndarray:
        ids = [PROTEIN.id("<cls>"), *PROTEIN.encode(letters).tolist(), PROTEIN.id("<eos>")]
        if masked is not None:
            ids[masked + 1] = PROTEIN.id("<mask>")
        with torch.inference_mode():
            logits = model(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).logits[0]
        return logits.log_softmax(-1)[1:-1, [PROTEIN.id(letter) for letter in STANDARD]].double().numpy()

    return told


def column(letter: str) -> int:
    return STANDARD.index(letter)


def pll(logp: Any, letters: str) -> float:
    return sum(logp(letters, i)[i, column(a)] for i, a in enumerate(letters))


def pll_fast(logp: Any, letters: str) -> float:
    """Bayes' rule by hand: seen b was left in place (1/2) or drawn at random from 20 (1/2)."""
    total = 0.0
    for i, a in enumerate(letters):
        u = np.exp(logp(letters)[i, column(a)])
        # the p for which p (1/2 + 1/40) / (p (1/2 + 1/40) + (1 - p) / 40) is u
        p = (u / 40) / (21 / 40 - u * 20 / 40)
        total += np.log(p)
    return total


@pytest.mark.parametrize("method", ["wildtype", "masked", "mutant"])
def test_marginals_as_their_formulae_over_transformers(folder: Path, logp: Any, method: str) -> None:
    expected = []
    for variant in VARIANTS:
        total, mutant = 0.0, variant.apply(WILD)
        for change in variant.changes:
            i = change.start
            table = {
                "wildtype": lambda: logp(WILD),
                "masked": lambda i=i: logp(WILD, i),
                "mutant": lambda m=mutant: logp(m),
            }
            row = table[method]()[i]
            total += row[column(mutant[i])] - row[column(WILD[i])]
        expected.append(total)
    found = Scorer(Likelihood(biometro.load(folder)), WILD).score(method, VARIANTS)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert found[2] == 0 and np.abs(found[[0, 1, 3, 4]]).min() > 1e-4


@pytest.mark.parametrize(("method", "plain"), [("pll", pll), ("pll_fast", pll_fast)])
def test_likelihoods_with_insertions_and_deletions(folder: Path, logp: Any, method: str, plain: Any) -> None:
    expected = [plain(logp, variant.apply(WILD)) - plain(logp, WILD) for variant in INDELS]
    found = Scorer(Likelihood(biometro.load(folder)), WILD).score(method, INDELS)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_metros_own_methods_as_their_formulae() -> None:
    bundle = metro_bundle(temperature=0.5)
    m = bundle.modules
    columns = [PROTEIN.id(letter) for letter in STANDARD]

    def modules(letters: str, masked: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        packed = packed_of([PROTEIN.encode(letters)])
        if masked is not None:
            packed = packed.with_tokens(packed.tokens.index_fill(0, torch.tensor([masked + 1]), PROTEIN.id("<mask>")))
        with torch.inference_mode():
            h, a = m["encoder"](packed), m["auxiliary"](packed)
            main = m["vocabulary"](h, m["encoder"].embedding.weight).log_softmax(-1)[1:-1, columns]
            # what samples are drawn from: the standard residues alone, at the temperature of training
            q = (m["auxiliary_vocabulary"](a, m["auxiliary"].embedding.weight)[1:-1, columns] / 0.5).log_softmax(-1)
            return main.double().numpy(), q.double().numpy(), m["rtd"](h)[1:-1, 0].double().numpy()

    clm, rtd = [], []
    for variant in VARIANTS:
        mutant = variant.apply(WILD)
        clm.append(sum(
            modules(WILD)[0][c.start, column(mutant[c.start])] - modules(WILD)[0][c.start, column(WILD[c.start])]
            for c in variant.changes
        ))  # fmt: skip
        total = 0.0
        for change in variant.changes:
            i = change.start
            q = modules(WILD, i)[1][i]
            total += q[column(mutant[i])] - modules(mutant)[2][i] - (q[column(WILD[i])] - modules(WILD)[2][i])
        rtd.append(total)
    scorer = Scorer(Likelihood(bundle), WILD)
    np.testing.assert_allclose(scorer.score("clm", VARIANTS), clm, atol=1e-4)
    np.testing.assert_allclose(scorer.score("wildtype", VARIANTS), clm, atol=1e-4)
    np.testing.assert_allclose(scorer.score("rtd", VARIANTS), rtd, atol=1e-4)
    assert methods_of(scorer.likelihood) == ["masked", "mutant", "pll", "pll_fast", "clm", "rtd"]


def test_density_ratio_of_an_ideal_detector_is_the_true_likelihood() -> None:
    """Electric's identity: with q and the best detector of its draws, log q - logit is log p, up to a constant."""
    random = np.random.default_rng(0)
    p, q, rate = random.dirichlet(np.ones(20)), random.dirichlet(np.ones(20)), 0.15
    detected = rate * q / (rate * q + (1 - rate) * p)  # P(replaced | letter) where a lucky draw counts as replaced
    ratio = np.log(q) - np.log(detected / (1 - detected))
    np.testing.assert_allclose(ratio - ratio[0], np.log(p) - np.log(p[0]), atol=1e-12)
    counted = rate * q * (1 - p) / (rate * q * (1 - p) + (1 - rate + rate * q) * p)  # as METRO counts: it was original
    left_out = np.log(q) - np.log(counted / (1 - counted)) - np.log(p)
    np.testing.assert_allclose(left_out, np.log((1 - rate + rate * q) / (1 - p)) - np.log(rate), atol=1e-12)


def test_a_table_holds_all_singles_and_is_filled_as_far_as_needed(folder: Path) -> None:
    read: list[int] = []
    scorer = Scorer(Likelihood(biometro.load(folder), say=read.append), "MKXAY")
    variants = singles("MKXAY", [1, 4])
    few = scorer.score("masked", variants)
    assert sum(read) == 2 * 5 == scorer.cost("masked", variants)
    table = scorer.table("masked")
    assert sum(read) == 4 * 5 and table.shape == (5, 20)
    assert np.isnan(table[2]).all() and table[0, column("M")] == 0
    again = [table[v.changes[0].start, column(v.changes[0].letters)] for v in variants]
    np.testing.assert_array_equal(few, again)
    with pytest.raises(UserError, match="no table"):
        scorer.table("mutant")


@pytest.mark.parametrize("method", ["masked", "mutant", "pll", "pll_fast", "wildtype", "rtd", "clm"])
def test_cost_is_what_is_read(method: str) -> None:
    read: list[int] = []
    scorer = Scorer(Likelihood(metro_bundle(), say=read.append), WILD)
    scorer.score(method, VARIANTS)
    assert sum(read) == scorer.cost(method, VARIANTS)


@pytest.mark.parametrize("method", ["mutant", "pll", "pll_fast", "rtd"])
def test_sequences_are_made_in_blocks(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """What is asked at once is bounded, however many variants there are, and answers stay the same."""
    likelihood = Likelihood(metro_bundle())
    whole = Scorer(likelihood, WILD).score(method, VARIANTS)
    monkeypatch.setattr("biometro.inference.variants._BLOCK", 2 * len(WILD))
    asked: list[int] = []
    for name in ("seen", "masked", "detected"):
        answer = getattr(likelihood, name)
        monkeypatch.setattr(
            likelihood, name, lambda some, *rest, answer=answer: asked.append(len(some)) or answer(some, *rest)
        )
    np.testing.assert_allclose(
        Scorer(likelihood, WILD).score(method, [*VARIANTS, *VARIANTS]), [*whole, *whole], atol=1e-5
    )
    assert max(asked) == 2 and len(asked) > 2


def test_the_ratio_needs_the_auxiliary() -> None:
    likelihood = Likelihood(metro_bundle(), part="main")
    assert "rtd" not in methods_of(likelihood)
    with pytest.raises(UserError, match="part is main; leave part out"):
        Scorer(likelihood, WILD).score("rtd", VARIANTS)


def test_agreement_is_spearman_with_the_exact_method_within_its_budget(folder: Path) -> None:
    scorer = Scorer(Likelihood(biometro.load(folder)), WILD)
    variants = singles(WILD)
    approximate, exact = scorer.score("wildtype", variants), scorer.score("masked", variants)
    agreed = scorer.agreement("wildtype", variants, approximate, 10**9)
    assert agreed == (pytest.approx(spearmanr(approximate, exact).statistic), len(variants))
    read: list[int] = []
    fresh = Scorer(Likelihood(biometro.load(folder), say=read.append), WILD)
    some = fresh.agreement("wildtype", variants, approximate, 18 * 10)
    assert some is not None and 10 <= some[1] < len(variants) and sum(read) <= 18 * 10
    assert scorer.agreement("masked", variants, exact, 10**9) is None
    assert scorer.agreement("wildtype", variants[:5], approximate[:5], 10**9) is None
    assert scorer.agreement("wildtype", variants, approximate, None) == agreed
    changed = [*variants[:20], parse("A4del", WILD)]  # of which the exact method cannot score the last
    assert scorer.agreement("wildtype", changed, np.arange(21.0), None) is None


def test_rank_correlation_is_over_what_both_know() -> None:
    a, b = np.array([1.0, np.nan, 3.0, 2.0, 5.0]), np.array([2.0, 1.0, 5.0, np.nan, 4.0])
    assert rank_correlation(a, b) == (pytest.approx(spearmanr([1, 3, 5], [2, 5, 4]).statistic), 3)
    assert rank_correlation(a[:3], b[:3]) is None and rank_correlation(np.ones(5), np.arange(5.0)) is None


def test_average_of_ranks() -> None:
    scores = [np.array([3.0, 1.0, 2.0, 2.0]), np.array([-1.0, -2.0, -3.0, 5.0])]
    expected = (rankdata(scores[0]) + rankdata(scores[1])) / 2 / 4
    np.testing.assert_allclose(average(scores), expected)


def test_what_cannot_be_scored_names_the_variant(folder: Path) -> None:
    scorer = Scorer(Likelihood(biometro.load(folder)), "MKXAY")
    with pytest.raises(UserError, match=r"file\.csv, line 7: K2del: masked scores substitutions only; pll"):
        scorer.score("masked", [parse("K2del", "MKXAY", where="file.csv, line 7")])
    with pytest.raises(UserError, match="needs a detector"):
        scorer.score("rtd", [parse("K2A", "MKXAY")])
    with pytest.raises(UserError, match="use wildtype"):
        scorer.score("clm", [parse("K2A", "MKXAY")])
    with pytest.raises(UserError, match="no method 'maskd'"):
        scorer.score("maskd", [])
    assert np.isfinite(scorer.score("pll", [parse("K2del", "MKXAY")])).all()  # an X is read, and not counted
    assert set(METHODS) >= set(methods_of(scorer.likelihood))
