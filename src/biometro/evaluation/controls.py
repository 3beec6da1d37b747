"""Controls of binding: what a model must beat to have learnt anything about two molecules that meet.

    train pairs ─▶ control ─▶ predictions of the test pairs ─▶ figures beside the model's

    one partner alone      its mean in train; of a new one, a ridge regression of ECFP4 or k-mers
    nearest of one kind    values of its five nearest in train with the same partner
    both, regressed        gradient boosting of ECFP4 and k-mers
    shuffled partners      the same, after the partners of the training pairs were dealt anew

A model that one partner's mean keeps up with has learnt which targets or molecules are sticky; one that a neighbour
keeps up with looks things up; one that shuffled partners keep up with has learnt nothing of binding. Kinds other than
proteins and molecules have the same controls by their own likeness and k-mers.

Shapes: N training pairs, M test pairs, A and B distinct sequences, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from biometro.alphabet import SequenceKind
from biometro.data.fingerprints import fingerprints
from biometro.data.likeness import likeness_of
from biometro.data.mmseqs import installed
from biometro.data.pairs import Pairs
from biometro.evaluation.baselines import NEIGHBOURS, KmerBaseline
from biometro.evaluation.fingerprint_baselines import FingerprintBaseline
from biometro.evaluation.retrieval import cosines, kmers

Kind = Literal["affinity", "classes"]
Control = Callable[[Pairs, Pairs, Kind, int], np.ndarray]
"""Training pairs, test pairs, what is predicted, seed -> predictions (M,) float64."""

MOST_PAIRS = 50_000
"""Training pairs that boosting is fitted to; of more, so many are drawn."""
_COMPONENTS = 64  # of each partner's features
_TREES = 300
_MANY = 20_000  # pairs
_MOST_HITS = 1_000  # of a sequence in train
_LEAST_DISTANCE = 0.05  # as in `baselines.NearestNeighbour`
_NAMES = {"protein": "protein", "antibody": "antibody", "tcr": "receptor", "molecule": "ligand"}
SHUFFLED = "shuffled partners"


def controls(pairs: Pairs) -> dict[str, Control]:
    """The controls of pairs of these kinds, by name.

    `ligand only`, `protein only`, `nearest ligand`, `nearest protein`, `ECFP4 + k-mers` and `shuffled partners`; of two
    sequences of one kind, `first` and `second` stand for the kinds.
    """
    names = [_NAMES.get(kind, kind) for kind in (pairs.kind_a, pairs.kind_b)]
    if names[0] == names[1]:
        names = ["first", "second"]
    both = " + ".join(sorted({"ECFP4" if kind == "molecule" else "k-mers" for kind in (pairs.kind_a, pairs.kind_b)}))
    return {
        f"{names[1]} only": lambda train, test, kind, seed: _alone(train, test, kind, seed, first=False),
        f"{names[0]} only": lambda train, test, kind, seed: _alone(train, test, kind, seed, first=True),
        f"nearest {names[1]}": lambda train, test, kind, seed: _nearest(train, test, kind, first=False),
        f"nearest {names[0]}": lambda train, test, kind, seed: _nearest(train, test, kind, first=True),
        both: _boosted,
        SHUFFLED: lambda train, test, kind, seed: _boosted(shuffled(train, seed), test, kind, seed),
    }


def run_controls(train: Pairs, test: Pairs, kind: Kind, seed: int = 0) -> dict[str, np.ndarray]:
    """Predictions (M,) of all controls.

    Args:
        train, test: pairs of one list of sequences (`Pairs.take` of one set). Values that are bounds are learnt from as
            they stand.
        kind: affinity goes by values, classes by labels.
        seed: of what is drawn.

    Raises ValueError where no training pair has a value, or label.
    """
    if train.a_letters is not test.a_letters or train.b_letters is not test.b_letters:
        raise ValueError("train and test are not of one set of pairs")
    known = train.take(np.flatnonzero(np.isfinite(_truth(train, kind))))
    if not len(known):
        raise ValueError(f"no training pair has a {'value' if kind == 'affinity' else 'label'}")
    return {name: control(known, test, kind, seed) for name, control in controls(train).items()}


def shuffled(pairs: Pairs, seed: int = 0) -> Pairs:
    """The pairs with their second sequences dealt anew, values and labels where they were: of test pairs, to ask a
    trained model with."""
    return replace(pairs, b=np.random.default_rng(seed).permutation(pairs.b))


def _truth(pairs: Pairs, kind: Kind) -> np.ndarray:
    """(N,) float64, NaN unknown."""
    if kind == "affinity":
        return pairs.value.astype(np.float64)
    return np.where(pairs.label >= 0, pairs.label, np.nan)


def _alone(train: Pairs, test: Pairs, kind: Kind, seed: int, first: bool) -> np.ndarray:
    """The mean of a partner seen in train; of another, a ridge regression of such means on ECFP4 or k-mers."""
    letters, sequence = (train.a_letters, train.kind_a) if first else (train.b_letters, train.kind_b)
    at, asked = (train.a, test.a) if first else (train.b, test.b)
    mean = _means(at, _truth(train, kind), len(letters))
    seen = np.flatnonzero(np.isfinite(mean))
    new = np.setdiff1d(asked, seen)
    if len(new):
        baseline: FingerprintBaseline | KmerBaseline
        if sequence == "molecule":
            baseline = FingerprintBaseline("regression", ["value"], "linear", seed)
        else:
            baseline = KmerBaseline("regression", ["value"], seed)
        baseline.fit([letters[i] for i in seen], mean[seen, None])
        mean[new] = baseline.predict([letters[i] for i in new])[:, 0]
    return mean[asked]


def _means(at: np.ndarray, truth: np.ndarray, count: int) -> np.ndarray:
    """(count,) mean truth at each place, NaN where there is none."""
    times = np.bincount(at, minlength=count)
    total = np.bincount(at, weights=truth, minlength=count)
    return np.divide(total, times, out=np.full(count, np.nan), where=times > 0)


# Neighbours ----------------------------------------------------------------------------------------------------------


def _nearest(train: Pairs, test: Pairs, kind: Kind, first: bool) -> np.ndarray:
    """The weighted mean value of the nearest training sequences that were paired with the same partner.

    A partner that is new itself: their means over all partners. Nothing near: the mean of the partner, or of all.
    """
    from scipy.sparse import coo_array

    truth = _truth(train, kind)
    letters, sequence = (train.a_letters, train.kind_a) if first else (train.b_letters, train.kind_b)
    own, partner = (train.a, train.b) if first else (train.b, train.a)
    asked, with_ = (test.a, test.b) if first else (test.b, test.a)
    partners = len(train.b_letters if first else train.a_letters)
    shape = (len(letters), partners)
    count = coo_array((np.ones(len(own)), (own, partner)), shape=shape).tocsr()
    total = coo_array((truth, (own, partner)), shape=shape).tocsr()
    mean, mean_of_partner = _means(own, truth, len(letters)), _means(partner, truth, partners)
    mean_of_partner[np.isnan(mean_of_partner)] = truth.mean()
    known = np.flatnonzero(np.isfinite(mean))
    queries, place = np.unique(asked, return_inverse=True)
    found = mean_of_partner[with_]
    hits = _hits([letters[i] for i in queries], [letters[i] for i in known], sequence)
    paired = np.isin(with_, partner)
    rows = np.split(np.argsort(place, kind="stable"), np.cumsum(np.bincount(place, minlength=len(queries)))[:-1])
    for at_M, (target_H, similarity_H) in zip(rows, hits, strict=True):
        if not len(target_H):
            continue
        near_H, weight_H = known[target_H], 1 / (_LEAST_DISTANCE + 1 - np.minimum(similarity_H, 1))
        fresh, same = at_M[~paired[at_M]], at_M[paired[at_M]]
        if len(fresh):
            few = slice(0, NEIGHBOURS)
            found[fresh] = weight_H[few] @ mean[near_H[few]] / weight_H[few].sum()
        if len(same):
            times_HM = count[near_H][:, with_[same]].toarray()
            some_HM = (times_HM > 0) & (np.cumsum(times_HM > 0, axis=0) <= NEIGHBOURS)
            value_HM = np.divide(total[near_H][:, with_[same]].toarray(), times_HM, where=some_HM, out=times_HM * 0)
            sum_M = weight_H @ some_HM
            found[same] = np.divide(weight_H @ (value_HM * some_HM), sum_M, where=sum_M > 0, out=found[same])
    return found


def _hits(
    queries: Sequence[bytes], targets: Sequence[bytes], kind: SequenceKind
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each query its nearest targets and their similarity, best first: by the likeness of the kind, or 3-mers."""
    likeness = likeness_of(kind)
    most = min(len(targets), _MOST_HITS)
    if likeness is None or (kind in ("protein", "antibody") and not installed()):
        rows = cosines(kmers([*queries, *targets]))
        found = []
        for number in range(len(queries)):
            score = rows(np.array([number]))[0, len(queries) :]
            best = np.argsort(-score, kind="stable")[:most]
            best = best[score[best] > 0]
            found.append((best, score[best].astype(np.float64)))
        return found
    hits = likeness.search(queries, targets, most=most)
    first = np.searchsorted(hits.query, np.arange(len(queries) + 1))
    found = []
    for begin, end in zip(first[:-1].tolist(), first[1:].tolist(), strict=True):
        order = np.argsort(-hits.similarity[begin:end], kind="stable") + begin  # alignments come by bits
        found.append((hits.target[order], hits.similarity[order].astype(np.float64)))
    return found


# Both partners -------------------------------------------------------------------------------------------------------


def _boosted(train: Pairs, test: Pairs, kind: Kind, seed: int) -> np.ndarray:
    """Gradient boosting of the leading components of both partners' ECFP4 or k-mers, which trees let interact.

    Components are those of the sequences in train. scikit-learn's histograms (Ke et al. 2017, LightGBM), 300 trees.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    truth = _truth(train, kind)
    if np.ptp(truth) == 0:
        return np.full(len(test), truth[0])
    if len(train) > MOST_PAIRS:
        drawn = np.sort(np.random.default_rng(seed).choice(len(train), MOST_PAIRS, replace=False))
        train, truth = train.take(drawn), truth[drawn]
    a = _components(train.a_letters, train.kind_a, train.a, seed)
    b = _components(train.b_letters, train.kind_b, train.b, seed)
    inside, asked = (np.concatenate([a[pairs.a], b[pairs.b]], axis=1) for pairs in (train, test))
    options: dict[str, Any] = {"max_iter": _TREES, "early_stopping": False, "random_state": seed}
    with threadpool_limits(1 if len(inside) < _MANY else None):  # threads that wait for one another cost more
        if kind == "affinity":
            return np.asarray(HistGradientBoostingRegressor(**options).fit(inside, truth).predict(asked))
        model = HistGradientBoostingClassifier(**options).fit(inside, truth.astype(np.int64))
        return np.asarray(model.predict_proba(asked)[:, 1])


def _components(letters: list[bytes], kind: SequenceKind, at: np.ndarray, seed: int) -> np.ndarray:
    """(S, F) float32 of all sequences, by the leading components of those at these places."""
    from scipy.sparse import csr_array
    from sklearn.decomposition import TruncatedSVD

    if kind == "molecule":
        rows: Any = csr_array(np.unpackbits(fingerprints(letters), axis=1).astype(np.float32))
    else:
        rows = kmers(letters)
        rows = rows[:, np.unique(rows.indices)]  # of a million columns, the few thousand that something stands in
    known = np.unique(at)
    components = min(_COMPONENTS, len(known) - 1)
    if components < 1:
        return np.zeros((len(letters), 1), np.float32)
    svd = TruncatedSVD(components, random_state=seed).fit(rows[known])
    return np.asarray(svd.transform(rows), np.float32)
