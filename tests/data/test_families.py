"""The simulated families against their own truth, and the substitution model against scipy and Biopython."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest
from scipy import linalg, stats

from biometro.data import families
from biometro.data.families import RESIDUES, Family, Process, simulate

DIGEST = "56d1e321400aff6372e5c4f2eeb4d1b4a58b6d419c2db67dd92e0989d84c28c4"
FREQUENCIES = families.rate_matrix()[1]


@pytest.fixture(scope="module")
def default() -> list[Family]:
    return simulate()


def _states(family: Family) -> np.ndarray:
    """(members, L) numbers of the residues."""
    codes = np.zeros(256, dtype=np.int64)
    codes[list(RESIDUES.encode())] = range(20)
    return codes[[list(member.encode()) for member in family.members]]


def _identity(states: np.ndarray) -> np.ndarray:
    return (states[:, None] == states).mean(2)


def _distances(family: Family) -> np.ndarray:
    """(members, members) path lengths in the tree: a branch parts the leaves below it from the others."""
    number = {f"{family.name}/{member:03d}": member for member in range(len(family.members))}
    distance = np.zeros((len(number), len(number)))
    enclosing: list[list[int]] = []
    clade: list[int] = []
    for token in re.findall(r"[()]|:[0-9.]+|[^(),:;]+", family.tree):
        if token == "(":
            enclosing.append([])
        elif token == ")":
            clade = enclosing.pop()
        elif token.startswith(":"):
            below = np.isin(np.arange(len(number)), clade)
            distance += float(token[1:]) * (below[:, None] != below)
            enclosing[-1] += clade
        else:
            clade = [number[token]]
    return distance


def _apc_information(states: np.ndarray) -> np.ndarray:
    """(L, L) mutual information in nats of columns, less the average product (Dunn et al. 2008)."""
    count, length = states.shape
    marks = np.eye(20)[states].reshape(count, length * 20)
    joint = (marks.T @ marks).reshape(length, 20, length, 20) / count
    single = marks.mean(0).reshape(length, 20)
    chance = single[:, :, None, None] * single
    ratio = np.divide(joint, chance, out=np.ones_like(joint), where=joint > 0)
    information = (joint * np.log(ratio)).sum((1, 3))
    np.fill_diagonal(information, 0)
    mean = information.sum(0) / (length - 1)
    return information - np.outer(mean, mean) / mean.mean()


def _contrast(sample: list[Family]) -> tuple[float, float]:
    """Coupled pairs against the uncoupled pairs of equally fast sites, by corrected information.

    Difference of the means in nats, and probability that a coupled pair has more (area under the curve).
    """
    coupled, others = [], []
    for family in sample:
        fast = np.flatnonzero(family.rates >= families.GAMMA_RATES[4])
        information = _apc_information(_states(family)[:, fast])
        is_pair = np.zeros((len(fast), len(fast)), dtype=bool)
        is_pair[tuple(np.searchsorted(fast, family.pairs).T)] = True
        upper = np.triu(np.ones_like(is_pair), 1)
        coupled.append(information[is_pair])
        others.append(information[upper & ~is_pair])
    yes, no = np.concatenate(coupled), np.concatenate(others)
    return float(yes.mean() - no.mean()), float(stats.mannwhitneyu(yes, no).statistic / (len(yes) * len(no)))


# ---- the substitution model


def test_background_frequencies_belong_to_the_scores() -> None:
    # Joint probabilities of aligned residues sum to one up to the rounding of the scores to half bits.
    aligned = np.outer(FREQUENCIES, FREQUENCIES) * np.exp(np.log(2) / 2 * families.blosum62())
    assert FREQUENCIES.sum() == pytest.approx(1, abs=1e-12)
    assert aligned.sum() == pytest.approx(1, abs=0.05)
    assert aligned.sum(1) / FREQUENCIES == pytest.approx(1, abs=0.1)


def test_gamma_classes_are_those_of_yang() -> None:
    shape, classes = 0.6, len(families.GAMMA_RATES)
    edges = stats.gamma.ppf(np.arange(classes + 1) / classes, shape, scale=1 / shape)
    means = classes * np.diff(stats.gamma.cdf(edges, shape + 1, scale=1 / shape))
    assert np.allclose(families.GAMMA_RATES, means, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("process", "sites"),
    [(families.substitution_process(), 1), (families.coupled_process(), 2)],
    ids=["site", "pair"],
)
def test_processes_are_reversible_and_exact(process: Process, sites: int) -> None:
    flux = process.frequencies[:, None] * process.rates
    assert process.rates.sum(1) == pytest.approx(0, abs=1e-12)
    assert (process.rates - np.diag(np.diag(process.rates))).min() >= 0
    assert np.allclose(flux, flux.T, rtol=1e-9, atol=1e-18)
    assert -np.trace(flux) == pytest.approx(sites)  # one expected substitution per site and unit of time
    for time in (0.05, 1.3):
        assert np.allclose(process.transition(time), linalg.expm(process.rates * time), rtol=0, atol=1e-12)
    assert process.transition(200.0) == pytest.approx(np.tile(process.frequencies, (len(flux), 1)), abs=1e-9)


def test_rate_matrix_is_a_copy() -> None:
    families.rate_matrix()[0][:] = 0
    assert families.rate_matrix()[0].any()


def test_evolve_draws_from_the_transition_probabilities() -> None:
    process, count = families.substitution_process(), 40_000
    uniforms = np.random.default_rng(1).random((2, count // 2))
    start = np.full(uniforms.shape, RESIDUES.index("K"))
    ends = process.evolve(start, np.full(uniforms.shape, 0.7), uniforms)
    expected = count * process.transition(0.7)[RESIDUES.index("K")]
    observed = np.bincount(ends.ravel(), minlength=20)
    assert stats.chisquare(observed, expected * count / expected.sum()).pvalue > 1e-3
    edge = np.array([0.0, np.nextafter(1, 0)])  # the ends of [0, 1) are legal draws
    assert process.evolve(start[0, :2], np.ones(2), edge).tolist() == [0, 19]
    assert np.array_equal(process.evolve(start, np.zeros(uniforms.shape), uniforms), start)
    assert np.array_equal(process.evolve(start[0, :2], np.zeros(2), edge), start[0, :2])


def test_coupled_pair_is_a_potts_model_with_the_marginals_of_a_single_site() -> None:
    joint, score = families.coupled_frequencies(0.8), families.coupling_score()
    assert joint.sum(1) == pytest.approx(FREQUENCIES, abs=1e-12)
    assert np.array_equal(score, score.T)
    rest = np.log(joint) - 0.8 * score  # fields only: a sum of two one-residue terms
    assert rest - rest[:1] - rest[:, :1] + rest[0, 0] == pytest.approx(0, abs=1e-9)
    k, d, e, i, leucine, g, w = (RESIDUES.index(residue) for residue in "KDEILGW")
    odds = joint / np.outer(FREQUENCIES, FREQUENCIES)
    assert odds[k, d] > 1 > odds[k, k]
    assert odds[d, e] < 1 < odds[i, leucine]
    assert odds[k, i] < 1 < odds[g, w]
    assert odds[w, w] < 1


def test_without_coupling_the_two_sites_are_two_sites() -> None:
    rates = families.substitution_process().rates
    assert families.coupling_information(0) == pytest.approx(0, abs=1e-12)
    two_sites = np.kron(rates, np.eye(20)) + np.kron(np.eye(20), rates)
    assert np.allclose(families.coupled_process(0).rates, two_sites, rtol=1e-9, atol=1e-12)


def test_coupling_information_is_that_of_the_joint() -> None:
    joint = families.coupled_process().frequencies
    entropy = stats.entropy(FREQUENCIES)
    assert families.coupling_information() == pytest.approx(2 * entropy - stats.entropy(joint))
    assert 0.3 < families.coupling_information() < 0.7
    assert families.coupling_information(0.4) < families.coupling_information(0.8)


# ---- the data set


def test_same_seed_gives_the_same_bytes(default: list[Family]) -> None:
    text = "\n".join(member for family in default for member in family.members)
    assert hashlib.sha256(text.encode()).hexdigest() == DIGEST


def test_a_family_depends_on_its_seed_and_number_only(default: list[Family]) -> None:
    first = simulate(families=2)
    for family, again in zip(default, first, strict=False):
        assert (family.name, family.members, family.tree) == (again.name, again.members, again.tree)
        assert np.array_equal(family.rates, again.rates) and np.array_equal(family.pairs, again.pairs)
    other = simulate(seed=1, families=2)
    assert not {member for family in first for member in family.members} & {
        member for family in other for member in family.members
    }


def test_families_are_well_formed(default: list[Family]) -> None:
    assert [family.name for family in default] == [f"family-{number:03d}" for number in range(48)]
    assert len({len(family.rates) for family in default}) > 24
    for family in default:
        length = len(family.rates)
        assert 60 <= length <= 160
        assert len(family.members) == 64 and {len(member) for member in family.members} == {length}
        assert set("".join(family.members)) <= set(RESIDUES)
        assert family.rates.dtype == np.float64 and family.pairs.dtype == np.int64
        assert family.conserved.sum() == round(families.INVARIANT * length)
        assert len(np.unique(family.pairs)) == family.pairs.size > 0
        assert (family.pairs[:, 1] - family.pairs[:, 0] >= families.SEPARATION).all()
        assert np.array_equal(family.rates[family.pairs[:, 0]], family.rates[family.pairs[:, 1]])
        assert (family.rates[family.pairs] > 0.5).all()


def test_records_name_every_member(default: list[Family]) -> None:
    pairs = list(families.records(families=2, members=64))
    assert [name for name, _ in pairs[63:66]] == ["family-000/063", "family-001/000", "family-001/001"]
    assert [sequence for _, sequence in pairs] == [*default[0].members, *default[1].members]


def test_small_families_work_and_impossible_ones_are_refused() -> None:
    (pair,) = simulate(families=1, members=2)
    assert len(pair.members) == 2 and pair.tree.count(",") == 1
    with pytest.raises(ValueError, match="members"):
        simulate(members=1)
    with pytest.raises(ValueError, match="families"):
        simulate(families=0)
    with pytest.raises(ValueError, match="non-negative"):
        simulate(seed=-1)


def test_residues_are_at_equilibrium(default: list[Family]) -> None:
    counts = np.zeros((2, 20))
    for family in default:
        states = _states(family)
        counts[0] += np.bincount(states.ravel(), minlength=20)
        counts[1] += np.bincount(states[:, family.pairs].ravel(), minlength=20)
    everywhere, coupled = counts / counts.sum(1, keepdims=True)
    assert abs(everywhere - FREQUENCIES).sum() / 2 < 0.03  # total variation
    assert abs(coupled - FREQUENCIES).sum() / 2 < 0.04


def test_invariant_sites_never_vary_and_gather_in_motifs(default: list[Family]) -> None:
    neighbours, sites = 0, 0
    for family in default:
        states = _states(family)
        assert (states[:, family.conserved] == states[0, family.conserved]).all()
        neighbours += int((family.conserved[1:] & family.conserved[:-1]).sum())
        sites += int(family.conserved.sum())
    assert neighbours / sites > 2 * families.INVARIANT  # spread evenly, it would be INVARIANT


def test_fast_sites_vary_more(default: list[Family]) -> None:
    correlations = []
    for family in default:
        counts = np.apply_along_axis(np.bincount, 0, _states(family), minlength=20)
        correlations.append(stats.spearmanr(family.rates, stats.entropy(counts)).statistic)
    assert min(correlations) > 0.85


def test_members_are_as_alike_as_promised(default: list[Family]) -> None:
    above = np.triu_indices(64, 1)
    identities = np.array([_identity(_states(family))[above] for family in default])
    assert ((identities > 0.35) & (identities < 0.75)).mean() > 0.97
    assert 0.38 < identities.mean(1).min() < 0.46 and 0.6 < identities.mean(1).max() < 0.7
    assert len({member for family in default for member in family.members}) == 48 * 64


def test_the_tree_told_is_the_tree_used(default: list[Family]) -> None:
    """Identity over uncoupled sites against its expectation, the mean of sum_a f(a) P(rate x path)[a, a]."""
    process, above = families.substitution_process(), np.triu_indices(64, 1)
    same = (FREQUENCIES[:, None] * process.left * process.right.T).sum(0)
    surplus = []
    for family in default:
        distance = _distances(family)[above]
        assert len(re.findall(r"family-\d{3}/\d{3}", family.tree)) == len(family.members)
        assert 2 * 0.7 * families.YOUNGEST <= distance.min() < distance.max() <= 2 * 1.3 * families.HEIGHTS[1]
        single = np.setdiff1d(np.arange(len(family.rates)), family.pairs)
        levels, number = np.unique(family.rates[single], return_counts=True)
        decay = np.exp(distance[:, None, None] * levels[:, None] * process.eigenvalues)
        expected = (decay @ same) @ (number / len(single))
        observed = _identity(_states(family)[:, single])[above]
        surplus.append(float((observed - expected).mean()))
        assert stats.pearsonr(observed, expected).statistic > 0.4
    assert abs(np.mean(surplus)) < 0.01
    assert np.abs(surplus).max() < 0.06


def test_coupled_pairs_share_information(default: list[Family]) -> None:
    difference, area = _contrast(default)
    assert difference > 0.1
    assert area > 0.8
    control = simulate(coupling=0)
    for family, twin in zip(default, control, strict=True):
        assert np.array_equal(family.pairs, twin.pairs) and family.tree == twin.tree
    difference, area = _contrast(control)
    assert abs(difference) < 0.03
    assert 0.4 < area < 0.62


def test_pairs_of_all_families_follow_the_stationary_joint(default: list[Family]) -> None:
    joint = families.coupled_frequencies()
    observed = np.zeros((20, 20))
    for family in default:
        left, right = _states(family)[:, family.pairs].transpose(2, 0, 1)
        np.add.at(observed, (left, right), 1)
    observed /= observed.sum()
    independent = np.outer(FREQUENCIES, FREQUENCIES)
    assert abs(observed - joint).sum() / 2 < 0.12 < 0.3 < abs(observed - independent).sum() / 2
    gain = np.log(joint / independent)  # nats; its mean over the joint is the mutual information
    assert (observed * gain).sum() == pytest.approx(families.coupling_information(), rel=0.1)
